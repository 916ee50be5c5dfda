//! Functions of one number written so that a loop of them vectorises, and sums in a fixed order.

/// e^x to 2 units in the last place (after the polynomial of Cephes' `expf`). Below −87.3 it stays at the smallest normal
/// number, above 88 at e^88; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ONE: u32 = 127 << 23;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(ONE));
    (p * r * r + r + 1.0) * power
}

/// tanh x to 2e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let x = if x > 10.0 { 10.0 } else { x };
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// x·Φ(x) and its slope Φ(x) + x·φ(x), to 3e-7 (erf by Abramowitz & Stegun 7.1.26).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> (f32, f32) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    // Half of 1 − erf |z|.
    let tail = 0.5 * p * t * bell;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    (x * below, below + x * INV_SQRT_TAU * bell)
}

/// Partial sums kept apart, so that a sum vectorises and has the same bits everywhere.
pub(crate) const LANES: usize = 8;

/// The sum of `f` over pairs of two slices of one length.
#[inline(always)]
pub(crate) fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| f(*a, *b)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The sum of `f` over a slice.
#[inline(always)]
pub(crate) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum_pairs(values, values, |value, _| f(value))
}

/// The largest; NaN is passed over.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for at in -8700..8800 {
            let x = at as f32 * 0.01;
            let (found, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / exact - 1.0).abs() < 3e-7, "{x}: {found} {exact}");
        }
        assert!(exp(-1e4) < 2e-38 && exp(f32::NEG_INFINITY) >= 0.0);
        assert!(exp(f32::NAN).is_nan() && exp(1e30).is_finite());
    }

    #[test]
    fn tanh_and_gelu_are_close() {
        for at in -2000..2000 {
            let x = at as f32 * 0.01;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "{x}");
            let below = 0.5 * (1.0 + libm::erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            let bell = (-0.5 * f64::from(x).powi(2)).exp() * 0.398_942_280_4;
            let (value, slope) = gelu(x);
            assert!(
                (f64::from(value) - f64::from(x) * below).abs() < 3e-7 * f64::from(x.abs()).max(1.0),
                "{x}"
            );
            assert!((f64::from(slope) - (below + f64::from(x) * bell)).abs() < 5e-7, "{x}");
        }
        assert!(tanh(f32::NAN).is_nan() && gelu(f32::NAN).0.is_nan());
        assert_eq!((tanh(100.0), tanh(-100.0)), (1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_take_every_value() {
        let values: Vec<f32> = (0..37).map(|at| at as f32).collect();
        assert_eq!(sum(&values, |value| value), 666.0);
        assert_eq!(sum_pairs(&values, &values, |a, b| a - b), 0.0);
        assert_eq!(largest(&values), 36.0);
        assert_eq!(largest(&[-3.0, f32::NAN, -2.0]), -2.0);
    }
}
