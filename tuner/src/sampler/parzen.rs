//! A Parzen estimator over several parameters at once: one product of kernels per observation and one wide prior.
//!
//! Kernels are truncated normals (their mass per cell where values have steps) and smoothed one-hot vectors; widths,
//! weights and clipping are those of Optuna 5, which follows Bergstra et al. 2011 and Watanabe, arXiv 2304.11127.
//! Observations come and go one at a time; what is dear to compute (the mass that truncation leaves) is kept for every
//! kernel whose place and width have not changed.

use super::normal::{cdf, log_mass, quantile};
use crate::space::{Axis, Scale};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The youngest observations of full weight; older ones fade out.
const FULL_WEIGHT_OBSERVATIONS: usize = 25;
/// No kernel is narrower than the range over this.
const MAX_KERNELS_PER_RANGE: f64 = 100.0;
/// Kernels evaluated together, so that they stay in the first cache.
const BLOCK: usize = 128;
/// Terms smaller than e to minus this, relative to the largest, add nothing to a sum of floats.
const NEGLIGIBLE: f64 = 42.0;

/// Weights of `count` observations, the oldest first, before they are normalised: 1, but for a linear ramp from
/// 1/count over all but the youngest 25.
pub(super) fn weights(count: usize) -> impl Iterator<Item = f64> {
    let ramp = count.saturating_sub(FULL_WEIGHT_OBSERVATIONS);
    let first = 1.0 / count.max(1) as f64;
    let slope = if ramp > 1 { (1.0 - first) / (ramp - 1) as f64 } else { 0.0 };
    (0..count).map(move |index| if index < ramp { first + slope * index as f64 } else { 1.0 })
}

/// The estimator of one group of parameters.
#[derive(Clone, Debug)]
pub(super) struct Parzen {
    dims: Vec<Dim>,
    /// Trial numbers, ascending; position in it is position in every column.
    members: Vec<u64>,
    /// Cumulative weights of members and, last, of the prior.
    cumulative: Vec<f64>,
    /// ln weight plus what all continuous kernels of a position have as constant; the prior's is last.
    base: Vec<f64>,
}

#[derive(Clone, Debug)]
enum Dim {
    Numeric(Kernels),
    Categories { count: usize, observed: Vec<f64> },
}

/// The kernels of one numeric parameter, in bent coordinates; the prior's is last in every column.
#[derive(Clone, Debug)]
struct Kernels {
    scale: Scale,
    low: f64,
    high: f64,
    mu: Vec<f64>,
    sigma: Vec<f64>,
    /// 1/(σ√2).
    sharpness: Vec<f64>,
    /// ln of the kernel's constant: 1/mass, and 1/(σ√2π) for a density.
    constant: Vec<f64>,
    /// Positions by ascending `mu`; the prior's is not among them.
    order: Vec<u32>,
    /// With steps, kernels of equal place and width are one class.
    class: Vec<u32>,
    classes: Vec<u32>,
}

impl Parzen {
    /// An estimator of parameters on these axes, with nothing but the prior.
    pub(super) fn new(axes: impl IntoIterator<Item = Axis>) -> Parzen {
        let dims = axes.into_iter().filter_map(|axis| match axis {
            Axis::Numeric(scale) => Some(Dim::Numeric(Kernels::new(scale))),
            Axis::Categories(count) => Some(Dim::Categories { count, observed: Vec::new() }),
            Axis::Single => None,
        });
        let mut parzen =
            Parzen { dims: dims.collect(), members: Vec::new(), cumulative: Vec::new(), base: Vec::new() };
        parzen.refresh();
        parzen
    }

    /// Takes the observation of a trial in; one float per dimension. `refresh` has to follow.
    pub(super) fn insert(&mut self, number: u64, floats: impl IntoIterator<Item = f64>) {
        let at = self.members.partition_point(|member| *member < number);
        self.members.insert(at, number);
        for (dim, float) in self.dims.iter_mut().zip(floats) {
            match dim {
                Dim::Numeric(kernels) => kernels.insert(at, float),
                Dim::Categories { observed, .. } => observed.insert(at, float),
            }
        }
    }

    /// Takes it out again. `refresh` has to follow.
    pub(super) fn remove(&mut self, number: u64) {
        let Ok(at) = self.members.binary_search(&number) else { return };
        self.members.remove(at);
        for dim in &mut self.dims {
            match dim {
                Dim::Numeric(kernels) => kernels.remove(at),
                Dim::Categories { observed, .. } => drop(observed.remove(at)),
            }
        }
    }

    /// Forgets all observations.
    pub(super) fn clear(&mut self) {
        while let Some(number) = self.members.last().copied() {
            self.remove(number);
        }
    }

