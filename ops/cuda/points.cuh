// Where samples come from and where their gradients go, for a row of one query and head.
#pragma once

#include "levels.cuh"

namespace ddetr {

// One row, as the lanes that own it see it.
struct Row {
  int picture, query, head;
  int lane, lanes;  // all lanes of the row

  __device__ __forceinline__ int64_t index(const Extent& n) const {
    return (int64_t(picture) * n.queries + query) * n.heads + head;
  }
};

template <typename S>
__device__ __forceinline__ S sum_over(S x, int from, int to) {
#pragma unroll
  for (int distance = from; distance < to; distance *= 2) {
    x += __shfl_xor_sync(kAllLanes, x, distance);
  }
  return x;
}

template <typename S>
struct Place {
  S x, y;  // pixel
  S attention;
};

// Where the samples of ms_deform_attn come from, and where their gradients go.
template <typename S>
struct PlainPoints {
  const S* locations;
  const S* weights;
  S* grad_locations;
  S* grad_weights;

  struct OfRow {
    int64_t first;
  };

  template <int AtOnce>
  __device__ __forceinline__ OfRow of_row(const Extent& n, const Row& row) const {
    return {row.index(n) * (n.levels * n.points)};
  }

  __device__ __forceinline__ Place<S> place(
      const Extent&, const OfRow& r, int i, int, const Level& level) const {
    const auto location = load<S, 2>(locations + 2 * (r.first + i));
    return {
        pixel_of(location.at[0], S(level.width)), pixel_of(location.at[1], S(level.height)),
        weights[r.first + i]};
  }

  // No more is needed than the slopes.
  static constexpr bool kNeedsOutput = false;

  __device__ __forceinline__ void write(
      const Extent&, const OfRow& r, int i, int, const Level& level, S attention,
      const Slopes<S>& slopes, S) const {
    Pack<S, 2> grad;
    grad.at[0] = attention * slopes.by_x * S(level.width);
    grad.at[1] = attention * slopes.by_y * S(level.height);
    *reinterpret_cast<Pack<S, 2>*>(grad_locations + 2 * (r.first + i)) = grad;
    grad_weights[r.first + i] = slopes.sample;
  }
};

// The same for ms_deform_attn_fused, with references of Size numbers, 2 or 4.
template <typename S, int Size>
struct FusedPoints {
  const S* references;
  const S* offsets;
  const S* logits;
  S* grad_locations;  // by the sampling locations in 0..1, for the references' gradient, or null
  S* grad_offsets;
  S* grad_logits;
  bool shared_references;    // one for all pictures
  S points, points_inverse;  // for share_of

  struct OfRow {
    int64_t first;
    const S* reference;
    S highest, scale;  // softmax: attention is exp(logit - highest) * scale
  };

  // Asks for AtOnce logits of a lane before the first one arrives.
  template <int AtOnce>
  __device__ __forceinline__ OfRow of_row(const Extent& n, const Row& row) const {
    const int total = n.levels * n.points;
    OfRow r;
    r.first = row.index(n) * total;
    const int64_t query =
        shared_references ? row.query : int64_t(row.picture) * n.queries + row.query;
    r.reference = references + query * (n.levels * Size);
    const S* mine = logits + r.first;
    // Of max(NaN, x) only x is left, but the sum is NaN all the same. Not infinity, which would
    // be subtracted from itself by lanes without logits.
    S highest = -kLargest<S>, weight = 0;
#pragma unroll 1
    for (int i = row.lane; i < total; i += AtOnce * row.lanes) {
      S found[AtOnce];
      const S before = highest;
#pragma unroll
      for (int k = 0; k < AtOnce; ++k) {
        found[k] = i + k * row.lanes < total ? mine[i + k * row.lanes] : S(-INFINITY);
        highest = fmax(highest, found[k]);
      }
      weight *= exponential(before - highest);
#pragma unroll
      for (int k = 0; k < AtOnce; ++k) weight += exponential(found[k] - highest);
    }
    r.highest = highest;
    for (int distance = 1; distance < row.lanes; distance *= 2) {
      r.highest = fmax(r.highest, __shfl_xor_sync(kAllLanes, r.highest, distance));
    }
    weight *= exponential(highest - r.highest);
    r.scale = reciprocal(sum_over(weight, 1, row.lanes));
    return r;
  }

  __device__ __forceinline__ Place<S> place(
      const Extent&, const OfRow& r, int i, int l, const Level& level) const {
    const auto offset = load<S, 2>(offsets + 2 * (r.first + i));
    const S attention = exponential(logits[r.first + i] - r.highest) * r.scale;
    const S width = S(level.width), height = S(level.height);
    if constexpr (Size == 2) {
      const auto centre = load<S, 2>(r.reference + 2 * l);
      return {
          pixel_near(centre.at[0], width, offset.at[0]),
          pixel_near(centre.at[1], height, offset.at[1]), attention};
    }
    const auto box = load<S, 4>(r.reference + 4 * l);
    const S share_x = share_of(offset.at[0], points, points_inverse);
    const S share_y = share_of(offset.at[1], points, points_inverse);
    return {
        pixel_in_box(box.at[0], box.at[2], width, share_x),
        pixel_in_box(box.at[1], box.at[3], height, share_y), attention};
  }

  static constexpr bool kNeedsOutput = true;

  // `mean` is <grad_output, output>: what softmax takes off every weight's own gradient.
  __device__ __forceinline__ void write(
      const Extent&, const OfRow& r, int i, int l, const Level& level, S attention,
      const Slopes<S>& slopes, S mean) const {
    Pack<S, 2> grad, located;
    grad.at[0] = attention * slopes.by_x;
    grad.at[1] = attention * slopes.by_y;
    located.at[0] = grad.at[0] * S(level.width);
    located.at[1] = grad.at[1] * S(level.height);
    if constexpr (Size == 4) {
      const S* box = r.reference + 4 * l;
#pragma unroll
      for (int axis = 0; axis < 2; ++axis) {
        // The box of a sample that reads nothing may be no number.
        const S cells = share_of(box[2 + axis], points, points_inverse) * S(0.5);
        grad.at[axis] = located.at[axis] != S(0) ? located.at[axis] * cells : S(0);
      }
    }
    *reinterpret_cast<Pack<S, 2>*>(grad_offsets + 2 * (r.first + i)) = grad;
    if (grad_locations != nullptr) {
      *reinterpret_cast<Pack<S, 2>*>(grad_locations + 2 * (r.first + i)) = located;
    }
    grad_logits[r.first + i] = attention * (slopes.sample - mean);
  }
};

}  // namespace ddetr
