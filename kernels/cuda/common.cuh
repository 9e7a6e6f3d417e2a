// What every kernel here shares: element types, conversions, warp sums, and how a kernel makes itself known.
//
// A kernel is compiled twice: by nvcc for the device, and by a C++ compiler against an emulation of the thread grid
// (tests/emulation/grid.h, force-included), which checks it. So nothing here but this file includes anything of CUDA's, dynamic
// shared memory is named through WEIR_DYNAMIC_SHARED, and each kernel is named once more, at its file's end, in WEIR_KERNEL.
//
// Sums and exponentials use the plain functions (expf, fmaf, rsqrtf): no -use_fast_math.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>

// Names a kernel to whoever loads it; on the device its extern "C" symbol is enough.
#define WEIR_KERNEL(name)
// Declares `name`, a `type*` to the launch's dynamic shared memory, aligned to 128 bytes.
#define WEIR_DYNAMIC_SHARED(type, name)                         \
    extern __shared__ __align__(128) unsigned char weir_dynamic[]; \
    type* const name = reinterpret_cast<type*>(weir_dynamic)
#endif

// M(suffix, type) for each element type.
#define WEIR_FOR_ELEMENTS(M) \
    M(f32, float)            \
    M(f16, __half)           \
    M(bf16, __nv_bfloat16)

namespace weir {

constexpr unsigned FULL = 0xffffffffu;
constexpr int WARP = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to the nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// The sum over a warp, the same bits in every lane: a fixed tree.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

}  // namespace weir
