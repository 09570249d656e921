// A vector of W numbers, on the vector types that GCC and Clang share. Included by kernels_impl.h
// only, inside its target region; everything is local to the including file.
#pragma once

#include "../sampling.h"

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

#if DDETR_VECTOR_BYTES == 64
DDETR_INLINE uint64_t first_bits(int64_t count) {
  return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << (count < 0 ? 0 : count)) - 1;
}
#endif

// The first `bytes` bytes, the rest from `fill`.
template <typename V>
DDETR_INLINE V load_part(const void* from, int64_t bytes, V fill) {
#if DDETR_VECTOR_BYTES == 64
  if constexpr (sizeof(V) == 64) {
    return (V)_mm512_mask_loadu_epi8((__m512i)fill, first_bits(bytes), from);
  }
#endif
  if (bytes > 0) __builtin_memcpy(&fill, from, bytes < int64_t(sizeof(V)) ? bytes : sizeof(V));
  return fill;
}

template <typename V>
DDETR_INLINE void store_part(void* to, int64_t bytes, V v) {
#if DDETR_VECTOR_BYTES == 64
  if constexpr (sizeof(V) == 64) {
    _mm512_mask_storeu_epi8(to, first_bits(bytes), (__m512i)v);
    return;
  }
#endif
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

}  // namespace

namespace ddetr {

#define DDETR_DEFINE_ARITHMETIC(T, W)                                            \
  template <>                                                                    \
  struct Arithmetic<Simd<T, W>::Vec> {                                           \
    using Vec = Simd<T, W>::Vec;                                                 \
    using Whole = Simd<T, W>::Int;                                               \
    static DDETR_BOTH Vec product(Vec a, Vec b) {                                \
      a *= b;                                                                    \
      forbid_fusion(a);                                                          \
      return a;                                                                  \
    }                                                                            \
    static DDETR_BOTH Vec sum(Vec a, Vec b) { return a + b; }                    \
    static DDETR_BOTH Vec floor(Vec a) {                                         \
      const Vec towards_zero = real(whole(a));                                   \
      return towards_zero > a ? towards_zero - T(1) : towards_zero;              \
    }                                                                            \
    static DDETR_BOTH Whole whole(Vec a) { return __builtin_convertvector(a, Whole); } \
    static DDETR_BOTH Vec real(Whole a) { return __builtin_convertvector(a, Vec); }    \
  };
DDETR_DEFINE_ARITHMETIC(float, 4)
DDETR_DEFINE_ARITHMETIC(float, 8)
DDETR_DEFINE_ARITHMETIC(float, 16)
DDETR_DEFINE_ARITHMETIC(double, 2)
DDETR_DEFINE_ARITHMETIC(double, 4)
DDETR_DEFINE_ARITHMETIC(double, 8)
#undef DDETR_DEFINE_ARITHMETIC

}  // namespace ddetr

