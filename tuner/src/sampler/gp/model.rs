//! A Gaussian process with a Matérn-5/2 kernel and one length per dimension (Rasmussen & Williams 2006, chapters 4
//! and 5); categories are at distance 0 or 1 of each other. Its hyperparameters are the most probable ones.

use super::descent::{Bounds, minimise};
use nalgebra::{Cholesky, DMatrix, DVector};

/// Iterations of a fit.
const FIT_ITERATIONS: usize = 25;
/// A fit ends once an iteration gains less than this share.
const FIT_TOLERANCE: f64 = 1e-4;
/// ln of the typical length in one dimension of a unit cube, and how far from it lengths are still likely. Lengths grow
/// with the root of the number of dimensions, as distances do (Hvarfner et al., arXiv 2402.02229).
const LENGTH: (f64, f64) = (-0.7, 1.2);
/// The same for the variance of the process …
const VARIANCE: (f64, f64) = (0.0, 1.0);
/// … and for that of the noise: most objectives have little, and one that has more shows it.
const NOISE: (f64, f64) = (-12.0, 3.0);
/// ln of the bounds of 1/length², variance and noise.
const BOUNDS: [(f64, f64); 3] = [(-9.0, 8.0), (-4.0, 4.0), (-18.0, 0.0)];
/// Added to the diagonal, in turn, until the matrix can be factorised; relative to the variance.
const JITTERS: [f64; 4] = [0.0, 1e-9, 1e-7, 1e-5];

const SQRT5: f64 = 2.236_067_977_499_79;

/// Σ a·b, in four sums so that they go side by side.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0_f64; 4];
    let (left, right) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left.zip(right) {
        for lane in 0..4 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums[0] + sums[1] + sums[2] + sums[3] + rest
}

/// How a dimension measures distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Metric {
    /// The square of the difference.
    Square,
    /// 1 between different values.
    Hamming,
}

impl Metric {
    pub(super) fn distance(self, a: f64, b: f64) -> f64 {
        match self {
            Metric::Square => (a - b) * (a - b),
            Metric::Hamming => f64::from(u8::from(a != b)),
        }
    }
}

/// What a fit finds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hyper {
    /// 1/length² of every dimension.
    pub(super) weights: Vec<f64>,
    pub(super) variance: f64,
    pub(super) noise: f64,
}

impl Hyper {
    fn from_logs(logs: &[f64]) -> Hyper {
        let dims = logs.len() - 2;
        let weights = logs[..dims].iter().map(|log| log.exp()).collect();
        Hyper { weights, variance: logs[dims].exp(), noise: logs[dims + 1].exp() }
    }

    /// The most probable ones for values at points.
    pub(super) fn fit(metrics: &[Metric], points: &[Vec<f64>], values: &[f64]) -> Hyper {
        let dims = metrics.len();
        let mut evidence = Evidence::new(metrics, points, values);
        let typical = evidence.typical();
        let bound = |at: usize| BOUNDS[if at < dims { 0 } else { at - dims + 1 }];
        let bounds = Bounds {
            low: (0..dims + 2).map(|at| bound(at).0).collect(),
            high: (0..dims + 2).map(|at| bound(at).1).collect(),
        };
        let (logs, _) = minimise(&typical, &bounds, FIT_ITERATIONS, FIT_TOLERANCE, |logs, gradient| {
            evidence.loss(logs, gradient).unwrap_or(f64::INFINITY)
        });
        Hyper::from_logs(&logs)
    }
}

/// ln of the probability of hyperparameters, with what does not depend on them computed once.
struct Evidence<'a> {
    values: &'a [f64],
    /// By dimension, then by pair (i, j < i), row by row.
    distances: Vec<Vec<f64>>,
    kernel: Vec<f64>,
    slope: Vec<f64>,
}

