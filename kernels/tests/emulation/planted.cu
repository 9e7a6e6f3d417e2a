// Kernels with a fault each, which the emulation must find, and one without.
#include "vectors.cuh"

// out[block] = the sum of the block's 64 inputs, by way of shared memory.
template <bool BARRIER>
__device__ void sum_body(float* out, const float* in) {
    __shared__ float parts[64];
    parts[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
    if (BARRIER) __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int i = 0; i < 64; i++) sum += parts[i];
        out[blockIdx.x] = sum;
    }
}
extern "C" __global__ void sum_f32(float* out, const float* in) { sum_body<true>(out, in); }
extern "C" __global__ void no_barrier_f32(float* out, const float* in) { sum_body<false>(out, in); }

// A second use of the shared memory begins before everybody has read the first.
extern "C" __global__ void reuse_f32(float* out, const float* in) {
    WEIR_DYNAMIC_SHARED(float, parts);
    for (int round = 0; round < 2; round++) {
        parts[threadIdx.x] = in[round * 64 + threadIdx.x];
        __syncthreads();
        out[round * 64 + threadIdx.x] = parts[63 - threadIdx.x];
    }
}

extern "C" __global__ void past_the_end_f32(float* out, const float* in, uint32_t len) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= len) out[i] = in[0];
}

extern "C" __global__ void past_shared_f32(float* out) {
    WEIR_DYNAMIC_SHARED(float, parts);
    parts[threadIdx.x + 1] = 0.0f;
    __syncthreads();
    out[threadIdx.x] = parts[threadIdx.x + 1];
}

extern "C" __global__ void divergent_f32(float* out, const float* in) {
    float x = in[threadIdx.x];
    if (threadIdx.x < 16) x += __shfl_xor_sync(weir::FULL, x, 1);
    out[threadIdx.x] = x;
}

extern "C" __global__ void barrier_for_some_f32(float* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void unwritten_f32(float* out) {
    __shared__ float parts[64];
    if (threadIdx.x < 32) parts[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = parts[threadIdx.x];
}

// Every block writes the same word.
extern "C" __global__ void blocks_meet_f32(float* out) {
    if (threadIdx.x == 0) out[0] = float(blockIdx.x);
}

extern "C" __global__ void misaligned_f32(float* out) {
    if (threadIdx.x == 0) *reinterpret_cast<float4*>(out + 1) = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
}

// What a lane wrote is read by another of its warp, ordered by the shuffle alone.
extern "C" __global__ void shuffle_is_no_fence_f32(float* out) {
    __shared__ float parts[32];
    parts[threadIdx.x] = float(threadIdx.x);
    __shfl_sync(weir::FULL, 0.0f, 0);
    out[threadIdx.x] = parts[31 - threadIdx.x];
}

// Atomics meet without harm.
extern "C" __global__ void count_f32(float* out) {
    __shared__ unsigned count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 1u);
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = float(count);
}

WEIR_KERNEL(count_f32)
// What an asynchronous copy brings is read before its thread has waited for it.
template <bool WAIT>
__device__ void copy_body(float* out, const float* in) {
    WEIR_DYNAMIC_SHARED(float, parts);
    if (threadIdx.x < 16) weir::copy_async(parts + threadIdx.x * 4, in + threadIdx.x * 4, true);
    weir::end_copies();
    if (WAIT) weir::wait_for_copies<0>();
    __syncthreads();
    out[threadIdx.x] = parts[threadIdx.x];
    weir::wait_for_copies<0>();
}
extern "C" __global__ void copy_f32(float* out, const float* in) { copy_body<true>(out, in); }
extern "C" __global__ void copy_not_awaited_f32(float* out, const float* in) { copy_body<false>(out, in); }

WEIR_KERNEL(copy_f32)
WEIR_KERNEL(copy_not_awaited_f32)
WEIR_KERNEL(sum_f32)
WEIR_KERNEL(no_barrier_f32)
WEIR_KERNEL(reuse_f32)
WEIR_KERNEL(past_the_end_f32)
WEIR_KERNEL(past_shared_f32)
WEIR_KERNEL(divergent_f32)
WEIR_KERNEL(barrier_for_some_f32)
WEIR_KERNEL(unwritten_f32)
WEIR_KERNEL(blocks_meet_f32)
WEIR_KERNEL(misaligned_f32)
WEIR_KERNEL(shuffle_is_no_fence_f32)
