// Where the points of a block lie, and how much of which cells they read. Included by kernels_impl.h,
// once per instruction set.
#pragma once

#include "block.h"

namespace {

// The softmax of one query's logits over all levels; writes what falls on the range, as whole
// vectors (of which the padding is meaningless but finite where the logits are).
template <typename T, int W>
DDETR_INLINE void softmax(const Points<T>& s, const Block<T, W>& b, int64_t query, T* to) {
  using Vec = typename Simd<T, W>::Vec;
  const T* logits = s.weights + query * s.point_stride - s.skipped;
  const Vec lowest = Vec{} - T(__builtin_inf());
  if (s.all_points <= W && s.skipped == 0) {
    const Vec logit = load_part<Vec>(logits, s.all_points * sizeof(T), lowest);
    const Vec numerator = exp_nonpositive<W>(logit - fold<T, W, Larger>(logit));
    store(to, numerator / fold<T, W, Add>(numerator));
    return;
  }
  auto logit = [&](int64_t i) {
    const int64_t left = s.all_points - i;
    return left >= W ? load<Vec>(logits + i)
                     : load_part<Vec>(logits + i, left * sizeof(T), lowest);
  };
  Vec largest = lowest;
  for (int64_t i = 0; i < s.all_points; i += W) largest = Larger::of(largest, logit(i));
  largest = fold<T, W, Larger>(largest);
  Vec sum = {};
  for (int64_t i = 0; i < s.all_points; i += W) {
    const Vec numerator = exp_nonpositive<W>(logit(i) - largest);
    store(b.numerators + i, numerator);
    sum += numerator;
  }
  sum = fold<T, W, Add>(sum);
  for (int64_t i = 0; i < b.padded; i += W) {
    store(to + i, load<Vec>(b.numerators + s.skipped + i) / sum);
  }
}

// Hands every point of one query the reference of its level.
template <typename T, int W>
DDETR_INLINE void refer(const Points<T>& s, const Block<T, W>& b, int64_t query, int64_t slot) {
  using Vec = typename Simd<T, W>::Vec;
  using Int = typename Simd<T, W>::Int;
  const T* reference = s.reference + query * s.reference_stride;
  const bool box = s.reference_size == 4;
  const int64_t n = slot * b.padded;
  const int64_t numbers = s.levels * s.reference_size;
  if (numbers <= W) {
    const Vec all = load_part<Vec>(reference, numbers * sizeof(T), Vec{});
    for (int64_t i = 0; i < b.padded; i += W) {
      const Int at = load<Int>(b.reference_x + i);
      store(b.centre_x + n + i, permute<T, W>(all, at));
      store(b.centre_y + n + i, permute<T, W>(all, at + 1));
      if (box) {
        store(b.side_x + n + i, permute<T, W>(all, at + 2));
        store(b.side_y + n + i, permute<T, W>(all, at + 3));
      }
    }
    return;
  }
  for (int64_t i = 0; i < b.points; ++i) {
    const T* at = reference + b.reference_x[i];
    b.centre_x[n + i] = at[0];
    b.centre_y[n + i] = at[1];
    if (box) {
      b.side_x[n + i] = at[2];
      b.side_y[n + i] = at[3];
    }
  }
}

// How many numbers a reference has: none in the plain operator.
enum Reference { kNone = 0, kPoint = 2, kBox = 4 };

// Pixel coordinates, corner weights and corner rows of one query; `slot` is its place in the block.
template <typename T, int W, bool Backward, Reference R>
DDETR_INLINE void locate(const Points<T>& s, const Block<T, W>& b, int64_t query, int64_t slot) {
  using Vec = typename Simd<T, W>::Vec;
  using Int = typename Simd<T, W>::Int;
  const T* locations = s.locations + query * 2 * s.point_stride;
  const T* weights = s.weights + query * s.point_stride;
  const Vec zero = {};
  const Vec nan = zero + T(__builtin_nan(""));
  for (int64_t i = 0; i < b.padded; i += W) {
    const int64_t n = slot * b.padded + i;
    const int64_t left = b.points - i;
    Vec first, second, attention;
    if (left >= W) {
      first = load<Vec>(locations + 2 * i);
      second = load<Vec>(locations + 2 * i + W);
    } else {
      first = load_part<Vec>(locations + 2 * i, 2 * left * sizeof(T), nan);
      second = load_part<Vec>(locations + 2 * i + W, (2 * left - W) * sizeof(T), nan);
    }
    if (R != kNone) {
      attention = load<Vec>(b.attention + n);
    } else if (left >= W) {
      attention = load<Vec>(weights + i);
    } else {
      attention = load_part<Vec>(weights + i, left * sizeof(T), zero);
    }
    const Vec width = load<Vec>(b.width + i), height = load<Vec>(b.height + i);
    const Int columns = load<Int>(b.columns + i), rows = load<Int>(b.rows + i);
    Vec x = shuffle<T, W, Every2nd<0>>(first, second);
    Vec y = shuffle<T, W, Every2nd<1>>(first, second);
    if constexpr (R == kNone) {
      x = ddetr::pixel_of(x, width);
      y = ddetr::pixel_of(y, height);
    } else if constexpr (R == kPoint) {
      x = ddetr::pixel_near(load<Vec>(b.centre_x + n), width, x);
      y = ddetr::pixel_near(load<Vec>(b.centre_y + n), height, y);
    } else {
      const T points = T(s.points);
      x = ddetr::pixel_in_box(
          load<Vec>(b.centre_x + n), load<Vec>(b.side_x + n), width,
          ddetr::share_of(x, points, b.inverse));
      y = ddetr::pixel_in_box(
          load<Vec>(b.centre_y + n), load<Vec>(b.side_y + n), height,
          ddetr::share_of(y, points, b.inverse));
    }
    const Int inside = ddetr::on_map(x, columns) & ddetr::on_map(y, rows);
    x = inside ? x : zero;
    y = inside ? y : zero;
    const auto corners = ddetr::corners_of(
        ddetr::axis_at(x, columns), ddetr::axis_at(y, rows), load<Int>(b.start + i), columns,
        attention);
    store(b.inside + n, inside);
    for (int c = 0; c < kCorners; ++c) {
      store(b.weight[c] + n, corners.weight[c]);
      store(b.row[c] + n, corners.row[c]);
    }
    if constexpr (Backward) {
      store(b.pixel_x + n, x);
      store(b.pixel_y + n, y);
    }
  }
}

// The same for the `count` queries of a block. Each step is a loop of its own: within a query it
// is one long chain, and the machine can only overlap those of queries that are near enough.
template <typename T, int W, bool Backward>
__attribute__((noinline)) void locate_block(
    const Points<T>& s, const Block<T, W>& b, int64_t query, int64_t count) {
  if (s.reference) {
    for (int64_t k = 0; k < count; ++k) softmax(s, b, query + k, b.attention + k * b.padded);
    for (int64_t k = 0; k < count; ++k) refer(s, b, query + k, k);
  }
  if (!s.reference) {
    for (int64_t k = 0; k < count; ++k) locate<T, W, Backward, kNone>(s, b, query + k, k);
  } else if (s.reference_size == kPoint) {
    for (int64_t k = 0; k < count; ++k) locate<T, W, Backward, kPoint>(s, b, query + k, k);
  } else {
    for (int64_t k = 0; k < count; ++k) locate<T, W, Backward, kBox>(s, b, query + k, k);
  }
}

}  // namespace
