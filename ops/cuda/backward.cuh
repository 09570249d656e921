// The backward kernel, which adds to grad_value with atomics, and that of references.
#pragma once

#include "samples.cuh"

namespace ddetr {

// Adds up the four numbers of each of four samples over `lanes` lanes, at least four of them: the
// halves of the lanes trade two samples for two, then one for one. So every quarter of the lanes
// gets the sums of one sample, the first quarter those of the first.
template <typename S>
__device__ __forceinline__ Quad<S> sum_samples(const S (&x)[4][4], int slice, int lanes) {
  const bool upper = slice & (lanes / 2), odd = slice & (lanes / 4);
  Quad<S> sums;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    S first = upper ? x[2][c] : x[0][c], second = upper ? x[3][c] : x[1][c];
    first += __shfl_xor_sync(kAllLanes, upper ? x[0][c] : x[2][c], lanes / 2);
    second += __shfl_xor_sync(kAllLanes, upper ? x[1][c] : x[3][c], lanes / 2);
    S sum = odd ? second : first;
    sum += __shfl_xor_sync(kAllLanes, odd ? first : second, lanes / 4);
    sums.at[c] = sum_over(sum, 1, lanes / 4);
  }
  return sums;
}

// The slices of grad_output that a lane multiplies with cells, and those that it adds to
// grad_value: there, neighbouring lanes take neighbouring quads, whole sectors of memory.
template <typename T, int Vec>
struct Slices {
  using S = typename SumOf<T>::type;
  static constexpr int kQuad = Vec < 4 ? Vec : 4;
  static constexpr int kQuads = Vec / kQuad;
  S dot[Vec];
  S add[kQuads][kQuad];

  __device__ __forceinline__ void read_dot(
      const T* grad, int pass, int slice, int lanes, int channels) {
    const int channel = pass + slice * Vec;
    const bool live = channel < channels;
    const auto mine = load<T, Vec>(grad + (live ? channel : 0));
#pragma unroll
    for (int v = 0; v < Vec; ++v) dot[v] = live ? widen(mine.at[v]) : S(0);
  }

  // After read_dot.
  __device__ __forceinline__ void read_add(
      const T* grad, int pass, int slice, int lanes, int channels) {
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      if constexpr (kQuads == 1) {
#pragma unroll
        for (int v = 0; v < Vec; ++v) add[k][v] = dot[v];
      } else {
        const int at = pass + (k * lanes + slice) * kQuad;
        const auto quad = load<T, kQuad>(grad + (at < channels ? at : 0));
#pragma unroll
        for (int v = 0; v < kQuad; ++v) add[k][v] = widen(quad.at[v]);
      }
    }
  }
};

