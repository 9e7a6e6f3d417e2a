// Rows sixteen bytes at a time, and sums over a block.
//
// A thread works on a chunk: as many neighbouring elements as sixteen bytes hold. Chunks are read and written whole
// where the rows allow it and element by element where they do not (rows that begin off a multiple of sixteen bytes,
// the end of a row); which thread works on which element is the same both ways, and so is every result, to the bit.
#pragma once

#include "common.cuh"

namespace weir {

// Elements of a chunk.
template <typename T>
constexpr uint32_t CHUNK = 16 / sizeof(T);

// Whether rows that begin at `at` and lie `stride` elements apart begin on multiples of sixteen bytes.
template <typename T>
__device__ __forceinline__ bool wide(const T* at, size_t stride) {
    return (reinterpret_cast<size_t>(at) | stride * sizeof(T)) % 16 == 0;
}

template <typename T>
union Sixteen {
    uint4 all;
    T each[CHUNK<T>];
    __device__ Sixteen() : all() {}
};

// Reads N elements, of which `left` exist; the others are 0. `wide` says that sixteen bytes at a time will do.
template <uint32_t N, typename T>
__device__ __forceinline__ void load(float (&to)[N], const T* from, uint32_t left, bool wide) {
    static_assert(N % CHUNK<T> == 0, "whole chunks");
    if (wide && left >= N) {
#pragma unroll
        for (uint32_t part = 0; part < N; part += CHUNK<T>) {
            Sixteen<T> chunk;
            chunk.all = *reinterpret_cast<const uint4*>(from + part);
#pragma unroll
            for (uint32_t i = 0; i < CHUNK<T>; i++) to[part + i] = to_float(chunk.each[i]);
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i++) to[i] = i < left ? to_float(from[i]) : 0.0f;
    }
}

// Writes N elements, rounded to T, of which `left` exist.
template <uint32_t N, typename T>
__device__ __forceinline__ void store(T* to, const float (&from)[N], uint32_t left, bool wide) {
    static_assert(N % CHUNK<T> == 0, "whole chunks");
    if (wide && left >= N) {
#pragma unroll
        for (uint32_t part = 0; part < N; part += CHUNK<T>) {
            Sixteen<T> chunk;
#pragma unroll
            for (uint32_t i = 0; i < CHUNK<T>; i++) chunk.each[i] = from_float<T>(from[part + i]);
            *reinterpret_cast<uint4*>(to + part) = chunk.all;
        }
    } else {
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            if (i < left) to[i] = from_float<T>(from[i]);
        }
    }
}

// The sum over a block of whole warps, the same bits in every thread: within warps, then over their sums in order.
// `parts` is 32 floats of shared memory, which may be used again after the next barrier.
__device__ __forceinline__ float block_sum(float x, float* parts) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (uint32_t warp = 0; warp < blockDim.x / WARP; warp++) sum += parts[warp];
    return sum;
}

}  // namespace weir
