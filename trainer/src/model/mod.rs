//! Models as the engine knows them: parameters and gradients as flat buffers, a pass forward and back, an evaluation.

mod loss;
mod mlp;

pub use loss::Score;
pub use mlp::Mlp;

use crate::data::Dataset;
use std::ops::Range;

/// One named tensor in the flat parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in checkpoints, as PyTorch would name it.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Where it lies in the flat buffers.
    pub range: Range<usize>,
}

/// How a pass leaves its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// In place of what was there.
    Set,
    /// Added to what was there.
    Add,
}

/// A model under training. Whatever computes it, its parameters are one flat buffer of f32.
pub trait Engine {
    /// The tensors, in the order of the flat buffers and without gaps.
    fn tensors(&self) -> &[Tensor];

    /// All parameters.
    fn parameters(&self) -> &[f32];

    /// All parameters, to be moved.
    fn parameters_mut(&mut self) -> &mut [f32];

    /// Writes `scale` × the gradient of the summed loss over `rows` to `gradient`, which is as long as the parameters,
    /// and returns the summed loss (not scaled). No rows have loss 0 and gradient 0.
    fn forward_backward(
        &mut self,
        data: &Dataset,
        rows: &[u32],
        scale: f32,
        gradient: &mut [f32],
        write: Write,
    ) -> f64;

    /// Judges the model on `rows`.
    fn evaluate(&mut self, data: &Dataset, rows: &[u32]) -> Score;
}
