//! `transformer`: a causal language model of text in the manner of GPT-2 (Radford et al. 2019), or an encoder that
//! classifies texts, or rows of features, each a token (after Gorishniy et al. 2021).
//!
//! Blocks norm first (Xiong et al. 2020); the feed-forward part has gelu. An encoder's outputs are an affine map of the
//! mean over its tokens.

mod block;
mod embedding;

use super::{Gradient, Model, Tensor, Write, loss};
use crate::Error;
use crate::data::{Batch, Sample};
use crate::layer::activation::Dropout;
use crate::layer::affine::Affine;
use crate::layer::attention::{Attention, Sight};
use crate::layer::fit;
use crate::layer::norm::{LayerNorm, Normed};
use crate::layer::parameters::{Initial, Parameters};
use crate::layer::product::{View, product};
use block::{Block, Workspace};
use embedding::Embedding;
use phalanx_core::spec::{Loss, TransformerSpec};

/// Standard deviation of initial weights, as in GPT-2.
const DEVIATION: f32 = 0.02;

/// What is made of the last block's tokens.
#[derive(Debug)]
enum Head {
    /// Each token says the next one, by the weights of the token embedding.
    Tied,
    /// Each token says the next one.
    Token(Affine),
    /// Their mean says the class or number.
    Pooled(Affine),
}

/// A stack of blocks of attention and feed-forward.
#[derive(Debug)]
pub struct Transformer {
    width: usize,
    outputs: usize,
    embedding: Embedding,
    dropout: Dropout,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Head,
    tensors: Vec<Tensor>,
    parameters: Vec<f32>,
    loss: Loss,
    normed: Normed,
    /// The tokens between blocks, and then their gradient.
    stream: Vec<f32>,
    /// The tokens after the last norm.
    last: Vec<f32>,
    pooled: Vec<f32>,
    logits: Vec<f32>,
    slope: Vec<f32>,
    work: Workspace,
}

impl Transformer {
    /// A model that reads samples of this kind (not images) and has so many outputs. Of text it is a causal language
    /// model, else an encoder.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it has too many parameters.
    pub fn new(
        spec: &TransformerSpec,
        sample: Sample,
        outputs: usize,
        loss: Loss,
        seed: u64,
    ) -> Result<Transformer, Error> {
        let mut parameters = Parameters::new(seed);
        let width = spec.width as usize;
        let causal = matches!(sample, Sample::Text { .. });
        let embedding = Embedding::new(&mut parameters, sample, width, DEVIATION);
        let attention = Attention {
            width,
            heads: spec.heads as usize,
            sight: if causal { Sight::Past } else { Sight::All },
        };
        // As in GPT-2, so that the stream's variance does not grow with the number of blocks.
        let residual = DEVIATION / (2.0 * spec.layers as f32).sqrt();
        let blocks = (0..spec.layers as usize)
            .map(|at| {
                let wide = spec.feed_forward as usize;
                Block::new(&mut parameters, at, attention, wide, spec.dropout, [DEVIATION, residual])
            })
            .collect();
        let norm = LayerNorm::new(&mut parameters, "norm", width);
        let head = match (causal, spec.tied) {
            (true, true) => Head::Tied,
            (tokens, _) => {
                let weight = Initial::Normal(DEVIATION);
                let zero = Initial::Constant(0.0);
                let map = Affine::with(&mut parameters, "head", width, outputs, weight, zero);
                if tokens { Head::Token(map) } else { Head::Pooled(map) }
            }
        };
        let (tensors, parameters) = parameters.finish()?;
        Ok(Transformer {
            width,
            outputs,
            embedding,
            dropout: Dropout::new(spec.dropout),
            blocks,
            norm,
            head,
            tensors,
            parameters,
            loss,
            normed: Normed::default(),
            stream: Vec::new(),
            last: Vec::new(),
            pooled: Vec::new(),
            logits: Vec::new(),
            slope: Vec::new(),
            work: Workspace::default(),
        })
    }

    /// Tokens of a sample in this batch.
    fn tokens(&self, batch: &Batch) -> usize {
        self.embedding.tokens(batch)
    }

