// Sixteen bytes at a time.
#pragma once
#include "common.cuh"

namespace weir {

// Elements in 16 bytes.
template <typename T>
constexpr int PER_VECTOR = 16 / sizeof(T);

__device__ __forceinline__ void widen(unsigned word, float* to, float) { to[0] = __uint_as_float(word); }
__device__ __forceinline__ void widen(unsigned word, float* to, __nv_bfloat16) {
    to[0] = __uint_as_float(word << 16);
    to[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen(unsigned word, float* to, __half) {
    to[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffff)));
    to[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
}

// Reads 16 aligned bytes of elements as f32: to[PER_VECTOR<T>].
template <typename T>
__device__ __forceinline__ void load_vector(const T* from, float* to) {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    constexpr int PER_WORD = 4 / sizeof(T);
    widen(words.x, to, T());
    widen(words.y, to + PER_WORD, T());
    widen(words.z, to + 2 * PER_WORD, T());
    widen(words.w, to + 3 * PER_WORD, T());
}

// Copies rows first .. end of a tile of 32 to shared memory, zeros for the others: what lies there is not this sequence's. Rows are
// `dim` elements, `from_stride` and `to_stride` apart; the whole block takes part. `wide`: 16 bytes at a time, which both must suit.
template <typename T>
__device__ __forceinline__ void stage_rows(T* to, uint32_t to_stride, const T* from, uint64_t from_stride, uint32_t dim,
                                           uint32_t first, uint32_t end, bool wide) {
    if (wide) {
        const uint32_t vectors = dim / PER_VECTOR<T>;
        for (uint32_t i = threadIdx.x; i < 32 * vectors; i += blockDim.x) {
            const uint32_t row = i / vectors, column = i % vectors * PER_VECTOR<T>;
            uint4 words = make_uint4(0, 0, 0, 0);
            if (first <= row && row < end) words = *reinterpret_cast<const uint4*>(from + row * from_stride + column);
            *reinterpret_cast<uint4*>(to + row * to_stride + column) = words;
        }
    } else {
        for (uint32_t i = threadIdx.x; i < 32 * dim; i += blockDim.x) {
            const uint32_t row = i / dim, column = i % dim;
            to[row * to_stride + column] = first <= row && row < end ? from[row * from_stride + column] : from_float<T>(0.0f);
        }
    }
}

}  // namespace weir
