// The deterministic gradient of `value`, from sorted samples.
#pragma once

#include "samples.cuh"

namespace ddetr {

// The gradient of `value` without atomics, so that its bits do not depend on who comes first. The
// samples of one picture are sorted by (head, cell), the cell being the upper left one that they
// read; a stable sort leaves those of one cell in the order of their indices. Each row of
// grad_value then adds up the samples of its own cell and of three neighbours, in that order.

// The sort key of samples that read nothing: after all (head, cell).
__device__ __forceinline__ uint32_t last_key(const Extent& n) {
  return uint32_t(n.heads) * uint32_t(n.tokens);
}

// One warp per (query, head).
template <typename S, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks) key_kernel(
    const __grid_constant__ Extent n, const __grid_constant__ LevelTable levels,
    const Points points, int picture, uint32_t* __restrict__ keys, uint32_t* __restrict__ samples,
    Place<S>* __restrict__ places) {
  __shared__ Level table[kMaxLevels];
  read_levels(n, levels, table);
  Row row;
  row.picture = picture, row.head = blockIdx.y;
  row.lane = threadIdx.x % kWarp, row.lanes = kWarp;
  const int64_t query = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (query >= n.queries) return;
  row.query = int(query);
  const auto mine = points.template of_row<1>(n, row);
  const int total = n.levels * n.points;
  for (int i = row.lane; i < total; i += kWarp) {
    const int l = level_of(n, i);
    const Level level = table[l];
    const Place<S> place = points.place(n, mine, i, l, level);
    const uint32_t sample = (uint32_t(row.query) * n.heads + row.head) * total + i;
    uint32_t key = last_key(n);
    if (on_map(place.x, level.width) && on_map(place.y, level.height)) {
      const int column = axis_at(place.x, level.width).low;
      const int line = axis_at(place.y, level.height).low;
      key = uint32_t(row.head) * n.tokens + level.start + line * level.width + column;
    }
    keys[sample] = key;
    samples[sample] = sample;
    places[sample] = place;
  }
}

// starts[k] is where key k and later ones begin among the sorted keys; up to the last key.
template <typename Count>
__global__ void __launch_bounds__(kThreads, kBlocks) start_kernel(
    const __grid_constant__ Extent n, const uint32_t* __restrict__ keys, Count count,
    uint32_t* __restrict__ starts) {
  const int64_t key = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (key > last_key(n)) return;
  Count low = 0, high = count;
  while (low < high) {
    const Count middle = low + (high - low) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[key] = uint32_t(low);
}

// `lanes` lanes per (cell, head) of one picture.
template <typename T, int Vec>
__global__ void __launch_bounds__(kThreads, kBlocks) ordered_kernel(
    const __grid_constant__ Extent n, const __grid_constant__ LevelTable levels, int lanes,
    int picture, const uint32_t* __restrict__ starts, const uint32_t* __restrict__ samples,
    const Place<typename SumOf<T>::type>* __restrict__ places, const T* __restrict__ grad_output,
    T* __restrict__ grad_value) {
  using S = typename SumOf<T>::type;
  __shared__ Level table[kMaxLevels];
  read_levels(n, levels, table);
  const int64_t row = int64_t(blockIdx.x) * (kThreads / lanes) + int(threadIdx.x) / lanes;
  if (row >= int64_t(n.tokens) * n.heads) return;
  const int token = int(row / n.heads), head = int(row % n.heads);
  int l = 0, cell = -1;
  for (; l < n.levels; ++l) {
    cell = token - table[l].start;
    if (cell >= 0 && cell < int64_t(table[l].height) * table[l].width) break;
  }
  const bool in_level = l < n.levels;
  const Level level = in_level ? table[l] : Level{-1, 1, 0};
  const int column = cell % level.width, line = cell / level.width;
  const uint32_t total = uint32_t(n.levels) * n.points;
  grad_output += int64_t(picture) * n.queries * n.heads * n.channels;
  grad_value += (int64_t(picture) * n.tokens * n.heads + row) * n.channels;
  for (int channel = int(threadIdx.x) % lanes * Vec; channel < n.channels;
       channel += lanes * Vec) {
    S sums[Vec] = {};
    for (int y = max(line - 1, 0); in_level && y <= line; ++y) {
      const int64_t key = int64_t(head) * n.tokens + level.start + y * level.width + column;
      const uint32_t end = starts[key + 1];
      for (uint32_t i = starts[key - (column > 0)]; i < end; ++i) {
        const uint32_t sample = samples[i];
        const Place<S> place = places[sample];
        const auto along_x = axis_at(place.x, level.width);
        const auto along_y = axis_at(place.y, level.height);
        // Both cells of an axis may be the same one.
        const S weight_x = (along_x.low == column ? along_x.low_weight : S(0)) +
            (along_x.high == column ? along_x.high_weight : S(0));
        const S weight_y = (along_y.low == line ? along_y.low_weight : S(0)) +
            (along_y.high == line ? along_y.high_weight : S(0));
        const S weight = place.attention * weight_y * weight_x;
        if (weight == S(0)) continue;
        const auto grad =
            load<T, Vec>(grad_output + int64_t(sample / total) * n.channels + channel);
#pragma unroll
        for (int v = 0; v < Vec; ++v) sums[v] += weight * widen(grad.at[v]);
      }
    }
    Pack<T, Vec> result;
#pragma unroll
    for (int v = 0; v < Vec; ++v) narrow(sums[v], result.at[v]);
    *reinterpret_cast<Pack<T, Vec>*>(grad_value + channel) = result;
  }
}

}  // namespace ddetr
