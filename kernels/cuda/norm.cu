// Root-mean-square norm and layer norm: one block for a row, or one warp for a head.
//
// Sums are f32 whatever the element type. A row is read once for each sum and once for the result; after the first time
// it comes from the cache. Rows are so wide (a few KiB) that keeping them in registers would bound their width for
// little.
#include "common.cuh"
#include "rows.cuh"

namespace weir {

// out = row / sqrt(mean(row^2) + eps) * weight, after row += x where it adds. Without x the row is only read.
template <typename T, bool ADD>
__device__ __forceinline__ void rms_row(T* out, T* row, const T* x, const float* weight, uint32_t cols, float eps,
                                        bool rows_wide) {
    constexpr uint32_t N = CHUNK<T>;
    __shared__ float parts[32];
    float squares = 0.0f;
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N];
        load(value, row + at, cols - at, rows_wide);
        if (ADD) {
            float more[N];
            load(more, x + at, cols - at, rows_wide);
            // Rounded first: the norm is of the residual as it is kept.
#pragma unroll
            for (uint32_t i = 0; i < N; i++) value[i] = to_float(from_float<T>(value[i] + more[i]));
            store(row + at, value, cols - at, rows_wide);
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i++) squares = fmaf(value[i], value[i], squares);
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, parts) / float(cols) + eps);
    const bool weight_wide = wide(weight, 0);
    // Each thread reads what it wrote itself.
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N], by[N];
        load(value, row + at, cols - at, rows_wide);
        load(by, weight + at, cols - at, weight_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) value[i] = value[i] * scale * by[i];
        store(out + at, value, cols - at, rows_wide);
    }
}

// Row blockIdx.x of out = rms_norm(x).
template <typename T>
__device__ void rms_norm(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const float* weight, uint32_t cols,
                         float eps) {
    const size_t row = blockIdx.x;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    rms_row<T, false>(out + row * out_stride, const_cast<T*>(x + row * x_stride), nullptr, weight, cols, eps,
                      rows_wide);
}

// Row blockIdx.x: residual += x, out = rms_norm(residual).
template <typename T>
__device__ void add_rms_norm(T* out, uint32_t out_stride, T* residual, uint32_t residual_stride, const T* x,
                             uint32_t x_stride, const float* weight, uint32_t cols, float eps) {
    const size_t row = blockIdx.x;
    const bool rows_wide = wide(out, out_stride) && wide(residual, residual_stride) && wide(x, x_stride);
    rms_row<T, true>(out + row * out_stride, residual + row * residual_stride, x + row * x_stride, weight, cols, eps,
                     rows_wide);
}

// Each head of each row in place: warp by warp.
template <typename T>
__device__ void head_rms_norm(T* x, uint32_t x_stride, uint32_t rows, uint32_t heads, uint32_t head_dim,
                              const float* weight, float eps) {
    constexpr uint32_t N = CHUNK<T>;
    const size_t head = size_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (head >= size_t(rows) * heads) return;
    T* const row = x + head / heads * x_stride + head % heads * head_dim;
    const bool rows_wide = wide(x, x_stride) && wide(x, head_dim);
    const bool weight_wide = wide(weight, 0);
    const uint32_t lane = threadIdx.x % WARP;
    float squares = 0.0f;
    for (uint32_t at = lane * N; at < head_dim; at += WARP * N) {
        float value[N];
        load(value, row + at, head_dim - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) squares = fmaf(value[i], value[i], squares);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / float(head_dim) + eps);
    for (uint32_t at = lane * N; at < head_dim; at += WARP * N) {
        float value[N], by[N];
        load(value, row + at, head_dim - at, rows_wide);
        load(by, weight + at, head_dim - at, weight_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) value[i] = value[i] * scale * by[i];
        store(row + at, value, head_dim - at, rows_wide);
    }
}

// One chunk of x, or of x + y, which is not rounded to T in between.
template <typename T, bool ADD>
__device__ __forceinline__ void load_sum(float (&value)[CHUNK<T>], const T* x, const T* y, uint32_t left,
                                         bool rows_wide) {
    load(value, x, left, rows_wide);
    if (ADD) {
        float more[CHUNK<T>];
        load(more, y, left, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < CHUNK<T>; i++) value[i] += more[i];
    }
}

