// Numbers of the CUDA kernels: their dtypes, packs of them, loads and additions in memory.
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

}  // namespace ddetr
