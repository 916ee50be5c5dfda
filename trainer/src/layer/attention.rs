//! Attention of the tokens of a sample to one another (Vaswani et al. 2017), several heads side by side.

use super::math::{exp, largest, sum_pairs};
use super::product::{Hands, View, product_into};
use super::wide::wide;
use crate::model::Write;
use rayon::prelude::*;

/// What tokens may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Themselves and those before them.
    Past,
    /// All tokens of their sample.
    All,
}

/// Heads over rows of queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    /// Values a token.
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) sight: Sight,
}

impl Attention {
    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_width() as f32).sqrt()
    }

    /// The queries (0), keys (1) or values (2) of a head in the rows of one sample.
    fn part<'a>(&self, rows: &'a [f32], tokens: usize, which: usize, head: usize) -> View<'a> {
        let start = which * self.width + head * self.head_width();
        View::strided(&rows[start..], tokens, self.head_width(), 3 * self.width)
    }

    /// Mixes the values of each sample's tokens into `mixed`, `width` a token. `rows` has queries, keys and values of
    /// each token; `lengths` how many tokens of each sample count (empty: all). `weights` takes what each token gave to
    /// each other one, for the way back.
    pub(crate) fn forward(
        &self,
        rows: &[f32],
        tokens: usize,
        lengths: &[u32],
        weights: &mut [f32],
        mixed: &mut [f32],
    ) {
        let samples = rows
            .par_chunks(tokens * 3 * self.width)
            .zip(weights.par_chunks_mut(self.heads * tokens * tokens))
            .zip(mixed.par_chunks_mut(tokens * self.width));
        samples.enumerate().for_each(|(sample, ((rows, weights), mixed))| {
            let length = lengths.get(sample).map_or(tokens, |&length| length as usize);
            for (head, weights) in weights.chunks_exact_mut(tokens * tokens).enumerate() {
                let (queries, keys) = (self.part(rows, tokens, 0, head), self.part(rows, tokens, 1, head));
                product_into(weights, tokens, queries, keys.t(), self.scale(), Write::Set, Hands::One);
                softmax_rows(weights, tokens, length, self.sight == Sight::Past);
                let out = &mut mixed[head * self.head_width()..];
                let values = self.part(rows, tokens, 2, head);
                product_into(
                    out,
                    self.width,
                    View::rows(weights, tokens),
                    values,
                    1.0,
                    Write::Set,
                    Hands::One,
                );
            }
        });
    }

    /// The gradient of `rows` from `slope`, that of what was mixed.
    pub(crate) fn backward(
        &self,
        rows: &[f32],
        tokens: usize,
        weights: &[f32],
        slope: &[f32],
        into: &mut [f32],
    ) {
        let samples = rows
            .par_chunks(tokens * 3 * self.width)
            .zip(weights.par_chunks(self.heads * tokens * tokens))
            .zip(slope.par_chunks(tokens * self.width))
            .zip(into.par_chunks_mut(tokens * 3 * self.width));
        samples.for_each_init(
            || vec![0.0; tokens * tokens],
            |pulled, (((rows, weights), slope), into)| {
                for (head, weights) in weights.chunks_exact(tokens * tokens).enumerate() {
                    self.head_backward(rows, tokens, head, weights, slope, pulled, into);
                }
            },
        );
    }

    #[allow(clippy::too_many_arguments)]
    fn head_backward(
        &self,
        rows: &[f32],
        tokens: usize,
        head: usize,
        weights: &[f32],
        slope: &[f32],
        pulled: &mut [f32],
        into: &mut [f32],
    ) {
        let (width, step) = (self.width, 3 * self.width);
        let at = head * self.head_width();
        let slope = View::strided(&slope[at..], tokens, self.head_width(), width);
        let [queries, keys, values] = [0, 1, 2].map(|which| self.part(rows, tokens, which, head));
        let given = View::rows(weights, tokens);
        product_into(&mut into[2 * width + at..], step, given.t(), slope, 1.0, Write::Set, Hands::One);
        product_into(pulled, tokens, slope, values.t(), 1.0, Write::Set, Hands::One);
        pull_softmax_rows(pulled, weights, tokens, self.scale());
        let pulled = View::rows(pulled, tokens);
        product_into(&mut into[at..], step, pulled, keys, 1.0, Write::Set, Hands::One);
        product_into(&mut into[width + at..], step, pulled.t(), queries, 1.0, Write::Set, Hands::One);
    }
}

wide! {
    /// The softmax of each row's first `length` values, or as many as its number and one if `past`; the rest become 0.
    fn softmax_rows(values: &mut [f32], width: usize, length: usize, past: bool) {
        for (at, row) in values.chunks_exact_mut(width).enumerate() {
            let (seen, hidden) = row.split_at_mut(if past { at + 1 } else { length });
            let top = largest(seen);
            for value in seen.iter_mut() {
                *value = exp(*value - top);
            }
            let share = 1.0 / super::math::sum(seen, |value| value);
            seen.iter_mut().for_each(|value| *value *= share);
            hidden.fill(0.0);
        }
    }
}

wide! {
    /// Turns the gradient of softmaxes into `scale` × that of what they were taken of.
    fn pull_softmax_rows(slope: &mut [f32], weights: &[f32], width: usize, scale: f32) {
        for (slope, weights) in slope.chunks_exact_mut(width).zip(weights.chunks_exact(width)) {
            let mean = sum_pairs(slope, weights, |slope, weight| slope * weight);
            slope.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = scale * weight * (*slope - mean));
        }
    }
}
