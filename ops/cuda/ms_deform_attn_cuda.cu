// The CUDA backend: checks, memory and launches. The kernels are in forward.cuh, backward.cuh and
// sorted_backward.cuh.
#include "ms_deform_attn_cuda.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "backward.cuh"
#include "forward.cuh"
#include "launch.h"
#include "sort.h"
#include "sorted_backward.cuh"

namespace ddetr {
namespace {

// With fewer rows than this the GPU is not full, and the lanes of a warp share one row's samples.
constexpr int64_t kFewRows = 16384;
// So many groups of lanes then share them: of 16 samples, each group has as many as it reads in one
// turn.
constexpr int kSplit = 4;
constexpr int kMaxGrid = 65535;  // blocks along y and z

// Contiguous, and aligned for the kernels' widest loads.
Tensor packed(const Tensor& tensor) {
  const Tensor contiguous = dense(tensor);
  const auto address = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr());
  return address % 16 == 0 ? contiguous : torch::stable::clone(contiguous);
}

Extent extent_of(const Sizes& n) {
  const int64_t row_bytes = n.heads * n.channels * int64_t(sizeof(double));
  check(n.tokens <= INT_MAX / 2, "value may have at most ", INT_MAX / 2, " tokens on a GPU");
  check(row_bytes <= INT_MAX, "value may have at most ", INT_MAX / sizeof(double),
        " channels in all heads on a GPU, got ", n.heads * n.channels);
  check(n.queries <= INT_MAX / 2, "at most ", INT_MAX / 2, " queries fit a GPU");
  check(n.batch <= kMaxGrid && n.heads <= kMaxGrid, "value may have at most ", kMaxGrid,
        " pictures and heads on a GPU, got ", n.batch, " and ", n.heads);
  check(n.levels <= kMaxLevels, "spatial_shapes may have at most ", kMaxLevels,
        " levels on a GPU, got ", n.levels);
  check(n.levels * n.points < 65536, "a query may have fewer than 65536 samples per head, got ",
        n.levels * n.points);
  const auto points = uint64_t(n.points);
  return {
      int(n.batch), int(n.tokens), int(n.heads), int(n.channels), int(n.queries), int(n.levels),
      int(n.points),
      // Exact for numbers of samples below 2^16: the error, i * points, stays below 2^32.
      points == 1 ? 0u : unsigned(((uint64_t(1) << 32) + points - 1) / points)};
}

// Both tensors contiguous.
LevelTable read_table(const Sizes& n, const Tensor& sizes, const Tensor& starts) {
  LevelTable table{};
  const int64_t *size = const_data<int64_t>(sizes), *start = const_data<int64_t>(starts);
  if (!readable_by_host(sizes)) {
    table.sizes = size;
    table.starts = start;
    return table;
  }
  check_levels(n, size, start);
  for (int64_t l = 0; l < n.levels; ++l) {
    table.host[l] = {int(size[2 * l]), int(size[2 * l + 1]), int(start[l])};
  }
  return table;
}

unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  check(blocks <= INT_MAX, "the arguments are larger than one launch can take");
  return unsigned(blocks);
}

// What all launches of one call share.
struct Call {
  Extent n;
  LevelTable levels;
  Stream stream;

  bool few_rows() const { return int64_t(n.batch) * n.queries * n.heads < kFewRows; }

  dim3 grid(const Mapping& mapping) const {
    const int rows = kThreads / (mapping.lanes * mapping.split);
    int64_t blocks = blocks_for(n.queries, rows);
    if (mapping.tiles) {
      blocks = 0;
      for (int l = 0; l < n.levels; ++l) {
        const int tile_height = rows / kTileWidth;
        blocks += int64_t(tile_columns(levels.host[l])) *
            ((levels.host[l].height + tile_height - 1) / tile_height);
      }
    }
    return dim3(blocks_for(blocks, 1), n.heads, n.batch);
  }
};

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls `body` with a value of the kernels' element type for `dtype`.
template <typename Body>
void with_type(ScalarType dtype, Body body) {
  switch (dtype) {
    case ScalarType::Float: return body(float());
    case ScalarType::Double: return body(double());
    case ScalarType::Half: return body(__half());
    default: return body(__nv_bfloat16());
  }
}

