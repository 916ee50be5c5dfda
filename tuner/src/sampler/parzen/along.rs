//! The density of points that differ in one dimension, dimension by dimension: what all others give is added up once.

use super::{Mixture, Parzen};

/// A candidate whose dimensions are settled from the first to the last.
pub(in crate::sampler) struct Along<'a> {
    parzen: &'a Parzen,
    /// What the settled dimensions add to every kernel.
    settled: Vec<f64>,
    /// What each dimension and all behind it add, of those that are left; the last one's is on top.
    left: Vec<Vec<f64>>,
}

impl<'a> Along<'a> {
    /// Of an estimator, with nothing settled; one float per dimension.
    pub(in crate::sampler) fn new(parzen: &'a Parzen, candidate: &[f64]) -> Along<'a> {
        let mut left = vec![vec![0.0; parzen.base.len()]];
        for (dim, float) in parzen.dims.iter().zip(candidate).skip(1).rev() {
            let mut sums = left[left.len() - 1].clone();
            parzen.row(dim, *float).add(0..sums.len(), &mut sums);
            left.push(sums);
        }
        Along { parzen, settled: parzen.base.clone(), left }
    }

    fn dim(&self) -> usize {
        self.parzen.dims.len() - self.left.len()
    }

    /// ln of the density with each of these floats in the next dimension.
    pub(in crate::sampler) fn log_pdf(&self, floats: &[f64]) -> Vec<f64> {
        let (parzen, dim) = (self.parzen, &self.parzen.dims[self.dim()]);
        let others = self.left.last().into_iter().flatten();
        let base: Vec<f64> = self.settled.iter().zip(others).map(|(settled, left)| settled + left).collect();
        let rows: Vec<_> = floats.iter().map(|float| vec![parzen.row(dim, *float)]).collect();
        Mixture { base: &base, weights: &parzen.weights, rows: &rows }.log_sums()
    }

    /// Settles the next dimension.
    pub(in crate::sampler) fn settle(&mut self, float: f64) {
        let row = self.parzen.row(&self.parzen.dims[self.dim()], float);
        row.add(0..self.settled.len(), &mut self.settled);
        self.left.pop();
    }
}
