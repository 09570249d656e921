// Included by kernels.cuh; emulation.h has what it needs.
