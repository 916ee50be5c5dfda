//! The normal distribution that CMA-ES moves and shapes (Hansen, The CMA Evolution Strategy: A Tutorial,
//! arXiv 1604.00772): weighted recombination, cumulative step-size adaptation, rank-one and rank-µ updates with negative
//! weights (active CMA).

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// More dimensions than this keep to the axes (Ros & Hansen 2008): a whole covariance would be dear, and learn little.
const FULL_DIMS: usize = 100;
/// A step of the mean changes the width at most by this factor's logarithm.
const MAX_LOG_CHANGE: f64 = 1.0;
/// Beyond this ratio of the squared axes the numbers no longer hold.
const MAX_CONDITION: f64 = 1e14;

/// What follows from the number of dimensions and of samples.
#[derive(Clone, Debug)]
struct Constants {
    /// For the samples of a generation, the best first; the second half is negative.
    weights: Vec<f64>,
    effective: f64,
    path: f64,
    step_path: f64,
    rank_one: f64,
    rank_mu: f64,
    damping: f64,
    /// The length that a standard normal vector is expected to have.
    norm: f64,
}

impl Constants {
    fn new(dims: usize, population: usize, diagonal: bool) -> Constants {
        let (n, count) = (dims as f64, population as f64);
        let raw: Vec<f64> =
            (1..=population).map(|rank| ((count + 1.0) / 2.0).ln() - (rank as f64).ln()).collect();
        let half = population / 2;
        let sum = |weights: &[f64]| weights.iter().map(|w| w.abs()).sum::<f64>();
        let effective_of = |w: &[f64]| sum(w).powi(2) / w.iter().map(|w| w * w).sum::<f64>();
        let (effective, negative) = (effective_of(&raw[..half]), effective_of(&raw[half..]));
        let path = (4.0 + effective / n) / (n + 4.0 + 2.0 * effective / n);
        let step_path = (effective + 2.0) / (n + effective + 5.0);
        // On the axes there is less to learn, and it may be learnt faster.
        let faster = if diagonal { (n + 2.0) / 3.0 } else { 1.0 };
        let rank_one = (faster * 2.0 / ((n + 1.3).powi(2) + effective)).min(1.0);
        let rank_mu = faster * 2.0 * (effective - 2.0 + 1.0 / effective) / ((n + 2.0).powi(2) + effective);
        let rank_mu = rank_mu.min(1.0 - rank_one);
        let bound = (1.0 + rank_one / rank_mu)
            .min(1.0 + 2.0 * negative / (effective + 2.0))
            .min((1.0 - rank_one - rank_mu) / (n * rank_mu));
        let (positive_sum, negative_sum) = (sum(&raw[..half]), sum(&raw[half..]));
        let scale = |w: f64| if w >= 0.0 { w / positive_sum } else { bound.max(0.0) * w / negative_sum };
        let damping = 1.0 + 2.0 * (((effective - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + step_path;
        Constants {
            weights: raw.into_iter().map(scale).collect(),
            effective,
            path,
            step_path,
            rank_one,
            rank_mu,
            damping,
            norm: n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n)),
        }
    }
}

/// A distribution over a box of `dims` dimensions.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    pub(super) mean: DVector<f64>,
    /// The width over all.
    pub(super) sigma: f64,
    covariance: DMatrix<f64>,
    /// Directions of the axes, and how long they are.
    directions: DMatrix<f64>,
    lengths: DVector<f64>,
    path: DVector<f64>,
    step_path: DVector<f64>,
    constants: Constants,
    updates: i32,
    diagonal: bool,
}

impl Distribution {
    /// `None` where a covariance has no shape.
    pub(super) fn new(
        mean: DVector<f64>,
        sigma: f64,
        covariance: DMatrix<f64>,
        population: usize,
    ) -> Option<Self> {
        let dims = mean.len();
        let diagonal = dims > FULL_DIMS;
        let mut distribution = Distribution {
            sigma,
            covariance,
            directions: DMatrix::identity(dims, dims),
            lengths: DVector::repeat(dims, 1.0),
            path: DVector::zeros(dims),
            step_path: DVector::zeros(dims),
            constants: Constants::new(dims, population, diagonal),
            mean,
            updates: 0,
            diagonal,
        };
        distribution.shape().then_some(distribution)
    }

    /// Samples of one generation.
    pub(super) fn population(&self) -> usize {
        self.constants.weights.len()
    }

    /// The place of a standard normal vector.
    pub(super) fn place(&self, normal: &DVector<f64>) -> DVector<f64> {
        &self.mean + self.sigma * (&self.directions * self.lengths.component_mul(normal))
    }

    /// The standard deviation along a coordinate.
    pub(super) fn deviation(&self, dim: usize) -> f64 {
        self.sigma * self.covariance[(dim, dim)].sqrt()
    }

    /// Steps in which a place lies from the mean, all directions being equal.
    fn whitened(&self, step: &DVector<f64>) -> DVector<f64> {
        let along = self.directions.tr_mul(step).component_div(&self.lengths);
        &self.directions * along
    }

    /// Moves a place that this distribution did not sample to where it might have been sampled (Hansen 2011).
    pub(super) fn pulled(&self, place: &DVector<f64>) -> DVector<f64> {
        let n = self.mean.len() as f64;
        let step = (place - &self.mean) / self.sigma;
        let (length, longest) = (self.whitened(&step).norm(), n.sqrt() + 2.0 * n / (n + 2.0));
        if length > longest { &self.mean + step * (self.sigma * longest / length) } else { place.clone() }
    }

