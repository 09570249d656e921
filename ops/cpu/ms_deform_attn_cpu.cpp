// The CPU backend: which kernels, how the work is cut, where it is parallel.
//
// Work is cut into (picture, head) slices, forward further by queries, backward by levels, so that
// no two tasks write the same number. Each number is summed in an order that depends on the
// arguments alone: results have the same bits for any number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "../ms_deform_attn.h"
#include "kernels.h"

namespace ddetr {
namespace {

constexpr int64_t kQueriesPerTask = 256;
// Multiply-adds below which another thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;

template <typename E>
const Kernels<E>& kernels() {
  if constexpr (std::is_same_v<E, float>) {
    return capability().float32;
  } else if constexpr (std::is_same_v<E, double>) {
    return capability().float64;
  } else if constexpr (std::is_same_v<E, Fp16>) {
    return capability().float16;
  } else {
    return capability().bfloat16;
  }
}

// Calls `body` with an element of the dtype of `value`.
template <typename Body>
void dispatch(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Float: return body(float());
    case ScalarType::Double: return body(double());
    case ScalarType::Half: return body(Fp16());
    default: return body(Bf16());
  }
}

// Where all queries sample: locations and weights, or the offsets and logits of the fused operator
// with its reference points.
template <typename T>
struct Samples {
  const int64_t* level_sizes;
  const int64_t* level_starts;
  const T* locations;
  const T* weights;
  const T* reference;
  int64_t reference_batch, reference_size;

