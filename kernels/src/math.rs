//! Elementary functions whose bits are the same on every machine.
//!
//! Each is a fixed sequence of IEEE-754 f32 operations (add, multiply, divide, fused multiply-add, compare), written once over
//! [`Real`] and so instantiated for a scalar and for each instruction set's lanes. The polynomials are Taylor series (exp) or
//! Chebyshev fits (erf) of our own; the tests bound their error in ulps against f64.

/// One f32 or several side by side: what the functions below are written over.
pub(crate) trait Real: Copy {
    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * by + plus`, rounded once.
    fn fma(self, by: Self, plus: Self) -> Self;
    /// `if self > other { self } else { other }`: a NaN on either side gives `other`.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`: a NaN on either side gives `other`.
    fn min(self, other: Self) -> Self;
    fn abs(self) -> Self;
    /// `self` with the sign of `sign`; `self` is not negative.
    fn with_sign_of(self, sign: Self) -> Self;
    /// 2 to the power `self`, a whole number in -126..=127.
    fn pow2(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn splat(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn add(self, other: f32) -> f32 {
        self + other
    }
    #[inline(always)]
    fn sub(self, other: f32) -> f32 {
        self - other
    }
    #[inline(always)]
    fn mul(self, other: f32) -> f32 {
        self * other
    }
    #[inline(always)]
    fn div(self, other: f32) -> f32 {
        self / other
    }
    #[inline(always)]
    fn fma(self, by: f32, plus: f32) -> f32 {
        self.mul_add(by, plus)
    }
    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn min(self, other: f32) -> f32 {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn with_sign_of(self, sign: f32) -> f32 {
        f32::from_bits(self.to_bits() | (sign.to_bits() & 0x8000_0000))
    }
    #[inline(always)]
    fn pow2(self) -> f32 {
        f32::from_bits((self as i32).wrapping_add(127).wrapping_shl(23) as u32)
    }
}

/// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, for |x| < 2^22.
const ROUND: f32 = 12_582_912.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has nine trailing zero bits, so that a product with a small whole number is exact.
const LN2_HI: f32 = 0.693_145_75;
const LN2_LO: f32 = 1.428_606_8e-6;
/// 1/n! for n = 7 .. 1: the Taylor series of e^r - 1 over r, enough for |r| <= ln(2)/2 (the next term is 5e-9).
const EXPM1: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
/// ln(erfc(t)) / t on [0, 4]: a Chebyshev fit of degree 10, highest power first.
#[allow(clippy::excessive_precision)]
const LN_ERFC: [f32; 11] = [
    9.946_280_243_866_568e-8,
    -2.518_737_346_690_613_8e-6,
    2.839_029_912_137_857_8e-5,
    -1.863_579_673_226_922_8e-4,
    7.667_069_439_776_242e-4,
    -1.813_417_067_751_288_4e-3,
    2.471_825_057_093_091_3e-4,
    1.912_864_856_421_947_5e-2,
    -0.102_775_834_500_789_64,
    -0.636_619_210_243_225_1,
    -1.128_379_225_730_896,
];

#[inline(always)]
fn horner<R: Real, const N: usize>(x: R, coefficients: [f32; N]) -> R {
    let mut sum = R::splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = sum.fma(x, R::splat(*coefficient));
    }
    sum
}

/// Splits x into n whole and r with x = n ln 2 + r, |r| <= ln(2)/2; returns (n, e^r - 1).
#[inline(always)]
fn reduce<R: Real>(x: R) -> (R, R) {
    let n = x.mul(R::splat(LOG2_E)).add(R::splat(ROUND)).sub(R::splat(ROUND));
    let r = n.fma(R::splat(-LN2_HI), x);
    let r = n.fma(R::splat(-LN2_LO), r);
    (n, horner(r, EXPM1).mul(r))
}

#[inline(always)]
pub(crate) fn exp_real<R: Real>(x: R) -> R {
    // Below -104 the result rounds to zero, above 89 to infinity. The constants come first so that a NaN stays one.
    let x = R::splat(89.0).min(R::splat(-104.0).max(x));
    let (n, e) = reduce(x);
    // 2^n in two factors, so that neither overflows and subnormal results round once, at the end.
    let half = n.mul(R::splat(0.5)).add(R::splat(ROUND)).sub(R::splat(ROUND));
    e.add(R::splat(1.0)).mul(half.pow2()).mul(n.sub(half).pow2())
}

/// e^x - 1 for x in about [-104, 80], accurate near zero too.
#[inline(always)]
fn expm1_real<R: Real>(x: R) -> R {
    let x = R::splat(80.0).min(R::splat(-80.0).max(x));
    let (n, e) = reduce(x);
    let scale = n.pow2();
    scale.fma(e, scale.sub(R::splat(1.0)))
}

#[inline(always)]
pub(crate) fn tanh_real<R: Real>(x: R) -> R {
    // tanh x = em / (em + 2) with em = e^2x - 1; from 10 on it rounds to one.
    let t = R::splat(10.0).min(x.abs());
    let em = expm1_real(t.add(t));
    em.div(em.add(R::splat(2.0))).with_sign_of(x)
}

#[inline(always)]
pub(crate) fn erf_real<R: Real>(x: R) -> R {
    // erf t = 1 - erfc t = -(e^(ln erfc t) - 1); from 4 on it rounds to one.
    let t = R::splat(4.0).min(x.abs());
    let em = expm1_real(horner(t, LN_ERFC).mul(t));
    R::splat(0.0).sub(em).with_sign_of(x)
}

#[inline(always)]
pub(crate) fn silu_real<R: Real>(x: R) -> R {
    let e = exp_real(R::splat(0.0).sub(x));
    x.div(e.add(R::splat(1.0)))
}

#[inline(always)]
pub(crate) fn gelu_erf_real<R: Real>(x: R) -> R {
    let half = x.mul(R::splat(0.5));
    half.fma(erf_real(x.mul(R::splat(std::f32::consts::FRAC_1_SQRT_2))), half)
}

#[inline(always)]
pub(crate) fn gelu_tanh_real<R: Real>(x: R) -> R {
    // sqrt(2/pi) (x + 0.044715 x^3)
    let cube = x.mul(x).mul(x);
    let inner = cube.fma(R::splat(0.044_715), x);
    let half = x.mul(R::splat(0.5));
    half.fma(tanh_real(inner.mul(R::splat(0.797_884_6))), half)
}

/// e^x.
pub fn exp(x: f32) -> f32 {
    exp_real(x)
}

/// The hyperbolic tangent.
pub fn tanh(x: f32) -> f32 {
    tanh_real(x)
}

/// The error function.
pub fn erf(x: f32) -> f32 {
    erf_real(x)
}

/// x / (1 + e^-x).
pub fn silu(x: f32) -> f32 {
    silu_real(x)
}

/// x/2 (1 + erf(x / sqrt 2)).
pub fn gelu_erf(x: f32) -> f32 {
    gelu_erf_real(x)
}

/// The tanh form of gelu: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
pub fn gelu_tanh(x: f32) -> f32 {
    gelu_tanh_real(x)
}
