//! How a sample becomes tokens of the transformer's width.

use crate::data::{Batch, Sample};
use crate::layer::activation::add;
use crate::layer::parameters::{Initial, Parameters};
use crate::model::Write;
use std::ops::Range;

/// A row of weights for every token, and one for every place.
#[derive(Debug)]
pub(super) struct Embedding {
    width: usize,
    weight: Range<usize>,
    /// Of the places; for features, what is added to each.
    place: Range<usize>,
    /// Tokens of a sample.
    tokens: usize,
    features: bool,
}

impl Embedding {
    pub(super) fn new(
        parameters: &mut Parameters,
        sample: Sample,
        width: usize,
        deviation: f32,
    ) -> Embedding {
        match sample {
            Sample::Text { vocabulary, context } | Sample::Tokens { vocabulary, context } => Embedding {
                width,
                weight: parameters.add(
                    "embedding.weight".to_owned(),
                    &[vocabulary, width],
                    Initial::Normal(deviation),
                ),
                place: parameters.add(
                    "position.weight".to_owned(),
                    &[context, width],
                    Initial::Normal(deviation),
                ),
                tokens: context,
                features: false,
            },
            Sample::Features(_) | Sample::Image(_) => {
                let count = sample.width().unwrap_or(0);
                // A feature is about 1, where a token is one of many: it starts as an affine map does.
                let initial = Initial::Uniform(1.0 / (width as f32).sqrt());
                Embedding {
                    width,
                    weight: parameters.add("features.weight".to_owned(), &[count, width], initial),
                    place: parameters.add("features.bias".to_owned(), &[count, width], initial),
                    tokens: count,
                    features: true,
                }
            }
        }
    }

    pub(super) fn weight(&self) -> Range<usize> {
        self.weight.clone()
    }

    /// Tokens of each sample of a batch, padding included.
    pub(super) fn tokens(&self, batch: &Batch) -> usize {
        if self.features { self.tokens } else { batch.tokens.len() / batch.rows }
    }

    pub(super) fn forward(&self, parameters: &[f32], batch: &Batch, out: &mut [f32]) {
        let tokens = self.tokens(batch);
        let (weight, place) = (&parameters[self.weight.clone()], &parameters[self.place.clone()]);
        for (at, out) in out.chunks_exact_mut(self.width).enumerate() {
            let place = row(place, at % tokens, self.width);
            if self.features {
                let value = batch.values[at];
                let weight = row(weight, at % tokens, self.width);
                for ((out, weight), place) in out.iter_mut().zip(weight).zip(place) {
                    *out = value * weight + place;
                }
            } else {
                let weight = row(weight, batch.tokens[at] as usize, self.width);
                for ((out, weight), place) in out.iter_mut().zip(weight).zip(place) {
                    *out = weight + place;
                }
            }
        }
    }

    /// Adds or writes the gradient of the parameters. Where a head is `tied` to the weights, what it left there stays.
    pub(super) fn backward(
        &self,
        batch: &Batch,
        slope: &[f32],
        gradient: &mut [f32],
        write: Write,
        tied: bool,
    ) {
        let tokens = self.tokens(batch);
        // Weights and places lie side by side.
        let own = &mut gradient[self.weight.start..self.place.end];
        let (weights, places) = own.split_at_mut(self.weight.len());
        if write == Write::Set {
            places.fill(0.0);
            if !tied {
                weights.fill(0.0);
            }
        }
        for (at, slope) in slope.chunks_exact(self.width).enumerate() {
            let place = at % tokens;
            add(row_mut(places, place, self.width), slope);
            if self.features {
                let value = batch.values[at];
                let weight = row_mut(weights, place, self.width);
                weight.iter_mut().zip(slope).for_each(|(weight, slope)| *weight += value * slope);
            } else {
                add(row_mut(weights, batch.tokens[at] as usize, self.width), slope);
            }
        }
    }
}

fn row(values: &[f32], at: usize, width: usize) -> &[f32] {
    &values[at * width..(at + 1) * width]
}

fn row_mut(values: &mut [f32], at: usize, width: usize) -> &mut [f32] {
    &mut values[at * width..(at + 1) * width]
}