  // Head `m` of picture `b`, `levels` levels from `first` on.
  template <typename E>
  Slice<E> slice(const Sizes& n, int64_t b, int64_t m, int64_t first, int64_t levels) const {
    const int64_t points = n.levels * n.points;
    const int64_t point = (b * n.queries * n.heads + m) * points + first * n.points;
    Slice<E> s{};
    s.channels = n.channels, s.padded = kernels<E>().padded_channels(n.channels);
    s.query_begin = 0, s.query_end = n.queries;
    s.locations = locations + 2 * point;
    s.weights = weights + point;
    s.point_stride = n.heads * points;
    s.levels = levels, s.points = n.points;
    s.level_sizes = level_sizes + 2 * first;
    s.level_starts = level_starts + first;
    if (reference) {
      s.reference_stride = n.levels * reference_size;
      const int64_t picture = reference_batch == 1 ? 0 : b;
      s.reference = reference + picture * n.queries * s.reference_stride + first * reference_size;
      s.reference_size = reference_size;
      s.all_points = points, s.skipped = first * n.points;
    }
    s.output_stride = n.heads * n.channels;
    return s;
  }
};

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
    std::fill(to + r * length + channels, to + (r + 1) * length, T{});
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

template <typename E, typename T>
void forward(const Sizes& n, const E* value, const Samples<T>& samples, E* output) {
  const Kernels<E>& kernel = kernels<E>();
  const int64_t padded = kernel.padded_channels(n.channels);
  const int64_t row = n.heads * n.channels;
  const int64_t slices = n.batch * n.heads;
  const int64_t slice_size = n.tokens * padded;
  const bool packed = should_pack(n, padded);

  auto pack_slice = [&](int64_t i, E* to) {
    const E* from = value + i / n.heads * n.tokens * row + i % n.heads * n.channels;
    pack(from, row, n.tokens, n.channels, to, padded);
  };
  auto run = [&](int64_t i, const E* packed_value, int64_t query_begin, int64_t query_end) {
    const int64_t b = i / n.heads, m = i % n.heads;
    Slice<E> s = samples.template slice<E>(n, b, m, 0, n.levels);
    s.value = packed_value ? packed_value : value + b * n.tokens * row + m * n.channels;
    s.value_stride = packed_value ? padded : row;
    s.sparse = !packed_value;
    s.query_begin = query_begin, s.query_end = query_end;
    s.output = output + b * n.queries * row + m * n.channels;
    kernel.forward(s);
  };

  if (packed && slices >= 2 * int64_t(torch::stable::get_num_threads())) {
    // Each thread copies a slice and works on it while the caches hold it.
    torch::stable::parallel_for(0, slices, grain(n, slices), [&](int64_t begin, int64_t end) {
      const Buffer<E> copy = allocate<E>(slice_size);
      for (int64_t i = begin; i < end; ++i) {
        pack_slice(i, copy.get());
        run(i, copy.get(), 0, n.queries);
      }
    });
    return;
  }
  Buffer<E> copies;
  if (packed) {
    copies = allocate<E>(slices * slice_size);
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

// What a backward pass reads besides the samples, and what it writes.
template <typename E, typename T>
struct Gradients {
  const E* grad_output;
  const E* output;  // fused only
  const E* value;
  E* grad_value;
  T* grad_locations;
  T* grad_weights;
  T* grad_reference;  // (B, M, Q, L, 2 or 4), of each head; null if not wanted
};

template <typename E, typename T>
void backward(
    const Sizes& n, bool packed, const Samples<T>& samples, const Gradients<E, T>& tensors) {
  const Kernels<E>& kernel = kernels<E>();
  const int64_t padded = kernel.padded_channels(n.channels);
  const int64_t row = n.heads * n.channels;
  const int64_t slices = n.batch * n.heads;
  const bool by_level = slices < 2 * int64_t(torch::stable::get_num_threads());
  const int64_t parts = by_level ? n.levels : 1;
  const int64_t tasks = slices * parts;
  constexpr bool narrow = !std::is_same_v<E, T>;
  if (!packed && !narrow) {
    const int64_t bytes = n.batch * n.tokens * row * sizeof(E);
    torch::stable::parallel_for(0, bytes, 1 << 18, [&](int64_t begin, int64_t end) {
      std::memset(reinterpret_cast<char*>(tensors.grad_value) + begin, 0, end - begin);
    });
  }
  torch::stable::parallel_for(0, tasks, grain(n, tasks), [&](int64_t begin, int64_t end) {
    // Where a slice is packed: of each row first the values, then the gradient. Two buffers a
    // multiple of 4096 bytes apart would make loads wait for stores that only seem to be to the
    // same place. 16-bit values that stay where they are still have gradients in T, in a buffer.
    Buffer<T> copy;
    if (packed || narrow) copy = allocate<T>(n.tokens * (packed ? 2 : 1) * padded);
    std::vector<int64_t> starts(n.levels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / parts / n.heads, m = task / parts % n.heads;
      const int64_t first = by_level ? task % parts : 0;
      const int64_t levels = by_level ? 1 : n.levels;
      const int64_t last = first + levels - 1;
      const int64_t* const level_starts = samples.level_starts;
      const int64_t rows = level_starts[last] +
          samples.level_sizes[2 * last] * samples.level_sizes[2 * last + 1] - level_starts[first];
      for (int64_t l = 0; l < levels; ++l) {
        starts[l] = level_starts[first + l] - level_starts[first];
      }
      const int64_t offset = (b * n.tokens + level_starts[first]) * row + m * n.channels;
      Slice<E> s = samples.template slice<E>(n, b, m, first, levels);
      s.level_starts = starts.data();
      if (packed) {
        for (int64_t r = 0; r < rows; ++r) {
          T* const to = copy.get() + r * 2 * padded;
          kernel.widen(tensors.value + offset + r * row, to, n.channels);
          std::fill(to + n.channels, to + 2 * padded, T(0));
        }
        s.wide_value = copy.get(), s.grad_value = copy.get() + padded;
        s.grad_value_stride = 2 * padded;
      } else {
        s.value = tensors.value + offset, s.value_stride = row;
        s.sparse = true;
        if constexpr (narrow) {
          std::fill(copy.get(), copy.get() + rows * padded, T(0));
          s.grad_value = copy.get(), s.grad_value_stride = padded;
        } else {
          s.grad_value = tensors.grad_value + offset, s.grad_value_stride = row;
        }
      }
      const int64_t point = s.weights - samples.weights;
      s.grad_weights = tensors.grad_weights + point;
      s.grad_locations = tensors.grad_locations + 2 * point;
      const int64_t out = b * n.queries * row + m * n.channels;
      s.grad_output = tensors.grad_output + out;
      if (samples.reference) s.output = const_cast<E*>(tensors.output) + out;
      if (tensors.grad_reference) {
        s.grad_reference_stride = n.levels * samples.reference_size;
        s.grad_reference = tensors.grad_reference +
            (b * n.heads + m) * n.queries * s.grad_reference_stride +
            first * samples.reference_size;
      }
      kernel.backward(s);
      if (packed || narrow) {
        for (int64_t r = 0; r < rows; ++r) {
          kernel.narrow(
              s.grad_value + r * s.grad_value_stride, tensors.grad_value + offset + r * row,
              n.channels);
        }
      }
    }
  });
}

// Sums (B, M, count) over the heads, and over the pictures if they share their reference points.
template <typename T>
void sum_heads(const Sizes& n, const T* per_head, int64_t count, bool shared, T* sums) {
  const int64_t sets = shared ? 1 : n.batch;
  const int64_t terms = shared ? n.batch * n.heads : n.heads;
  torch::stable::parallel_for(0, sets * count, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* from = per_head + i / count * terms * count + i % count;
      T sum = 0;
      for (int64_t k = 0; k < terms; ++k) sum += from[k * count];
      sums[i] = sum;
    }
  });
}

}  // namespace

