// The CUDA kernels. ../README.md explains the design.
//
// One row is a (picture, query, head). `lanes` lanes of a warp hold its channels, Vec neighbouring
// ones each, and `split` such groups share its samples. Kernels alternate between two phases that
// meet in shared memory private to the warp: a lane works out whole samples (cells, weights), then
// all lanes of the row read the cells. Sums are float32 (float64 for float64 values) whatever the
// dtype of `value`.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../sampling.h"
#include "launch.h"

namespace ddetr {

// Blocks that a multiprocessor shall hold at least. Without a number the compiler aims for more, and
// moves numbers out of registers for it.
constexpr int kBlocks = 2;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxLevels = 64;
// Fewer lanes than this never share a row, so that the four corners' sums can be transposed.
constexpr int kMinLanes = 4;
// Samples whose cells are asked for before the first one arrives.
constexpr int kUnroll = 4;
// Queries that are the cells of the levels are taken in tiles this wide: their samples overlap.
constexpr int kTileWidth = 8;

template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

template <typename S>
constexpr S kLargest = FLT_MAX;
template <>
constexpr double kLargest<double> = DBL_MAX;

struct alignas(16) Level {
  int height, width, start;
};

// The level numbers, in device memory or else here.
struct LevelTable {
  const int64_t* sizes;
  const int64_t* starts;
  Level host[kMaxLevels];
};

struct Extent {
  int batch, tokens, heads, channels, queries, levels, points;
  // For i / points without a division: the upper half of i * points_magic; 0 for one point.
  unsigned points_magic;
};

// How rows are cut into blocks. Lanes and split are powers of two, their product at most a warp.
struct Mapping {
  int lanes, split;
  bool tiles;  // by tiles of the levels' cells, where queries are those cells
};

template <typename T, int Vec>
struct alignas(sizeof(T) * Vec > 16 ? 16 : sizeof(T) * Vec) Pack {
  T at[Vec];
};

template <typename S>
struct alignas(4 * sizeof(S) > 16 ? 16 : 4 * sizeof(S)) Quad {
  S at[4];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// All numbers of a pack. Two bfloat16 are the halves of one word, and need one operation each.
template <typename T, typename S, int Vec>
__device__ __forceinline__ void widen(const Pack<T, Vec>& from, S (&to)[Vec]) {
  if constexpr (std::is_same_v<T, __nv_bfloat16> && Vec % 2 == 0) {
    const auto words = reinterpret_cast<const unsigned*>(&from);
#pragma unroll
    for (int v = 0; v < Vec; v += 2) {
      to[v] = __uint_as_float(words[v / 2] << 16);
      to[v + 1] = __uint_as_float(words[v / 2] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int v = 0; v < Vec; ++v) to[v] = widen(from.at[v]);
  }
}

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// Arguments of softmax are zero or less, where the fast exponential errs by less than 1e-7.
__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Of one or more, below 2^126: no special cases.
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

template <typename T, int Vec>
__device__ __forceinline__ Pack<T, Vec> load(const T* from) {
  return *reinterpret_cast<const Pack<T, Vec>*>(from);
}

// Element `row` of rows that are `stride` bytes apart: one 32 x 32 + 64 bit multiply-add, so that
// tensors of 2^31 elements and more need no other kernel.
template <typename T>
__device__ __forceinline__ T* at_row(T* base, int row, unsigned stride) {
  using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
#if defined(__CUDA_ARCH__)
  // Left to itself, the compiler adds the upper word of the stride, zero, once more.
  uint64_t offset;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(row), "r"(stride));
#else
  const uint64_t offset = uint64_t(unsigned(row)) * stride;
#endif
  return reinterpret_cast<T*>(reinterpret_cast<Bytes*>(base) + offset);
}

// Adds weight * factor to Vec neighbouring numbers in memory, in one operation where the hardware
// has it.
template <int Vec, typename S>
__device__ __forceinline__ void add_to(S* target, S weight, const S (&factor)[Vec]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kAtOnce = Vec == 4 && sizeof(S) == 4;
#else
  constexpr bool kAtOnce = false;
#endif
  if constexpr (kAtOnce) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(target)), "f"(weight * factor[0]),
                   "f"(weight * factor[1]), "f"(weight * factor[2]), "f"(weight * factor[3])
                 : "memory");
  } else {
#pragma unroll
    for (int v = 0; v < Vec; ++v) atomicAdd(target + v, weight * factor[v]);
  }
}

// Reads the level numbers into shared memory. A level that does not fit `value` becomes one
// that no sample reads: nobody has checked numbers that lie in device memory.
__device__ __forceinline__ void read_levels(
    const Extent& n, const LevelTable& levels, Level* table) {
#pragma unroll 1
  for (int l = threadIdx.x; l < n.levels; l += kThreads) {
    if (levels.sizes == nullptr) {
      table[l] = levels.host[l];
      continue;
    }
    const int64_t height = levels.sizes[2 * l], width = levels.sizes[2 * l + 1];
    const int64_t start = levels.starts[l];
    const bool fits = height > 0 && width > 0 && height <= n.tokens && width <= n.tokens &&
        start >= 0 && start <= n.tokens - height * width;
    table[l] = fits ? Level{int(height), int(width), int(start)} : Level{-1, 1, 0};
  }
  __syncthreads();
}

__device__ __forceinline__ int level_of(const Extent& n, int i) {
  return n.points_magic ? int(__umulhi(unsigned(i), n.points_magic)) : i;
}

// Tiles from the left to the right end of a level.
DDETR_BOTH unsigned tile_columns(const Level& level) {
  return unsigned(level.width + kTileWidth - 1) / kTileWidth;
}

// The query of row `row` of this block, or -1 where there is none.
__device__ __forceinline__ int query_of(
    const Extent& n, const Mapping& mapping, const Level* table, unsigned rows_per_block,
    unsigned row) {
  if (!mapping.tiles) {
    const int64_t query = int64_t(blockIdx.x) * rows_per_block + row;
    return query < n.queries ? int(query) : -1;
  }
  const unsigned tile_height = rows_per_block / kTileWidth;
  unsigned tile = blockIdx.x;
#pragma unroll 1
  for (int l = 0; l < n.levels; ++l) {
    const Level level = table[l];
    const unsigned columns = tile_columns(level);
    const unsigned tiles = columns * ((level.height + tile_height - 1) / tile_height);
    if (tile < tiles) {
      const int x = int(tile % columns * kTileWidth + row % kTileWidth);
      const int y = int(tile / columns * tile_height + row / kTileWidth);
      return x < level.width && y < level.height ? level.start + y * level.width + x : -1;
    }
    tile -= tiles;
  }
  return -1;
}

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
      // A sample that reads nothing, and an entry without a sample, takes over a part of another
      // sample of its row. So the loop below needs no branch, and multiplies nothing by a zero of
      // its own making, which infinity would turn into NaN.
      bool any_reads = true;
      if (__any_sync(kAllLanes, idle)) {
        constexpr int kLast = P::kPerLane - 1;
        const int lent = samples.reads[0] ? 0 : kLast;
        const unsigned lenders = __ballot_sync(kAllLanes, samples.reads[0] | samples.reads[kLast]);
        any_reads = (lenders & row_mask) != 0;
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
      }
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
