//! A Parzen estimator over several parameters at once: one product of kernels per observation and one wide prior.
//!
//! Kernels are truncated normals (their mass per cell where values have steps) and smoothed one-hot vectors; widths,
//! weights and clipping are those of Optuna 5, which follows Bergstra et al. 2011 and Watanabe, arXiv 2304.11127.
//! Observations come and go one at a time; what is dear to compute (the mass that truncation leaves) is kept for every
//! kernel whose place and width have not changed.

mod along;

pub(super) use along::Along;

use super::log_sum::LogSum;
use super::normal::{cdf, log_mass, quantile};
use crate::space::{Axis, Scale};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The youngest observations of full weight; older ones fade out.
const FULL_WEIGHT_OBSERVATIONS: usize = 25;
/// No kernel is narrower than the range over this.
const MAX_KERNELS_PER_RANGE: f64 = 100.0;
/// Kernels evaluated together, so that they stay in the first cache.
const BLOCK: usize = 128;

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
    /// Weights of members and, last, of the prior; they sum to 1.
    weights: Vec<f64>,
    /// ln of the constants of all continuous kernels of a position; the prior's is last.
    base: Vec<f64>,
    /// Old observations count less than young ones.
    fades: bool,
}

// One a parameter and walked in the hot loop: a pointer would save nothing and cost a miss.
#[allow(clippy::large_enum_variant)]
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
    /// Φ at the lower end of the range, and the mass from there to the upper end.
    below: Vec<f64>,
    mass: Vec<f64>,
    /// Positions by ascending `mu`; the prior's is not among them.
    order: Vec<u32>,
    /// Positions whose neighbours have changed since their widths were computed.
    stale: Vec<u32>,
    /// The least width when the others were computed.
    narrowest: f64,
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
        let mut parzen = Parzen {
            dims: dims.collect(),
            members: Vec::new(),
            weights: Vec::new(),
            base: Vec::new(),
            fades: true,
        };
        parzen.refresh();
        parzen
    }

    /// The same where every observation has the same weight however old it is.
    pub(super) fn unfading(axes: impl IntoIterator<Item = Axis>) -> Parzen {
        Parzen { fades: false, ..Parzen::new(axes) }
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

    /// Takes a trial's observation in or out, where that is a change. `refresh` has to follow.
    pub(super) fn set(&mut self, number: u64, floats: &[f64], was_in: bool, is_in: bool) {
        match (was_in, is_in) {
            (false, true) => self.insert(number, floats.iter().copied()),
            (true, false) => self.remove(number),
            _ => {}
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

    /// Brings weights and widths up to the observations.
    pub(super) fn refresh(&mut self) {
        let count = self.members.len();
        self.weights.clear();
        match self.fades {
            true => self.weights.extend(weights(count)),
            false => self.weights.resize(count, 1.0),
        }
        self.weights.push(1.0);
        let total: f64 = self.weights.iter().sum();
        self.weights.iter_mut().for_each(|weight| *weight /= total);
        self.base.clear();
        self.base.resize(count + 1, 0.0);
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

    /// The kernel of a trial, if it is in.
    pub(super) fn position(&self, number: u64) -> Option<usize> {
        self.members.binary_search(&number).ok()
    }

    /// The kernel at a share of the total weight.
    pub(super) fn pick(&self, unit: f64) -> usize {
        let mut left = unit;
        let picked = self.weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        picked.unwrap_or(self.members.len())
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
        Mixture { base: &self.base, weights: &self.weights, rows: &rows }.log_sums()
    }

    fn rows(&self, candidate: &[f64]) -> Vec<Row<'_>> {
        self.dims.iter().zip(candidate).map(|(dim, float)| self.row(dim, *float)).collect()
    }

    fn row<'a>(&self, dim: &'a Dim, float: f64) -> Row<'a> {
        match dim {
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
        }
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
    #[inline(always)]
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

/// The kernels of a product and what each candidate's dimensions add to them.
struct Mixture<'a> {
    base: &'a [f64],
    weights: &'a [f64],
    rows: &'a [Vec<Row<'a>>],
}

impl Mixture<'_> {
    /// ln of each candidate's sum, with the widest vectors of the processor at hand: elements stay what they are.
    fn log_sums(self) -> Vec<f64> {
        pulp::Arch::new().dispatch(self).into_iter().map(LogSum::ln).collect()
    }
}

