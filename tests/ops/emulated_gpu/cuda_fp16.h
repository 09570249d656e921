// Included by numbers.cuh; emulation.h has what it needs.
