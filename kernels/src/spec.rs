//! The plain scalar loop of each op: what the fast bodies must equal, bit for bit.
//!
//! Each function is one unit of work (a row, a head of a token) and fixes the order of its f32 operations. Nothing in that order
//! depends on what else is in the batch.

use crate::math;
use crate::{PackedMatrix, RowCodes};

/// Sums 16 lanes in a fixed tree: halves, quarters, eighths, sixteenths.
pub fn reduce(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// One row of the product. With float weights `out[n] = fma over k in order of x[k] w[n, k]`, from zero, then plus the bias. With
/// quantised weights x is coded in blocks of 32 ([`code_block`]) and each group of k, in order, adds
/// `fma(sum of the products of codes, d_w * d_x, .)` and, for types with a minimum, `fma(m_w, d_x * sum of the codes of x, .)`.
/// The sums are whole numbers below 2^24, so their order does not matter.
pub fn product(out: &mut [f32], x: &[f32], w: &PackedMatrix, bias: Option<&[f32]>) {
    let mut row = vec![0.0; w.k()];
    let mut codes = vec![0; w.k()];
    let blocks = x.as_chunks().0.iter().zip(codes.as_chunks_mut().0);
    let scales: Vec<f32> = blocks.map(|(x, codes)| code_block(x, codes)).collect();
    for (n, out) in out.iter_mut().enumerate() {
        let sum = match w.row_codes(n) {
            Some(w) => coded_product(&codes, &scales, &w),
            None => {
                w.dequantize_row(n, &mut row);
                x.iter().zip(&row).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum))
            }
        };
        *out = bias.map_or(sum, |bias| sum + bias[n]);
    }
}

fn coded_product(x: &[i8], scales: &[f32], w: &RowCodes) -> f32 {
    let mut out = 0.0f32;
    for (group, (x, codes)) in x.chunks(w.group).zip(w.codes.chunks(w.group)).enumerate() {
        let d = scales[group * w.group / 32];
        let products: i32 = x.iter().zip(codes).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
        out = (products as f32).mul_add(w.d[group] * d, out);
        if let Some(m) = &w.m {
            let sum: i32 = x.iter().map(|x| i32::from(*x)).sum();
            out = m[group].mul_add(d * sum as f32, out);
        }
    }
    out
}

/// Codes 32 values in -127..=127, rounded to the nearest (ties to even) multiple of the scale that it returns: the greatest
/// magnitude / 127. Values below 1e-30 are zero to a product; of a NaN or an infinity the scale is one, too.
#[inline(always)]
pub fn code_block(x: &[f32; 32], codes: &mut [i8; 32]) -> f32 {
    // As bits, magnitudes have the order of their values, and NaN is above all.
    let mut greatest = 0;
    for x in x {
        greatest = (x.to_bits() & 0x7fff_ffff).max(greatest);
    }
    let greatest = f32::from_bits(greatest);
    if greatest < 1e-30 {
        *codes = [0; 32];
        return 0.0;
    }
    let by = 127.0 / greatest;
    for (code, x) in codes.iter_mut().zip(x) {
        // Beside 1.5 * 2^23 the f32 are the whole numbers: the sum is rounded as wanted, and its low bits are the code.
        *code = (x * by + 12_582_912.0).to_bits() as i8;
    }
    greatest / 127.0
}

/// Lane-wise sum of `f(x)`: value i goes to lane i % 16.
fn lane_sum(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    for (at, x) in x.iter().enumerate() {
        lanes[at % 16] = f(*x, lanes[at % 16]);
    }
    reduce(lanes)
}