impl pulp::WithSimd for Mixture<'_> {
    type Output = Vec<LogSum>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Vec<LogSum> {
        let mut sums = vec![LogSum::ZERO; self.rows.len()];
        let mut terms = [0.0_f64; BLOCK];
        for start in (0..self.base.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(self.base.len());
            for (rows, sum) in self.rows.iter().zip(&mut sums) {
                let terms = &mut terms[..end - start];
                terms.copy_from_slice(&self.base[start..end]);
                rows.iter().for_each(
                    #[inline(always)]
                    |row| row.add(start..end, terms),
                );
                sum.add(terms, &self.weights[start..end]);
            }
        }
        sums
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
            below: vec![0.0],
            mass: vec![0.0],
            order: Vec::new(),
            stale: Vec::new(),
            narrowest: f64::NAN,
            class: vec![0],
            classes: Vec::new(),
        };
        kernels.settle(0);
        kernels
    }

    fn insert(&mut self, at: usize, float: f64) {
        let place = self.scale.bend(float);
        // The youngest comes last, and then nobody moves.
        if at < self.order.len() {
            let positions = self.order.iter_mut().chain(&mut self.stale);
            positions.filter(|position| **position as usize >= at).for_each(|position| *position += 1);
        }
        self.mu.insert(at, place);
        self.sigma.insert(at, f64::NAN);
        for column in [&mut self.sharpness, &mut self.constant, &mut self.below, &mut self.mass] {
            column.insert(at, 0.0);
        }
        self.class.insert(at, 0);
        let rank = self.order.partition_point(|position| self.lies_before(*position as usize, at));
        self.order.insert(rank, at as u32);
        let from = rank.saturating_sub(1);
        self.stale.extend(&self.order[from..(rank + 2).min(self.order.len())]);
    }

    fn remove(&mut self, at: usize) {
        let rank = self.order.partition_point(|position| self.lies_before(*position as usize, at));
        self.order.remove(rank);
        self.stale.retain(|position| *position as usize != at);
        let from = rank.saturating_sub(1);
        self.stale.extend(&self.order[from..(rank + 1).min(self.order.len())]);
        let positions = self.order.iter_mut().chain(&mut self.stale);
        positions.filter(|position| **position as usize > at).for_each(|position| *position -= 1);
        let widths = [&mut self.mu, &mut self.sigma, &mut self.sharpness];
        for column in widths.into_iter().chain([&mut self.constant, &mut self.below, &mut self.mass]) {
            column.remove(at);
        }
        self.class.remove(at);
    }

    /// Whether a position comes before another one in `order`.
    fn lies_before(&self, position: usize, other: usize) -> bool {
        let (mu, theirs) = (self.mu[position], self.mu[other]);
        mu < theirs || (mu == theirs && position < other)
    }

    /// Brings widths up to the observations: all of them where the least width has changed, else the stale ones.
    fn refresh(&mut self) {
        let range = self.high - self.low;
        let narrowest = range / MAX_KERNELS_PER_RANGE.min(2.0 + self.order.len() as f64);
        let stale = std::mem::take(&mut self.stale);
        if narrowest != self.narrowest {
            self.narrowest = narrowest;
            (0..self.order.len()).for_each(|rank| self.widen(rank));
        } else {
            for position in &stale {
                let at = *position as usize;
                let rank = self.order.partition_point(|position| self.lies_before(*position as usize, at));
                self.widen(rank);
            }
        }
        if self.scale.step > 0.0 {
            self.classify();
        }
    }

    /// The width at a rank: the larger gap to a neighbour or an end, for the outermost ones the inner gap, clipped.
    fn widen(&mut self, rank: usize) {
        let count = self.order.len();
        let at = |rank: usize| self.mu[self.order[rank] as usize];
        let here = at(rank);
        let left = if rank == 0 { self.low } else { at(rank - 1) };
        let right = if rank + 1 == count { self.high } else { at(rank + 1) };
        let gap = match rank {
            0 if count > 1 => right - here,
            _ if rank + 1 == count && count > 1 => here - left,
            _ => (here - left).max(right - here),
        };
        let sigma = gap.max(self.narrowest).min(self.high - self.low);
        let position = self.order[rank] as usize;
        if self.sigma[position] != sigma {
            self.sigma[position] = sigma;
            self.settle(position);
        }
    }

    /// Computes what follows from a kernel's place and width.
    fn settle(&mut self, position: usize) {
        let (mu, sigma) = (self.mu[position], self.sigma[position]);
        self.sharpness[position] = FRAC_1_SQRT_2 / sigma;
        // The centre lies within the range: neither end is in a far tail, and plain Φ keeps its digits.
        self.below[position] = cdf((self.low - mu) / sigma);
        self.mass[position] = cdf((self.high - mu) / sigma) - self.below[position];
        let density = if self.scale.step == 0.0 { sigma.ln() + 0.5 * (2.0 * PI).ln() } else { 0.0 };
        self.constant[position] = -self.mass[position].ln() - density;
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
        let share = self.below[kernel] + unit * self.mass[kernel];
        let place = if share > 0.0 && share < 1.0 { mu + sigma * quantile(share) } else { mu };
        self.scale.unbend(place.clamp(self.low, self.high))
    }
}

#[cfg(test)]
#[path = "parzen_tests.rs"]
mod tests;
