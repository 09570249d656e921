// The CUDA backend, kernels and launches, as operators on CPU tensors: ddetr_emulated_gpu::*.
#include "emulation.h"

#include <torch/csrc/stable/library.h>

#include <numeric>
#include <vector>

#include "ops/cuda/ms_deform_attn_cuda.cu"

namespace ddetr {

size_t sort_scratch_bytes(int count, int) { return size_t(count) * sizeof(int); }

void sort_by_key(
    void* scratch, size_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys,
    const uint32_t* items, uint32_t* sorted_items, int count, int key_bits, Stream) {
  if (scratch_bytes < size_t(count) * sizeof(int)) throw std::runtime_error("too little scratch");
  int* const order = static_cast<int*>(scratch);
  std::iota(order, order + count, 0);
  const uint32_t mask = key_bits < 32 ? (uint32_t(1) << key_bits) - 1 : ~uint32_t(0);
  std::stable_sort(order, order + count, [&](int a, int b) {
    return (keys[a] & mask) < (keys[b] & mask);
  });
  for (int i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_items[i] = items[order[i]];
  }
}

namespace {

// Which thread of a block goes first, and where the level numbers lie.
void configure(bool last_thread_first, bool levels_on_device) {
  emulation::last_thread_first = last_thread_first;
  emulation::levels_on_device = levels_on_device;
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY(ddetr_emulated_gpu, m) {
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
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor output, Tensor value, "
      "Tensor spatial_shapes, Tensor level_start_index, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits, bool reference_grad, "
      "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("configure(bool last_thread_first, bool levels_on_device) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_emulated_gpu, CompositeExplicitAutograd, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr::forward_cuda));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::backward_cuda));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr::fused_forward_cuda));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr::fused_backward_cuda));
  m.impl("configure", TORCH_BOX(&ddetr::configure));
}