    /// Leaves the outputs in `logits`.
    fn forward(&mut self, batch: &Batch, noise: &[u64]) {
        let tokens = self.tokens(batch);
        let parameters = &self.parameters;
        let stream = fit(&mut self.stream, batch.rows * tokens * self.width);
        self.embedding.forward(parameters, batch, stream);
        self.dropout.apply(stream, noise, 0);
        for block in &mut self.blocks {
            block.forward(parameters, stream, tokens, &batch.lengths, noise, &mut self.work);
        }
        let last = fit(&mut self.last, stream.len());
        self.norm.forward(parameters, stream, last, &mut self.normed);
        match &self.head {
            Head::Tied => {
                let logits = fit(&mut self.logits, batch.rows * tokens * self.outputs);
                let weight = View::rows(&parameters[self.embedding.weight()], self.width);
                product(logits, View::rows(last, self.width), weight.t(), Write::Set);
            }
            Head::Token(map) => {
                map.forward(parameters, last, fit(&mut self.logits, batch.rows * tokens * self.outputs));
            }
            Head::Pooled(map) => {
                let pooled = fit(&mut self.pooled, batch.rows * self.width);
                mean_tokens(last, tokens, &batch.lengths, self.width, pooled);
                map.forward(parameters, pooled, fit(&mut self.logits, batch.rows * self.outputs));
            }
        }
    }

    /// The way back from the gradient of the outputs in `logits`.
    fn backward(&mut self, batch: &Batch, gradient: &mut dyn Gradient, write: Write) {
        let tokens = self.tokens(batch);
        let (parameters, width) = (&self.parameters, self.width);
        let slope = fit(&mut self.slope, self.last.len());
        match &self.head {
            Head::Tied => {
                let (logits, range) = (View::rows(&self.logits, self.outputs), self.embedding.weight());
                product(
                    &mut gradient.open()[range.clone()],
                    logits.t(),
                    View::rows(&self.last, width),
                    write,
                );
                product(slope, logits, View::rows(&parameters[range], width), Write::Set);
            }
            Head::Token(map) => {
                map.backward(&self.last, &self.logits, gradient.open(), write);
                map.pull(parameters, &self.logits, slope, Write::Set);
            }
            Head::Pooled(map) => {
                map.backward(&self.pooled, &self.logits, gradient.open(), write);
                let pulled = &mut self.pooled;
                map.pull(parameters, &self.logits, pulled, Write::Set);
                spread_mean(pulled, tokens, &batch.lengths, width, slope);
            }
        }
        let stream = fit(&mut self.stream, slope.len());
        stream.fill(0.0);
        self.norm.backward(parameters, &self.normed, slope, gradient.open(), write, stream);
        gradient.finished(self.norm.first());
        for block in self.blocks.iter_mut().rev() {
            block.backward(parameters, stream, tokens, &batch.noise, gradient.open(), write, &mut self.work);
            gradient.finished(block.first());
        }
        self.dropout.apply(stream, &batch.noise, 0);
        self.embedding.backward(batch, stream, gradient.open(), write, matches!(self.head, Head::Tied));
    }
}

/// The mean over each sample's tokens.
fn mean_tokens(values: &[f32], tokens: usize, lengths: &[u32], width: usize, means: &mut [f32]) {
    for (sample, (values, mean)) in
        values.chunks_exact(tokens * width).zip(means.chunks_exact_mut(width)).enumerate()
    {
        let length = lengths.get(sample).map_or(tokens, |&length| length as usize);
        mean.fill(0.0);
        crate::layer::activation::add_column_sums(mean, &values[..length * width]);
        mean.iter_mut().for_each(|mean| *mean /= length as f32);
    }
}

/// The gradient of the tokens from that of their mean.
fn spread_mean(slope: &[f32], tokens: usize, lengths: &[u32], width: usize, into: &mut [f32]) {
    for (sample, (slope, into)) in
        slope.chunks_exact(width).zip(into.chunks_exact_mut(tokens * width)).enumerate()
    {
        let length = lengths.get(sample).map_or(tokens, |&length| length as usize);
        let (counted, padding) = into.split_at_mut(length * width);
        for token in counted.chunks_exact_mut(width) {
            token.iter_mut().zip(slope).for_each(|(token, slope)| *token = slope / length as f32);
        }
        padding.fill(0.0);
    }
}