// grad_value is float32 (float64) and holds zeros, or is null: then only the samples' gradients
// are wanted.
template <typename T, int Vec, int Lanes, int Split, typename Points>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_kernel(
    const __grid_constant__ Extent n, const __grid_constant__ LevelTable levels,
    const Mapping mapping, const Points points, const T* __restrict__ grad_output,
    const T* __restrict__ output, const T* __restrict__ value,
    typename SumOf<T>::type* __restrict__ grad_value) {
  using S = typename SumOf<T>::type;
  using P = Plan<S, Lanes, Split>;
  using Grad = Slices<T, Vec>;
  __shared__ Level table[kMaxLevels];
  __shared__ Exchange<S, P::kEntries> exchange;
  __shared__ Quad<S> exchange_dots[kWarps][P::kEntries];
  read_levels(n, levels, table);

  const int lanes = P::kExact ? Lanes : mapping.lanes;
  const int split = P::kExact ? Split : mapping.split;
  const int row_lanes = lanes * split;
  const int round = P::kPerLane * row_lanes;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Row row;
  row.picture = blockIdx.z, row.head = blockIdx.y;
  row.lane = lane & (row_lanes - 1), row.lanes = row_lanes;
  const int found =
      query_of(n, mapping, table, kThreads / unsigned(row_lanes), threadIdx.x / unsigned(row_lanes));
  const bool active = found >= 0;
  if (!__any_sync(kAllLanes, active)) return;
  // Lanes without a query follow the first one and write nothing: they must meet the others.
  row.query = active ? found : 0;
  const auto mine = points.template of_row<P::kLogits>(n, row);

  const int entry = lane / row_lanes * (round + 1);
  Quad<S>* const weights = exchange.weight[warp] + entry;
  Quad<int>* const rows = exchange.row[warp] + entry;
  Quad<S>* const dots = exchange_dots[warp] + entry;
  const int group = row.lane / lanes, slice = row.lane & (lanes - 1);
  const int total = n.levels * n.points;
  const int channels = P::kExact ? Lanes * Vec : n.channels;
  const unsigned stride = unsigned(n.heads) * unsigned(channels) * unsigned(sizeof(T));
  const unsigned sum_stride = stride / unsigned(sizeof(T)) * unsigned(sizeof(S));
  const int64_t base = (int64_t(row.picture) * n.tokens * n.heads + row.head) * channels;
  const bool adds = active && grad_value != nullptr;
  S* const sums = grad_value + base + slice * Grad::kQuad;
  const T* const row_grad = grad_output + row.index(n) * channels;

  Grad grad;
  if (P::kExact) {
    grad.read_dot(row_grad, 0, slice, lanes, channels);
    grad.read_add(row_grad, 0, slice, lanes, channels);
  }
  S mean = 0;
  if constexpr (Points::kNeedsOutput) {
    const T* const row_output = output + row.index(n) * channels;
    for (int pass = 0; pass < channels; pass += lanes * Vec) {
      if (!P::kExact) grad.read_dot(row_grad, pass, slice, lanes, channels);
      const int channel = pass + slice * Vec;
      const auto result = load<T, Vec>(row_output + (channel < channels ? channel : 0));
#pragma unroll
      for (int v = 0; v < Vec; ++v) {
        if (P::kExact || channel < channels) mean += grad.dot[v] * widen(result.at[v]);
      }
    }
    mean = sum_over(mean, 1, lanes);
  }

  for (int first = 0; first < total; first += round) {
    Samples<S, P::kPerLane> samples;
    samples.find(n, points, mine, table, row, first, total);
#pragma unroll
    for (int k = 0; k < P::kPerLane; ++k) {
      Quad<S> weight;
      Quad<int> at;
      samples.corners(k, weight, at);
      // A sample that reads nothing looks at the first cell and forgets what it sees.
#pragma unroll
      for (int c = 0; c < 4; ++c) at.at[c] = samples.reads[k] ? at.at[c] : 0;
      weights[k * row_lanes + row.lane] = weight;
      rows[k * row_lanes + row.lane] = at;
    }
    __syncwarp();
    // Entries up to the end of the round are filled in, and their number is a multiple of that of
    // a turn.
    const int count = min(round, total - first);
#pragma unroll 1
    for (int j = group; j < count + group; j += kUnroll * split) {
      S dot[kUnroll][4] = {};
      for (int pass = 0; pass < (P::kExact ? 1 : channels); pass += lanes * Vec) {
        if (!P::kExact) grad.read_dot(row_grad, pass, slice, lanes, channels);
        const int channel = pass + slice * Vec;
        const T* const cells = value + base + channel;
#pragma unroll
        for (int pair = 0; pair < kUnroll; pair += 2) {
          if (P::kExact || channel < channels) {
#pragma unroll
            for (int u = pair; u < pair + 2; ++u) {
              const Quad<int> at = rows[j + u * split];
              Pack<T, Vec> cell[4];
#pragma unroll
              for (int c = 0; c < 4; ++c) cell[c] = load<T, Vec>(at_row(cells, at.at[c], stride));
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                S wide[Vec];
                widen(cell[c], wide);
#pragma unroll
                for (int v = 0; v < Vec; ++v) dot[u][c] += grad.dot[v] * wide[v];
              }
            }
          }
          if (!adds) continue;
          if (!P::kExact) grad.read_add(row_grad, pass, slice, lanes, channels);
#pragma unroll
          for (int u = pair; u < pair + 2; ++u) {
            const Quad<S> weight = weights[j + u * split];
            // The first corner's weight is zero only where all are: the part of the cell that a
            // pixel lies in is never.
            if (weight.at[0] == S(0)) continue;
            const Quad<int> at = rows[j + u * split];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              S* const target = at_row(sums, at.at[c], sum_stride);
#pragma unroll
              for (int k = 0; k < Grad::kQuads; ++k) {
                const int quad = pass + k * lanes * Grad::kQuad;
                if (P::kExact || quad + slice * Grad::kQuad < channels) {
                  add_to(target + quad, weight.at[c], grad.add[k]);
                }
              }
            }
          }
        }
      }
      const Quad<S> result = sum_samples(dot, slice, lanes);
      const int quarter = lanes / 4;
      if ((slice & (quarter - 1)) == 0) dots[j + slice / quarter * split] = result;
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < P::kPerLane; ++k) {
      const int j = k * row_lanes + row.lane, i = first + j;
      if (i >= total || !active) continue;
      const Quad<S> dot = dots[j];
      Slopes<S> slopes = slopes_of(
          samples.x[k], samples.y[k], dot.at[0], dot.at[1], dot.at[2], dot.at[3]);
      if (!samples.reads[k]) slopes = {};
      const int l = level_of(n, i);
      points.write(n, mine, i, l, table[l], samples.attention[k], slopes, mean);
    }
    __syncwarp();
  }
}

// The references' gradient from the locations': sums over heads and points, and over the pictures
// that share a reference. One thread per (reference batch, query, level).
template <typename S, int Size>
__global__ void __launch_bounds__(kThreads, kBlocks) reference_kernel(
    const __grid_constant__ Extent n, const FusedPoints<S, Size> points,
    S* __restrict__ grad_references) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int batch = points.shared_references ? 1 : n.batch;
  if (thread >= int64_t(batch) * n.queries * n.levels) return;
  const int level = int(thread % n.levels);
  const int query = int(thread / n.levels % n.queries);
  const int picture = int(thread / n.levels / n.queries);
  S centre[2] = {}, side[2] = {};
  for (int b = picture; b < (points.shared_references ? n.batch : picture + 1); ++b) {
    for (int m = 0; m < n.heads; ++m) {
      const int64_t row = (int64_t(b) * n.queries + query) * n.heads + m;
      const int64_t first = (row * n.levels + level) * n.points;
      for (int64_t i = 2 * first; i < 2 * (first + n.points); ++i) {
        const S grad = points.grad_locations[i];
        const S share = share_of(points.offsets[i], points.points, points.points_inverse);
        centre[i % 2] += grad;
        // An offset that is no number belongs to a sample that reads nothing.
        if (grad != S(0)) side[i % 2] += grad * share * S(0.5);
      }
    }
  }
  S* const grad = grad_references + thread * Size;
  grad[0] = centre[0], grad[1] = centre[1];
  if (Size == 4) grad[2] = side[0], grad[3] = side[1];
}

}  // namespace ddetr
