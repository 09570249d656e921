// The operator's schema. Implementations: cpu/ms_deform_attn_cpu.cpp, cuda/ms_deform_attn_cuda.cu;
// gradients and shape inference: ddetr_plugin/ops/_registration.py. README.md has the contract.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ddetr_plugin, m) {
  m.def(
      "ms_deform_attn_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights, "
      "bool deterministic) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused_forward(Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor reference_points, Tensor sampling_offsets, "
      "Tensor attention_logits) -> Tensor");
  // The last result is empty unless `reference_grad`.
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor output, Tensor value, "
      "Tensor spatial_shapes, Tensor level_start_index, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits, bool reference_grad, "
      "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  // On CPUs only; `seed` is one int64, from which the same mask follows every time.
  m.def("dropout(Tensor input, Tensor seed, float p) -> Tensor");
  m.def("dropout_add(Tensor input, Tensor residual, Tensor seed, float p) -> Tensor");
  m.def("relu_dropout(Tensor input, Tensor seed, float p) -> Tensor");
  m.def("relu_dropout_backward(Tensor grad_output, Tensor output, float p) -> Tensor");
  m.def("cpu_capability() -> str");
  m.def("build_info() -> str");
}
