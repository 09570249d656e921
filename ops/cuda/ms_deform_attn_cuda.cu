// The CUDA backend.
//
// One row is a (picture, query, head). A group of lanes of one warp owns a row, each lane `Vec`
// neighbouring channels at a time. Sums are float32 (float64 for float64 values) whatever the
// dtype of `value`, and coordinates are never narrower than that. Level numbers that do not fit
// `value` read nothing: they are checked on the host only where they lie there.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <tuple>

#include "../ms_deform_attn.h"

namespace ddetr {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
// Levels whose sizes travel as kernel arguments when the caller has them on the CPU.
constexpr int kHostLevels = 32;

template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

// The level numbers, in device memory or else here.
struct Levels {
  const int64_t* sizes;
  const int64_t* starts;
  int64_t host_sizes[2 * kHostLevels];
  int64_t host_starts[kHostLevels];
};

template <typename T, int Vec>
struct alignas(sizeof(T) * Vec) Pack {
  T at[Vec];
};

// Without fused multiply-add, so that all backends find the same cell.
__device__ __forceinline__ float pixel(float location, float size) {
  return __fsub_rn(__fmul_rn(location, size), 0.5f);
}
__device__ __forceinline__ double pixel(double location, double size) {
  return __dsub_rn(__dmul_rn(location, size), 0.5);
}

// The four cells around one location: (y0, x0), (y0, x1), (y1, x0), (y1, x1).
template <typename S>
struct Sample {
  int64_t row[4];  // in rows of one head, -1 outside
  S fx, fy;
};

// Returns false where the sample reads nothing: outside, or no number.
template <typename S>
__device__ __forceinline__ bool locate(
    S location_x, S location_y, int64_t height, int64_t width, int64_t start, int64_t tokens,
    Sample<S>& sample) {
  const S x = pixel(location_x, S(width)), y = pixel(location_y, S(height));
  // Comparisons that NaN fails.
  if (!(x > S(-1) && x < S(width) && y > S(-1) && y < S(height) && height > 0 && width > 0)) {
    return false;
  }
  const S floor_x = floor(x), floor_y = floor(y);
  sample.fx = x - floor_x;
  sample.fy = y - floor_y;
  const int64_t x0 = int64_t(floor_x), y0 = int64_t(floor_y);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int64_t cx = x0 + c % 2, cy = y0 + c / 2;
    const int64_t row = start + cy * width + cx;
    const bool inside =
        cx >= 0 && cx < width && cy >= 0 && cy < height && row >= 0 && row < tokens;
    sample.row[c] = inside ? row : -1;
  }
  return true;
}

template <typename S>
__device__ __forceinline__ S corner_weight(const Sample<S>& s, int c) {
  return (c % 2 ? s.fx : S(1) - s.fx) * (c / 2 ? s.fy : S(1) - s.fy);
}

// `lanes` lanes to a row, a power of two up to the warp's size.
template <typename T, int Vec>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    Sizes n, Levels levels, int lanes, const T* __restrict__ value,
    const typename SumOf<T>::type* __restrict__ locations,
    const typename SumOf<T>::type* __restrict__ weights, T* __restrict__ output) {
  using S = typename SumOf<T>::type;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread / lanes;
  if (row >= n.batch * n.queries * n.heads) return;
  const int64_t head = row % n.heads;
  const int64_t picture = row / n.heads / n.queries;
  const int64_t stride = n.heads * n.channels;
  const int64_t* sizes = levels.sizes ? levels.sizes : levels.host_sizes;
  const int64_t* starts = levels.starts ? levels.starts : levels.host_starts;
  value += picture * n.tokens * stride + head * n.channels;
  const int64_t points = n.levels * n.points;
  locations += 2 * row * points;
  weights += row * points;
  for (int64_t channel = thread % lanes * Vec; channel < n.channels; channel += lanes * Vec) {
    S sum[Vec] = {};
    for (int64_t l = 0, i = 0; l < n.levels; ++l) {
      const int64_t height = sizes[2 * l], width = sizes[2 * l + 1], start = starts[l];
      for (int64_t p = 0; p < n.points; ++p, ++i) {
        Sample<S> sample;
        if (!locate(locations[2 * i], locations[2 * i + 1], height, width, start, n.tokens,
                    sample)) {
          continue;
        }
        const S attention = weights[i];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (sample.row[c] < 0) continue;
          const S weight = attention * corner_weight(sample, c);
          const auto cell = *reinterpret_cast<const Pack<T, Vec>*>(
              value + sample.row[c] * stride + channel);
#pragma unroll
          for (int v = 0; v < Vec; ++v) sum[v] += weight * static_cast<S>(cell.at[v]);
        }
      }
    }
    Pack<T, Vec> result;
#pragma unroll
    for (int v = 0; v < Vec; ++v) result.at[v] = static_cast<T>(sum[v]);
    *reinterpret_cast<Pack<T, Vec>*>(output + row * n.channels + channel) = result;
  }
}

