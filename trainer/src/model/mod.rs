//! Models as the engine knows them: parameters and gradients as flat buffers, a pass forward and back, an evaluation.

mod build;
#[cfg(test)]
pub(crate) mod check;
mod cnn;
#[cfg(feature = "tch")]
mod libtorch;
pub(crate) mod loss;
mod mlp;
mod transformer;

pub(crate) use build::build;
pub use cnn::Cnn;
pub use mlp::Mlp;
pub use transformer::Transformer;

use crate::Error;
use crate::data::Batch;
use phalanx_collective::DeviceMemory;
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

/// Where a pass leaves its gradient.
pub trait Gradient {
    /// All values that are not finished yet, from the first on, at the places that tensors have.
    fn open(&mut self) -> &mut [f32];

    /// For a model that knows when a part is finished, from the last tensors to the first: nothing from `start` on will be
    /// changed any more. It may be gone from what is open: it is reduced over the ranks while the rest is computed.
    fn finished(&mut self, _start: usize) {}

    /// Whether a model that has a [gradient on a GPU](Model::device_gradient) may leave it there and write nothing here.
    fn stays(&self) -> bool {
        false
    }
}

/// A gradient on the first GPU that this process sees, where NCCL reduces it.
pub trait DeviceGradient {
    /// All its values, one after the other.
    fn memory(&mut self) -> DeviceMemory<f32>;

    /// Sets all values to 0.
    ///
    /// # Errors
    /// [`Error::Model`] where the framework behind it fails.
    fn clear(&mut self) -> Result<(), Error>;

    /// Copies the values from `start` on to `values`.
    ///
    /// # Errors
    /// [`Error::Model`] where the framework behind it fails.
    fn download(&mut self, start: usize, values: &mut [f32]) -> Result<(), Error>;
}

/// One that stays where it is.
impl Gradient for &mut [f32] {
    fn open(&mut self) -> &mut [f32] {
        self
    }
}

impl Gradient for Vec<f32> {
    fn open(&mut self) -> &mut [f32] {
        self
    }
}

/// A model under training. Whatever computes it, its parameters are one flat buffer of f32.
///
/// What makes runs reproducible is asked of the model too: the same batch and parameters give the same bits, and the
/// gradient of a batch is the sum of those of its samples, whatever else is in the batch.
pub trait Model {
    /// The tensors, in the order of the flat buffers and without gaps.
    fn tensors(&self) -> &[Tensor];

    /// All parameters.
    fn parameters(&self) -> &[f32];

    /// All parameters, to be moved.
    fn parameters_mut(&mut self) -> &mut [f32];

    /// Writes `scale` × the gradient of the loss summed over the batch's targets to `gradient`, which is as long as the
    /// parameters and is had by [`Gradient::open`], and returns the summed loss (not scaled). The batch has at least one
    /// sample. A parameter that the loss does not depend on has gradient 0.
    ///
    /// # Errors
    /// [`Error::Model`] where the framework behind it fails.
    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error>;

    /// The tensors, by their places in [`Self::tensors`], on which the loss of the last pass did not depend. It is an error
    /// if they are not the same on all ranks.
    fn unused(&self) -> &[usize] {
        &[]
    }

    /// The gradient where the passes left it that [let it stay](Gradient::stays), for a model that computes on a GPU.
    fn device_gradient(&mut self) -> Option<&mut dyn DeviceGradient> {
        None
    }

    /// Puts the outputs into `outputs`, a row for each target (for classes their logits, for binary cross-entropy one
    /// logit, else the number), and returns the loss summed over the targets.
    ///
    /// # Errors
    /// [`Error::Model`] where the framework behind it fails.
    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error>;
}
