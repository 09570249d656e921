// The levels of `value`, and which query each row of a block is.
#pragma once

#include "numbers.cuh"

namespace ddetr {

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

}  // namespace ddetr
