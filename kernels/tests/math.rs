//! The elementary functions against f64, in units in the last place.

use weir_kernels::math;

/// How far `got` is from `exact`, in spacings of f32 there.
fn ulps(got: f32, exact: f64) -> f64 {
    let spacing = f64::from((exact as f32).abs().next_up() - (exact as f32).abs());
    (f64::from(got) - exact).abs() / spacing
}

fn worst(range: std::ops::Range<f32>, got: fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
    let steps = 400_000;
    (0..=steps)
        .map(|step| range.start + (range.end - range.start) * (step as f32 / steps as f32))
        .map(|x| ulps(got(x), exact(f64::from(x))))
        .fold(0.0, f64::max)
}

/// erf by its series around zero and a continued fraction of erfc beyond two: far more exact than f32 needs.
fn erf(x: f64) -> f64 {
    let t = x.abs();
    let magnitude = if t < 2.5 {
        let (mut term, mut sum) = (t, t);
        for n in 1..80 {
            term *= -t * t / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(t, |below, n| t + f64::from(n) / 2.0 / below);
        1.0 - (-t * t).exp() / fraction / std::f64::consts::PI.sqrt()
    };
    magnitude.copysign(x)
}

#[test]
fn exp_is_within_two_ulps() {
    let worst = worst(-87.0..88.7, math::exp, f64::exp);
    assert!(worst < 2.0, "{worst}");
}

#[test]
fn exp_at_its_ends() {
    assert_eq!(math::exp(0.0), 1.0);
    assert_eq!(math::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(math::exp(-200.0), 0.0);
    assert_eq!(math::exp(f32::INFINITY), f32::INFINITY);
    assert_eq!(math::exp(100.0), f32::INFINITY);
    assert!(math::exp(f32::NAN).is_nan());
    assert!(math::exp(-95.0) > 0.0, "subnormal results are not flushed");
    assert!((f64::from(math::exp(-95.0)) - (-95f64).exp()).abs() < 2e-45);
}

#[test]
fn tanh_is_within_four_ulps() {
    let worst = worst(-12.0..12.0, math::tanh, f64::tanh);
    assert!(worst < 4.0, "{worst}");
    assert_eq!(math::tanh(1e-20), 1e-20);
    assert_eq!((math::tanh(f32::INFINITY), math::tanh(-50.0)), (1.0, -1.0));
    assert!(math::tanh(f32::NAN).is_nan());
}

#[test]
fn erf_is_within_six_ulps() {
    let worst = worst(-5.0..5.0, math::erf, erf);
    assert!(worst < 6.0, "{worst}");
    assert_eq!((math::erf(0.0), math::erf(10.0), math::erf(f32::NEG_INFINITY)), (0.0, 1.0, -1.0));
    assert!(math::erf(f32::NAN).is_nan());
}

#[test]
fn activations_follow_their_formulas() {
    let close = |got: fn(f32) -> f32, exact: fn(f64) -> f64| {
        for step in -8_000..=8_000 {
            let x = step as f32 / 800.0;
            let error = (f64::from(got(x)) - exact(f64::from(x))).abs();
            assert!(error < 1e-6 * (1.0 + f64::from(x.abs())), "{x}: {error}");
        }
    };
    close(math::silu, |x| x / (1.0 + (-x).exp()));
    close(math::gelu_erf, |x| x / 2.0 * (1.0 + erf(x / 2f64.sqrt())));
    close(math::gelu_tanh, |x| {
        x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    });
}
