// The CPU backend: which kernels, how the work is cut, where it is parallel.
//
// Work is cut into (picture, head) slices, forward further by queries, backward by levels, so that
// no two tasks write the same number. Each number is summed in an order that depends on the
// arguments alone: results have the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../ms_deform_attn.h"
#include "kernels.h"

namespace ddetr {
namespace {

constexpr int64_t kQueriesPerTask = 256;
// Multiply-adds below which another thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;

const Capability& choose_capability() {
#if defined(__x86_64__)
  const char* variable = std::getenv("DDETR_CPU_CAPABILITY");
  const std::string limit = variable ? variable : "";
  check(
      limit.empty() || limit == "default" || limit == "avx2" || limit == "avx512",
      "DDETR_CPU_CAPABILITY must be default, avx2 or avx512, got ", limit);
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
  if (avx512 && (limit.empty() || limit == "avx512")) return capability_avx512;
  if (avx2 && limit != "default") return capability_avx2;
#endif
  return capability_default;
}

const Capability& capability() {
  static const Capability& chosen = choose_capability();
  return chosen;
}

template <typename T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels<float>() {
  return capability().float32;
}
template <>
const Kernels<double>& kernels<double>() {
  return capability().float64;
}

template <typename T>
struct FreeMemory {
  void operator()(T* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
template <typename T>
using Buffer = std::unique_ptr<T, FreeMemory<T>>;

template <typename T>
Buffer<T> allocate(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))));
}

// One head's rows side by side instead of all heads': neighbouring cells then share cache sets and
// pages, and rows of any length end on whole vectors. What a row of `length` has left is zero.
template <typename T>
void pack(const T* from, int64_t stride, int64_t rows, int64_t channels, T* to, int64_t length) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * length, from + r * stride, channels * sizeof(T));
    std::fill(to + r * length + channels, to + (r + 1) * length, T(0));
  }
}

template <typename T>
void unpack(const T* from, int64_t length, int64_t rows, int64_t channels, T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * stride, from + r * length, channels * sizeof(T));
  }
}

// How many (rows of) tasks make it worth waking a thread.
int64_t grain(const Sizes& n, int64_t tasks) {
  const int64_t work = n.batch * n.queries * n.heads * n.levels * n.points * 4 * n.channels;
  return std::max<int64_t>(1, kWorkPerThread * tasks / std::max<int64_t>(work, 1));
}

// Whether a slice is copied first. It has to be where rows do not end on whole vectors.
bool should_pack(const Sizes& n, int64_t padded) {
  return padded != n.channels || n.queries * n.levels * n.points >= 4 * n.tokens;
}

template <typename T>
void forward(
    const Sizes& n, const T* value, const int64_t* level_sizes, const int64_t* level_starts,
    const T* locations, const T* weights, T* output) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t padded = kernel.padded_channels(n.channels);
  const int64_t row = n.heads * n.channels;
  const int64_t slices = n.batch * n.heads;
  const int64_t slice_size = n.tokens * padded;
  const bool packed = should_pack(n, padded);

  auto pack_slice = [&](int64_t i, T* to) {
    const T* from = value + i / n.heads * n.tokens * row + i % n.heads * n.channels;
    pack(from, row, n.tokens, n.channels, to, padded);
  };
  auto run = [&](int64_t i, const T* packed_value, int64_t query_begin, int64_t query_end) {
    const int64_t b = i / n.heads, m = i % n.heads;
    Slice<T> s{};
    s.value = packed_value ? packed_value : value + b * n.tokens * row + m * n.channels;
    s.value_stride = packed_value ? padded : row;
    s.channels = n.channels, s.padded = padded;
    s.query_begin = query_begin, s.query_end = query_end;
    const int64_t points = n.levels * n.points;
    s.point_stride = n.heads * points;
    s.weights = weights + (b * n.queries * n.heads + m) * points;
    s.locations = locations + 2 * (b * n.queries * n.heads + m) * points;
    s.levels = n.levels, s.points = n.points;
    s.level_sizes = level_sizes, s.level_starts = level_starts;
    s.output = output + b * n.queries * row + m * n.channels;
    s.output_stride = row;
    kernel.forward(s);
  };

  if (packed && slices >= 2 * int64_t(torch::stable::get_num_threads())) {
    // Each thread copies a slice and works on it while the caches hold it.
    torch::stable::parallel_for(0, slices, grain(n, slices), [&](int64_t begin, int64_t end) {
      const Buffer<T> copy = allocate<T>(slice_size);
      for (int64_t i = begin; i < end; ++i) {
        pack_slice(i, copy.get());
        run(i, copy.get(), 0, n.queries);
      }
    });
    return;
  }
  Buffer<T> copies;
  if (packed) {
    copies = allocate<T>(slices * slice_size);
    torch::stable::parallel_for(0, slices, grain(n, slices), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack_slice(i, copies.get() + i * slice_size);
    });
  }
  const int64_t parts = (n.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  const int64_t tasks = slices * parts;
  torch::stable::parallel_for(0, tasks, grain(n, tasks), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / parts;
      const int64_t query = task % parts * kQueriesPerTask;
      run(i, packed ? copies.get() + i * slice_size : nullptr, query,
          std::min(query + kQueriesPerTask, n.queries));
    }
  });
}

