// What the backend takes from the CUDA runtime, and from torch about devices. The tests that run
// the kernels on a CPU put their own version in the place of this file.
#ifndef DDETR_CUDA_LAUNCH_H
#define DDETR_CUDA_LAUNCH_H

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

namespace ddetr {

constexpr int kThreads = 256;  // of every block

using Stream = cudaStream_t;
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline bool on_gpu(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

inline bool readable_by_host(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

// torch's current stream on the device of `tensor`.
inline Stream current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}

// Nothing is launched for a grid without blocks, which CUDA would refuse.
template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), dim3 grid, Stream stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  kernel<<<grid, kThreads, 0, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddetr

#endif
