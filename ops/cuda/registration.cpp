// Makes the CUDA backend known to torch. A library of its own: the CPU's loads without CUDA.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <sstream>
#include <string>

#include "ms_deform_attn_cuda.h"

namespace ddetr {
namespace {

std::string cuda_build_info() {
  std::ostringstream text;
  text << "CUDA " << CUDART_VERSION / 1000 << "." << CUDART_VERSION % 1000 / 10;
#if defined(DDETR_CUDA_ARCHITECTURES)
  text << " for " << DDETR_CUDA_ARCHITECTURES;
#endif
  return text.str();
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_FRAGMENT(ddetr_plugin, m) { m.def("cuda_build_info() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CompositeExplicitAutograd, m) {
  m.impl("cuda_build_info", TORCH_BOX(&ddetr::cuda_build_info));
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CUDA, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr::forward_cuda));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::backward_cuda));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr::fused_forward_cuda));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr::fused_backward_cuda));
}
