// The backward kernel. Included by kernels_impl.h, once per instruction set.
#pragma once

#include "locate.h"

namespace {

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

}  // namespace
