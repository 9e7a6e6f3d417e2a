// Kernels that touch each element once: a block for a row and some of its chunks, a chunk for a thread.
//
// Results are those of the CPU bodies, computed in f32 and rounded once to the element type.
#include "common.cuh"
#include "math.cuh"
#include "rows.cuh"

namespace weir {

// First element of this thread's chunk.
template <uint32_t N>
__device__ __forceinline__ uint32_t chunk_start() {
    return (blockIdx.y * blockDim.x + threadIdx.x) * N;
}

// x += y
template <typename T>
__device__ void add(T* x, uint32_t x_stride, const T* y, uint32_t y_stride, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(x, x_stride) && wide(y, y_stride);
    T* const to = x + blockIdx.x * size_t(x_stride) + at;
    float value[N], more[N];
    load(value, to, cols - at, rows_wide);
    load(more, y + blockIdx.x * size_t(y_stride) + at, cols - at, rows_wide);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) value[i] = __fadd_rn(value[i], more[i]);
    store(to, value, cols - at, rows_wide);
}

// out = silu(gate) * up, the gates being the first `cols` of a row of gate_up and the ups the next.
template <typename T>
__device__ void silu_mul(T* out, uint32_t out_stride, const T* gate_up, uint32_t gate_up_stride, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(out, out_stride) && wide(gate_up, gate_up_stride) && wide(gate_up, cols);
    const T* const gates = gate_up + blockIdx.x * size_t(gate_up_stride) + at;
    float gate[N], up[N];
    load(gate, gates, cols - at, rows_wide);
    load(up, gates + cols, cols - at, rows_wide);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) gate[i] = __fmul_rn(exact_silu(gate[i]), up[i]);
    store(out + blockIdx.x * size_t(out_stride) + at, gate, cols - at, rows_wide);
}

// x = gelu(x), with the error function or with tanh.
template <bool ERF, typename T>
__device__ void gelu(T* x, uint32_t x_stride, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(x, x_stride);
    T* const to = x + blockIdx.x * size_t(x_stride) + at;
    float value[N];
    load(value, to, cols - at, rows_wide);
#pragma unroll
    for (uint32_t i = 0; i < N; i++) value[i] = ERF ? exact_gelu_erf(value[i]) : exact_gelu_tanh(value[i]);
    store(to, value, cols - at, rows_wide);
}

// x += bias, the same for every row.
template <typename T>
__device__ void add_bias(T* x, uint32_t x_stride, const float* bias, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(x, x_stride);
    T* const to = x + blockIdx.x * size_t(x_stride) + at;
    float value[N], more[N];
    load(value, to, cols - at, rows_wide);
    load(more, bias + at, cols - at, wide(bias, 0));
#pragma unroll
    for (uint32_t i = 0; i < N; i++) value[i] = __fadd_rn(value[i], more[i]);
    store(to, value, cols - at, rows_wide);
}

// out[i] = x[rows[i]]; zeros where x has no such row, so that an id that stands for a failure reads nothing.
template <typename T>
__device__ void gather_rows(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, uint32_t x_rows,
                            const uint32_t* rows, uint32_t cols) {
    constexpr uint32_t N = CHUNK<T>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    const uint32_t row = rows[blockIdx.x];
    float value[N];
    load(value, x + row * size_t(x_stride) + at, row < x_rows ? cols - at : 0, rows_wide);
    store(out + blockIdx.x * size_t(out_stride) + at, value, cols - at, rows_wide);
}

// out = x, of another type.
template <typename To, typename From>
__device__ void cast(To* out, uint32_t out_stride, const From* x, uint32_t x_stride, uint32_t cols) {
    // As many elements as sixteen bytes of the narrower type hold.
    constexpr uint32_t N = CHUNK<To> > CHUNK<From> ? CHUNK<To> : CHUNK<From>;
    const uint32_t at = chunk_start<N>();
    if (at >= cols) return;
    const bool rows_wide = wide(out, out_stride) && wide(x, x_stride);
    float value[N];
    load(value, x + blockIdx.x * size_t(x_stride) + at, cols - at, rows_wide);
    store(out + blockIdx.x * size_t(out_stride) + at, value, cols - at, rows_wide);
}

}  // namespace weir

#define KERNELS(suffix, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        add_##suffix(T* x, uint32_t x_stride, const T* y, uint32_t y_stride, uint32_t cols) {                          \
        weir::add(x, x_stride, y, y_stride, cols);                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        silu_mul_##suffix(T* out, uint32_t out_stride, const T* gate_up, uint32_t gate_up_stride, uint32_t cols) {     \
        weir::silu_mul(out, out_stride, gate_up, gate_up_stride, cols);                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) gelu_erf_##suffix(T* x, uint32_t x_stride, uint32_t cols) {      \
        weir::gelu<true>(x, x_stride, cols);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) gelu_tanh_##suffix(T* x, uint32_t x_stride, uint32_t cols) {     \
        weir::gelu<false>(x, x_stride, cols);                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        add_bias_##suffix(T* x, uint32_t x_stride, const float* bias, uint32_t cols) {                                 \
        weir::add_bias(x, x_stride, bias, cols);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        gather_rows_##suffix(T* out, uint32_t out_stride, const T* x, uint32_t x_stride, uint32_t x_rows,              \
                             const uint32_t* rows, uint32_t cols) {                                                    \
        weir::gather_rows(out, out_stride, x, x_stride, x_rows, rows, cols);                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        to_f32_##suffix(float* out, uint32_t out_stride, const T* x, uint32_t x_stride, uint32_t cols) {               \
        weir::cast(out, out_stride, x, x_stride, cols);                                                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        from_f32_##suffix(T* out, uint32_t out_stride, const float* x, uint32_t x_stride, uint32_t cols) {             \
        weir::cast(out, out_stride, x, x_stride, cols);                                                                \
    }                                                                                                                  \
    WEIR_KERNEL(add_##suffix)                                                                                          \
    WEIR_KERNEL(silu_mul_##suffix)                                                                                     \
    WEIR_KERNEL(gelu_erf_##suffix)                                                                                     \
    WEIR_KERNEL(gelu_tanh_##suffix)                                                                                    \
    WEIR_KERNEL(add_bias_##suffix)                                                                                     \
    WEIR_KERNEL(gather_rows_##suffix)                                                                                  \
    WEIR_KERNEL(to_f32_##suffix)                                                                                       \
    WEIR_KERNEL(from_f32_##suffix)
WEIR_FOR_ELEMENTS(KERNELS)
