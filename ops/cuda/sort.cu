// A source of its own: CUB takes longer to compile than everything else.

// Under a name of ours, so that it is never mixed with the CUB inside libtorch.
#define CUB_WRAPPED_NAMESPACE ddetr_cub
#include <cub/device/device_radix_sort.cuh>
#include <stdexcept>
#include <string>

#include "sort.h"

namespace ddetr {
namespace {

void check_sort(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("ms_deform_attn: sorting: ") + cudaGetErrorString(error));
  }
}

}  // namespace

size_t sort_scratch_bytes(int count, int key_bits) {
  size_t bytes = 0;
  const uint32_t* from = nullptr;
  uint32_t* to = nullptr;
  check_sort(::ddetr_cub::cub::DeviceRadixSort::SortPairs(
      nullptr, bytes, from, to, from, to, count, 0, key_bits));
  return bytes;
}

void sort_by_key(
    void* scratch, size_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys,
    const uint32_t* items, uint32_t* sorted_items, int count, int key_bits, Stream stream) {
  check_sort(::ddetr_cub::cub::DeviceRadixSort::SortPairs(
      scratch, scratch_bytes, keys, sorted_keys, items, sorted_items, count, 0, key_bits, stream));
}

}  // namespace ddetr