    /// Learns from the places of a generation, the best first; `false` where the numbers no longer hold.
    pub(super) fn update(&mut self, places: &[DVector<f64>]) -> bool {
        let c = self.constants.clone();
        let steps: Vec<DVector<f64>> = places.iter().map(|place| (place - &self.mean) / self.sigma).collect();
        let dims = self.mean.len();
        let weighed = steps.iter().zip(&c.weights).filter(|(_, weight)| **weight > 0.0);
        let mean_step = weighed.fold(DVector::zeros(dims), |sum, (step, weight)| sum + step * *weight);
        self.mean += self.sigma * &mean_step;
        self.updates += 1;

        let fresh = (c.step_path * (2.0 - c.step_path) * c.effective).sqrt();
        self.step_path = &self.step_path * (1.0 - c.step_path) + self.whitened(&mean_step) * fresh;
        let length = self.step_path.norm();
        let unbiased = (1.0 - (1.0 - c.step_path).powi(2 * self.updates)).sqrt();
        // Where steps are long the path of the covariance waits, or it would grow too fast.
        let calm = f64::from(u8::from(length / unbiased / c.norm < 1.4 + 2.0 / (dims as f64 + 1.0)));
        let fresh = calm * (c.path * (2.0 - c.path) * c.effective).sqrt();
        self.path = &self.path * (1.0 - c.path) + mean_step * fresh;
        self.reshape(&c, &steps, calm);
        let change = (c.step_path / c.damping * (length / c.norm - 1.0)).min(MAX_LOG_CHANGE);
        self.sigma *= change.exp();
        self.shape()
    }

    fn reshape(&mut self, c: &Constants, steps: &[DVector<f64>], calm: f64) {
        let dims = self.mean.len() as f64;
        let lost = (1.0 - calm) * c.path * (2.0 - c.path);
        let total: f64 = c.weights.iter().sum();
        let kept = 1.0 + c.rank_one * lost - c.rank_one - c.rank_mu * total;
        let negative = |step: &DVector<f64>| dims / self.whitened(step).norm_squared().max(f64::MIN_POSITIVE);
        let weights: Vec<f64> = steps
            .iter()
            .zip(&c.weights)
            .map(|(step, weight)| if *weight >= 0.0 { *weight } else { weight * negative(step) })
            .collect();
        self.covariance *= kept;
        self.add(c.rank_one, &self.path.clone());
        for (step, weight) in steps.iter().zip(weights) {
            self.add(c.rank_mu * weight, step);
        }
    }

    /// Adds a step times itself to the covariance.
    fn add(&mut self, share: f64, step: &DVector<f64>) {
        if self.diagonal {
            (0..step.len()).for_each(|at| self.covariance[(at, at)] += share * step[at] * step[at]);
        } else {
            self.covariance.ger(share, step, step, 1.0);
        }
    }

    /// Finds the axes of the covariance.
    fn shape(&mut self) -> bool {
        let squares = if self.diagonal {
            self.covariance.diagonal()
        } else {
            if self.covariance.iter().any(|entry| !entry.is_finite()) {
                return false;
            }
            let symmetric = 0.5 * (&self.covariance + self.covariance.transpose());
            let eigen = SymmetricEigen::new(symmetric);
            self.directions = eigen.eigenvectors;
            eigen.eigenvalues
        };
        let (least, most) = (squares.min(), squares.max());
        let sound = least > 0.0 && most.is_finite() && most / least < MAX_CONDITION;
        if sound {
            self.lengths = squares.map(f64::sqrt);
        }
        sound && self.sigma.is_finite() && self.sigma > 0.0 && self.mean.iter().all(|x| x.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use crate::sampler::normal::quantile;

    fn minimise(dims: usize, generations: usize, loss: impl Fn(&DVector<f64>) -> f64) -> (f64, Distribution) {
        let mut found =
            Distribution::new(DVector::repeat(dims, 0.8), 0.3, DMatrix::identity(dims, dims), 12).unwrap();
        let mut least = f64::INFINITY;
        for generation in 0..generations {
            let sample = |at: usize| {
                let mut stream = Stream::new(1, (generation * 100 + at) as u64, "test", "");
                found.place(&DVector::from_fn(dims, |_, _| quantile(stream.unit().max(1e-12))))
            };
            let mut places: Vec<DVector<f64>> = (0..12).map(sample).collect();
            places.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
            least = least.min(loss(&places[0]));
            assert!(found.update(&places));
        }
        (least, found)
    }

    #[test]
    fn an_ellipsoid_is_learnt_and_descended() {
        let ellipsoid =
            |x: &DVector<f64>| (0..6).map(|at| 10_f64.powi(at) * x[at as usize].powi(2)).sum::<f64>();
        let (least, found) = minimise(6, 150, ellipsoid);
        assert!(least < 1e-10, "{least}");
        // Where the loss is steep the distribution is narrow.
        assert!(found.deviation(0) > 30.0 * found.deviation(5));
    }

    #[test]
    fn a_turned_valley_is_followed() {
        let valley = |x: &DVector<f64>| 100.0 * (x[1] - x[0] * x[0]).powi(2) + (1.0 - x[0]).powi(2);
        let (least, _) = minimise(2, 120, valley);
        assert!(least < 1e-10, "{least}");
    }

    #[test]
    fn what_has_no_shape_is_refused() {
        let mean = DVector::repeat(2, 0.5);
        assert!(Distribution::new(mean.clone(), 0.3, DMatrix::zeros(2, 2), 6).is_none());
        assert!(Distribution::new(mean.clone(), f64::NAN, DMatrix::identity(2, 2), 6).is_none());
        let mut found = Distribution::new(mean, 0.3, DMatrix::identity(2, 2), 6).unwrap();
        assert!(!found.update(&vec![DVector::repeat(2, f64::NAN); 6]));
    }
}
