// The kernels for x86-64 machines with AVX2, FMA and F16C: 32-byte vectors.
#if defined(__x86_64__)
#define DDETR_CAPABILITY capability_avx2
#define DDETR_CAPABILITY_NAME "avx2"
#define DDETR_VECTOR_BYTES 32
#define DDETR_TARGET "avx2,fma,f16c"
#include "kernels_impl.h"
#endif
