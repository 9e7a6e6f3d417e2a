// Rotary position embedding, in place: one block for a row, each thread some pairs of a head.
//
// The products and sums are those of the CPU body, each rounded by itself.
#include "common.cuh"
#include "rows.cuh"

namespace weir {

__device__ __forceinline__ float turned_first(float a, float b, float cos, float sin) {
    return __fadd_rn(__fmul_rn(a, cos), -__fmul_rn(b, sin));
}

__device__ __forceinline__ float turned_second(float a, float b, float cos, float sin) {
    return __fadd_rn(__fmul_rn(a, sin), __fmul_rn(b, cos));
}

// Pairs (i, i + pairs).
template <typename T>
__device__ void rope_half(T* x, uint32_t x_stride, uint32_t heads, uint32_t head_dim, const uint32_t* positions,
                          const float* cos_table, const float* sin_table, uint32_t pairs) {
    constexpr uint32_t N = CHUNK<T>;
    const size_t position = positions[blockIdx.x];
    const float* const cos_row = cos_table + position * pairs;
    const float* const sin_row = sin_table + position * pairs;
    const bool rows_wide = wide(x, x_stride) && wide(x, head_dim) && wide(x, pairs);
    const bool table_wide = wide(cos_table, pairs) && wide(sin_table, pairs);
    const uint32_t chunks = (pairs + N - 1) / N;
    for (uint32_t item = threadIdx.x; item < heads * chunks; item += blockDim.x) {
        const uint32_t pair = item % chunks * N, left = pairs - pair;
        T* const low = x + blockIdx.x * size_t(x_stride) + item / chunks * head_dim + pair;
        T* const high = low + pairs;
        float a[N], b[N], cos[N], sin[N], first[N], second[N];
        load(a, low, left, rows_wide);
        load(b, high, left, rows_wide);
        load(cos, cos_row + pair, left, table_wide);
        load(sin, sin_row + pair, left, table_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            first[i] = turned_first(a[i], b[i], cos[i], sin[i]);
            second[i] = turned_second(a[i], b[i], cos[i], sin[i]);
        }
        store(low, first, left, rows_wide);
        store(high, second, left, rows_wide);
    }
}

// Pairs (2 i, 2 i + 1).
template <typename T>
__device__ void rope_interleaved(T* x, uint32_t x_stride, uint32_t heads, uint32_t head_dim, const uint32_t* positions,
                                 const float* cos_table, const float* sin_table, uint32_t pairs) {
    constexpr uint32_t N = CHUNK<T>;
    const size_t position = positions[blockIdx.x];
    const float* const cos_row = cos_table + position * pairs;
    const float* const sin_row = sin_table + position * pairs;
    const bool rows_wide = wide(x, x_stride) && wide(x, head_dim);
    const uint32_t chunks = (2 * pairs + N - 1) / N;
    for (uint32_t item = threadIdx.x; item < heads * chunks; item += blockDim.x) {
        const uint32_t at = item % chunks * N, left = 2 * pairs - at;
        T* const to = x + blockIdx.x * size_t(x_stride) + item / chunks * head_dim + at;
        float value[N];
        load(value, to, left, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i += 2) {
            if (i < left) {
                const float cos = cos_row[(at + i) / 2], sin = sin_row[(at + i) / 2];
                const float a = value[i], b = value[i + 1];
                value[i] = turned_first(a, b, cos, sin);
                value[i + 1] = turned_second(a, b, cos, sin);
            }
        }
        store(to, value, left, rows_wide);
    }
}

}  // namespace weir

#define KERNEL(name, suffix, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        name##_##suffix(T* x, uint32_t x_stride, uint32_t heads, uint32_t head_dim, const uint32_t* positions,         \
                        const float* cos, const float* sin, uint32_t pairs) {                                          \
        weir::name(x, x_stride, heads, head_dim, positions, cos, sin, pairs);                                          \
    }                                                                                                                  \
    WEIR_KERNEL(name##_##suffix)
#define KERNELS(suffix, T)                                                                                             \
    KERNEL(rope_half, suffix, T)                                                                                       \
    KERNEL(rope_interleaved, suffix, T)
WEIR_FOR_ELEMENTS(KERNELS)
