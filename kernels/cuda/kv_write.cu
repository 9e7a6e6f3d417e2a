// Writes a step's keys and values into the paged KV tensor.
//
// One block a row. The tensor is [blocks][layers][2][kv_heads][32][head_dim] of the activations' type, keys lying as values do.
#include "common.cuh"

namespace {

// Copies one row's heads, each to its tile, in pieces of P (16 bytes where everything is aligned so, else one element).
template <typename P>
__device__ __forceinline__ void scatter(P* to, const P* from, uint32_t kv_heads, uint32_t dim) {
    for (uint32_t i = threadIdx.x; i < kv_heads * dim; i += blockDim.x) {
        to[uint64_t(i / dim) * 32 * dim + i % dim] = from[i];
    }
}

template <typename T, typename P>
__device__ __forceinline__ void write_row(T* kv, const T* k, const T* v, uint64_t keys, uint64_t values, uint32_t kv_heads,
                                          uint32_t dim) {
    const uint32_t pieces = dim * sizeof(T) / sizeof(P);
    scatter(reinterpret_cast<P*>(kv + keys), reinterpret_cast<const P*>(k), kv_heads, pieces);
    scatter(reinterpret_cast<P*>(kv + values), reinterpret_cast<const P*>(v), kv_heads, pieces);
}

// kv: the tensor. k, v: [rows][kv_heads * dim], rows k_stride and v_stride elements apart. slots: [rows], block * 32 + position in
// the block; a slot outside the tensor is skipped. wide: whether every row of k and v begins at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void kv_write(T* kv, const T* k, const T* v, const uint32_t* slots, uint32_t k_stride, uint32_t v_stride,
                                         uint32_t blocks, uint32_t layers, uint32_t layer, uint32_t kv_heads, uint32_t dim,
                                         uint32_t wide) {
    const uint32_t row = blockIdx.x, slot = slots[row];
    if (slot / 32 >= blocks) return;
    const uint64_t tile = uint64_t(32) * dim;
    const uint64_t keys = (uint64_t(slot / 32) * layers + layer) * 2 * kv_heads * tile + uint64_t(slot % 32) * dim;
    const uint64_t values = keys + kv_heads * tile;
    const T* k_row = k + uint64_t(row) * k_stride;
    const T* v_row = v + uint64_t(row) * v_stride;
    if (wide) {
        write_row<T, uint4>(kv, k_row, v_row, keys, values, kv_heads, dim);
    } else {
        write_row<T, T>(kv, k_row, v_row, keys, values, kv_heads, dim);
    }
}

}  // namespace

#define KERNEL(suffix, T)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) kv_write_##suffix(                                                      \
        T* kv, const T* k, const T* v, const uint32_t* slots, uint32_t k_stride, uint32_t v_stride, uint32_t blocks,          \
        uint32_t layers, uint32_t layer, uint32_t kv_heads, uint32_t dim, uint32_t wide) {                                    \
        kv_write<T>(kv, k, v, slots, k_stride, v_stride, blocks, layers, layer, kv_heads, dim, wide);                         \
    }                                                                                                                         \
    WEIR_KERNEL(kv_write_##suffix)
WEIR_FOR_ELEMENTS(KERNEL)
