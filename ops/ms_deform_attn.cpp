// The operator's schema. Implementations: cpu/ms_deform_attn_cpu.cpp, cuda/ms_deform_attn_cuda.cu;
// gradients and shape inference: ddetr_plugin/ops/_native.py. README.md has the contract.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ddetr_plugin, m) {
  m.def(
      "ms_deform_attn_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, "
      "Tensor level_start_index, Tensor sampling_locations, Tensor attention_weights) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("cpu_capability() -> str");
  m.def("build_info() -> str");
}
