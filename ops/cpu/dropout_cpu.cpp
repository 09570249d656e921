// Dropout on the CPU; ddetr_plugin/ops/dropout.py is its public face.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "../ms_deform_attn.h"
#include "kernels.h"

namespace ddetr {
namespace {

// Blocks of elements below which another thread costs more than it brings.
constexpr int64_t kBlocksPerThread = (1 << 14) / kDropoutBlock;

Dropping how_to_drop(const Tensor& seed, double p) {
  check(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  check(
      seed.is_cpu() && seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
      "seed must be one int64 on the CPU");
  Dropping how;
  how.seed = static_cast<uint64_t>(*const_data<int64_t>(seed));
  how.threshold = static_cast<uint32_t>(std::min(p * 4294967296.0 + 0.5, 4294967295.0));
  // Of the probability that the threshold has, so that the mean is kept exactly.
  how.scale = static_cast<float>(1 / (1 - how.threshold / 4294967296.0));
  return how;
}

void check_input(const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  check(tensor.is_cpu(), name, " must be on the CPU");
  check(
      dtype == ScalarType::Float || dtype == ScalarType::BFloat16, name,
      " must be float32 or bfloat16, got ", dtype);
}

void check_like(const char* name, const Tensor& tensor, const Tensor& other) {
  check_input(name, tensor);
  check(
      shape_of(tensor) == shape_of(other), name, " must be ", shape_of(other), ", got ",
      shape_of(tensor));
}

// Calls `body` with ranges of elements that begin where a block begins.
template <typename Body>
void for_blocks(int64_t count, Body body) {
  const int64_t blocks = (count + kDropoutBlock - 1) / kDropoutBlock;
  torch::stable::parallel_for(0, blocks, kBlocksPerThread, [&](int64_t begin, int64_t end) {
    body(begin * kDropoutBlock, std::min(end * kDropoutBlock, count));
  });
}

template <typename E, typename R>
void run(
    void (*kernel)(const E*, const R*, R*, int64_t, int64_t, const Dropping&), const Tensor& x,
    const R* residual, const Tensor& out, const Dropping& how) {
  const E* from = const_data<E>(x);
  R* to = data<R>(out);
  for_blocks(x.numel(), [&](int64_t begin, int64_t end) {
    kernel(from, residual, to, begin, end, how);
  });
}

bool is_bfloat16(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::BFloat16; }

Tensor drop(const Tensor& input, const Tensor& seed, double p, bool relu) {
  check_input("input", input);
  const Dropping how = how_to_drop(seed, p);
  const Tensor x = dense(input);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  const DropoutKernels& k = capability().dropout;
  if (is_bfloat16(x)) {
    run<Bf16, Bf16>(relu ? k.relu_bfloat16 : k.bfloat16, x, nullptr, out, how);
  } else {
    run<float, float>(relu ? k.relu_float32 : k.float32, x, nullptr, out, how);
  }
  return out;
}

Tensor dropout(const Tensor& input, const Tensor& seed, double p) {
  return drop(input, seed, p, false);
}

Tensor relu_dropout(const Tensor& input, const Tensor& seed, double p) {
  return drop(input, seed, p, true);
}

Tensor dropout_add(
    const Tensor& input, const Tensor& residual_, const Tensor& seed, double p) {
  check_input("input", input);
  check_like("residual", residual_, input);
  check(
      is_bfloat16(input) || !is_bfloat16(residual_),
      "residual must be float32 beside a float32 input");
  const Dropping how = how_to_drop(seed, p);
  const Tensor x = dense(input), residual = dense(residual_);
  Tensor out = torch::stable::new_empty(residual, residual.sizes());
  const DropoutKernels& k = capability().dropout;
  if (is_bfloat16(residual)) {
    run<Bf16, Bf16>(k.bfloat16, x, const_data<Bf16>(residual), out, how);
  } else if (is_bfloat16(x)) {
    run<Bf16, float>(k.bfloat16_to_float32, x, const_data<float>(residual), out, how);
  } else {
    run<float, float>(k.float32, x, const_data<float>(residual), out, how);
  }
  return out;
}

Tensor relu_dropout_backward(const Tensor& grad_output_, const Tensor& output_, double p) {
  check_input("output", output_);
  check_like("grad_output", grad_output_, output_);
  check(
      is_bfloat16(grad_output_) == is_bfloat16(output_),
      "grad_output must have the dtype of output");
  check(p >= 0 && p < 1, "p must be in [0, 1), got ", p);
  const Tensor grad_output = dense(grad_output_), output = dense(output_);
  Tensor grad = torch::stable::new_empty(output, output.sizes());
  const float scale = static_cast<float>(1 / (1 - p));
  const DropoutKernels& k = capability().dropout;
  for_blocks(output.numel(), [&](int64_t begin, int64_t end) {
    if (is_bfloat16(output)) {
      k.relu_backward_bfloat16(
          const_data<Bf16>(grad_output), const_data<Bf16>(output), data<Bf16>(grad), begin, end,
          scale);
    } else {
      k.relu_backward_float32(
          const_data<float>(grad_output), const_data<float>(output), data<float>(grad), begin,
          end, scale);
    }
  });
  return grad;
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CPU, m) {
  m.impl("dropout", TORCH_BOX(&ddetr::dropout));
  m.impl("dropout_add", TORCH_BOX(&ddetr::dropout_add));
  m.impl("relu_dropout", TORCH_BOX(&ddetr::relu_dropout));
  m.impl("relu_dropout_backward", TORCH_BOX(&ddetr::relu_dropout_backward));
}
