// The forward kernel: rows of `value` that a block names, added up. Included by kernels_impl.h, once
// per instruction set.
#pragma once

#include "locate.h"

namespace {

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

}  // namespace