impl Evidence<'_> {
    fn new<'a>(metrics: &[Metric], points: &[Vec<f64>], values: &'a [f64]) -> Evidence<'a> {
        let pairs = || (0..points.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let of = |(dim, metric): (usize, &Metric)| {
            pairs().map(|(i, j)| metric.distance(points[i][dim], points[j][dim])).collect()
        };
        let distances: Vec<Vec<f64>> = metrics.iter().enumerate().map(of).collect();
        let count = points.len() * points.len().saturating_sub(1) / 2;
        Evidence { values, distances, kernel: vec![0.0; count], slope: vec![0.0; count] }
    }

    /// The logs that the priors like best.
    fn typical(&self) -> Vec<f64> {
        let weight = -2.0 * self.usual_length();
        let mut logs = vec![weight; self.distances.len()];
        logs.extend([VARIANCE.0, NOISE.0]);
        logs
    }

    fn usual_length(&self) -> f64 {
        LENGTH.0 + 0.5 * (self.distances.len() as f64).ln()
    }

    /// −ln of the posterior at logarithms of (weights, variance, noise), and its gradient.
    fn loss(&mut self, logs: &[f64], gradient: &mut [f64]) -> Option<f64> {
        let (count, dims) = (self.values.len(), self.distances.len());
        let hyper = Hyper::from_logs(logs);
        self.kernel.fill(0.0);
        for (distances, weight) in self.distances.iter().zip(&hyper.weights) {
            self.kernel.iter_mut().zip(distances).for_each(|(sum, distance)| *sum += weight * distance);
        }
        for (kernel, slope) in self.kernel.iter_mut().zip(&mut self.slope) {
            (*kernel, *slope) = matern(*kernel);
        }
        let mut matrix = DMatrix::zeros(count, count);
        let mut pair = 0;
        for i in 0..count {
            for j in 0..i {
                matrix[(i, j)] = hyper.variance * self.kernel[pair];
                pair += 1;
            }
            matrix[(i, i)] = hyper.variance + hyper.noise;
        }
        let factor = Cholesky::new(matrix)?;
        let alpha = factor.solve(&DVector::from_column_slice(self.values));
        let inverse = inverse(factor.l_dirty());
        let log_determinant: f64 = (0..count).map(|i| factor.l_dirty()[(i, i)].ln()).sum();
        let mut loss = 0.5 * dot(alpha.as_slice(), self.values) + log_determinant;

        gradient.fill(0.0);
        let (mut pair, mut of_variance) = (0, 0.0);
        for i in 0..count {
            for j in 0..i {
                // The likelihood's slope in this entry of the matrix, both halves together.
                let share = inverse[(i, j)] - alpha[i] * alpha[j];
                of_variance += share * self.kernel[pair];
                self.slope[pair] *= share;
                pair += 1;
            }
            let share = 0.5 * (inverse[(i, i)] - alpha[i] * alpha[i]);
            of_variance += share;
            gradient[dims + 1] += share * hyper.noise;
        }
        gradient[dims] += of_variance * hyper.variance;
        for (dim, distances) in self.distances.iter().enumerate() {
            gradient[dim] += hyper.variance * hyper.weights[dim] * dot(&self.slope, distances);
        }
        // ln of the weight is −2 ln of the length.
        let usual = (-2.0 * self.usual_length(), 2.0 * LENGTH.1);
        for (at, gradient) in gradient.iter_mut().enumerate() {
            let (mean, width) = if at < dims { usual } else { [VARIANCE, NOISE][at - dims] };
            let off = (logs[at] - mean) / width;
            loss += 0.5 * off * off;
            *gradient += off / width;
        }
        Some(loss)
    }
}

/// The kernel at a squared distance, and its slope there.
fn matern(squared: f64) -> (f64, f64) {
    let scaled = SQRT5 * squared.sqrt();
    let fade = (-scaled).exp();
    ((1.0 + scaled + 5.0 / 3.0 * squared) * fade, -5.0 / 6.0 * (1.0 + scaled) * fade)
}