namespace {

// Level tables, and what else every pass needs, in memory without gaps for as long as it runs.
struct Arguments {
  Tensor value, sizes, starts, points, weights, reference;

  template <typename T>
  Samples<T> samples() const {
    Samples<T> s{};
    s.level_sizes = const_data<int64_t>(sizes);
    s.level_starts = const_data<int64_t>(starts);
    s.locations = const_data<T>(points);
    s.weights = const_data<T>(weights);
    if (reference.defined()) {
      s.reference = const_data<T>(reference);
      s.reference_batch = reference.size(0), s.reference_size = reference.size(3);
    }
    return s;
  }
};

Arguments prepare(
    const Sizes& n, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& points, const Tensor& weights,
    const Tensor& reference) {
  check(value.is_cpu(), "value must be on the CPU");
  check(spatial_shapes.is_cpu(), "spatial_shapes must be on the CPU like value");
  check(n.tokens < (int64_t(1) << 31), "value must have less than 2^31 tokens, got ", n.tokens);
  Arguments a{dense(value), dense(spatial_shapes), dense(level_start_index), dense(points),
              dense(weights), reference.defined() ? dense(reference) : reference};
  check_levels(n, const_data<int64_t>(a.sizes), const_data<int64_t>(a.starts));
  return a;
}

Tensor run_forward(const Sizes& n, const Arguments& a) {
  Tensor output = torch::stable::new_empty(a.value, {n.batch, n.queries, n.heads * n.channels});
  if (n.batch == 0 || n.queries == 0) return output;
  dispatch(a.value.scalar_type(), [&](auto element) {
    using E = decltype(element);
    using T = typename Wide<E>::type;
    forward<E, T>(n, const_data<E>(a.value), a.samples<T>(), data<E>(output));
  });
  return output;
}

// Gradients of value, points, weights and, if wanted, the reference points.
std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(
    const Sizes& n, const Arguments& a, const Tensor& grad_output_, const Tensor& output_,
    bool reference_grad) {
  check_grad_output(n, grad_output_, a.value);
  const Tensor grad_output = dense(grad_output_);
  const Tensor output = output_.defined() ? dense(output_) : output_;
  const bool nothing = n.batch == 0 || n.queries == 0;
  Tensor grad_points = torch::stable::new_empty(a.points, a.points.sizes());
  Tensor grad_weights = torch::stable::new_empty(a.weights, a.weights.sizes());
  Tensor grad_value;
  Tensor grad_reference = reference_grad
      ? torch::stable::new_zeros(a.reference, a.reference.sizes())
      : torch::stable::new_empty(a.weights, {0});
  dispatch(a.value.scalar_type(), [&](auto element) {
    using E = decltype(element);
    using T = typename Wide<E>::type;
    if (nothing) {
      grad_value = torch::stable::new_zeros(a.value, a.value.sizes());
      return;
    }
    const bool packed = should_pack(n, kernels<E>().padded_channels(n.channels));
    grad_value = torch::stable::new_empty(a.value, a.value.sizes());
    const Samples<T> samples = a.samples<T>();
    const int64_t reference_count = n.queries * n.levels * samples.reference_size;
    Buffer<T> per_head;
    if (reference_grad) per_head = allocate<T>(n.batch * n.heads * reference_count);
    Gradients<E, T> tensors{};
    tensors.grad_output = const_data<E>(grad_output);
    tensors.output = output.defined() ? const_data<E>(output) : nullptr;
    tensors.value = const_data<E>(a.value);
    tensors.grad_value = data<E>(grad_value);
    tensors.grad_locations = data<T>(grad_points);
    tensors.grad_weights = data<T>(grad_weights);
    tensors.grad_reference = per_head.get();
    backward<E, T>(n, packed, samples, tensors);
    if (reference_grad) {
      sum_heads<T>(
          n, per_head.get(), reference_count, samples.reference_batch == 1,
          data<T>(grad_reference));
    }
  });
  return {grad_value, grad_points, grad_weights, grad_reference};
}

}  // namespace