// Calls `body(vec, lanes, split, mapping)` with the kernels' template arguments for these sizes.
// Rows of 32 channels, which nearly all models have, get kernels of their own.
template <typename T, typename Body>
void with_plan(const Call& call, Body body) {
  constexpr int kWide = sizeof(T) > 4 ? 1 : 16 / int(sizeof(T));
  const Extent& n = call.n;
  const bool few = call.few_rows();
  Mapping mapping{};
  // A level table in device memory leaves the number of tiles unknown.
  mapping.tiles = !few && n.queries == n.tokens && call.levels.sizes == nullptr;
  if constexpr (kWide > 1) {
    if (n.channels == 32) {
      constexpr int kLanes = 32 / kWide;
      mapping.lanes = kLanes;
      mapping.split = few ? kSplit : 1;
      if (few) return body(Constant<kWide>(), Constant<kLanes>(), Constant<kSplit>(), mapping);
      return body(Constant<kWide>(), Constant<kLanes>(), Constant<1>(), mapping);
    }
  }
  const bool wide = n.channels % kWide == 0;
  mapping.lanes = kMinLanes;
  while (mapping.lanes < kWarp && mapping.lanes * (wide ? kWide : 1) < n.channels) {
    mapping.lanes *= 2;
  }
  mapping.split = few ? std::min(kSplit, kWarp / mapping.lanes) : 1;
  if (wide) return body(Constant<kWide>(), Constant<0>(), Constant<0>(), mapping);
  if constexpr (kWide > 1) body(Constant<1>(), Constant<0>(), Constant<0>(), mapping);
}

template <typename T, typename Points>
void launch_forward(
    const Call& call, const Points& points, const Tensor& value, const Tensor& output) {
  with_plan<T>(call, [&](auto vec, auto lanes, auto split, const Mapping& mapping) {
    launch(
        forward_kernel<
            T, decltype(vec)::value, decltype(lanes)::value, decltype(split)::value, Points>,
        call.grid(mapping), call.stream, call.n, call.levels, mapping, points,
        const_data<T>(value), data<T>(output));
  });
}

// `sums` may be null, `output` of the forward is read for fused points only.
template <typename T, typename Points>
void launch_backward(
    const Call& call, const Points& points, const Tensor& grad_output, const T* output,
    const Tensor& value, typename SumOf<T>::type* sums) {
  with_plan<T>(call, [&](auto vec, auto lanes, auto split, const Mapping& mapping) {
    launch(
        backward_kernel<
            T, decltype(vec)::value, decltype(lanes)::value, decltype(split)::value, Points>,
        call.grid(mapping), call.stream, call.n, call.levels, mapping, points,
        const_data<T>(grad_output), output, const_data<T>(value), sums);
  });
}

// grad_value in an order that is always the same; picture by picture, for the memory's sake.
template <typename T, typename Points>
Tensor ordered_grad_value(
    const Call& call, const Points& points, const Tensor& grad_output, const Tensor& value) {
  using S = typename SumOf<T>::type;
  const Extent& n = call.n;
  const int64_t count = int64_t(n.queries) * n.heads * n.levels * n.points;
  const int64_t last = int64_t(n.heads) * n.tokens;
  check(
      count <= INT_MAX && last < INT_MAX,
      "the deterministic backward takes at most 2^31 samples and (head, cell) pairs a picture");
  int key_bits = 1;
  while (last >> key_bits) ++key_bits;
  const size_t scratch_bytes = sort_scratch_bytes(int(count), key_bits);
  auto words = [&](int64_t size) {
    return torch::stable::new_empty(value, {std::max<int64_t>(size, 1)}, ScalarType::Int);
  };
  const Tensor keys = words(count), sorted_keys = words(count);
  const Tensor samples = words(count), sorted_samples = words(count);
  const Tensor starts = words(last + 1);
  const Tensor places = words(count * int64_t(sizeof(Place<S>) / sizeof(int)));
  const Tensor scratch = words(int64_t(scratch_bytes + 3) / 4);
  const Tensor grad_value = torch::stable::new_empty(value, value.sizes());
  constexpr int kWide = sizeof(T) > 4 ? 1 : 16 / int(sizeof(T));
  const bool wide = n.channels % kWide == 0;
  int lanes = 1;
  while (lanes < kWarp && lanes * (wide ? kWide : 1) < n.channels) lanes *= 2;
  for (int picture = 0; picture < n.batch; ++picture) {
    launch(
        key_kernel<S, Points>, dim3(blocks_for(n.queries, kWarps), n.heads), call.stream, n,
        call.levels, points, picture, data<uint32_t>(keys), data<uint32_t>(samples),
        data<Place<S>>(places));
    sort_by_key(
        scratch.mutable_data_ptr(), scratch_bytes, data<uint32_t>(keys),
        data<uint32_t>(sorted_keys), data<uint32_t>(samples), data<uint32_t>(sorted_samples),
        int(count), key_bits, call.stream);
    launch(
        start_kernel<uint32_t>, dim3(blocks_for(last + 1, kThreads)), call.stream, n,
        const_data<uint32_t>(sorted_keys), uint32_t(count), data<uint32_t>(starts));
    auto gather = [&](auto vec) {
      launch(
          ordered_kernel<T, decltype(vec)::value>, dim3(blocks_for(last, kThreads / lanes)),
          call.stream, n, call.levels, lanes, picture, const_data<uint32_t>(starts),
          const_data<uint32_t>(sorted_samples), const_data<Place<S>>(places),
          const_data<T>(grad_output), data<T>(grad_value));
    };
    if (wide) {
      gather(Constant<kWide>());
    } else {
      gather(Constant<1>());
    }
  }
  return grad_value;
}

