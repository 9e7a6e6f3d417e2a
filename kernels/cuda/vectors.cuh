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

// Two elements in a word, as they lie in memory.
__device__ __forceinline__ unsigned pack(__half low, __half high) {
    return __half_as_ushort(low) | static_cast<unsigned>(__half_as_ushort(high)) << 16;
}
__device__ __forceinline__ unsigned pack(__nv_bfloat16 low, __nv_bfloat16 high) {
    return __bfloat16_as_ushort(low) | static_cast<unsigned>(__bfloat16_as_ushort(high)) << 16;
}

// Rounds eight numbers and writes them, 16 bytes at once if `wide`.
template <typename T>
__device__ __forceinline__ void store_vector(T* to, const float* from, bool wide) {
    T rounded[8];
#pragma unroll
    for (int i = 0; i < 8; i++) rounded[i] = from_float<T>(from[i]);
    if (wide) {
        *reinterpret_cast<uint4*>(to) = make_uint4(pack(rounded[0], rounded[1]), pack(rounded[2], rounded[3]),
                                                   pack(rounded[4], rounded[5]), pack(rounded[6], rounded[7]));
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = rounded[i];
    }
}

// Whether rows that begin at `first`, `stride` elements apart, all begin at multiples of 16 bytes.
template <typename T>
__device__ __forceinline__ bool on_vectors(const T* first, uint64_t stride) {
    return (reinterpret_cast<uintptr_t>(first) | stride * sizeof(T)) % 16 == 0;
}

// Sixteen bytes from global to shared memory without passing through registers, zeros if not `valid` (nothing is read then). They
// have arrived after the thread's wait_for_copies; other threads see them after a barrier besides.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
    const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(valid ? 16 : 0) : "memory");
#else
    weir_copy_async(to, from, valid);
#endif
}

// Ends a group of copies, which may be empty.
__device__ __forceinline__ void end_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    weir_copies_end_group();
#endif
}

// Waits for all but the last LEFT groups of this thread's copies.
template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    weir_copies_arrive(LEFT);
#endif
}

// Copies rows first .. end of a tile of 32 to shared memory, zeros for the others: what lies there is not this sequence's. Rows are
// `dim` elements, `from_stride` and `to_stride` apart; the whole block takes part. `wide`: 16 bytes at a time, which both must suit.
// One group of copies.
template <typename T>
__device__ __forceinline__ void stage_rows(T* to, uint32_t to_stride, const T* from, uint64_t from_stride, uint32_t dim,
                                           uint32_t first, uint32_t end, bool wide) {
    if (wide) {
        const uint32_t vectors = dim / PER_VECTOR<T>;
        for (uint32_t i = threadIdx.x; i < 32 * vectors; i += blockDim.x) {
            const uint32_t row = i / vectors, column = i % vectors * PER_VECTOR<T>;
            const bool valid = first <= row && row < end;
            copy_async(to + row * to_stride + column, from + (valid ? row : first) * from_stride + column, valid);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < 32 * dim; i += blockDim.x) {
            const uint32_t row = i / dim, column = i % dim;
            to[row * to_stride + column] = first <= row && row < end ? from[row * from_stride + column] : from_float<T>(0.0f);
        }
    }
    end_copies();
}

}  // namespace weir
