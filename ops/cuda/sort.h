// Sorts by integer keys, keeping the order of equal ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "launch.h"

namespace ddetr {

// Bytes of scratch memory that `sort_by_key` wants.
size_t sort_scratch_bytes(int count, int key_bits);

// Looks at the lowest `key_bits` of the keys.
void sort_by_key(
    void* scratch, size_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys,
    const uint32_t* items, uint32_t* sorted_items, int count, int key_bits, Stream stream);

}  // namespace ddetr