// out = (row - mean) / sqrt(variance + eps) * weight + bias of row = x, or x + y. `out` may be x or y: a thread reads a
// chunk for the last time before it writes it.
template <typename T, bool ADD>
__device__ __forceinline__ void layer_row(T* out, const T* x, const T* y, const float* weight, const float* bias,
                                          uint32_t cols, float eps, bool rows_wide) {
    constexpr uint32_t N = CHUNK<T>;
    __shared__ float sums[32], squares[32];
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N];
        load_sum<T, ADD>(value, x + at, y + at, cols - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sum += value[i];
    }
    const float mean = block_sum(sum, sums) / float(cols);
    // The variance from differences, not from squares: sums of squares lose what a large mean hides.
    float square = 0.0f;
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N];
        load_sum<T, ADD>(value, x + at, y + at, cols - at, rows_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const float off = at + i < cols ? value[i] - mean : 0.0f;
            square = fmaf(off, off, square);
        }
    }
    const float scale = 1.0f / sqrtf(block_sum(square, squares) / float(cols) + eps);
    const bool weight_wide = wide(weight, 0) && wide(bias, 0);
    for (uint32_t at = threadIdx.x * N; at < cols; at += blockDim.x * N) {
        float value[N], by[N], plus[N];
        load_sum<T, ADD>(value, x + at, y + at, cols - at, rows_wide);
        load(by, weight + at, cols - at, weight_wide);
        load(plus, bias + at, cols - at, weight_wide);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) value[i] = fmaf((value[i] - mean) * scale, by[i], plus[i]);
        store(out + at, value, cols - at, rows_wide);
    }
}

// Row blockIdx.x of out = layer_norm(x).
template <typename T>
__device__ void layer_norm(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const float* weight,
                           const float* bias, uint32_t cols, float eps) {
    const size_t row = blockIdx.x;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    const T* const from = x + row * x_stride;
    layer_row<T, false>(out + row * out_stride, from, from, weight, bias, cols, eps, rows_wide);
}

// Row blockIdx.x of out = layer_norm(x + y).
template <typename T>
__device__ void add_layer_norm(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const T* y,
                               uint32_t y_stride, const float* weight, const float* bias, uint32_t cols, float eps) {
    const size_t row = blockIdx.x;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride) && wide(y, y_stride);
    layer_row<T, true>(out + row * out_stride, x + row * x_stride, y + row * y_stride, weight, bias, cols, eps,
                       rows_wide);
}

}  // namespace weir

#define KERNELS(suffix, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_##suffix(                                              \
        T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const float* weight, uint32_t cols, float eps) {   \
        weir::rms_norm(out, out_stride, x, x_stride, weight, cols, eps);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        add_rms_norm_##suffix(T* out, uint32_t out_stride, T* residual, uint32_t residual_stride, const T* x,          \
                              uint32_t x_stride, const float* weight, uint32_t cols, float eps) {                      \
        weir::add_rms_norm(out, out_stride, residual, residual_stride, x, x_stride, weight, cols, eps);                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) head_rms_norm_##suffix(                                          \
        T* x, uint32_t x_stride, uint32_t rows, uint32_t heads, uint32_t head_dim, const float* weight, float eps) {   \
        weir::head_rms_norm(x, x_stride, rows, heads, head_dim, weight, eps);                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        layer_norm_##suffix(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const float* weight,           \
                            const float* bias, uint32_t cols, float eps) {                                             \
        weir::layer_norm(out, out_stride, x, x_stride, weight, bias, cols, eps);                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                                 \
        add_layer_norm_##suffix(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, const T* y,                \
                                uint32_t y_stride, const float* weight, const float* bias, uint32_t cols, float eps) { \
        weir::add_layer_norm(out, out_stride, x, x_stride, y, y_stride, weight, bias, cols, eps);                      \
    }                                                                                                                  \
    WEIR_KERNEL(rms_norm_##suffix)                                                                                     \
    WEIR_KERNEL(add_rms_norm_##suffix)                                                                                 \
    WEIR_KERNEL(head_rms_norm_##suffix)                                                                                \
    WEIR_KERNEL(layer_norm_##suffix)                                                                                   \
    WEIR_KERNEL(add_layer_norm_##suffix)
WEIR_FOR_ELEMENTS(KERNELS)
