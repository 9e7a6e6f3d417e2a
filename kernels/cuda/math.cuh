// The crate's own elementary functions (src/math.rs) on the device, bit for bit.
//
// The same IEEE-754 f32 operations in the same order. The compiler may turn a product and a sum into one fused
// operation, which rounds once instead of twice; the _rn functions forbid it, and fmaf asks for it where src/math.rs
// does.
#pragma once

#include "common.cuh"

namespace weir {

// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, for |x| < 2^22.
constexpr float ROUND = 12582912.0f;
constexpr float LOG2_E = 1.44269504088896340736f;
// ln 2 in two parts: the first has nine trailing zero bits.
constexpr float LN2_HI = 0.69314575f;
constexpr float LN2_LO = 1.4286068e-6f;

__device__ __forceinline__ float nearest_whole(float x) { return __fadd_rn(__fadd_rn(x, ROUND), -ROUND); }

// 2 to the power n, a whole number in -126..=127.
__device__ __forceinline__ float pow2(float n) { return __uint_as_float(uint32_t(int(n) + 127) << 23); }

// The smaller and the larger as src/math.rs has them: a NaN in x stays one.
__device__ __forceinline__ float clamped(float x, float least, float most) {
    x = least > x ? least : x;
    return most < x ? most : x;
}

// Splits x into n whole and r with x = n ln 2 + r, |r| <= ln(2)/2; returns e^r - 1.
__device__ __forceinline__ float reduce_exp(float x, float& n) {
    n = nearest_whole(__fmul_rn(x, LOG2_E));
    float r = fmaf(n, -LN2_HI, x);
    r = fmaf(n, -LN2_LO, r);
    // 1/n! for n = 7 .. 1.
    float sum = 1.0f / 5040.0f;
    sum = fmaf(sum, r, 1.0f / 720.0f);
    sum = fmaf(sum, r, 1.0f / 120.0f);
    sum = fmaf(sum, r, 1.0f / 24.0f);
    sum = fmaf(sum, r, 1.0f / 6.0f);
    sum = fmaf(sum, r, 0.5f);
    sum = fmaf(sum, r, 1.0f);
    return __fmul_rn(sum, r);
}

// math::exp
__device__ __forceinline__ float exact_exp(float x) {
    x = clamped(x, -104.0f, 89.0f);
    float n;
    const float e = reduce_exp(x, n);
    const float half = nearest_whole(__fmul_rn(n, 0.5f));
    return __fmul_rn(__fmul_rn(__fadd_rn(e, 1.0f), pow2(half)), pow2(__fadd_rn(n, -half)));
}

// e^x - 1 for x in about [-104, 80], accurate near zero too.
__device__ __forceinline__ float exact_expm1(float x) {
    x = clamped(x, -80.0f, 80.0f);
    float n;
    const float e = reduce_exp(x, n);
    const float scale = pow2(n);
    return fmaf(scale, e, __fadd_rn(scale, -1.0f));
}

// `x`, which is not negative, with the sign of `sign`.
__device__ __forceinline__ float with_sign_of(float x, float sign) {
    return __uint_as_float(__float_as_uint(x) | (__float_as_uint(sign) & 0x80000000u));
}

// `if t < limit { t } else { limit }` of |x|, but a NaN stays one.
__device__ __forceinline__ float magnitude_below(float x, float limit) {
    const float t = fabsf(x);
    return limit < t ? limit : t;
}

// math::tanh
__device__ __forceinline__ float exact_tanh(float x) {
    const float t = magnitude_below(x, 10.0f);
    const float em = exact_expm1(__fadd_rn(t, t));
    return with_sign_of(__fdiv_rn(em, __fadd_rn(em, 2.0f)), x);
}

// math::erf
__device__ __forceinline__ float exact_erf(float x) {
    const float t = magnitude_below(x, 4.0f);
    // ln(erfc(t)) / t on [0, 4], highest power first.
    float sum = 9.946280243866568e-8f;
    sum = fmaf(sum, t, -2.5187373466906138e-6f);
    sum = fmaf(sum, t, 2.8390299121378578e-5f);
    sum = fmaf(sum, t, -1.8635796732269228e-4f);
    sum = fmaf(sum, t, 7.667069439776242e-4f);
    sum = fmaf(sum, t, -1.8134170677512884e-3f);
    sum = fmaf(sum, t, 2.4718250570930913e-4f);
    sum = fmaf(sum, t, 1.9128648564219475e-2f);
    sum = fmaf(sum, t, -0.10277583450078964f);
    sum = fmaf(sum, t, -0.6366192102432251f);
    sum = fmaf(sum, t, -1.128379225730896f);
    const float em = exact_expm1(__fmul_rn(sum, t));
    return with_sign_of(__fadd_rn(0.0f, -em), x);
}

// math::silu
__device__ __forceinline__ float exact_silu(float x) {
    return __fdiv_rn(x, __fadd_rn(exact_exp(__fadd_rn(0.0f, -x)), 1.0f));
}

// math::gelu_erf
__device__ __forceinline__ float exact_gelu_erf(float x) {
    const float half = __fmul_rn(x, 0.5f);
    return fmaf(half, exact_erf(__fmul_rn(x, 0.70710678118654752440f)), half);
}

// math::gelu_tanh
__device__ __forceinline__ float exact_gelu_tanh(float x) {
    const float cube = __fmul_rn(__fmul_rn(x, x), x);
    const float inner = fmaf(cube, 0.044715f, x);
    const float half = __fmul_rn(x, 0.5f);
    return fmaf(half, exact_tanh(__fmul_rn(inner, 0.7978846f)), half);
}

}  // namespace weir
