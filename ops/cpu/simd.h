// A vector of W numbers, on the vector types that GCC and Clang share. Included by kernels_impl.h
// only, inside its target region; everything is local to the including file.
#pragma once

#define DDETR_INLINE inline __attribute__((always_inline))

namespace {

template <typename T, int W>
struct Simd;

#define DDETR_DEFINE_SIMD(T, I, W)                                \
  template <>                                                     \
  struct Simd<T, W> {                                             \
    typedef T Vec __attribute__((vector_size(W * sizeof(T))));    \
    typedef I Int __attribute__((vector_size(W * sizeof(I))));    \
    using Index = I;                                              \
  };
DDETR_DEFINE_SIMD(float, int32_t, 4)
DDETR_DEFINE_SIMD(float, int32_t, 8)
DDETR_DEFINE_SIMD(float, int32_t, 16)
DDETR_DEFINE_SIMD(double, int64_t, 2)
DDETR_DEFINE_SIMD(double, int64_t, 4)
DDETR_DEFINE_SIMD(double, int64_t, 8)
#undef DDETR_DEFINE_SIMD

template <typename V>
DDETR_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
DDETR_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// The first `bytes` bytes, the rest from `fill`.
template <typename V>
DDETR_INLINE V load_part(const void* from, int64_t bytes, V fill) {
  if (bytes > 0) __builtin_memcpy(&fill, from, bytes < int64_t(sizeof(V)) ? bytes : sizeof(V));
  return fill;
}

template <typename V>
DDETR_INLINE void store_part(void* to, int64_t bytes, V v) {
  if (bytes > 0) __builtin_memcpy(to, &v, bytes < int64_t(sizeof(V)) ? bytes : sizeof(V));
}

// Keeps the compiler from fusing the product `v` with a later sum: a pixel coordinate must have
// the same bits whether or not the machine has fused multiply-add.
template <typename V>
DDETR_INLINE void forbid_fusion(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  asm("" : "+m"(v));
#endif
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

// Result element j is element Pattern::at(j) of a followed by b.
template <typename T, int W, typename Pattern, int... J>
DDETR_INLINE typename Simd<T, W>::Vec shuffle(
    typename Simd<T, W>::Vec a, typename Simd<T, W>::Vec b, Indices<J...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pattern::at(J)...);
#else
  return __builtin_shuffle(a, b, typename Simd<T, W>::Int{Pattern::at(J)...});
#endif
}

template <typename T, int W, typename Pattern>
DDETR_INLINE typename Simd<T, W>::Vec shuffle(
    typename Simd<T, W>::Vec a, typename Simd<T, W>::Vec b) {
  return shuffle<T, W, Pattern>(a, b, typename MakeIndices<W>::type{});
}

// Elements 0, 2, 4... (Odd = 0) or 1, 3, 5... (Odd = 1).
template <int Odd>
struct Every2nd {
  static constexpr int at(int j) { return 2 * j + Odd; }
};

// a0 b0 a1 b1..., the first or the second half of it.
template <int W, int Half>
struct Zip {
  static constexpr int at(int j) { return Half * (W / 2) + j / 2 + (j % 2) * W; }
};

// Cuts a and b into segments of `Length`, takes of each the lower or the upper half, a's and b's
// in turn.
template <int W, int Length, int Upper>
struct Halves {
  static constexpr int at(int j) {
    return (j / Length) * Length + (j / (Length / 2)) % 2 * W + j % (Length / 2) +
        Upper * (Length / 2);
  }
};

// rows[r] for r < Count holds W / Length partial sums in segments; returns the vector of the sums
// of W rows: element r is the sum of row r.
template <typename T, int W, int Length = W>
DDETR_INLINE typename Simd<T, W>::Vec sum_rows(typename Simd<T, W>::Vec* rows) {
  if constexpr (Length == 1) {
    return rows[0];
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < Length / 2; ++r) {
      auto a = rows[r], b = rows[r + Length / 2];
      rows[r] = shuffle<T, W, Halves<W, Length, 0>>(a, b) +
          shuffle<T, W, Halves<W, Length, 1>>(a, b);
    }
    return sum_rows<T, W, Length / 2>(rows);
  }
}

}  // namespace
