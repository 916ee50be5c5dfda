//! Where the next trial promises most: the logarithm of expected improvement (Ament et al., arXiv 2310.20708), which
//! still has a slope where the improvement itself is too small for a float.

use super::super::normal::cdf;
use super::model::{Belief, Model};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Below it the direct formula loses its digits.
const NEAR: f64 = -1.0;
/// Below it only the expansion for large arguments is left.
const FAR: f64 = -30.0;

/// ln(φ(z) + z·Φ(z)), and its slope.
fn log_improvement(z: f64) -> (f64, f64) {
    let log_density = -0.5 * z * z - 0.5 * (2.0 * PI).ln();
    if z > NEAR {
        let improvement = log_density.exp() + z * cdf(z);
        return (improvement.ln(), cdf(z) / improvement);
    }
    if z > FAR {
        // Φ(z)/φ(z), Mills' ratio, keeps its digits.
        let mills = 0.5 * libm::erfc(-z * FRAC_1_SQRT_2) / log_density.exp();
        let rest = 1.0 + z * mills;
        return (log_density + rest.ln(), mills / rest);
    }
    let inverse = 1.0 / (z * z);
    let rest = inverse * (-3.0 + 15.0 * inverse);
    (log_density + inverse.ln() + rest.ln_1p(), -z * (1.0 - inverse + 3.0 * inverse * inverse) / (1.0 + rest))
}

/// ln of the improvement upon `best` that a point promises.
pub(super) fn log_ei(model: &Model, best: f64, point: &[f64]) -> f64 {
    let Belief { mean, deviation } = model.belief(point);
    deviation.ln() + log_improvement((best - mean) / deviation).0
}

/// The same with its gradient; categories have none.
pub(super) fn log_ei_slopes(model: &Model, best: f64, point: &[f64], gradient: &mut [f64]) -> f64 {
    let (Belief { mean, deviation }, of_mean, of_deviation) = model.slopes(point);
    let z = (best - mean) / deviation;
    let (value, slope) = log_improvement(z);
    for (at, gradient) in gradient.iter_mut().enumerate() {
        *gradient = ((1.0 - slope * z) * of_deviation[at] - slope * of_mean[at]) / deviation;
    }
    deviation.ln() + value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn improvements_agree_with_many_digits() {
        // mpmath 1.3 with 50 digits: log(npdf(z) + z * ncdf(z)).
        for (z, expected) in [
            (2.0, 0.6973835457882284),
            (0.0, -0.9189385332046728),
            (-1.5, -3.52993592080571),
            (-8.0, -37.12236426169263),
            (-29.0, -428.1570826442731),
            (-50.0, -1258.744182868461),
        ] {
            let found = log_improvement(z).0;
            assert!((found / expected - 1.0).abs() < 1e-9, "{z}: {found} is not {expected}");
        }
        for z in [-60.0, -31.0, -30.0, -10.0, -1.0, 0.0, 3.0] {
            let slope = (log_improvement(z + 1e-4).0 - log_improvement(z - 1e-4).0) / 2e-4;
            assert!((slope / log_improvement(z).1 - 1.0).abs() < 1e-3, "{z}");
        }
    }
}
