// The points of a few queries of one head, in arrays that whole vectors are read from. Included by
// kernels_impl.h, once per instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "kernels.h"
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

}  // namespace