// Without packing, grad_value must hold zeros.
template <typename T>
void backward(
    const Sizes& n, bool packed, const T* grad_output, const T* value, const int64_t* level_sizes,
    const int64_t* level_starts, const T* locations, const T* weights, T* grad_value,
    T* grad_locations, T* grad_weights) {
  const Kernels<T>& kernel = kernels<T>();
  const int64_t padded = kernel.padded_channels(n.channels);
  const int64_t row = n.heads * n.channels;
  const int64_t slices = n.batch * n.heads;
  const bool by_level = slices < 2 * int64_t(torch::stable::get_num_threads());
  const int64_t parts = by_level ? n.levels : 1;
  const int64_t tasks = slices * parts;
  torch::stable::parallel_for(0, tasks, grain(n, tasks), [&](int64_t begin, int64_t end) {
    // Of each row first the values, then the gradient: two buffers a multiple of 4096 bytes apart
    // would make loads wait for stores that only seem to be to the same place.
    Buffer<T> copy;
    if (packed) copy = allocate<T>(n.tokens * 2 * padded);
    std::vector<int64_t> starts(n.levels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / parts / n.heads, m = task / parts % n.heads;
      const int64_t first = by_level ? task % parts : 0;
      const int64_t levels = by_level ? 1 : n.levels;
      const int64_t last = first + levels - 1;
      const int64_t rows =
          level_starts[last] + level_sizes[2 * last] * level_sizes[2 * last + 1] -
          level_starts[first];
      for (int64_t l = 0; l < levels; ++l) {
        starts[l] = level_starts[first + l] - level_starts[first];
      }
      const int64_t offset = (b * n.tokens + level_starts[first]) * row + m * n.channels;
      const int64_t points = n.levels * n.points;
      const int64_t point = (b * n.queries * n.heads + m) * points + first * n.points;
      Slice<T> s{};
      if (packed) {
        pack(value + offset, row, rows, n.channels, copy.get(), 2 * padded);
      }
      s.value = packed ? copy.get() : value + offset;
      s.grad_value = packed ? copy.get() + padded : grad_value + offset;
      s.value_stride = packed ? 2 * padded : row;
      s.channels = n.channels, s.padded = padded;
      s.query_begin = 0, s.query_end = n.queries;
      s.point_stride = n.heads * points;
      s.weights = weights + point;
      s.locations = locations + 2 * point;
      s.grad_weights = grad_weights + point;
      s.grad_locations = grad_locations + 2 * point;
      s.levels = levels, s.points = n.points;
      s.level_sizes = level_sizes + 2 * first, s.level_starts = starts.data();
      s.grad_output = grad_output + b * n.queries * row + m * n.channels;
      s.output_stride = row;
      kernel.backward(s);
      if (packed) unpack(copy.get() + padded, 2 * padded, rows, n.channels, grad_value + offset, row);
    }
  });
}

