//! Models written with candle.

use super::Flat;
use crate::Error;
use crate::data::{Batch, Dataset};
use crate::model::{Gradient, Model, Tensor, Write};
use candle_core::{Device, Result, Tensor as Values, Var};

/// A candle model: its variables, and how they make outputs of a batch: a row for each target, as [`Model::evaluate`] has
/// them.
pub struct Candle<F> {
    flat: Flat,
    variables: Vec<Var>,
    forward: F,
}

impl<F: Fn(&Batch) -> Result<Values>> Candle<F> {
    /// A model of these named variables, all of f32 and on the CPU, for this data.
    ///
    /// # Errors
    /// [`Error::Model`] if a variable is of another type.
    pub fn new(
        variables: impl IntoIterator<Item = (String, Var)>,
        data: &Dataset,
        forward: F,
    ) -> std::result::Result<Candle<F>, Error> {
        let mut model = Candle { flat: Flat::new(data), variables: Vec::new(), forward };
        for (name, variable) in variables {
            let values = flat(variable.as_tensor()).map_err(failed)?;
            model.flat.add(name, variable.dims().to_vec(), &values);
            model.variables.push(variable);
        }
        Ok(model)
    }

    fn load(&self) -> Result<()> {
        for (variable, tensor) in self.variables.iter().zip(&self.flat.tensors) {
            let values = &self.flat.parameters[tensor.range.clone()];
            variable.set(&Values::from_slice(values, tensor.shape.as_slice(), &Device::Cpu)?)?;
        }
        Ok(())
    }

    fn outputs(&self, batch: &Batch) -> Result<Values> {
        self.load()?;
        (self.forward)(batch)
    }
}

/// The batch's features or pixels as `[samples, values]`.
///
/// # Errors
/// As candle has them.
pub fn values(batch: &Batch) -> Result<Values> {
    Values::from_slice(&batch.values, (batch.rows, batch.values.len() / batch.rows), &Device::Cpu)
}

/// The batch's tokens as `[samples, tokens]`.
///
/// # Errors
/// As candle has them.
pub fn tokens(batch: &Batch) -> Result<Values> {
    Values::from_slice(&batch.tokens, (batch.rows, batch.tokens.len() / batch.rows), &Device::Cpu)
}

fn flat(values: &Values) -> Result<Vec<f32>> {
    values.flatten_all()?.to_vec1()
}

fn failed(error: candle_core::Error) -> Error {
    Error::Model(error.to_string())
}

impl<F: Fn(&Batch) -> Result<Values>> Model for Candle<F> {
    fn tensors(&self) -> &[Tensor] {
        &self.flat.tensors
    }

    fn parameters(&self) -> &[f32] {
        &self.flat.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.flat.parameters
    }

    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> std::result::Result<f64, Error> {
        let outputs = self.outputs(batch).map_err(failed)?;
        let mut slope = flat(&outputs).map_err(failed)?;
        let sum = self.flat.slope(&mut slope, batch, scale)?;
        let backward = || {
            let slope = Values::from_slice(&slope, outputs.dims(), &Device::Cpu)?;
            // The gradient of this product's sum is what the outputs' gradient makes of the parameters.
            (&outputs * slope)?.sum_all()?.backward()
        };
        let gradients = backward().map_err(failed)?;
        let variables = &self.variables;
        let own = |at: usize| gradients.get(variables[at].as_tensor()).map(flat).transpose().map_err(failed);
        self.flat.deliver(gradient, write, own)?;
        Ok(sum)
    }

    fn unused(&self) -> &[usize] {
        &self.flat.unused
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> std::result::Result<f64, Error> {
        *outputs = flat(&self.outputs(batch).map_err(failed)?).map_err(failed)?;
        self.flat.sum(outputs, batch)
    }
}