namespace {

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

// Result element j is element index[j] of v.
template <typename T, int W>
DDETR_INLINE typename Simd<T, W>::Vec permute(
    typename Simd<T, W>::Vec v, typename Simd<T, W>::Int index) {
#if defined(__clang__)
  typename Simd<T, W>::Vec result;
  for (int j = 0; j < W; ++j) result[j] = v[index[j]];
  return result;
#else
  return __builtin_shuffle(v, index);
#endif
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

template <int W, int By>
struct Rotate {
  static constexpr int at(int j) { return (j + By) % W; }
};

struct Add {
  template <typename V>
  static DDETR_INLINE V of(V a, V b) {
    return a + b;
  }
};

struct Larger {  // NaN is no larger than anything
  template <typename V>
  static DDETR_INLINE V of(V a, V b) {
    return b > a ? b : a;
  }
};

// All elements of v combined, in every element of the result.
template <typename T, int W, typename Combine, int Step = W / 2>
DDETR_INLINE typename Simd<T, W>::Vec fold(typename Simd<T, W>::Vec v) {
  v = Combine::of(v, shuffle<T, W, Rotate<W, Step>>(v, v));
  if constexpr (Step > 1) return fold<T, W, Combine, Step / 2>(v);
  return v;
}

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

// e^x for x <= 0, to about an ulp; NaN for NaN. What would be subnormal is zero.
template <int W>
DDETR_INLINE typename Simd<float, W>::Vec exp_nonpositive(typename Simd<float, W>::Vec x) {
  using Vec = typename Simd<float, W>::Vec;
  using Int = typename Simd<float, W>::Int;
  const Vec zero = {};
  // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
  const Vec power = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  // x - power * ln 2, the logarithm in two parts.
  const Vec r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  Vec p = zero + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Int small = x < -87.0f;
  const Int exponent = __builtin_convertvector(small ? zero : power, Int) + 127;
  return small ? zero : p * (Vec)(exponent << 23);
}

template <int W>
DDETR_INLINE typename Simd<double, W>::Vec exp_nonpositive(typename Simd<double, W>::Vec x) {
  for (int j = 0; j < W; ++j) x[j] = __builtin_exp(x[j]);
  return x;
}

// W elements in memory, as vectors of what they are widened to.
template <typename E, int W>
struct Memory {  // float, double
  using Vec = typename Simd<E, W>::Vec;
  static DDETR_INLINE Vec load(const E* from) { return ::load<Vec>(from); }
  static DDETR_INLINE void store(E* to, Vec v) { ::store(to, v); }
  // 2 * W elements in the order that is cheapest, the same in both.
  static DDETR_INLINE void load2(const E* from, Vec& a, Vec& b) {
    a = load(from), b = load(from + W);
  }
  static DDETR_INLINE void store2(E* to, Vec a, Vec b) { store(to, a), store(to + W, b); }
};

template <int W>
struct Memory16;

#define DDETR_DEFINE_MEMORY16(W)                                              \
  template <>                                                                 \
  struct Memory16<W> {                                                        \
    typedef uint16_t Narrow __attribute__((vector_size(2 * W)));              \
    typedef uint32_t Bits __attribute__((vector_size(4 * W)));                \
    static DDETR_INLINE Bits load(const void* from) {                         \
      return __builtin_convertvector(::load<Narrow>(from), Bits);             \
    }                                                                         \
    static DDETR_INLINE void store(void* to, Bits bits) {                     \
      ::store(to, __builtin_convertvector(bits, Narrow));                     \
    }                                                                         \
  };
DDETR_DEFINE_MEMORY16(4)
DDETR_DEFINE_MEMORY16(8)
DDETR_DEFINE_MEMORY16(16)
#undef DDETR_DEFINE_MEMORY16

template <int W>
struct Memory<ddetr::Bf16, W> {
  using Bits = typename Memory16<W>::Bits;
  using Vec = typename Simd<float, W>::Vec;
  static DDETR_INLINE Vec load(const ddetr::Bf16* from) {
    return (Vec)(Memory16<W>::load(from) << 16);
  }
  static DDETR_INLINE void store(ddetr::Bf16* to, Vec v) {
    Memory16<W>::store(to, round(v) >> 16);
  }
  // Even elements, odd elements.
  static DDETR_INLINE void load2(const ddetr::Bf16* from, Vec& a, Vec& b) {
    const Bits both = ::load<Bits>(from);
    a = (Vec)(both << 16), b = (Vec)(both & 0xffff0000u);
  }
  static DDETR_INLINE void store2(ddetr::Bf16* to, Vec a, Vec b) {
    ::store(to, (round(a) >> 16) | round(b));
  }

 private:
  // To the nearest, ties to even; a NaN must not round to infinity.
  static DDETR_INLINE Bits round(Vec v) {
    const Bits bits = (Bits)v;
    const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return (v == v ? rounded : (bits | 0x400000)) & 0xffff0000u;
  }
};

template <int W>
struct Memory<ddetr::Fp16, W> {
  using Bits = typename Memory16<W>::Bits;
  using Vec = typename Simd<float, W>::Vec;
  static DDETR_INLINE Vec load(const ddetr::Fp16* from) {
#if defined(__x86_64__) && DDETR_VECTOR_BYTES >= 32
    if constexpr (W == 8) return (Vec)_mm256_cvtph_ps(::load<__m128i>(from));
#endif
#if defined(__x86_64__) && DDETR_VECTOR_BYTES >= 64
    if constexpr (W == 16) return (Vec)_mm512_maskz_cvtph_ps(0xffff, ::load<__m256i>(from));
#endif
    const Bits half = Memory16<W>::load(from);
    const Bits magnitude = (half & 0x7fff) << 13;  // exponent and mantissa where float32's are
    const Bits exponent = magnitude & (0x7c00u << 13);
    Bits bits = magnitude + (112u << 23);  // from a bias of 15 to one of 127
    bits += exponent == (0x7c00u << 13) ? Bits{} + (112u << 23) : Bits{};  // infinity, NaN
    // Subnormal: 2^-14 * (1 + fraction) less 2^-14.
    const Vec subnormal = (Vec)(bits + (1u << 23)) - 6.103515625e-05f;
    const Bits unsigned_bits = exponent == Bits{} ? (Bits)subnormal : bits;
    return (Vec)(unsigned_bits | ((half & 0x8000) << 16));
  }
  static DDETR_INLINE void store(ddetr::Fp16* to, Vec v) {
    const Bits all = (Bits)v, sign = all & 0x80000000u, bits = all ^ sign;
    const Bits zero = {};
    const Bits special = bits > 0x7f800000u ? zero + 0x7e00u : zero + 0x7c00u;
    // Adding 0.5 leaves the bits of a subnormal result, rounded, at the end of the mantissa.
    const Bits subnormal = (Bits)((Vec)bits + 0.5f) - (126u << 23);
    // Ties to even; too large a mantissa carries into the exponent, up to infinity.
    const Bits normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    Bits half = bits < (113u << 23) ? subnormal : normal;
    half = bits >= (143u << 23) ? special : half;
    Memory16<W>::store(to, half | (sign >> 16));
  }
  static DDETR_INLINE void load2(const ddetr::Fp16* from, Vec& a, Vec& b) {
    a = load(from), b = load(from + W);
  }
  static DDETR_INLINE void store2(ddetr::Fp16* to, Vec a, Vec b) {
    store(to, a), store(to + W, b);
  }
};

}  // namespace
