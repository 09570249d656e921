// The forward kernel. ../README.md explains the design.
//
// One row is a (picture, query, head). `lanes` lanes of a warp hold its channels, Vec neighbouring
// ones each, and `split` such groups share its samples. Kernels alternate between two phases that
// meet in shared memory private to the warp: a lane works out whole samples (cells, weights), then
// all lanes of the row read the cells. Sums are float32 (float64 for float64 values) whatever the
// dtype of `value`.
#pragma once

#include "samples.cuh"

namespace ddetr {

// Gives the idle entries of each row, those of samples that read nothing and those without a sample,
// an equal part of the weight of one sample of the row that does read, and that sample's cells. The
// loop that reads cells then needs no branch. What stays the same is the row's sum of weights for
// every cell; and no cell is multiplied by a zero of our making, which infinity would turn into NaN.
// All lanes of the warp meet here. Returns whether any sample of the lane's row reads.
template <typename S, int Count>
__device__ __forceinline__ bool lend_weight(
    const bool (&reads)[Count], const bool (&takes)[Count], int lane, unsigned row_mask,
    Quad<S> (&found_weights)[Count], Quad<int> (&found_rows)[Count]) {
  constexpr int kLast = Count - 1;
  const int lent = reads[0] ? 0 : kLast;
  const unsigned lenders = __ballot_sync(kAllLanes, reads[0] | reads[kLast]);
  const bool any_reads = (lenders & row_mask) != 0;
  const int lender = any_reads ? __ffs(int(lenders & row_mask)) - 1 : lane;
  int takers = 1;
#pragma unroll
  for (int k = 0; k <= kLast; ++k) {
    takers += __popc(__ballot_sync(kAllLanes, takes[k]) & row_mask);
  }
  const S part = reciprocal(S(takers));
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int cell = __shfl_sync(
        kAllLanes, lent == 0 ? found_rows[0].at[c] : found_rows[kLast].at[c], lender);
    const S weight = __shfl_sync(
        kAllLanes, lent == 0 ? found_weights[0].at[c] : found_weights[kLast].at[c], lender);
#pragma unroll
    for (int k = 0; k <= kLast; ++k) {
      if (takes[k] || (lane == lender && k == lent)) {
        found_rows[k].at[c] = cell;
        found_weights[k].at[c] = weight * part;
      }
    }
  }
  return any_reads;
}

template <typename T, int Vec, int Lanes, int Split, typename Points>
__global__ void
__launch_bounds__(kThreads, Plan<typename SumOf<T>::type, Lanes, Split>::kForwardBlocks) forward_kernel(
    const __grid_constant__ Extent n, const __grid_constant__ LevelTable levels,
    const Mapping mapping, const Points points, const T* __restrict__ value,
    T* __restrict__ output) {
  using S = typename SumOf<T>::type;
  using P = Plan<S, Lanes, Split>;
  __shared__ Level table[kMaxLevels];
  __shared__ Exchange<S, P::kEntries> exchange;
  read_levels(n, levels, table);

  const int lanes = P::kExact ? Lanes : mapping.lanes;
  const int split = P::kExact ? Split : mapping.split;
  const int row_lanes = lanes * split;
  const int round = P::kPerLane * row_lanes;  // samples of a row
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Row row;
  row.picture = blockIdx.z, row.head = blockIdx.y;
  row.lane = lane & (row_lanes - 1), row.lanes = row_lanes;
  const int found =
      query_of(n, mapping, table, kThreads / unsigned(row_lanes), threadIdx.x / unsigned(row_lanes));
  if (!__any_sync(kAllLanes, found >= 0)) return;
  // Lanes without a query follow the first one and write nothing: they must meet the others.
  row.query = found >= 0 ? found : 0;
  const unsigned row_mask =
      row_lanes == kWarp ? kAllLanes : ((1u << row_lanes) - 1) << (lane - row.lane);
  const auto mine = points.template of_row<P::kLogits>(n, row);

  const int entry = lane / row_lanes * (round + 1);
  Quad<S>* const weights = exchange.weight[warp] + entry;
  Quad<int>* const rows = exchange.row[warp] + entry;
  const int group = row.lane / lanes, slice = row.lane & (lanes - 1);
  const int total = n.levels * n.points;
  const unsigned stride = unsigned(n.heads) * unsigned(n.channels) * unsigned(sizeof(T));
  const T* const base =
      value + (int64_t(row.picture) * n.tokens * n.heads + row.head) * n.channels;

  for (int pass = 0; pass < (P::kExact ? 1 : n.channels); pass += lanes * Vec) {
    const int channel = pass + slice * Vec;
    const bool live = P::kExact || channel < n.channels;
    const T* const cells = base + (live ? channel : 0);
    S sums[Vec] = {};
    for (int first = 0; first < total; first += round) {
      Samples<S, P::kPerLane> samples;
      samples.find(n, points, mine, table, row, first, total);
      // What the loop below looks at: all samples of this round, and entries that fill its turns.
      const int count = min(round, total - first), per_turn = kUnroll * split;
      const int looked_at = (count + per_turn - 1) & -per_turn;
      bool idle = false, takes[P::kPerLane];
      Quad<S> found_weights[P::kPerLane];
      Quad<int> found_rows[P::kPerLane];
#pragma unroll
      for (int k = 0; k < P::kPerLane; ++k) {
        samples.corners(k, found_weights[k], found_rows[k]);
        takes[k] = !samples.reads[k] & (k * row_lanes + row.lane < looked_at);
        idle |= takes[k];
      }
      const bool any_reads = !__any_sync(kAllLanes, idle) ||
          lend_weight(samples.reads, takes, lane, row_mask, found_weights, found_rows);
#pragma unroll
      for (int k = 0; k < P::kPerLane; ++k) {
        weights[k * row_lanes + row.lane] = found_weights[k];
        rows[k * row_lanes + row.lane] = found_rows[k];
      }
      __syncwarp();
      if (any_reads) {
#pragma unroll 1
        for (int j = group; j < looked_at; j += per_turn) {
          Pack<T, Vec> cell[kUnroll][4];
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const Quad<int> at = rows[j + u * split];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              cell[u][c] = load<T, Vec>(at_row(cells, at.at[c], stride));
            }
          }
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const Quad<S> weight = weights[j + u * split];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              S wide[Vec];
              widen(cell[u][c], wide);
#pragma unroll
              for (int v = 0; v < Vec; ++v) sums[v] += weight.at[c] * wide[v];
            }
          }
        }
      }
      __syncwarp();
    }
#pragma unroll
    for (int v = 0; v < Vec; ++v) sums[v] = sum_over(sums[v], lanes, row_lanes);
    if (found >= 0 && group == 0 && live) {
      Pack<T, Vec> result;
#pragma unroll
      for (int v = 0; v < Vec; ++v) narrow(sums[v], result.at[v]);
      *reinterpret_cast<Pack<T, Vec>*>(
          output + row.index(n) * n.channels + channel) = result;
    }
  }
}

}  // namespace ddetr
