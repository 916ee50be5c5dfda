//! Models of other frameworks under the engine.
//!
//! A framework gives the outputs of a batch and takes their gradient back; losses are the engine's own, so that one net has
//! one loss whatever computes it. Parameters live in the engine's flat buffer and are copied into the framework's tensors
//! before each pass.

#[cfg(feature = "burn")]
pub mod burn;
#[cfg(feature = "candle")]
pub mod candle;
#[cfg(feature = "tch")]
pub mod tch;

use crate::Error;
use crate::data::{Batch, Dataset};
use crate::model::{Gradient, Tensor, Write, loss};
use phalanx_core::spec::Loss;

/// Whether the rank's bundle has a GPU.
#[cfg(any(feature = "burn-cuda", feature = "tch"))]
fn has_gpu() -> bool {
    /// Where the driver is spoken to; without it there is no GPU.
    const DRIVER: &str = "/dev/nvidiactl";
    let hidden = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some_and(|devices| devices.is_empty());
    !hidden && std::path::Path::new(DRIVER).exists()
}

/// What every adapter keeps.
struct Flat {
    tensors: Vec<Tensor>,
    parameters: Vec<f32>,
    loss: Loss,
    /// Outputs for each target.
    width: usize,
    /// Tensors without a gradient in the last pass.
    unused: Vec<usize>,
}

impl Flat {
    fn new(data: &Dataset) -> Flat {
        Flat {
            tensors: Vec::new(),
            parameters: Vec::new(),
            loss: data.loss,
            width: data.outputs(),
            unused: Vec::new(),
        }
    }

    /// Adds a tensor of the framework's.
    fn add(&mut self, name: String, shape: Vec<usize>, values: &[f32]) {
        let start = self.parameters.len();
        self.parameters.extend_from_slice(values);
        self.tensors.push(Tensor { name, shape, range: start..self.parameters.len() });
    }

    /// Turns outputs into the gradient of `scale` × their summed loss, which it returns.
    fn slope(&self, outputs: &mut [f32], batch: &Batch, scale: f32) -> Result<f64, Error> {
        self.check(outputs, batch)?;
        Ok(loss::backward(self.loss, outputs, self.width, &batch.targets, scale))
    }

    /// The summed loss of outputs.
    fn sum(&self, outputs: &[f32], batch: &Batch) -> Result<f64, Error> {
        self.check(outputs, batch)?;
        Ok(loss::sum(self.loss, outputs, self.width, &batch.targets))
    }

    fn check(&self, outputs: &[f32], batch: &Batch) -> Result<(), Error> {
        let (rows, width, found) = (batch.targets.len(), self.width, outputs.len());
        if found == rows * width {
            return Ok(());
        }
        Err(Error::Model(format!("it gave {found} outputs for {rows} targets, which need {width} each")))
    }

    /// Leaves the gradients of all tensors, the last first, as `own` gives them by their places; none is zero.
    fn deliver(
        &mut self,
        gradient: &mut dyn Gradient,
        write: Write,
        mut own: impl FnMut(usize) -> Result<Option<Vec<f32>>, Error>,
    ) -> Result<(), Error> {
        self.unused.clear();
        for (at, tensor) in self.tensors.iter().enumerate().rev() {
            let to = &mut gradient.open()[tensor.range.clone()];
            match (own(at)?, write) {
                (Some(from), Write::Set) => to.copy_from_slice(&from),
                (Some(from), Write::Add) => to.iter_mut().zip(&from).for_each(|(to, from)| *to += from),
                (None, write) => {
                    self.unused.insert(0, at);
                    if write == Write::Set {
                        to.fill(0.0);
                    }
                }
            }
            gradient.finished(tensor.range.start);
        }
        Ok(())
    }
}