    /// Brings weights and widths up to the observations.
    pub(super) fn refresh(&mut self) {
        let count = self.members.len();
        let total: f64 = weights(count).sum::<f64>() + 1.0;
        self.cumulative.clear();
        self.base.clear();
        let mut sum = 0.0;
        for weight in weights(count).chain([1.0]) {
            let weight = weight / total;
            sum += weight;
            self.cumulative.push(sum);
            self.base.push(weight.ln());
        }
        for dim in &mut self.dims {
            if let Dim::Numeric(kernels) = dim {
                kernels.refresh();
                if kernels.scale.step == 0.0 {
                    self.base
                        .iter_mut()
                        .zip(&kernels.constant)
                        .for_each(|(base, constant)| *base += constant);
                }
            }
        }
    }

    /// The kernel at a share of the total weight.
    pub(super) fn pick(&self, unit: f64) -> usize {
        let target = unit * self.cumulative.last().copied().unwrap_or(1.0);
        self.cumulative.partition_point(|sum| *sum <= target).min(self.members.len())
    }

    /// The value of a dimension at a share of one kernel's mass.
    pub(super) fn draw(&self, dim: usize, kernel: usize, unit: f64) -> f64 {
        match &self.dims[dim] {
            Dim::Numeric(kernels) => kernels.draw(kernel, unit),
            Dim::Categories { count, observed } => {
                let (hit, miss) = one_hot(*count, self.members.len());
                let mut left = unit;
                for value in 0..count - 1 {
                    left -= match observed.get(kernel) {
                        Some(seen) if *seen == value as f64 => hit,
                        Some(_) => miss,
                        None => 1.0 / *count as f64,
                    };
                    if left < 0.0 {
                        return value as f64;
                    }
                }
                (count - 1) as f64
            }
        }
    }

    /// ln of the density at candidates, each one float per dimension.
    pub(super) fn log_pdf(&self, candidates: &[Vec<f64>]) -> Vec<f64> {
        let rows: Vec<Vec<Row<'_>>> = candidates.iter().map(|candidate| self.rows(candidate)).collect();
        let mut sums = vec![Sum { largest: f64::NEG_INFINITY, total: 0.0 }; candidates.len()];
        let mut terms = [0.0_f64; BLOCK];
        for start in (0..self.base.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.base.len());
            for (row, sum) in rows.iter().zip(&mut sums) {
                let terms = &mut terms[..end - start];
                terms.copy_from_slice(&self.base[start..end]);
                row.iter().for_each(|row| row.add(start..end, terms));
                sum.add(terms);
            }
        }
        sums.iter().map(|sum| sum.largest + sum.total.ln()).collect()
    }

    fn rows(&self, candidate: &[f64]) -> Vec<Row<'_>> {
        let rows = self.dims.iter().zip(candidate).map(|(dim, &float)| match dim {
            Dim::Numeric(kernels) if kernels.scale.step == 0.0 => {
                Row::Density { x: kernels.scale.bend(float), mu: &kernels.mu, sharpness: &kernels.sharpness }
            }
            Dim::Numeric(kernels) => {
                Row::Cells { by_class: kernels.cell_masses(float), class: &kernels.class }
            }
            Dim::Categories { count, observed } => {
                let (hit, miss) = one_hot(*count, self.members.len());
                Row::OneHot {
                    x: float,
                    observed,
                    hit: hit.ln(),
                    miss: miss.ln(),
                    prior: -(*count as f64).ln(),
                }
            }
        });
        rows.collect()
    }
}

/// The probabilities of the observed category and of each other one.
fn one_hot(count: usize, observations: usize) -> (f64, f64) {
    let smooth = 1.0 / (observations + 1) as f64;
    let total = 1.0 + count as f64 * smooth;
    ((1.0 + smooth) / total, smooth / total)
}

/// What one dimension of one candidate adds to every kernel.
enum Row<'a> {
    Density { x: f64, mu: &'a [f64], sharpness: &'a [f64] },
    Cells { by_class: Vec<f64>, class: &'a [u32] },
    OneHot { x: f64, observed: &'a [f64], hit: f64, miss: f64, prior: f64 },
}

impl Row<'_> {
    fn add(&self, range: std::ops::Range<usize>, terms: &mut [f64]) {
        match self {
            Row::Density { x, mu, sharpness } => {
                for ((term, mu), sharpness) in terms.iter_mut().zip(&mu[range.clone()]).zip(&sharpness[range])
                {
                    let z = (x - mu) * sharpness;
                    *term -= z * z;
                }
            }
            Row::Cells { by_class, class } => {
                for (term, class) in terms.iter_mut().zip(&class[range]) {
                    *term += by_class[*class as usize];
                }
            }
            Row::OneHot { x, observed, hit, miss, prior } => {
                let seen = &observed[range.start.min(observed.len())..range.end.min(observed.len())];
                for (term, value) in terms.iter_mut().zip(seen) {
                    *term += if value == x { *hit } else { *miss };
                }
                if seen.len() < terms.len() {
                    terms[seen.len()] += prior;
                }
            }
        }
    }
}

/// A sum of exponentials under way.
#[derive(Clone, Copy)]
struct Sum {
    largest: f64,
    total: f64,
}