/// The lower half of the inverse of L·Lᵀ.
fn inverse(factor: &DMatrix<f64>) -> DMatrix<f64> {
    let count = factor.nrows();
    let mut lower = DMatrix::zeros(count, count);
    for at in 0..count {
        let mut column = vec![0.0; count - at];
        column[0] = 1.0;
        for i in 0..count - at {
            let value = column[i] / factor[(at + i, at + i)];
            column[i] = value;
            let below = &factor.column(at + i).data.into_slice()[at + i + 1..];
            column[i + 1..].iter_mut().zip(below).for_each(|(c, l)| *c -= value * l);
        }
        lower.view_mut((at, at), (count - at, 1)).copy_from_slice(&column);
    }
    let mut inverse = DMatrix::zeros(count, count);
    for i in 0..count {
        let left = &lower.column(i).data.into_slice()[i..];
        for j in 0..=i {
            inverse[(i, j)] = dot(left, &lower.column(j).data.into_slice()[i..]);
        }
    }
    inverse
}

/// The process given values at points.
pub(super) struct Model {
    metrics: Vec<Metric>,
    hyper: Hyper,
    points: Vec<Vec<f64>>,
    values: Vec<f64>,
    factor: Cholesky<f64, nalgebra::Dyn>,
    alpha: DVector<f64>,
}

/// Mean and standard deviation at a point; gradients where they were asked for.
pub(super) struct Belief {
    pub(super) mean: f64,
    pub(super) deviation: f64,
}

impl Model {
    /// `None` where the matrix cannot be factorised.
    pub(super) fn new(
        metrics: &[Metric],
        hyper: &Hyper,
        points: Vec<Vec<f64>>,
        values: Vec<f64>,
    ) -> Option<Model> {
        let kernel = |i: usize, j: usize| covariance(metrics, hyper, &points[i], &points[j]);
        let matrix =
            DMatrix::from_fn(points.len(), points.len(), |i, j| if j <= i { kernel(i, j) } else { 0.0 });
        let factor = JITTERS.iter().find_map(|jitter| {
            let mut matrix = matrix.clone();
            let ridge = hyper.noise + jitter * hyper.variance;
            (0..points.len()).for_each(|i| matrix[(i, i)] += ridge);
            Cholesky::new(matrix).filter(|factor| factor.l_dirty().iter().all(|entry| entry.is_finite()))
        })?;
        let alpha = factor.solve(&DVector::from_column_slice(&values));
        let finite = alpha.iter().all(|a| a.is_finite());
        finite.then(|| Model {
            metrics: metrics.to_vec(),
            hyper: hyper.clone(),
            points,
            values,
            factor,
            alpha,
        })
    }

    pub(super) fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// What is believed of the points without their noise: means of the process where values were taken.
    pub(super) fn fitted(&self) -> impl Iterator<Item = f64> {
        self.values.iter().zip(self.alpha.iter()).map(|(value, alpha)| value - self.hyper.noise * alpha)
    }

    /// Takes a point in as if its value were so many standard deviations above what is expected of it, by one more row of
    /// the factor; nothing where that row cannot be had. What the value was taken for.
    pub(super) fn imagine(&mut self, point: Vec<f64>, doubt: f64) -> f64 {
        let Belief { mean, deviation } = self.belief(&point);
        let value = mean + doubt * deviation;
        let count = self.points.len();
        let mut column = DVector::zeros(count + 1);
        for (at, other) in self.points.iter().enumerate() {
            column[at] = covariance(&self.metrics, &self.hyper, &point, other);
        }
        // A ridge above the noise: points in flight may be as good as equal.
        column[count] = self.hyper.variance * (1.0 + 1e-6) + self.hyper.noise;
        let grown = self.factor.insert_column(count, column);
        if grown.l_dirty().row(count).iter().take(count + 1).any(|entry| !entry.is_finite()) {
            return value;
        }
        self.factor = grown;
        self.points.push(point);
        self.values.push(value);
        self.alpha = self.factor.solve(&DVector::from_column_slice(&self.values));
        value
    }