// All gradients; returns that of `value`, the others go where `points` says.
template <typename T, typename Points>
Tensor backward(
    const Call& call, const Points& points, const Tensor& grad_output, const T* output,
    const Tensor& value, bool deterministic) {
  using S = typename SumOf<T>::type;
  if (deterministic) {
    launch_backward<T>(call, points, grad_output, output, value, nullptr);
    return ordered_grad_value<T>(call, points, grad_output, value);
  }
  // 16 bits would lose the small addends of cells that thousands of samples share.
  const ScalarType dtype = value.scalar_type();
  const ScalarType sum_dtype = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  const Tensor sums = torch::stable::new_zeros(value, value.sizes(), sum_dtype);
  launch_backward<T>(call, points, grad_output, output, value, data<S>(sums));
  return sum_dtype == dtype ? sums : torch::stable::to(sums, dtype);
}

template <typename S>
PlainPoints<S> plain_points(const Tensor& locations, const Tensor& weights) {
  return {const_data<S>(locations), const_data<S>(weights), nullptr, nullptr};
}

template <typename S, int Size>
FusedPoints<S, Size> fused_points(
    const Extent& n, const Tensor& references, const Tensor& offsets, const Tensor& logits) {
  FusedPoints<S, Size> points{};
  points.references = const_data<S>(references);
  points.offsets = const_data<S>(offsets);
  points.logits = const_data<S>(logits);
  points.shared_references = references.size(0) == 1;
  points.points = S(n.points);
  points.points_inverse = inverse_of<S>(n.points);
  return points;
}

// Calls `body` with the size of a reference point.
template <typename Body>
void with_reference_size(const Tensor& references, Body body) {
  if (references.size(3) == 2) return body(Constant<2>());
  body(Constant<4>());
}

bool nothing_to_do(const Sizes& n) { return n.batch == 0 || n.queries == 0 || n.tokens == 0; }

Tensor zeros_like(const Tensor& tensor) {
  return torch::stable::new_zeros(tensor, tensor.sizes());
}
Tensor uninitialised_like(const Tensor& tensor) {
  return torch::stable::new_empty(tensor, tensor.sizes());
}

Call prepare(
    const Sizes& n, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index) {
  const Extent extent = extent_of(n);
  return {extent, read_table(n, spatial_shapes, level_start_index), current_stream(value)};
}

}  // namespace

