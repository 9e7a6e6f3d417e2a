// From the rows of an encoder's packed batch to one vector a segment. Segment s is rows starts[s] .. starts[s + 1] of
// x.
#include "common.cuh"
#include "rows.cuh"

namespace weir {

// out[segment] = the mean of its rows, summed in order; 0 of an empty segment. A thread has a chunk of columns.
template <typename T>
__device__ void mean_pool(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const uint32_t* starts,
                          uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (at >= cols) return;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    const uint32_t first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    float sum[N];
#pragma unroll
    for (uint32_t i = 0; i < N; i++) sum[i] = 0.0f;
#pragma unroll 4
    for (uint32_t row = first; row < end; row++) {
        float value[N];
        load(value, x + row * size_t(x_stride) + at, cols - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sum[i] = __fadd_rn(sum[i], value[i]);
    }
    const float inverse = first < end ? __fdiv_rn(1.0f, float(end - first)) : 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) sum[i] = __fmul_rn(sum[i], inverse);
    store(out + blockIdx.x * size_t(out_stride) + at, sum, cols - at, rows_wide);
}

// out[segment] = its first row; zeros for an empty segment.
template <typename T>
__device__ void cls_pool(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const uint32_t* starts,
                         uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (at >= cols) return;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    const uint32_t first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    float value[N];
    load(value, x + first * size_t(x_stride) + at, first < end ? cols - at : 0, rows_wide);
    store(out + blockIdx.x * size_t(out_stride) + at, value, cols - at, rows_wide);
}

// Divides row blockIdx.x by its Euclidean length (at least 1e-12), in place.
template <typename T>
__device__ void l2_normalize(T* x, uint32_t x_stride, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    __shared__ float parts[32];
    const bool rows_wide = wide(x, x_stride);
    T* const row = x + blockIdx.x * size_t(x_stride);
    float squares = 0.0f;
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N];
        load(value, row + at, cols - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) squares = fmaf(value[i], value[i], squares);
    }
    const float inverse = 1.0f / fmaxf(sqrtf(block_sum(squares, parts)), 1e-12f);
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N];
        load(value, row + at, cols - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) value[i] *= inverse;
        store(row + at, value, cols - at, rows_wide);
    }
}

}  // namespace weir

#define POOL(name, suffix, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(64) name##_##suffix(                                                  \
        T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const uint32_t* starts, uint32_t cols) {           \
        weir::name(out, out_stride, x, x_stride, starts, cols);                                                        \
    }                                                                                                                  \
    WEIR_KERNEL(name##_##suffix)
#define KERNELS(suffix, T)                                                                                             \
    POOL(mean_pool, suffix, T)                                                                                         \
    POOL(cls_pool, suffix, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(1024) l2_normalize_##suffix(T* x, uint32_t x_stride, uint32_t cols) { \
        weir::l2_normalize(x, x_stride, cols);                                                                         \
    }                                                                                                                  \
    WEIR_KERNEL(l2_normalize_##suffix)
WEIR_FOR_ELEMENTS(KERNELS)