    pub(super) fn belief(&self, point: &[f64]) -> Belief {
        let mut kernels = self.kernels(point);
        let mean = dot(&kernels, self.alpha.as_slice());
        self.forward(&mut kernels);
        Belief { mean, deviation: self.deviation(&kernels) }
    }

    /// The same with the gradients of both.
    pub(super) fn slopes(&self, point: &[f64]) -> (Belief, Vec<f64>, Vec<f64>) {
        let mut solved = self.kernels(point);
        let mean = dot(&solved, self.alpha.as_slice());
        self.forward(&mut solved);
        let deviation = self.deviation(&solved);
        self.backward(&mut solved);
        let (mut of_mean, mut of_deviation) = (vec![0.0; point.len()], vec![0.0; point.len()]);
        for (at, other) in self.points.iter().enumerate() {
            let slope = 2.0 * self.hyper.variance * matern(self.squared(point, other)).1;
            let (alpha, beta) = (slope * self.alpha[at], -slope * solved[at] / deviation);
            for dim in 0..point.len() {
                if self.metrics[dim] == Metric::Square {
                    let by = self.hyper.weights[dim] * (point[dim] - other[dim]);
                    of_mean[dim] += alpha * by;
                    of_deviation[dim] += beta * by;
                }
            }
        }
        (Belief { mean, deviation }, of_mean, of_deviation)
    }

    fn squared(&self, a: &[f64], b: &[f64]) -> f64 {
        squared(&self.metrics, &self.hyper, a, b)
    }

    fn kernels(&self, point: &[f64]) -> Vec<f64> {
        self.points.iter().map(|other| self.hyper.variance * matern(self.squared(point, other)).0).collect()
    }

    fn deviation(&self, solved: &[f64]) -> f64 {
        (self.hyper.variance - dot(solved, solved)).max(1e-14 * self.hyper.variance).sqrt()
    }

    /// Solves L·x = b in place.
    fn forward(&self, b: &mut [f64]) {
        let factor = self.factor.l_dirty();
        for i in 0..b.len() {
            let column = &factor.column(i).data.into_slice()[i..];
            let value = b[i] / column[0];
            b[i] = value;
            b[i + 1..].iter_mut().zip(&column[1..]).for_each(|(b, l)| *b -= value * l);
        }
    }

    /// Solves Lᵀ·x = b in place.
    fn backward(&self, b: &mut [f64]) {
        let factor = self.factor.l_dirty();
        for i in (0..b.len()).rev() {
            let column = &factor.column(i).data.into_slice()[i..];
            b[i] = (b[i] - dot(&b[i + 1..], &column[1..])) / column[0];
        }
    }
}

fn squared(metrics: &[Metric], hyper: &Hyper, a: &[f64], b: &[f64]) -> f64 {
    let dims = metrics.iter().zip(&hyper.weights).zip(a).zip(b);
    dims.map(|(((metric, weight), a), b)| weight * metric.distance(*a, *b)).sum()
}