Tensor forward_cuda(
    const Tensor& value_, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  const Sizes n = check_inputs(
      value_, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check(on_gpu(value_), "value must be on a CUDA device");
  const DeviceGuard guard(value_.get_device_index());
  const Tensor sizes = dense(spatial_shapes), starts = dense(level_start_index);
  const Call call = prepare(n, value_, sizes, starts);
  if (nothing_to_do(n)) {
    return torch::stable::new_zeros(value_, {n.batch, n.queries, n.heads * n.channels});
  }
  const Tensor value = packed(value_);
  const Tensor locations = packed(sampling_locations), weights = packed(attention_weights);
  const Tensor output =
      torch::stable::new_empty(value, {n.batch, n.queries, n.heads * n.channels});
  with_type(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = typename SumOf<T>::type;
    launch_forward<T>(call, plain_points<S>(locations, weights), value, output);
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward_cuda(
    const Tensor& grad_output_, const Tensor& value_, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, bool deterministic) {
  const Sizes n = check_inputs(
      value_, spatial_shapes, level_start_index, sampling_locations, attention_weights);
  check(on_gpu(value_), "value must be on a CUDA device");
  check_grad_output(n, grad_output_, value_);
  const DeviceGuard guard(value_.get_device_index());
  const Tensor sizes = dense(spatial_shapes), starts = dense(level_start_index);
  const Call call = prepare(n, value_, sizes, starts);
  if (nothing_to_do(n)) {
    return {zeros_like(value_), zeros_like(sampling_locations), zeros_like(attention_weights)};
  }
  const Tensor grad_output = packed(grad_output_), value = packed(value_);
  const Tensor locations = packed(sampling_locations), weights = packed(attention_weights);
  const Tensor grad_locations = uninitialised_like(locations);
  const Tensor grad_weights = uninitialised_like(weights);
  Tensor grad_value;
  with_type(value.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using S = typename SumOf<T>::type;
    auto points = plain_points<S>(locations, weights);
    points.grad_locations = data<S>(grad_locations);
    points.grad_weights = data<S>(grad_weights);
    grad_value = backward<T>(call, points, grad_output, nullptr, value, deterministic);
  });
  return {grad_value, grad_locations, grad_weights};
}

Tensor fused_forward_cuda(
    const Tensor& value_, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets,
    const Tensor& attention_logits) {
  const Sizes n = check_fused_inputs(
      value_, spatial_shapes, level_start_index, reference_points, sampling_offsets,
      attention_logits);
  check(on_gpu(value_), "value must be on a CUDA device");
  const DeviceGuard guard(value_.get_device_index());
  const Tensor sizes = dense(spatial_shapes), starts = dense(level_start_index);
  const Call call = prepare(n, value_, sizes, starts);
  if (nothing_to_do(n)) {
    return torch::stable::new_zeros(value_, {n.batch, n.queries, n.heads * n.channels});
  }
  const Tensor value = packed(value_), references = packed(reference_points);
  const Tensor offsets = packed(sampling_offsets), logits = packed(attention_logits);
  const Tensor output =
      torch::stable::new_empty(value, {n.batch, n.queries, n.heads * n.channels});
  with_type(value.scalar_type(), [&](auto zero) {
    with_reference_size(references, [&](auto size) {
      using T = decltype(zero);
      using S = typename SumOf<T>::type;
      const auto points =
          fused_points<S, decltype(size)::value>(call.n, references, offsets, logits);
      launch_forward<T>(call, points, value, output);
    });
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward_cuda(
    const Tensor& grad_output_, const Tensor& output_, const Tensor& value_,
    const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool reference_grad,
    bool deterministic) {
  const Sizes n = check_fused_inputs(
      value_, spatial_shapes, level_start_index, reference_points, sampling_offsets,
      attention_logits);
  check(on_gpu(value_), "value must be on a CUDA device");
  check_grad_output(n, grad_output_, value_);
  check(
      output_.dim() == 3 && shape_of(output_) == shape_of(grad_output_) &&
          output_.scalar_type() == value_.scalar_type() && output_.device() == value_.device(),
      "output must be the forward's result, like grad_output ", shape_of(grad_output_), ", got ",
      shape_of(output_));
  const DeviceGuard guard(value_.get_device_index());
  const Tensor sizes = dense(spatial_shapes), starts = dense(level_start_index);
  const Call call = prepare(n, value_, sizes, starts);
  Tensor grad_references = reference_grad ? zeros_like(reference_points)
                                          : torch::stable::new_empty(reference_points, {0});
  if (nothing_to_do(n)) {
    return {
        zeros_like(value_), zeros_like(sampling_offsets), zeros_like(attention_logits),
        grad_references};
  }
  const Tensor grad_output = packed(grad_output_), output = packed(output_);
  const Tensor value = packed(value_), references = packed(reference_points);
  const Tensor offsets = packed(sampling_offsets), logits = packed(attention_logits);
  const Tensor grad_offsets = uninitialised_like(offsets);
  const Tensor grad_logits = uninitialised_like(logits);
  Tensor grad_locations, grad_value;
  if (reference_grad) grad_locations = uninitialised_like(offsets);
  with_type(value.scalar_type(), [&](auto zero) {
    with_reference_size(references, [&](auto size) {
      using T = decltype(zero);
      using S = typename SumOf<T>::type;
      auto points = fused_points<S, decltype(size)::value>(call.n, references, offsets, logits);
      points.grad_offsets = data<S>(grad_offsets);
      points.grad_logits = data<S>(grad_logits);
      points.grad_locations = reference_grad ? data<S>(grad_locations) : nullptr;
      grad_value =
          backward<T>(call, points, grad_output, const_data<T>(output), value, deterministic);
      if (!reference_grad) return;
      const int64_t threads = references.size(0) * n.queries * n.levels;
      launch(
          reference_kernel<S, decltype(size)::value>, dim3(blocks_for(threads, kThreads)),
          call.stream, call.n, points, data<S>(grad_references));
    });
  });
  return {grad_value, grad_offsets, grad_logits, grad_references};
}

}  // namespace ddetr
