// Dropout with a counter-based generator: the mask is a function of the seed and the position, so
// it is drawn by all threads at once, and the backward pass draws it again instead of storing it.
// Included by kernels_impl.h, once per instruction set.

namespace {

using ddetr::Bf16;
using ddetr::Dropping;

// Elements whose numbers are drawn together: four words from each of sixteen counters.
constexpr int kDrawn = ddetr::kDropoutBlock;
constexpr int kCounters = kDrawn / 4;

// Philox4x32-10 (Salmon et al., SC 2011), the generator that torch uses on GPUs. Word w of counter
// k belongs to element w * kCounters + k, whatever the width of the machine's vectors.
//
// Each 32-bit word is the lower half of a 64-bit lane; what is left above it, no product reads.
#if DDETR_VECTOR_BYTES == 64
using Lanes = __m512i;
constexpr int kLanes = 8;
DDETR_INLINE Lanes lanes(uint32_t word) { return _mm512_set1_epi64(word); }
DDETR_INLINE Lanes counters(uint64_t first) {
  return _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
}
DDETR_INLINE Lanes product(Lanes a, Lanes b) { return _mm512_mul_epu32(a, b); }
DDETR_INLINE Lanes upper(Lanes a) { return _mm512_srli_epi64(a, 32); }
DDETR_INLINE Lanes mixed(Lanes a, Lanes b, Lanes c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
DDETR_INLINE void store_words(uint32_t* to, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(a));
}
#elif DDETR_VECTOR_BYTES == 32
using Lanes = __m256i;
constexpr int kLanes = 4;
DDETR_INLINE Lanes lanes(uint32_t word) { return _mm256_set1_epi64x(word); }
DDETR_INLINE Lanes counters(uint64_t first) {
  return _mm256_add_epi64(_mm256_set1_epi64x(first), _mm256_set_epi64x(3, 2, 1, 0));
}
DDETR_INLINE Lanes product(Lanes a, Lanes b) { return _mm256_mul_epu32(a, b); }
DDETR_INLINE Lanes upper(Lanes a) { return _mm256_srli_epi64(a, 32); }
DDETR_INLINE Lanes mixed(Lanes a, Lanes b, Lanes c) {
  return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
DDETR_INLINE void store_words(uint32_t* to, Lanes a) {
  const __m256i even = _mm256_permutevar8x32_epi32(a, _mm256_set_epi32(0, 0, 0, 0, 6, 4, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(even));
}
#else
using Lanes = uint64_t;
constexpr int kLanes = 1;
DDETR_INLINE Lanes lanes(uint32_t word) { return word; }
DDETR_INLINE Lanes counters(uint64_t first) { return first; }
DDETR_INLINE Lanes product(Lanes a, Lanes b) {
  return uint64_t(static_cast<uint32_t>(a)) * static_cast<uint32_t>(b);
}
DDETR_INLINE Lanes upper(Lanes a) { return a >> 32; }
DDETR_INLINE Lanes mixed(Lanes a, Lanes b, Lanes c) { return a ^ b ^ c; }
DDETR_INLINE void store_words(uint32_t* to, Lanes a) { *to = static_cast<uint32_t>(a); }
#endif

DDETR_INLINE void draw(uint64_t seed, uint64_t block, uint32_t* words) {
  constexpr int kSets = kCounters / kLanes;
  const Lanes m0 = lanes(0xD2511F53u), m1 = lanes(0xCD9E8D57u);
  Lanes a[kSets], b[kSets], c[kSets], d[kSets];
  for (int i = 0; i < kSets; ++i) {
    a[i] = counters(block * kCounters + i * kLanes);
    b[i] = upper(a[i]);
    c[i] = d[i] = lanes(0);
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Lanes k0 = lanes(key0), k1 = lanes(key1);
    for (int i = 0; i < kSets; ++i) {
      const Lanes p = product(m0, a[i]), q = product(m1, c[i]);
      a[i] = mixed(upper(q), b[i], k0);
      b[i] = q;
      c[i] = mixed(upper(p), d[i], k1);
      d[i] = p;
    }
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kSets; ++i) {
    store_words(words + 0 * kCounters + i * kLanes, a[i]);
    store_words(words + 1 * kCounters + i * kLanes, b[i]);
    store_words(words + 2 * kCounters + i * kLanes, c[i]);
    store_words(words + 3 * kCounters + i * kLanes, d[i]);
  }
}

constexpr int kFloats = DDETR_VECTOR_BYTES / sizeof(float);
using Floats = typename Simd<float, kFloats>::Vec;
typedef uint32_t Words __attribute__((vector_size(DDETR_VECTOR_BYTES)));

// One block of out = f(x) dropped and scaled, plus the residual if there is one.
template <typename E, typename R, bool kRelu>
DDETR_INLINE void drop_block(
    const E* x, const R* residual, R* out, const uint32_t* words, const Dropping& how) {
  const Floats zero = {};
  for (int k = 0; k < kDrawn; k += kFloats) {
    Floats value = Memory<E, kFloats>::load(x + k);
    // Not `value > 0`, which would turn NaN into zero.
    if (kRelu) value = value < 0 ? zero : value;
    value = load<Words>(words + k) < how.threshold ? zero : value * how.scale;
    if (residual) value += Memory<R, kFloats>::load(residual + k);
    Memory<R, kFloats>::store(out + k, value);
  }
}

template <typename E, typename R, bool kRelu>
void drop(const E* x, const R* residual, R* out, int64_t begin, int64_t end, const Dropping& how) {
  uint32_t words[kDrawn];
  int64_t i = begin;
  for (; i + kDrawn <= end; i += kDrawn) {
    draw(how.seed, i / kDrawn, words);
    drop_block<E, R, kRelu>(x + i, residual ? residual + i : nullptr, out + i, words, how);
  }
  if (i == end) return;
  E x_rest[kDrawn] = {};
  R residual_rest[kDrawn] = {}, out_rest[kDrawn];
  __builtin_memcpy(x_rest, x + i, (end - i) * sizeof(E));
  if (residual) __builtin_memcpy(residual_rest, residual + i, (end - i) * sizeof(R));
  draw(how.seed, i / kDrawn, words);
  drop_block<E, R, kRelu>(x_rest, residual_rest, out_rest, words, how);
  __builtin_memcpy(out + i, out_rest, (end - i) * sizeof(R));
}

// The gradient through ReLU and dropout. What came out tells what was kept: the rest is zero.
template <typename E>
DDETR_INLINE void relu_backward_block(const E* grad, const E* out, E* to, float scale) {
  const Floats zero = {};
  for (int k = 0; k < kDrawn; k += kFloats) {
    const Floats kept = Memory<E, kFloats>::load(grad + k) * scale;
    Memory<E, kFloats>::store(to + k, Memory<E, kFloats>::load(out + k) <= 0 ? zero : kept);
  }
}

template <typename E>
void relu_backward(const E* grad, const E* out, E* to, int64_t begin, int64_t end, float scale) {
  int64_t i = begin;
  for (; i + kDrawn <= end; i += kDrawn) {
    relu_backward_block<E>(grad + i, out + i, to + i, scale);
  }
  if (i == end) return;
  E grad_rest[kDrawn] = {}, out_rest[kDrawn] = {}, to_rest[kDrawn];
  __builtin_memcpy(grad_rest, grad + i, (end - i) * sizeof(E));
  __builtin_memcpy(out_rest, out + i, (end - i) * sizeof(E));
  relu_backward_block<E>(grad_rest, out_rest, to_rest, scale);
  __builtin_memcpy(to + i, to_rest, (end - i) * sizeof(E));
}

constexpr ddetr::DropoutKernels kDropoutKernels = {
    drop<float, float, false>, drop<Bf16, Bf16, false>, drop<Bf16, float, false>,
    drop<float, float, true>,  drop<Bf16, Bf16, true>,  relu_backward<float>,
    relu_backward<Bf16>};

}  // namespace