impl Model for Transformer {
    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error> {
        self.forward(batch, &batch.noise);
        let sum = loss::backward(self.loss, &mut self.logits, self.outputs, &batch.targets, scale);
        self.backward(batch, gradient, write);
        Ok(sum)
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        self.forward(batch, &[]);
        outputs.clear();
        outputs.extend_from_slice(&self.logits);
        Ok(loss::sum(self.loss, &self.logits, self.outputs, &batch.targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::{assert_gradients, classes, features, numbers};

    fn spec(dropout: f64, tied: bool) -> TransformerSpec {
        TransformerSpec { layers: 2, width: 8, heads: 2, feed_forward: 10, dropout, tied }
    }

    /// Weights as small as they start make every slope small too; larger ones make a check worth its name.
    fn enlarge(model: &mut Transformer) {
        model.parameters_mut().iter_mut().for_each(|value| *value *= 8.0);
        for tensor in model.tensors.clone() {
            let values = &mut model.parameters[tensor.range];
            if tensor.name.contains("norm") && tensor.name.ends_with("weight") {
                values.fill(1.0);
            } else if ["embedding.weight", "position.weight"].contains(&tensor.name.as_str()) {
                // A norm of values that hardly differ is far from straight.
                values.iter_mut().for_each(|value| *value *= 5.0);
            }
        }
    }

    fn text(rows: usize, context: usize, vocabulary: usize) -> Batch {
        let tokens: Vec<u32> = (0..rows * context).map(|at| (at * at % vocabulary) as u32).collect();
        Batch { tokens, ..features(rows, 0, classes(rows * context, vocabulary)) }
    }

    #[test]
    fn a_language_models_gradients_match_finite_differences() {
        for (dropout, tied) in [(0.0, true), (0.0, false), (0.2, true)] {
            let sample = Sample::Text { vocabulary: 7, context: 5 };
            let mut model = Transformer::new(&spec(dropout, tied), sample, 7, Loss::CrossEntropy, 3).unwrap();
            enlarge(&mut model);
            assert_gradients(&mut model, &text(6, 5, 7), 0, &format!("dropout {dropout} tied {tied}"));
        }
    }

    #[test]
    fn a_classifiers_gradients_match_finite_differences() {
        let sample = Sample::Tokens { vocabulary: 7, context: 5 };
        let mut model = Transformer::new(&spec(0.1, true), sample, 3, Loss::CrossEntropy, 3).unwrap();
        enlarge(&mut model);
        let batch = Batch { lengths: vec![5, 1, 3, 4, 2, 5], targets: classes(6, 3), ..text(6, 5, 7) };
        assert_gradients(&mut model, &batch, 0, "tokens");
    }

    #[test]
    fn a_tables_gradients_match_finite_differences() {
        for (loss, targets, outputs) in [(Loss::Mse, numbers(6), 1), (Loss::CrossEntropy, classes(6, 4), 4)] {
            let mut model =
                Transformer::new(&spec(0.0, true), Sample::Features(4), outputs, loss, 3).unwrap();
            enlarge(&mut model);
            assert_gradients(&mut model, &features(6, 4, targets), 0, &format!("{loss:?}"));
        }
    }

    #[test]
    fn a_token_does_not_see_what_comes_after_it() {
        let sample = Sample::Text { vocabulary: 7, context: 5 };
        let mut model = Transformer::new(&spec(0.0, true), sample, 7, Loss::CrossEntropy, 3).unwrap();
        enlarge(&mut model);
        let mut batch = text(2, 5, 7);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        model.evaluate(&batch, &mut before).unwrap();
        batch.tokens[3] = (batch.tokens[3] + 1) % 7;
        model.evaluate(&batch, &mut after).unwrap();
        assert_eq!(before[..3 * 7], after[..3 * 7]);
        assert_ne!(before[3 * 7..4 * 7], after[3 * 7..4 * 7]);
        assert_eq!(before[5 * 7..], after[5 * 7..], "nor another sample");
    }

    #[test]
    fn padding_changes_nothing() {
        let sample = Sample::Tokens { vocabulary: 7, context: 5 };
        let mut model = Transformer::new(&spec(0.0, true), sample, 3, Loss::CrossEntropy, 3).unwrap();
        enlarge(&mut model);
        let mut batch = Batch { lengths: vec![3], targets: classes(1, 3), ..text(1, 5, 7) };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        model.evaluate(&batch, &mut before).unwrap();
        batch.tokens[4] = (batch.tokens[4] + 1) % 7;
        model.evaluate(&batch, &mut after).unwrap();
        assert_eq!(before, after);
    }
}