fn covariance(metrics: &[Metric], hyper: &Hyper, a: &[f64], b: &[f64]) -> f64 {
    hyper.variance * matern(squared(metrics, hyper, a, b)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(count: usize) -> (Vec<Metric>, Vec<Vec<f64>>, Vec<f64>) {
        let unit = |at: usize, dim: u32| f64::from(sobol_burley::sample(at as u32, dim, 7));
        let points: Vec<Vec<f64>> =
            (0..count).map(|at| vec![unit(at, 0), unit(at, 1), (at % 3) as f64]).collect();
        let value = |x: &Vec<f64>| (6.0 * x[0]).sin() + 0.3 * x[1] * x[1] + 0.5 * f64::from(x[2] == 1.0);
        let values = points.iter().map(value).collect();
        (vec![Metric::Square, Metric::Square, Metric::Hamming], points, values)
    }

    #[test]
    fn the_evidence_s_gradient_is_its_slope() {
        let (metrics, points, values) = data(15);
        let mut evidence = Evidence::new(&metrics, &points, &values);
        let logs = [1.3, 0.4, -0.2, 0.3, -4.0];
        let (mut gradient, mut unused) = ([0.0; 5], [0.0; 5]);
        evidence.loss(&logs, &mut gradient).unwrap();
        for at in 0..5 {
            let mut at_offset = |offset: f64| {
                let mut logs = logs;
                logs[at] += offset;
                evidence.loss(&logs, &mut unused).unwrap()
            };
            let slope = (at_offset(1e-5) - at_offset(-1e-5)) / 2e-5;
            assert!((slope - gradient[at]).abs() < 1e-6 * slope.abs().max(1.0), "{at}: {slope} {gradient:?}");
        }
    }

    #[test]
    fn beliefs_pass_through_values_and_know_what_matters() {
        let (metrics, points, values) = data(40);
        let hyper = Hyper::fit(&metrics, &points, &values);
        assert!(hyper.weights[0] > 3.0 * hyper.weights[1], "{hyper:?}");
        let model = Model::new(&metrics, &hyper, points.clone(), values.clone()).unwrap();
        for (point, value) in points.iter().zip(&values) {
            let belief = model.belief(point);
            assert!((belief.mean - value).abs() < 0.02 && belief.deviation < 0.05);
        }
        let far = model.belief(&[0.5, 0.5, 9.0]);
        assert!(far.deviation > 0.1, "{}", far.deviation);
    }

    #[test]
    fn slopes_are_the_beliefs_slopes() {
        let (metrics, points, values) = data(20);
        let hyper = Hyper { weights: vec![8.0, 1.0, 0.5], variance: 1.3, noise: 1e-4 };
        let model = Model::new(&metrics, &hyper, points, values).unwrap();
        let at = [0.31, 0.62, 1.0];
        let (_, of_mean, of_deviation) = model.slopes(&at);
        for dim in 0..2 {
            let shifted = |offset: f64| {
                let mut at = at;
                at[dim] += offset;
                model.belief(&at)
            };
            let (right, left) = (shifted(1e-6), shifted(-1e-6));
            assert!(((right.mean - left.mean) / 2e-6 - of_mean[dim]).abs() < 1e-6);
            assert!(((right.deviation - left.deviation) / 2e-6 - of_deviation[dim]).abs() < 1e-5);
        }
        assert_eq!((of_mean[2], of_deviation[2]), (0.0, 0.0));
    }

    #[test]
    fn an_imagined_point_is_the_same_as_a_known_one() {
        let (metrics, mut points, mut values) = data(12);
        let hyper = Hyper { weights: vec![8.0, 1.0, 0.5], variance: 1.0, noise: 1e-3 };
        let mut model = Model::new(&metrics, &hyper, points.clone(), values.clone()).unwrap();
        let new = vec![0.9, 0.1, 2.0];
        let before = model.belief(&new);
        let value = model.imagine(new.clone(), 0.5);
        assert_eq!(value, before.mean + 0.5 * before.deviation);
        points.push(new.clone());
        values.push(value);
        let whole = Model::new(&metrics, &hyper, points, values).unwrap();
        for at in [[0.9, 0.1, 2.0], [0.7, 0.3, 1.0]] {
            let (grown, whole) = (model.belief(&at), whole.belief(&at));
            assert!(
                (grown.mean - whole.mean).abs() < 1e-5 && (grown.deviation - whole.deviation).abs() < 1e-4
            );
        }
        assert!(model.belief(&new).deviation < 0.1 * before.deviation.max(0.4));
    }

    #[test]
    fn equal_points_with_unequal_values_are_noise() {
        let points = vec![vec![0.5]; 12];
        let values: Vec<f64> = (0..12).map(|at| f64::from(at % 2) * 2.0 - 1.0).collect();
        let hyper = Hyper::fit(&[Metric::Square], &points, &values);
        assert!(hyper.noise > 0.3, "{hyper:?}");
        let model = Model::new(&[Metric::Square], &hyper, points, values).unwrap();
        assert!(model.belief(&[0.5]).mean.abs() < 0.1);
    }
}