impl Sum {
    fn add(&mut self, terms: &[f64]) {
        let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest > self.largest {
            self.total *= (self.largest - largest).exp();
            self.largest = largest;
        }
        let floor = self.largest - NEGLIGIBLE;
        for term in terms.iter().filter(|term| **term > floor) {
            self.total += (term - self.largest).exp();
        }
    }
}

impl Kernels {
    fn new(scale: Scale) -> Kernels {
        let (low, high) = scale.ends();
        let mut kernels = Kernels {
            scale,
            low,
            high,
            mu: vec![0.5 * (low + high)],
            sigma: vec![high - low],
            sharpness: vec![0.0],
            constant: vec![0.0],
            order: Vec::new(),
            class: vec![0],
            classes: Vec::new(),
        };
        kernels.settle(0);
        kernels
    }

    fn insert(&mut self, at: usize, float: f64) {
        let place = self.scale.bend(float);
        self.order
            .iter_mut()
            .filter(|position| **position as usize >= at)
            .for_each(|position| *position += 1);
        self.mu.insert(at, place);
        // No width yet: `refresh` settles what differs from what it was.
        self.sigma.insert(at, f64::NAN);
        self.sharpness.insert(at, 0.0);
        self.constant.insert(at, 0.0);
        self.class.insert(at, 0);
        let rank = self.order.partition_point(|position| {
            let other = *position as usize;
            self.mu[other] < place || (self.mu[other] == place && other < at)
        });
        self.order.insert(rank, at as u32);
    }

    fn remove(&mut self, at: usize) {
        self.order.retain(|position| *position as usize != at);
        self.order.iter_mut().filter(|position| **position as usize > at).for_each(|position| *position -= 1);
        for column in [&mut self.mu, &mut self.sigma, &mut self.sharpness, &mut self.constant] {
            column.remove(at);
        }
        self.class.remove(at);
    }

    /// Widths: the larger gap to a neighbour or an end, for the outermost ones the inner gap, clipped.
    fn refresh(&mut self) {
        let count = self.order.len();
        let range = self.high - self.low;
        let narrowest = range / MAX_KERNELS_PER_RANGE.min(2.0 + count as f64);
        for rank in 0..count {
            let at = |rank: usize| self.mu[self.order[rank] as usize];
            let here = at(rank);
            let left = if rank == 0 { self.low } else { at(rank - 1) };
            let right = if rank + 1 == count { self.high } else { at(rank + 1) };
            let gap = match rank {
                0 if count > 1 => right - here,
                _ if rank + 1 == count && count > 1 => here - left,
                _ => (here - left).max(right - here),
            };
            let sigma = gap.max(narrowest).min(range);
            let position = self.order[rank] as usize;
            if self.sigma[position] != sigma {
                self.sigma[position] = sigma;
                self.settle(position);
            }
        }
        if self.scale.step > 0.0 {
            self.classify();
        }
    }

    /// Computes what follows from a kernel's place and width.
    fn settle(&mut self, position: usize) {
        let (mu, sigma) = (self.mu[position], self.sigma[position]);
        self.sharpness[position] = FRAC_1_SQRT_2 / sigma;
        let mass = log_mass((self.low - mu) / sigma, (self.high - mu) / sigma);
        let density = if self.scale.step == 0.0 { sigma.ln() + 0.5 * (2.0 * PI).ln() } else { 0.0 };
        self.constant[position] = -mass - density;
    }

    fn classify(&mut self) {
        self.classes.clear();
        let prior = self.mu.len() - 1;
        for position in self.order.iter().map(|position| *position as usize).chain([prior]) {
            let same = self.classes.last().is_some_and(|last| {
                let last = *last as usize;
                self.mu[last] == self.mu[position] && self.sigma[last] == self.sigma[position]
            });
            if !same {
                self.classes.push(position as u32);
            }
            self.class[position] = (self.classes.len() - 1) as u32;
        }
    }

    /// ln of the share of every class of kernels that lies in the cell of a value.
    fn cell_masses(&self, float: f64) -> Vec<f64> {
        let (left, right) = self.scale.cell(float);
        let mass = |position: &u32| {
            let (mu, sigma) = (self.mu[*position as usize], self.sigma[*position as usize]);
            log_mass((left - mu) / sigma, (right - mu) / sigma) + self.constant[*position as usize]
        };
        self.classes.iter().map(mass).collect()
    }

    fn draw(&self, kernel: usize, unit: f64) -> f64 {
        let (mu, sigma) = (self.mu[kernel], self.sigma[kernel]);
        // The centre lies within the range, so that neither end is in a far tail and plain Φ keeps its digits.
        let (left, right) = (cdf((self.low - mu) / sigma), cdf((self.high - mu) / sigma));
        let share = left + unit * (right - left);
        let place = if share > 0.0 && share < 1.0 { mu + sigma * quantile(share) } else { mu };
        self.scale.unbend(place.clamp(self.low, self.high))
    }
}

#[cfg(test)]
#[path = "parzen_tests.rs"]
mod tests;
