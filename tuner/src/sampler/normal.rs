//! The standard normal distribution, and the log of its mass between two points.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Φ(x).
pub(super) fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x * FRAC_1_SQRT_2)
}

/// ln of the mass between `a` and `b`, for `a < b`; exact to relative rounding in the tails too.
pub(crate) fn log_mass(a: f64, b: f64) -> f64 {
    // Both in one tail: the difference of two small numbers keeps its digits on the left side.
    let (a, b) = if a > 0.0 { (-b, -a) } else { (a, b) };
    const FAR: f64 = -30.0;
    if b < FAR {
        // Below it Φ underflows in the end; Φ(x) ≈ φ(x)/|x| · (1 − 1/x² + 3/x⁴).
        let log_tail = |x: f64| {
            -0.5 * x * x - (-x).ln() - 0.5 * (2.0 * PI).ln() + (-1.0 / (x * x) + 3.0 / x.powi(4)).ln_1p()
        };
        return log_tail(b) + (-(log_tail(a) - log_tail(b)).exp()).ln_1p();
    }
    (cdf(b) - cdf(a)).ln()
}

/// Φ⁻¹(p) for p strictly between 0 and 1: Acklam's rational approximation, then one step of Halley's method.
pub(super) fn quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.383_577_518_672_69e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    const LOW: f64 = 0.02425;
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        horner(&C, q) / (horner(&D, q) * q + 1.0)
    };
    let x = if p < LOW {
        tail(p)
    } else if p > 1.0 - LOW {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    };
    let error = (cdf(x) - p) * (2.0 * PI).sqrt() * (x * x / 2.0).exp();
    let refined = x - error / (1.0 + x * error / 2.0);
    if refined.is_finite() { refined } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_and_cdf_are_inverse() {
        for step in 1..1000 {
            let p = f64::from(step) / 1000.0;
            assert!((cdf(quantile(p)) - p).abs() < 1e-14, "{p}");
        }
        assert!((quantile(1e-12) + 7.034_483_825_301_132).abs() < 1e-9);
    }

    #[test]
    fn the_tails_keep_their_digits() {
        // scipy 1.17: log(ndtr(b) - ndtr(a)) by log_ndtr.
        for (a, b, expected) in [
            (-1.0, 1.0, -0.381_715_146_302_126_1),
            (8.0, 9.0, -35.013_618_593_437_16),
            (-40.0, -39.0, -765.083_156_564_377_6),
        ] {
            let found = log_mass(a, b);
            assert!((found / expected - 1.0).abs() < 1e-11, "{a} {b}: {found}");
        }
    }
}
