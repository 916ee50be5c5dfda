//! `linear` and `mlp`: affine maps with an activation between them.

use super::{Gradient, Model, Tensor, Write, loss};
use crate::Error;
use crate::data::Batch;
use crate::layer::affine::Stack;
use crate::layer::parameters::Parameters;
use phalanx_core::spec::{Activation, Loss};

/// A stack of affine maps.
#[derive(Debug)]
pub struct Mlp {
    stack: Stack,
    tensors: Vec<Tensor>,
    parameters: Vec<f32>,
    loss: Loss,
}

impl Mlp {
    /// A model with these widths from input to output. Activation and `dropout` are between the maps.
    ///
    /// # Errors
    /// [`Error::Configuration`] if it has too many parameters.
    pub fn new(
        widths: &[usize],
        activation: Activation,
        dropout: f64,
        loss: Loss,
        seed: u64,
    ) -> Result<Mlp, Error> {
        let mut parameters = Parameters::new(seed);
        let stack = Stack::new(&mut parameters, "", 0, widths, activation, dropout);
        let (tensors, parameters) = parameters.finish()?;
        Ok(Mlp { stack, tensors, parameters, loss })
    }
}

impl Model for Mlp {
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
        let width = self.stack.width();
        let outputs = self.stack.forward(&self.parameters, &batch.values, &batch.noise);
        let sum = loss::backward(self.loss, outputs, width, &batch.targets, scale);
        self.stack.backward(&self.parameters, &batch.values, &batch.noise, gradient, write, None);
        Ok(sum)
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        outputs.clear();
        outputs.extend_from_slice(self.stack.forward(&self.parameters, &batch.values, &[]));
        Ok(loss::sum(self.loss, outputs, self.stack.width(), &batch.targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::{assert_gradients, classes, features, numbers};

    #[test]
    fn gradients_match_finite_differences() {
        let cases = [
            (vec![5, 3], Loss::CrossEntropy, classes(11, 3)),
            (vec![5, 7, 3], Loss::CrossEntropy, classes(11, 3)),
            (vec![5, 6, 4, 1], Loss::Mse, numbers(11)),
            (vec![5, 6, 1], Loss::Bce, numbers(11)),
            (vec![5, 6, 1], Loss::Mae, numbers(11)),
        ];
        for (widths, loss, targets) in cases {
            for activation in [Activation::Relu, Activation::Tanh, Activation::Gelu] {
                for dropout in [0.0, 0.4] {
                    let mut model = Mlp::new(&widths, activation, dropout, loss, 4).unwrap();
                    // A step across a kink (relu, mae) shows as a difference that no slope has.
                    let kinks = if activation == Activation::Relu || loss == Loss::Mae { 5 } else { 0 };
                    let name = format!("{widths:?} {activation:?} {loss:?} {dropout}");
                    assert_gradients(&mut model, &features(11, 5, targets.clone()), kinks, &name);
                }
            }
        }
    }

    #[test]
    fn tensors_have_the_names_of_a_sequential() {
        let model = Mlp::new(&[5, 8, 3], Activation::Relu, 0.0, Loss::CrossEntropy, 1).unwrap();
        let names: Vec<&str> = model.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
        assert!(model.parameters().iter().all(|p| p.abs() <= 1.0 / 5f32.sqrt() && p.is_finite()));
    }

    #[test]
    fn a_model_beyond_the_limit_is_refused_before_it_takes_memory() {
        let error =
            Mlp::new(&[6, 65536, 65536, 3], Activation::Relu, 0.0, Loss::CrossEntropy, 1).unwrap_err();
        assert!(error.to_string().contains("the limit is 1073741824"), "{error}");
    }
}