Tensor forward_cpu(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Sizes n = check_inputs(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  return run_forward(
      n, prepare(n, value, spatial_shapes, level_start_index, sampling_locations,
                 attention_weights, Tensor()));
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, bool /* deterministic: always */) {
  const Sizes n = check_inputs(
      value, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  const auto grads = run_backward(
      n, prepare(n, value, spatial_shapes, level_start_index, sampling_locations,
                 attention_weights, Tensor()),
      grad_output, Tensor(), false);
  return {std::get<0>(grads), std::get<1>(grads), std::get<2>(grads)};
}

Tensor fused_forward_cpu(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets,
    const Tensor& attention_logits) {
  const Sizes n = check_fused_inputs(
      value, spatial_shapes, level_start_index, reference_points, sampling_offsets,
      attention_logits);
  return run_forward(
      n, prepare(n, value, spatial_shapes, level_start_index, sampling_offsets, attention_logits,
                 reference_points));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward_cpu(
    const Tensor& grad_output, const Tensor& output, const Tensor& value,
    const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets,
    const Tensor& attention_logits, bool reference_grad, bool /* deterministic: always */) {
  const Sizes n = check_fused_inputs(
      value, spatial_shapes, level_start_index, reference_points, sampling_offsets,
      attention_logits);
  check_output(n, "output", output, value);
  return run_backward(
      n, prepare(n, value, spatial_shapes, level_start_index, sampling_offsets, attention_logits,
                 reference_points),
      grad_output, output, reference_grad);
}

std::string cpu_capability() { return capability().name; }

std::string build_info() {
  std::ostringstream text;
  text << "compiler: " << __VERSION__ << "; C++ " << __cplusplus << "; torch >= "
       << (TORCH_FEATURE_VERSION >> 56) << "." << (TORCH_FEATURE_VERSION >> 48 & 255);
  return text.str();
}

}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr::forward_cpu));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::backward_cpu));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr::fused_forward_cpu));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr::fused_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_plugin, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&ddetr::cpu_capability));
  m.impl("build_info", TORCH_BOX(&ddetr::build_info));
}