template <typename S, int Vec>
__device__ __forceinline__ void add_to(S* target, const S (&addend)[Vec]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool at_once = Vec == 4 && sizeof(S) == 4;
#else
  constexpr bool at_once = false;
#endif
  if constexpr (at_once) {
    atomicAdd(
        reinterpret_cast<float4*>(target),
        make_float4(addend[0], addend[1], addend[2], addend[3]));
  } else {
#pragma unroll
    for (int v = 0; v < Vec; ++v) atomicAdd(target + v, addend[v]);
  }
}

// grad_value is float32 (float64) and holds zeros. All lanes of a warp stay to the end: they meet
// in the shuffles.
template <typename T, int Vec>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    Sizes n, Levels levels, int lanes, const T* __restrict__ grad_output,
    const T* __restrict__ value, const typename SumOf<T>::type* __restrict__ locations,
    const typename SumOf<T>::type* __restrict__ weights,
    typename SumOf<T>::type* __restrict__ grad_value,
    typename SumOf<T>::type* __restrict__ grad_locations,
    typename SumOf<T>::type* __restrict__ grad_weights) {
  using S = typename SumOf<T>::type;
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = thread / lanes;
  const bool active = row < n.batch * n.queries * n.heads;
  const int lane = int(thread % lanes);
  const int64_t head = active ? row % n.heads : 0;
  const int64_t picture = active ? row / n.heads / n.queries : 0;
  const int64_t stride = n.heads * n.channels;
  const int64_t* sizes = levels.sizes ? levels.sizes : levels.host_sizes;
  const int64_t* starts = levels.starts ? levels.starts : levels.host_starts;
  const int64_t base = picture * n.tokens * stride + head * n.channels;
  const int64_t points = n.levels * n.points;
  const int64_t first_point = active ? row * points : 0;
  for (int64_t l = 0, i = first_point; l < n.levels; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1], start = starts[l];
    for (int64_t p = 0; p < n.points; ++p, ++i) {
      Sample<S> s;
      S by_x = 0, by_y = 0, by_weight = 0;
      if (active && locate(locations[2 * i], locations[2 * i + 1], height, width, start, n.tokens,
                           s)) {
        const S attention = weights[i];
        S dot[4] = {};
        for (int64_t channel = lane * Vec; channel < n.channels; channel += lanes * Vec) {
          const auto grad = *reinterpret_cast<const Pack<T, Vec>*>(
              grad_output + row * n.channels + channel);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (s.row[c] < 0) continue;
            const int64_t offset = base + s.row[c] * stride + channel;
            const auto cell = *reinterpret_cast<const Pack<T, Vec>*>(value + offset);
            const S weight = attention * corner_weight(s, c);
            S addend[Vec];
#pragma unroll
            for (int v = 0; v < Vec; ++v) {
              const S g = static_cast<S>(grad.at[v]);
              dot[c] += g * static_cast<S>(cell.at[v]);
              addend[v] = weight * g;
            }
            add_to<S, Vec>(grad_value + offset, addend);
          }
        }
        const S gx = S(1) - s.fx, gy = S(1) - s.fy;
        by_x = attention * S(width) * (gy * (dot[1] - dot[0]) + s.fy * (dot[3] - dot[2]));
        by_y = attention * S(height) * (gx * (dot[2] - dot[0]) + s.fx * (dot[3] - dot[1]));
        by_weight = gy * (gx * dot[0] + s.fx * dot[1]) + s.fy * (gx * dot[2] + s.fx * dot[3]);
      }
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        by_x += __shfl_xor_sync(0xffffffffu, by_x, distance);
        by_y += __shfl_xor_sync(0xffffffffu, by_y, distance);
        by_weight += __shfl_xor_sync(0xffffffffu, by_weight, distance);
      }
      if (active && lane == 0) {
        grad_locations[2 * i] = by_x;
        grad_locations[2 * i + 1] = by_y;
        grad_weights[i] = by_weight;
      }
    }
  }
}

// Calls `body` with a value of the element type of `value` and the vector length that fits.
template <typename Body>
void dispatch(ScalarType dtype, bool vectors, Body body) {
  auto with = [&](auto zero) {
    if (vectors) {
      body(zero, std::integral_constant<int, 4>());
    } else {
      body(zero, std::integral_constant<int, 1>());
    }
  };
  switch (dtype) {
    case ScalarType::Float: return with(float());
    case ScalarType::Double: return with(double());
    case ScalarType::Half: return with(torch::headeronly::Half());
    default: return with(torch::headeronly::BFloat16());
  }
}

