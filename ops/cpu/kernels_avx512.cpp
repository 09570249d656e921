// The kernels for x86-64 machines with AVX-512 F, BW, DQ and VL: 64-byte vectors.
#if defined(__x86_64__)
#define DDETR_CAPABILITY capability_avx512
#define DDETR_CAPABILITY_NAME "avx512"
#define DDETR_VECTOR_BYTES 64
#define DDETR_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#include "kernels_impl.h"
#endif