void check_cpu(const Sizes& n, const Tensor& value, const Tensor& spatial_shapes) {
  check(value.is_cpu(), "value must be on the CPU");
  check(spatial_shapes.is_cpu(), "spatial_shapes must be on the CPU like value");
  check(
      value.scalar_type() == ScalarType::Float || value.scalar_type() == ScalarType::Double,
      "value must be float32 or float64 on the CPU, got ", value.scalar_type());
  check(n.tokens < (int64_t(1) << 31), "value must have less than 2^31 tokens, got ", n.tokens);
}

}  // namespace

Tensor forward_cpu(
    const Tensor& value_, const Tensor& spatial_shapes_, const Tensor& level_start_index_,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Sizes n = check_inputs(
      value_, spatial_shapes_, level_start_index_, sampling_locations, attention_weights);
  check_cpu(n, value_, spatial_shapes_);
  const Tensor value = dense(value_);
  const Tensor sizes = dense(spatial_shapes_), starts = dense(level_start_index_);
  const Tensor locations = dense(sampling_locations);
  const Tensor weights = dense(attention_weights);
  check_levels(n, const_data<int64_t>(sizes), const_data<int64_t>(starts));
  Tensor output = torch::stable::new_empty(value, {n.batch, n.queries, n.heads * n.channels});
  if (n.batch == 0 || n.queries == 0) return output;
  auto run = [&](auto zero) {
    using T = decltype(zero);
    forward<T>(
        n, const_data<T>(value), const_data<int64_t>(sizes), const_data<int64_t>(starts),
        const_data<T>(locations), const_data<T>(weights), data<T>(output));
  };
  value.scalar_type() == ScalarType::Double ? run(double()) : run(float());
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& grad_output_, const Tensor& value_, const Tensor& spatial_shapes_,
    const Tensor& level_start_index_, const Tensor& sampling_locations,
    const Tensor& attention_weights, bool /* deterministic: always */) {
  const Sizes n = check_inputs(
      value_, spatial_shapes_, level_start_index_, sampling_locations, attention_weights);
  check_cpu(n, value_, spatial_shapes_);
  check_grad_output(n, grad_output_, value_);
  const Tensor grad_output = dense(grad_output_);
  const Tensor value = dense(value_);
  const Tensor sizes = dense(spatial_shapes_), starts = dense(level_start_index_);
  const Tensor locations = dense(sampling_locations);
  const Tensor weights = dense(attention_weights);
  check_levels(n, const_data<int64_t>(sizes), const_data<int64_t>(starts));
  const bool is_double = value.scalar_type() == ScalarType::Double;
  const int64_t padded = is_double ? kernels<double>().padded_channels(n.channels)
                                   : kernels<float>().padded_channels(n.channels);
  const bool nothing = n.batch == 0 || n.queries == 0;
  const bool packed = !nothing && should_pack(n, padded);
  Tensor grad_value = packed ? torch::stable::new_empty(value, value.sizes())
                             : torch::stable::new_zeros(value, value.sizes());
  Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  if (!nothing) {
    auto run = [&](auto zero) {
      using T = decltype(zero);
      backward<T>(
          n, packed, const_data<T>(grad_output), const_data<T>(value),
          const_data<int64_t>(sizes), const_data<int64_t>(starts), const_data<T>(locations),
          const_data<T>(weights), data<T>(grad_value), data<T>(grad_locations),
          data<T>(grad_weights));
    };
    is_double ? run(double()) : run(float());
  }
  return {grad_value, grad_locations, grad_weights};
}

std::string cpu_capability() { return capability().name; }

std::string build_info() {
  std::ostringstream text;
  text << "compiler: " << __VERSION__ << "; C++ " << __cplusplus << "; torch >= "
       << (TORCH_FEATURE_VERSION >> 56) << "." << (TORCH_FEATURE_VERSION >> 48 & 255);
#if defined(DDETR_WITH_CUDA)
  text << "; CUDA kernels: yes";
#else
  text << "; CUDA kernels: no";
#endif
  return text.str();
}

}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr::forward_cpu));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&ddetr::cpu_capability));
  m.impl("build_info", TORCH_BOX(&ddetr::build_info));
}
