// The kernels for any machine: 16-byte vectors.
#define DDETR_CAPABILITY capability_default
#define DDETR_CAPABILITY_NAME "default"
#define DDETR_VECTOR_BYTES 16
#include "kernels_impl.h"
