// What the three builds of the CPU kernels (baseline, AVX2, AVX-512) offer to their caller.
//
// Only plain structs and function pointers: a kernel file is compiled for instructions that the
// running machine may lack, so it must not emit any inline function that others could share.
#pragma once

#include <cstdint>

namespace ddetr {

// 16-bit elements in memory. All arithmetic on them is in float32.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// What elements are widened to for every product and sum.
template <typename E>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// Where one head of one picture samples: a range of queries and a range of levels.
// Strides count elements; rows of one head are `channels` long.
//
// The plain operator gives `locations` and `weights`; the fused one gives `reference`, and has
// offsets in place of the locations and logits in place of the weights.
template <typename T>
struct Points {
  int64_t channels;
  int64_t padded;  // `channels` rounded up to whole vectors

  int64_t query_begin, query_end;
  const T* locations;  // query 0, first level of the range; (x, y) of all points follow
  const T* weights;
  int64_t point_stride;  // from one query to the next in `weights`; twice that in `locations`

  int64_t levels, points;
  const int64_t* level_sizes;   // (levels, 2), height and width
  const int64_t* level_starts;  // row of each level's first cell, in rows of `value`

  // Fused only. The softmax is over all levels' points, of which the range's begin at `skipped`.
  const T* reference;  // query 0, first level of the range; (x, y) or (cx, cy, w, h) of the levels
  int64_t reference_stride;  // from one query to the next
  int64_t reference_size;    // 2 or 4
  int64_t all_points, skipped;

  // Backward only. grad_value is added to; the others are written.
  T* grad_value;
  int64_t grad_value_stride;  // from one row to the next
  T* grad_locations;
  T* grad_weights;
  T* grad_reference;  // query 0, of this head alone, laid out as `reference`; may be null
  int64_t grad_reference_stride;
};

// The same with what is in memory as elements of type E.
template <typename E>
struct Slice : Points<typename Wide<E>::type> {
  using T = typename Wide<E>::type;
  // Row r is at value + r * value_stride. `padded` elements of it can be read, those beyond
  // `channels` being zero.
  const E* value;
  int64_t value_stride;
  // Backward: if not null, in place of `value`, and with grad_value's stride.
  const typename Wide<E>::type* wide_value;
  // Rows are far apart in a large memory: worth asking for them early.
  bool sparse;
  E* output;  // query 0; the fused backward reads it
  const E* grad_output;
  int64_t output_stride;  // from one query to the next in both
};

template <typename E>
struct Kernels {
  using T = typename Wide<E>::type;
  // Length of a packed row: `channels` rounded up to whole vectors.
  int64_t (*padded_channels)(int64_t channels);
  void (*forward)(const Slice<E>&);
  void (*backward)(const Slice<E>&);
  void (*widen)(const E* from, T* to, int64_t count);
  void (*narrow)(const T* from, E* to, int64_t count);
};

struct Capability {
  const char* name;
  Kernels<float> float32;
  Kernels<double> float64;
  Kernels<Fp16> float16;
  Kernels<Bf16> bfloat16;
};

extern const Capability capability_default;
#if defined(__x86_64__)
extern const Capability capability_avx2;
extern const Capability capability_avx512;
#endif

}  // namespace ddetr
