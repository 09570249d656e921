// The CPU kernels, compiled once per instruction set (see kernels_*.cpp).
//
// Both directions work on blocks of a few queries of one head: first all coordinates of the block,
// W points at once and without branches, then the rows of `value` they name, W channels at once.
// No standard library here: its inline functions would be compiled for this file's instructions
// and could replace everyone else's at link time.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#if defined(DDETR_TARGET)
#define DDETR_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DDETR_BEGIN_TARGET(t) \
  DDETR_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
DDETR_BEGIN_TARGET(DDETR_TARGET)
#else
#define DDETR_BEGIN_TARGET(t) DDETR_PRAGMA(GCC target(t))
#pragma GCC push_options
DDETR_BEGIN_TARGET(DDETR_TARGET)
#endif
#endif

#include "simd.h"

namespace {

using ddetr::Points;
using ddetr::Slice;

constexpr int kCorners = 4;  // (y0, x0), (y0, x1), (y1, x0), (y1, x1)
constexpr int64_t kBlockPoints = 128;

// Arrays over the points of a block of queries. Each query's points are padded to whole vectors.
template <typename T, int W>
struct Block {
  using Index = typename Simd<T, W>::Index;
  int64_t points;   // of one query
  int64_t padded;   // of one query, a multiple of W
  int64_t queries;  // in a block

  // The level of each point of a query.
  T *width, *height;
  Index *columns, *rows, *start;

  // Per point: is any corner inside; corner weights times attention; corner rows of `value`.
  Index* inside;
  T* weight[kCorners];
  Index* row[kCorners];
  // Backward only: the pixel, and <grad_output, value> per corner.
  T *pixel_x, *pixel_y;
  T* dot[kCorners];

  // Fused only. inverse_of(points of a level). Of one query: numerators of the softmax; where in
  // its reference each point finds x. Per point: the softmax; centre and sides of its reference.
  // Backward, of one query: d loss / d pixel.
  T inverse;
  T* numerators;
  Index* reference_x;
  T *attention, *centre_x, *centre_y, *side_x, *side_y;
  T *by_pixel_x, *by_pixel_y;

  void* memory;

