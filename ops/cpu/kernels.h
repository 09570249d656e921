// What the three builds of the CPU kernels (baseline, AVX2, AVX-512) offer to their caller.
//
// Only plain structs and function pointers: a kernel file is compiled for instructions that the
// running machine may lack, so it must not emit any inline function that others could share.
#pragma once

#include <cstdint>

namespace ddetr {

// One head of one picture, a range of queries and a range of levels.
// Strides count elements; rows of one head are `channels` long.
template <typename T>
struct Slice {
  // Row r of the slice is at value + r * value_stride. `padded` elements of it can be read:
  // `channels` rounded up to whole vectors, the rest zero.
  const T* value;
  int64_t value_stride;
  int64_t channels;
  int64_t padded;

  int64_t query_begin, query_end;
  const T* locations;  // query 0, first level of the range; (x, y) of all points follow
  const T* weights;
  int64_t point_stride;  // from one query to the next in `weights`; twice that in `locations`

  int64_t levels, points;
  const int64_t* level_sizes;   // (levels, 2), height and width
  const int64_t* level_starts;  // row of each level's first cell, in rows of `value`

  T* output;  // query 0
  int64_t output_stride;

  // Backward only. grad_value is laid out as value and is added to; the others are written.
  const T* grad_output;  // strides as `output`
  T* grad_value;
  T* grad_locations;
  T* grad_weights;
};

template <typename T>
struct Kernels {
  // Length of a packed row: `channels` rounded up to whole vectors.
  int64_t (*padded_channels)(int64_t channels);
  void (*forward)(const Slice<T>&);
  void (*backward)(const Slice<T>&);
};

struct Capability {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
};

extern const Capability capability_default;
#if defined(__x86_64__)
extern const Capability capability_avx2;
extern const Capability capability_avx512;
#endif

}  // namespace ddetr
