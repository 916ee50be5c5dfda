//! How likely a point keeps the constraints (Gardner et al. 2014): a process of its own for each, over how far trials were
//! outside of its bounds.

use super::super::normal::{cdf, log_mass};
use super::model::{Belief, Hyper, Metric, Model};
use std::f64::consts::PI;

/// What is not a number is this many typical distances outside.
const FAR_OUTSIDE: f64 = 100.0;
/// A trial is all but surely feasible beyond so many deviations.
const SURE: f64 = 8.0;

/// What is believed of one constraint.
pub(super) struct Limit(Model);

/// Distances in units of the typical one, bent so that large ones do not hide where the sign changes.
pub(super) fn bend(excess: &[f64]) -> Vec<f64> {
    let mut sizes: Vec<f64> = excess.iter().map(|e| e.abs()).filter(|e| e.is_finite() && *e > 0.0).collect();
    sizes.sort_by(f64::total_cmp);
    let unit = sizes.get(sizes.len() / 2).copied().unwrap_or(1.0);
    let bent = |excess: &f64| {
        let scaled = (excess / unit).clamp(-FAR_OUTSIDE, FAR_OUTSIDE);
        scaled.signum() * scaled.abs().ln_1p()
    };
    excess.iter().map(bent).collect()
}

impl Limit {
    /// From bent distances at points; `None` where the numbers allow no model.
    pub(super) fn new(
        metrics: &[Metric],
        hyper: &Hyper,
        points: Vec<Vec<f64>>,
        bent: Vec<f64>,
    ) -> Option<Limit> {
        Model::new(metrics, hyper, points, bent).map(Limit)
    }

    /// ln of the probability that a point keeps it.
    pub(super) fn log_feasible(&self, point: &[f64]) -> f64 {
        let Belief { mean, deviation } = self.0.belief(point);
        log_cdf(-mean / deviation)
    }

    /// The same; its gradient is added.
    pub(super) fn log_feasible_slopes(&self, point: &[f64], gradient: &mut [f64]) -> f64 {
        let (Belief { mean, deviation }, of_mean, of_deviation) = self.0.slopes(point);
        let z = -mean / deviation;
        let log = log_cdf(z);
        let slope = (-0.5 * z * z - 0.5 * (2.0 * PI).ln() - log).exp();
        for (at, gradient) in gradient.iter_mut().enumerate() {
            *gradient -= slope * (of_mean[at] + z * of_deviation[at]) / deviation;
        }
        log
    }
}

/// ln Φ(z), with its digits far to the left.
fn log_cdf(z: f64) -> f64 {
    const WHOLE: f64 = 40.0;
    if z > SURE { -cdf(-z) } else { log_mass(z - WHOLE, z) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_keep_their_digits() {
        // scipy 1.17: log_ndtr.
        for (z, expected) in [
            (0.0, -std::f64::consts::LN_2),
            (-3.0, -6.607_726_221_510_349),
            (-35.0, -616.975_101_199_625_9),
            (9.0, -1.128_588_405_953_840_6e-19),
        ] {
            let found = log_cdf(z);
            assert!((found / expected - 1.0_f64).abs() < 1e-6, "{z}: {found}");
        }
    }

    #[test]
    fn the_sign_stays_and_so_does_the_order() {
        let bent = bend(&[-1e6, -2.0, 0.0, 1.0, f64::INFINITY, 3.0]);
        assert!(bent.windows(2).take(4).all(|pair| pair[0] < pair[1]) && bent[5] < bent[4], "{bent:?}");
        assert!(bent[1] < 0.0 && bent[2] == 0.0 && bent[3] > 0.0);
        assert_eq!(bend(&[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn slopes_are_the_slopes() {
        let points: Vec<Vec<f64>> = (0..9).map(|at| vec![f64::from(at) / 8.0]).collect();
        let bent: Vec<f64> = points.iter().map(|point| 3.0 * (point[0] - 0.6)).collect();
        let hyper = Hyper { weights: vec![4.0], variance: 1.0, noise: 1e-3 };
        let limit = Limit::new(&[Metric::Square], &hyper, points, bent).unwrap();
        assert!(limit.log_feasible(&[0.2]) > -0.01 && limit.log_feasible(&[0.95]) < -3.0);
        for at in [0.3, 0.61, 0.9] {
            let mut gradient = [0.0];
            limit.log_feasible_slopes(&[at], &mut gradient);
            let slope = (limit.log_feasible(&[at + 1e-5]) - limit.log_feasible(&[at - 1e-5])) / 2e-5;
            assert!((slope - gradient[0]).abs() < 1e-3 * slope.abs().max(1e-3), "{at}: {slope} {gradient:?}");
        }
    }
}