  explicit Block(const Points<T>& s, bool backward) {
    points = s.levels * s.points;
    padded = (points + W - 1) / W * W;
    queries = padded >= kBlockPoints ? 1 : kBlockPoints / padded;
    const int64_t n = padded * queries;
    const bool fused = s.reference;
    const int64_t softmax_size = (s.all_points + W - 1) / W * W + padded;
    const int64_t count = 5 * padded + (1 + 2 * kCorners) * n + (backward ? (2 + kCorners) * n : 0) +
        (fused ? softmax_size + 3 * padded + 5 * n : 0);
    memory = nullptr;
    if (posix_memalign(&memory, 64, count * sizeof(T))) abort();
    T* next = static_cast<T*>(memory);
    auto take = [&next](auto*& array, int64_t size) {
      array = reinterpret_cast<decltype(array + 0)>(next);
      next += size;
    };
    take(width, padded), take(height, padded);
    take(columns, padded), take(rows, padded), take(start, padded);
    take(inside, n);
    for (int c = 0; c < kCorners; ++c) take(weight[c], n), take(row[c], n);
    if (backward) {
      take(pixel_x, n), take(pixel_y, n);
      for (int c = 0; c < kCorners; ++c) take(dot[c], n);
    }
    inverse = ddetr::inverse_of<T>(int(s.points));
    if (fused) {
      take(numerators, softmax_size), take(reference_x, padded), take(attention, n);
      take(centre_x, n), take(centre_y, n), take(side_x, n), take(side_y, n);
      take(by_pixel_x, padded), take(by_pixel_y, padded);
      // What the padding reads must be numbers.
      for (int64_t i = 0; i < softmax_size; ++i) numerators[i] = 0;
      for (int64_t i = 0; i < padded; ++i) {
        reference_x[i] = i < points ? i / s.points * s.reference_size : 0;
      }
      for (int64_t i = 0; i < n; ++i) centre_x[i] = centre_y[i] = side_x[i] = side_y[i] = 0;
    }
    for (int64_t i = 0; i < padded; ++i) {
      // Padding points read a level that exists; their location is NaN.
      const int64_t level = i < points ? i / s.points : 0;
      columns[i] = s.level_sizes[2 * level + 1];
      rows[i] = s.level_sizes[2 * level];
      width[i] = columns[i];
      height[i] = rows[i];
      start[i] = s.level_starts[level];
    }
  }
  ~Block() { free(memory); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

// Asks for `bytes` at `from`, which no hardware prefetcher foresees: queries of one head are far
// apart in memory.
DDETR_INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// Asks for what `locate` reads of the queries of the next block.
template <typename T, int W>
DDETR_INLINE void prefetch_block(const Points<T>& s, const Block<T, W>& b, int64_t query) {
  for (int64_t q = query; q < query + b.queries && q < s.query_end; ++q) {
    prefetch(s.locations + q * 2 * s.point_stride, 2 * b.points * sizeof(T));
    prefetch(s.weights + q * s.point_stride, b.points * sizeof(T));
  }
}

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

// Adds up NV vectors of channels over all points of one query.
template <typename E, typename T, int W, int NV>
DDETR_INLINE void gather(
    const E* value, int64_t stride, const Block<T, W>& b, int64_t slot, E* output) {
  using Vec = typename Simd<T, W>::Vec;
  // Several sums side by side hide the latency of the multiply-adds.
  constexpr int kSums = NV <= 2 ? 4 : NV <= 4 ? 2 : 1;
  Vec sums[kSums][NV] = {};
  const int64_t begin = slot * b.padded;
  for (int64_t i = begin; i < begin + b.points; ++i) {
    if (!b.inside[i]) continue;
#pragma GCC unroll 4
    for (int c = 0; c < kCorners; ++c) {
      const E* row = value + int64_t(b.row[c][i]) * stride;
      const T weight = b.weight[c][i];
#pragma GCC unroll 4
      for (int v = 0; v + 1 < NV; v += 2) {
        Vec first, second;
        Memory<E, W>::load2(row + v * W, first, second);
        sums[c % kSums][v] += weight * first;
        sums[c % kSums][v + 1] += weight * second;
      }
      if constexpr (NV % 2) {
        sums[c % kSums][NV - 1] += weight * Memory<E, W>::load(row + (NV - 1) * W);
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) {
    for (int k = 1; k < kSums; ++k) sums[0][v] += sums[k][v];
  }
#pragma GCC unroll 4
  for (int v = 0; v + 1 < NV; v += 2) {
    Memory<E, W>::store2(output + v * W, sums[0][v], sums[0][v + 1]);
  }
  if constexpr (NV % 2) Memory<E, W>::store(output + (NV - 1) * W, sums[0][NV - 1]);
}

template <typename E, typename T, int W>
DDETR_INLINE void gather_any(
    const E* value, int64_t stride, const Block<T, W>& b, int64_t slot, int64_t padded, E* out) {
  int64_t c = 0;
  for (; c + 8 * W <= padded; c += 8 * W) gather<E, T, W, 8>(value + c, stride, b, slot, out + c);
  for (; c + 4 * W <= padded; c += 4 * W) gather<E, T, W, 4>(value + c, stride, b, slot, out + c);
  for (; c < padded; c += W) gather<E, T, W, 1>(value + c, stride, b, slot, out + c);
}

// NV is the number of vectors in a row, 0 for any.
template <typename E, int W, int NV>
void forward_slice(const Slice<E>& s) {
  using T = typename Slice<E>::T;
  const Block<T, W> b(s, false);
  const bool whole = s.channels == s.padded;
  E* padded_row = whole ? nullptr : static_cast<E*>(malloc(s.padded * sizeof(E)));
  if (!whole && !padded_row) abort();
  for (int64_t q = s.query_begin; q < s.query_end; q += b.queries) {
    const int64_t n = s.query_end - q < b.queries ? s.query_end - q : b.queries;
    prefetch_block<T, W>(s, b, q + n);
    locate_block<T, W, false>(s, b, q, n);
    if (s.sparse) prefetch_rows(s.value, s.value_stride, s.channels, b, 0);
    for (int64_t k = 0; k < n; ++k) {
      if (s.sparse && k + 1 < n) prefetch_rows(s.value, s.value_stride, s.channels, b, k + 1);
      E* output = s.output + (q + k) * s.output_stride;
      E* to = whole ? output : padded_row;
      if constexpr (NV > 0) {
        gather<E, T, W, NV>(s.value, s.value_stride, b, k, to);
      } else {
        gather_any<E, T, W>(s.value, s.value_stride, b, k, s.padded, to);
      }
      if (!whole) __builtin_memcpy(output, padded_row, s.channels * sizeof(E));
    }
  }
  free(padded_row);
}

// Asks for the rows that the points of one query read (and, in a backward pass, add to).
template <typename R, typename T, int W>
DDETR_INLINE void prefetch_rows(
    const R* rows, int64_t stride, int64_t channels, const Block<T, W>& b, int64_t slot) {
  for (int64_t i = slot * b.padded; i < slot * b.padded + b.points; ++i) {
    if (!b.inside[i]) continue;
    for (int c = 0; c < kCorners; ++c) {
      prefetch(rows + int64_t(b.row[c][i]) * stride, channels * sizeof(R));
    }
  }
}

// Adds one query's grad_output to the rows it read and multiplies it with them.
template <typename R, typename T, int W, int NV>
DDETR_INLINE void scatter(
    const Points<T>& s, const R* rows, int64_t stride, const Block<T, W>& b, int64_t slot,
    const T* grad_output) {
  using Vec = typename Simd<T, W>::Vec;
  const int64_t vectors = NV > 0 ? NV : s.padded / W;
  // W dot products become one vector of sums: W / 4 points with four corners each.
  constexpr int kPoints = W >= kCorners ? W / kCorners : 1;
  Vec grad[NV > 0 ? NV : 1];
  if constexpr (NV > 0) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) grad[v] = load<Vec>(grad_output + v * W);
  }
  const int64_t begin = slot * b.padded;
  for (int64_t i = begin; i < begin + b.padded; i += kPoints) {
    Vec sums[kCorners * kPoints];
#pragma GCC unroll 4
    for (int p = 0; p < kPoints; ++p) {
      Vec sum[kCorners] = {};
      if (b.inside[i + p]) {
        const R* value[kCorners];
        T* grad_value[kCorners];
        T weight[kCorners];
#pragma GCC unroll 4
        for (int c = 0; c < kCorners; ++c) {
          const int64_t row = b.row[c][i + p];
          value[c] = rows + row * stride;
          grad_value[c] = s.grad_value + row * s.grad_value_stride;
          weight[c] = b.weight[c][i + p];
        }
#pragma GCC unroll 8
        for (int64_t v = 0; v < vectors; ++v) {
          Vec g;
          if constexpr (NV > 0) {
            g = grad[v];
          } else {
            g = load<Vec>(grad_output + v * W);
          }
#pragma GCC unroll 4
          for (int c = 0; c < kCorners; ++c) {
            sum[c] += g * Memory<R, W>::load(value[c] + v * W);
            T* target = grad_value[c] + v * W;
            store(target, load<Vec>(target) + weight[c] * g);
          }
        }
      }
#pragma GCC unroll 4
      for (int c = 0; c < kCorners; ++c) sums[c * kPoints + p] = sum[c];
    }
    if constexpr (W >= kCorners) {
      T dots[W];
      store(dots, sum_rows<T, W>(sums));
      for (int c = 0; c < kCorners; ++c) {
        __builtin_memcpy(b.dot[c] + i, dots + c * kPoints, kPoints * sizeof(T));
      }
    } else {
      for (int c = 0; c < kCorners; ++c) {
        T sum = 0;
        for (int j = 0; j < W; ++j) sum += sums[c][j];
        b.dot[c][i] = sum;
      }
    }
  }
}

// Sums what the points of each level say about one query's reference.
template <typename T, int W>
DDETR_INLINE void differentiate_reference(
    const Points<T>& s, const Block<T, W>& b, int64_t query, int64_t slot) {
  const T* offsets = s.locations + query * 2 * s.point_stride;
  T* grad = s.grad_reference + query * s.grad_reference_stride;
  for (int64_t l = 0; l < s.levels; ++l, grad += s.reference_size) {
    T x = 0, y = 0, by_width = 0, by_height = 0;
    for (int64_t i = l * s.points; i < (l + 1) * s.points; ++i) {
      // Offsets of points outside may be no numbers.
      if (!b.inside[slot * b.padded + i]) continue;
      x += b.by_pixel_x[i];
      y += b.by_pixel_y[i];
      by_width += b.by_pixel_x[i] * offsets[2 * i];
      by_height += b.by_pixel_y[i] * offsets[2 * i + 1];
    }
    const T width = b.width[l * s.points], height = b.height[l * s.points];
    grad[0] = x * width;
    grad[1] = y * height;
    if (s.reference_size == 4) {
      grad[2] = by_width * width * T(0.5) / T(s.points);
      grad[3] = by_height * height * T(0.5) / T(s.points);
    }
  }
}

// Gradients of one query's locations and weights from its dot products; in the fused operator, of
// offsets, logits and reference. `sum` is <grad_output, output>: of all weights, the mean gradient.
template <typename T, int W>
__attribute__((noinline)) void differentiate(
    const Points<T>& s, const Block<T, W>& b, int64_t query, int64_t slot, T sum) {
  const bool fused = s.reference;
  using Vec = typename Simd<T, W>::Vec;
  using Int = typename Simd<T, W>::Int;
  const Vec zero = {};
  for (int64_t i = 0; i < b.padded; i += W) {
    const int64_t n = slot * b.padded + i;
    const int64_t left = b.points - i;
    const auto slopes = ddetr::slopes_of(
        ddetr::axis_at(load<Vec>(b.pixel_x + n), load<Int>(b.columns + i)),
        ddetr::axis_at(load<Vec>(b.pixel_y + n), load<Int>(b.rows + i)), load<Vec>(b.dot[0] + n),
        load<Vec>(b.dot[1] + n), load<Vec>(b.dot[2] + n), load<Vec>(b.dot[3] + n));
    const T* weights = s.weights + query * s.point_stride + i;
    Vec attention;
    if (fused) {
      attention = load<Vec>(b.attention + n);
    } else if (left >= W) {
      attention = load<Vec>(weights);
    } else {
      attention = load_part<Vec>(weights, left * sizeof(T), zero);
    }
    const Vec grad_weight = fused ? attention * (slopes.sample - sum) : slopes.sample;
    // A sample outside has no gradient, even where its weight is infinite.
    const Int inside = load<Int>(b.inside + n);
    Vec grad_x = inside ? slopes.by_x * attention : zero;
    Vec grad_y = inside ? slopes.by_y * attention : zero;
    if (s.grad_reference) {
      store(b.by_pixel_x + i, grad_x);
      store(b.by_pixel_y + i, grad_y);
    }
    if (!fused || s.reference_size == kBox) {
      // Pixels per unit of offset or location.
      Vec scale_x = load<Vec>(b.width + i), scale_y = load<Vec>(b.height + i);
      if (fused) {
        const T points = T(s.points);
        scale_x *= ddetr::share_of(load<Vec>(b.side_x + n), points, b.inverse) * T(0.5);
        scale_y *= ddetr::share_of(load<Vec>(b.side_y + n), points, b.inverse) * T(0.5);
      }
      // Where nothing is read, a scale that is no number must not matter.
      grad_x = inside ? grad_x * scale_x : zero;
      grad_y = inside ? grad_y * scale_y : zero;
    }
    const Vec first = shuffle<T, W, Zip<W, 0>>(grad_x, grad_y);
    const Vec second = shuffle<T, W, Zip<W, 1>>(grad_x, grad_y);
    T* grad_weights = s.grad_weights + query * s.point_stride + i;
    T* grad_locations = s.grad_locations + 2 * (query * s.point_stride + i);
    if (left >= W) {
      store(grad_weights, grad_weight);
      store(grad_locations, first);
      store(grad_locations + W, second);
    } else {
      store_part(grad_weights, left * sizeof(T), grad_weight);
      store_part(grad_locations, 2 * left * sizeof(T), first);
      store_part(grad_locations + W, (2 * left - W) * int64_t(sizeof(T)), second);
    }
  }
  if (s.grad_reference) differentiate_reference(s, b, query, slot);
}

// Any number of elements. What follows them in memory is neither read nor written.
template <typename E>
void widen(const E* from, typename Slice<E>::T* to, int64_t count) {
  using T = typename Slice<E>::T;
  constexpr int W = DDETR_VECTOR_BYTES / sizeof(T);
  int64_t i = 0;
  for (; i + W <= count; i += W) store(to + i, Memory<E, W>::load(from + i));
  if (i == count) return;
  E rest[W] = {};
  __builtin_memcpy(rest, from + i, (count - i) * sizeof(E));
  store_part(to + i, (count - i) * sizeof(T), Memory<E, W>::load(rest));
}

template <typename E>
void narrow(const typename Slice<E>::T* from, E* to, int64_t count) {
  using T = typename Slice<E>::T;
  constexpr int W = DDETR_VECTOR_BYTES / sizeof(T);
  using Vec = typename Simd<T, W>::Vec;
  int64_t i = 0;
  for (; i + W <= count; i += W) Memory<E, W>::store(to + i, load<Vec>(from + i));
  if (i == count) return;
  E rest[W];
  Memory<E, W>::store(rest, load_part<Vec>(from + i, (count - i) * sizeof(T), Vec{}));
  __builtin_memcpy(to + i, rest, (count - i) * sizeof(E));
}

// <a, b> of rows in memory.
template <typename E, int W>
DDETR_INLINE typename Slice<E>::T dot_product(const E* a, const E* b, int64_t count) {
  using Vec = typename Simd<typename Slice<E>::T, W>::Vec;
  Vec sum = {};
  int64_t i = 0;
  for (; i + W <= count; i += W) sum += Memory<E, W>::load(a + i) * Memory<E, W>::load(b + i);
  if (i < count) {
    E rest_a[W] = {}, rest_b[W] = {};
    __builtin_memcpy(rest_a, a + i, (count - i) * sizeof(E));
    __builtin_memcpy(rest_b, b + i, (count - i) * sizeof(E));
    sum += Memory<E, W>::load(rest_a) * Memory<E, W>::load(rest_b);
  }
  return fold<typename Slice<E>::T, W, Add>(sum)[0];
}

template <typename E, int W, int NV>
void backward_slice(const Slice<E>& s) {
  using T = typename Slice<E>::T;
  const Block<T, W> b(s, true);
  // Rows of grad_output that are no whole vectors of T are widened into one that is.
  const bool whole = s.channels == s.padded && sizeof(E) == sizeof(T);
  T* padded_row = whole ? nullptr : static_cast<T*>(calloc(s.padded, sizeof(T)));
  if (!whole && !padded_row) abort();
  for (int64_t q = s.query_begin; q < s.query_end; q += b.queries) {
    const int64_t n = s.query_end - q < b.queries ? s.query_end - q : b.queries;
    prefetch_block<T, W>(s, b, q + n);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = (q + k) * s.output_stride;
      prefetch(s.grad_output + row, s.channels * sizeof(E));
      if (s.reference) prefetch(s.output + row, s.channels * sizeof(E));
    }
    locate_block<T, W, true>(s, b, q, n);
    for (int64_t k = 0; k < n; ++k) {
      const E* row = s.grad_output + (q + k) * s.output_stride;
      const T* grad_output = padded_row;
      if (whole) {
        grad_output = reinterpret_cast<const T*>(row);
      } else {
        widen<E>(row, padded_row, s.channels);
      }
      if (s.sparse && k + 1 < n) {
        prefetch_rows(s.value, s.value_stride, s.channels, b, k + 1);
        prefetch_rows(s.grad_value, s.grad_value_stride, s.channels, b, k + 1);
      }
      if (s.wide_value) {
        scatter<T, T, W, NV>(s, s.wide_value, s.grad_value_stride, b, k, grad_output);
      } else {
        scatter<E, T, W, NV>(s, s.value, s.value_stride, b, k, grad_output);
      }
    }
    for (int64_t k = 0; k < n; ++k) {
      T sum = 0;
      if (s.reference) {
        const int64_t row = (q + k) * s.output_stride;
        sum = dot_product<E, W>(s.grad_output + row, s.output + row, s.channels);
      }
      differentiate<T, W>(s, b, q + k, k, sum);
    }
  }
  free(padded_row);
}

// Elements of a vector: as many as are left of them once they are widened.
template <typename E>
constexpr int kWidth = DDETR_VECTOR_BYTES / sizeof(typename Slice<E>::T);

// Rows whose last vector would be at most half full use vectors of half the size, where the
// machine has them.
template <typename E>
bool prefers_half(int64_t channels) {
  const int64_t last = channels % kWidth<E>;
  return DDETR_VECTOR_BYTES == 64 && last > 0 && last <= kWidth<E> / 2;
}

template <typename E>
int64_t padded_channels(int64_t channels) {
  const int64_t width = prefers_half<E>(channels) ? kWidth<E> / 2 : kWidth<E>;
  return (channels + width - 1) / width * width;
}

// Calls `body` with compile-time vector width and number of vectors.
template <typename E, template <typename, int, int> class Body>
void select(const Slice<E>& s) {
#if DDETR_VECTOR_BYTES == 64
  if (prefers_half<E>(s.channels)) {
    switch (s.padded / (kWidth<E> / 2)) {
      case 1: return Body<E, kWidth<E> / 2, 1>::call(s);
      case 3: return Body<E, kWidth<E> / 2, 3>::call(s);
      default: return Body<E, kWidth<E> / 2, 0>::call(s);
    }
  }
#endif
  switch (s.padded / kWidth<E>) {
    case 1: return Body<E, kWidth<E>, 1>::call(s);
    case 2: return Body<E, kWidth<E>, 2>::call(s);
    case 3: return Body<E, kWidth<E>, 3>::call(s);
    case 4: return Body<E, kWidth<E>, 4>::call(s);
    case 6: return Body<E, kWidth<E>, 6>::call(s);
    case 8: return Body<E, kWidth<E>, 8>::call(s);
    default: return Body<E, kWidth<E>, 0>::call(s);
  }
}

template <typename E, int W, int NV>
struct Forward {
  static void call(const Slice<E>& s) { forward_slice<E, W, NV>(s); }
};

template <typename E, int W, int NV>
struct Backward {
  static void call(const Slice<E>& s) { backward_slice<E, W, NV>(s); }
};

template <typename E>
constexpr ddetr::Kernels<E> kKernels = {
    padded_channels<E>, select<E, Forward>, select<E, Backward>, widen<E>, narrow<E>};

}  // namespace

#include "dropout_kernels_impl.h"

namespace ddetr {
extern const Capability DDETR_CAPABILITY = {
    DDETR_CAPABILITY_NAME, kKernels<float>, kKernels<double>, kKernels<Fp16>, kKernels<Bf16>,
    kDropoutKernels};
}  // namespace ddetr

#if defined(DDETR_TARGET)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