Levels read_levels(const Sizes& n, const Tensor& sizes, const Tensor& starts) {
  Levels levels{};
  if (!sizes.is_cpu()) {
    levels.sizes = const_data<int64_t>(sizes);
    levels.starts = const_data<int64_t>(starts);
    return levels;
  }
  check(
      n.levels <= kHostLevels, "spatial_shapes on the CPU may have at most ", kHostLevels,
      " levels with a value on a GPU, got ", n.levels, "; move it to the device of value");
  check_levels(n, const_data<int64_t>(sizes), const_data<int64_t>(starts));
  std::copy_n(const_data<int64_t>(sizes), 2 * n.levels, levels.host_sizes);
  std::copy_n(const_data<int64_t>(starts), n.levels, levels.host_starts);
  return levels;
}

bool aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (4 * tensor.element_size()) == 0;
}

int lanes_per_row(const Sizes& n, int vec) {
  int lanes = 1;
  while (lanes < kWarp && lanes * vec < n.channels) lanes *= 2;
  return lanes;
}

unsigned blocks_for(const Sizes& n, int lanes) {
  const int64_t threads = n.batch * n.queries * n.heads * lanes;
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  check(blocks <= INT_MAX, "sampling_locations has more queries than one launch can take");
  return unsigned(blocks);
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace

Tensor forward_cuda(
    const Tensor& value_, const Tensor& spatial_shapes_, const Tensor& level_start_index_,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Sizes n = check_inputs(
      value_, spatial_shapes_, level_start_index_, sampling_locations, attention_weights);
  check(value_.is_cuda(), "value must be on a CUDA device");
  const torch::stable::accelerator::DeviceGuard guard(value_.get_device_index());
  const Tensor value = dense(value_);
  const Tensor sizes = dense(spatial_shapes_), starts = dense(level_start_index_);
  const Tensor locations = dense(sampling_locations), weights = dense(attention_weights);
  const Levels levels = read_levels(n, sizes, starts);
  Tensor output = torch::stable::new_empty(value, {n.batch, n.queries, n.heads * n.channels});
  if (n.batch == 0 || n.queries == 0) return output;
  const cudaStream_t stream = current_stream(value);
  dispatch(value.scalar_type(), n.channels % 4 == 0 && aligned(value), [&](auto zero, auto vec) {
    using T = decltype(zero);
    using S = typename SumOf<T>::type;
    const int lanes = lanes_per_row(n, vec);
    forward_kernel<T, decltype(vec)::value><<<blocks_for(n, lanes), kThreads, 0, stream>>>(
        n, levels, lanes, const_data<T>(value), const_data<S>(locations), const_data<S>(weights),
        data<T>(output));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward_cuda(
    const Tensor& grad_output_, const Tensor& value_, const Tensor& spatial_shapes_,
    const Tensor& level_start_index_, const Tensor& sampling_locations,
    const Tensor& attention_weights, bool deterministic) {
  const Sizes n = check_inputs(
      value_, spatial_shapes_, level_start_index_, sampling_locations, attention_weights);
  check(value_.is_cuda(), "value must be on a CUDA device");
  check(!deterministic, "CUDA has no deterministic backward");
  check_grad_output(n, grad_output_, value_);
  const torch::stable::accelerator::DeviceGuard guard(value_.get_device_index());
  const Tensor grad_output = dense(grad_output_), value = dense(value_);
  const Tensor sizes = dense(spatial_shapes_), starts = dense(level_start_index_);
  const Tensor locations = dense(sampling_locations), weights = dense(attention_weights);
  const Levels levels = read_levels(n, sizes, starts);
  const ScalarType dtype = value.scalar_type();
  // 16 bits would lose the small addends of cells that thousands of samples share.
  const ScalarType sum_dtype = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes(), sum_dtype);
  Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  if (n.batch > 0 && n.queries > 0) {
    const cudaStream_t stream = current_stream(value);
    const bool vectors = n.channels % 4 == 0 && aligned(value) && aligned(grad_output);
    dispatch(dtype, vectors, [&](auto zero, auto vec) {
      using T = decltype(zero);
      using S = typename SumOf<T>::type;
      const int lanes = lanes_per_row(n, vec);
      backward_kernel<T, decltype(vec)::value><<<blocks_for(n, lanes), kThreads, 0, stream>>>(
          n, levels, lanes, const_data<T>(grad_output), const_data<T>(value),
          const_data<S>(locations), const_data<S>(weights), data<S>(grad_value),
          data<S>(grad_locations), data<S>(grad_weights));
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (sum_dtype != dtype) grad_value = torch::stable::to(grad_value, dtype);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CUDA, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr::forward_cuda));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::backward_cuda));
}
