// The CPU kernels, compiled once per instruction set (see kernels_*.cpp).
//
// Both directions work on blocks of a few queries of one head: first all coordinates of the block,
// W points at once and without branches, then the rows of `value` they name, W channels at once.
// No standard library here: its inline functions would be compiled for this file's instructions
// and could replace everyone else's at link time.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#if defined(DDETR_TARGET)
#define DDETR_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define DDETR_BEGIN_TARGET(t) \
  DDETR_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
DDETR_BEGIN_TARGET(DDETR_TARGET)
#else
#define DDETR_BEGIN_TARGET(t) DDETR_PRAGMA(GCC target(t))
#pragma GCC push_options
DDETR_BEGIN_TARGET(DDETR_TARGET)
#endif
#endif

#include "backward_impl.h"
#include "forward_impl.h"

namespace {

// Elements of a vector: as many as are left of them once they are widened.
template <typename E>
constexpr int kWidth = DDETR_VECTOR_BYTES / sizeof(typename Slice<E>::T);

// Rows whose last vector would be at most half full use vectors of half the size, where the
// machine has them.
template <typename E>
bool prefers_half(int64_t channels) {
  const int64_t last = channels % kWidth<E>;
  return DDETR_VECTOR_BYTES == 64 && last > 0 && last <= kWidth<E> / 2;
}

template <typename E>
int64_t padded_channels(int64_t channels) {
  const int64_t width = prefers_half<E>(channels) ? kWidth<E> / 2 : kWidth<E>;
  return (channels + width - 1) / width * width;
}

// Calls `body` with compile-time vector width and number of vectors.
template <typename E, template <typename, int, int> class Body>
void select(const Slice<E>& s) {
#if DDETR_VECTOR_BYTES == 64
  if (prefers_half<E>(s.channels)) {
    switch (s.padded / (kWidth<E> / 2)) {
      case 1: return Body<E, kWidth<E> / 2, 1>::call(s);
      case 3: return Body<E, kWidth<E> / 2, 3>::call(s);
      default: return Body<E, kWidth<E> / 2, 0>::call(s);
    }
  }
#endif
  switch (s.padded / kWidth<E>) {
    case 1: return Body<E, kWidth<E>, 1>::call(s);
    case 2: return Body<E, kWidth<E>, 2>::call(s);
    case 3: return Body<E, kWidth<E>, 3>::call(s);
    case 4: return Body<E, kWidth<E>, 4>::call(s);
    case 6: return Body<E, kWidth<E>, 6>::call(s);
    case 8: return Body<E, kWidth<E>, 8>::call(s);
    default: return Body<E, kWidth<E>, 0>::call(s);
  }
}

template <typename E, int W, int NV>
struct Forward {
  static void call(const Slice<E>& s) { forward_slice<E, W, NV>(s); }
};

template <typename E, int W, int NV>
struct Backward {
  static void call(const Slice<E>& s) { backward_slice<E, W, NV>(s); }
};

template <typename E>
constexpr ddetr::Kernels<E> kKernels = {
    padded_channels<E>, select<E, Forward>, select<E, Backward>, widen<E>, narrow<E>};

}  // namespace

#include "dropout_kernels_impl.h"

namespace ddetr {
extern const Capability DDETR_CAPABILITY = {
    DDETR_CAPABILITY_NAME, kKernels<float>, kKernels<double>, kKernels<Fp16>, kKernels<Bf16>,
    kDropoutKernels};
}  // namespace ddetr

#if defined(DDETR_TARGET)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
