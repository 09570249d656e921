// Cells and weights of samples: a lane works out whole ones, and all lanes of a row read them.
#pragma once

#include "points.cuh"

namespace ddetr {

// Sizes that follow from the template arguments of a kernel. Lanes of 0 means that lanes and split
// are read from the mapping and rows may have any number of channels; otherwise a row has exactly
// Lanes * Vec of them.
template <typename S, int Lanes, int Split>
struct Plan {
  static constexpr bool kExact = Lanes > 0;
  static constexpr int kForwardBlocks = kExact ? 3 : kBlocks;
  // Logits that a lane reads at once: for rows of 16 samples, all of them.
  static constexpr int kLogits = kExact ? (Lanes * Split < 16 ? 16 / (Lanes * Split) : 1) : 2;
  // Samples that a lane works out per round.
  static constexpr int kPerLane = sizeof(S) > 4 || !kExact || Lanes * Split >= 16 ? 1 : 2;
  // Samples of a warp's rows per round; each row's are one more apart, for the memory banks.
  static constexpr int kEntries =
      kWarp * kPerLane + kWarp / (kExact ? Lanes * Split : kMinLanes);
};

// The samples that one lane works out in a round: number `first + k * lanes + lane` of its row.
// Without branches, so that nothing waits for the first one's memory before asking for the next.
template <typename S, int Count>
struct Samples {
  Axis<S> x[Count], y[Count];
  S attention[Count];
  int start[Count], width[Count];
  bool reads[Count];

  template <typename Points>
  __device__ __forceinline__ void find(
      const Extent& n, const Points& points, const typename Points::OfRow& mine,
      const Level* table, const Row& row, int first, int total) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      const int i = first + k * row.lanes + row.lane;
      // Past the end of the row, the last sample once more.
      const int exists = min(i, total - 1), l = level_of(n, exists);
      const Level level = table[l];
      const Place<S> place = points.place(n, mine, exists, l, level);
      reads[k] = (i < total) & on_map(place.x, level.width) & on_map(place.y, level.height);
      x[k] = axis_at(reads[k] ? place.x : S(0), level.width);
      y[k] = axis_at(reads[k] ? place.y : S(0), level.height);
      attention[k] = place.attention;
      start[k] = level.start, width[k] = level.width;
    }
  }

  // Weights of zero for a sample that reads nothing; then no row of `value` need be in `row`.
  __device__ __forceinline__ void corners(int k, Quad<S>& weight, Quad<int>& row) const {
    const auto found =
        corners_of(x[k], y[k], start[k], width[k], reads[k] ? attention[k] : S(0));
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      weight.at[c] = found.weight[c];
      row.at[c] = found.row[c];
    }
  }
};

// The two halves of a sample that pass through shared memory.
template <typename S, int Entries>
struct Exchange {
  Quad<S> weight[kWarps][Entries];
  Quad<int> row[kWarps][Entries];
};

}  // namespace ddetr