/// `x / sqrt(mean(x^2) + eps) * weight`.
pub fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let squares = lane_sum(x, |x, sum| x.mul_add(x, sum));
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias`.
pub fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mean = lane_sum(x, |x, sum| sum + x) / x.len() as f32;
    let squares = lane_sum(x, |x, sum| (x - mean).mul_add(x - mean, sum));
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = ((x - mean) * scale).mul_add(*weight, *bias);
    }
}

/// `silu(gate) * up`, the gate and up halves lying one after the other.
pub fn silu_mul(out: &mut [f32], gate_up: &[f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = math::silu(*gate) * up;
    }
}

/// Rotates the pairs (x[2i], x[2i+1]) of one head; values past the table's are left alone.
pub fn rope_interleaved(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
    }
}

/// Rotates the pairs (x[i], x[i + half]) of one head, half being the table's length; values past both halves are left alone.
pub fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *low * sin + *high * cos);
    }
}

/// Causal attention of one head of one token over keys and values `first..=position`, `key(p, d)` and `value(p, d)` giving
/// their elements. Positions are taken in blocks of 32 counted from zero, with a running maximum.
pub fn attention(
    out: &mut [f32],
    q: &[f32],
    first: usize,
    position: usize,
    scale: f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) {
    let q: Vec<f32> = q.iter().map(|q| q * scale).collect();
    let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
    out.fill(0.0);
    for block in first / 32..=position / 32 {
        let valid = (block * 32).max(first)..(block * 32 + 32).min(position + 1);
        let mut weights = [f32::NEG_INFINITY; 32];
        for p in valid.clone() {
            let mut score = 0.0f32;
            for (d, q) in q.iter().enumerate() {
                score = q.mul_add(key(p, d), score);
            }
            weights[p % 32] = score;
        }
        let max_new = weights.iter().fold(max, |max, w| if *w > max { *w } else { max });
        let keep = math::exp(max - max_new);
        let mut lanes = [0.0f32; 16];
        for (at, weight) in weights.iter_mut().enumerate() {
            *weight = math::exp(*weight - max_new);
            lanes[at % 16] += *weight;
        }
        sum = sum.mul_add(keep, reduce(lanes));
        max = max_new;
        for (d, out) in out.iter_mut().enumerate() {
            *out *= keep;
            for p in valid.clone() {
                *out = weights[p % 32].mul_add(value(p, d), *out);
            }
        }
    }
    let inverse = 1.0 / sum;
    out.iter_mut().for_each(|out| *out *= inverse);
}

/// Attention of one head of one token over all `len` positions of its segment, both ways.
pub fn segment_attention(
    out: &mut [f32],
    q: &[f32],
    len: usize,
    scale: f32,
    key: impl Fn(usize, usize) -> f32,
    value: impl Fn(usize, usize) -> f32,
) {
    let mut weights = vec![0.0f32; len];
    for (p, weight) in weights.iter_mut().enumerate() {
        for (d, q) in q.iter().enumerate() {
            *weight = (q * scale).mul_add(key(p, d), *weight);
        }
    }
    let max = weights.iter().fold(f32::NEG_INFINITY, |max, w| if *w > max { *w } else { max });
    weights.iter_mut().for_each(|w| *w = math::exp(*w - max));
    let inverse = 1.0 / lane_sum(&weights, |w, sum| sum + w);
    for (d, out) in out.iter_mut().enumerate() {
        let mut sum = 0.0f32;
        for (p, weight) in weights.iter().enumerate() {
            sum = weight.mul_add(value(p, d), sum);
        }
        *out = sum * inverse;
    }
}

/// The mean of the rows of one segment: summed in order, then times 1/rows.
pub fn mean_pool(out: &mut [f32], rows: &[f32]) {
    let len = out.len();
    let inverse = 1.0 / (rows.len() / len) as f32;
    for (d, out) in out.iter_mut().enumerate() {
        *out = rows[d..].iter().step_by(len).fold(0.0, |sum, x| sum + x) * inverse;
    }
}

/// Divides by the Euclidean length (at least 1e-12).
pub fn l2_normalize(x: &mut [f32]) {
    let length = lane_sum(x, |x, sum| x.mul_add(x, sum)).sqrt();
    let inverse = 1.0 / if length > 1e-12 { length } else { 1e-12 };
    x.iter_mut().for_each(|x| *x *= inverse);
}
