//! Models written with tch, on libtorch 2.13.

mod resident;
#[cfg(test)]
mod tests;

use self::resident::Resident;
use super::Flat;
use crate::Error;
use crate::data::{Batch, Dataset};
use crate::model::{DeviceGradient, Gradient, Model, Tensor, Write};
use ::tch::nn::VarStore;
use ::tch::{Device, TchError, Tensor as Values, no_grad};

/// A tch model: its variables, and how they make outputs of a batch: a row for each target, as [`Model::evaluate`] has
/// them.
pub struct Tch<F> {
    flat: Flat,
    variables: Vec<Values>,
    device: Device,
    /// Where gradients stay between ranks with GPUs.
    resident: Option<Resident>,
    forward: F,
}

impl<F: Fn(&Batch) -> Result<Values, TchError>> Tch<F> {
    /// A model of these named variables, all of f32 and on one device, for this data.
    ///
    /// # Errors
    /// [`Error::Model`] if a variable is of another type or on another device than the first.
    pub fn new(
        variables: impl IntoIterator<Item = (String, Values)>,
        data: &Dataset,
        forward: F,
    ) -> Result<Tch<F>, Error> {
        // OpenMP counts threads for each thread that computes: this one.
        ::tch::set_num_threads(rayon::current_num_threads() as i32);
        let flat = Flat::new(data);
        let mut model = Tch { flat, variables: Vec::new(), device: Device::Cpu, resident: None, forward };
        for (name, variable) in variables {
            let shape: Vec<usize> = variable.size().iter().map(|&size| size as usize).collect();
            let values = read(&variable)?;
            if model.variables.is_empty() {
                model.device = variable.device();
            } else if variable.device() != model.device {
                return Err(Error::Model(format!("`{name}` is not on {:?}, as others are", model.device)));
            }
            model.flat.add(name, shape, &values);
            model.variables.push(variable);
        }
        if model.device.is_cuda() {
            model.keep_gradients().map_err(failed)?;
        }
        Ok(model)
    }

    /// Lets gradients stay on the device, where the ranks reduce them there.
    fn keep_gradients(&mut self) -> Result<(), TchError> {
        self.resident = Some(Resident::new(&self.variables, self.device)?);
        Ok(())
    }

    /// A model of a store's trainable variables, in the order of their names.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_store(store: &VarStore, data: &Dataset, forward: F) -> Result<Tch<F>, Error> {
        let mut variables: Vec<(String, Values)> =
            store.variables().into_iter().filter(|(_, variable)| variable.requires_grad()).collect();
        variables.sort_by(|left, right| left.0.cmp(&right.0));
        Tch::new(variables, data, forward)
    }

    fn load(&self) -> Result<(), TchError> {
        no_grad(|| {
            for (variable, tensor) in self.variables.iter().zip(&self.flat.tensors) {
                let values = Values::f_from_slice(&self.flat.parameters[tensor.range.clone()])?;
                variable.shallow_clone().f_copy_(&values.f_view_as(variable)?)?;
            }
            Ok(())
        })
    }

    /// The outputs, and their values.
    fn outputs(&self, batch: &Batch) -> Result<(Values, Vec<f32>), Error> {
        self.load().map_err(failed)?;
        let outputs = (self.forward)(batch).map_err(failed)?;
        let values = read(&outputs)?;
        Ok((outputs, values))
    }

    fn gradients(&self, outputs: &Values, slope: &[f32]) -> Result<Vec<Values>, TchError> {
        let slope = Values::f_from_slice(slope)?.f_to_device(self.device)?.f_view_as(outputs)?;
        // The gradient of this product is what the outputs' gradient makes of the parameters.
        Values::f_run_backward(&[outputs.f_mul(&slope)?], &self.variables, false, false)
    }
}

/// Where models compute: the first GPU of the rank's bundle, else the CPU.
///
/// # Errors
/// [`Error::Model`] if there is a GPU that libtorch cannot use.
pub fn device() -> Result<Device, Error> {
    if !super::has_gpu() {
        return Ok(Device::Cpu);
    }
    let fail = |reason: String| {
        Err(Error::Model(format!(
            "libtorch cannot use the GPU: {reason}; see docs/gpu.md, or set `backend = \"burn\"`"
        )))
    };
    match phalanx_gpu::load_libtorch_cuda() {
        Err(reason) => fail(reason),
        Ok(()) if !::tch::Cuda::is_available() => fail("its CUDA finds no device".to_owned()),
        Ok(()) => Ok(Device::Cuda(0)),
    }
}

/// The batch's features or pixels as `[samples, values]`.
///
/// # Errors
/// As libtorch has them.
pub fn values(batch: &Batch, device: Device) -> Result<Values, TchError> {
    let shape = [batch.rows as i64, (batch.values.len() / batch.rows) as i64];
    Values::f_from_slice(&batch.values)?.f_view(shape)?.f_to_device(device)
}

/// The batch's tokens as `[samples, tokens]`, of i64.
///
/// # Errors
/// As libtorch has them.
pub fn tokens(batch: &Batch, device: Device) -> Result<Values, TchError> {
    let tokens: Vec<i64> = batch.tokens.iter().map(|&token| i64::from(token)).collect();
    let shape = [batch.rows as i64, (tokens.len() / batch.rows) as i64];
    Values::f_from_slice(&tokens)?.f_view(shape)?.f_to_device(device)
}

fn read(values: &Values) -> Result<Vec<f32>, Error> {
    let mut into = vec![0.0; values.numel()];
    values.f_copy_data(&mut into, values.numel()).map_err(failed)?;
    Ok(into)
}

fn failed(error: TchError) -> Error {
    Error::Model(error.to_string())
}

impl<F: Fn(&Batch) -> Result<Values, TchError>> Model for Tch<F> {
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
    ) -> Result<f64, Error> {
        let (outputs, mut slope) = self.outputs(batch)?;
        let sum = self.flat.slope(&mut slope, batch, scale)?;
        let gradients = self.gradients(&outputs, &slope).map_err(failed)?;
        if let Some(resident) = &mut self.resident
            && gradient.stays()
        {
            self.flat.unused = (0..gradients.len()).filter(|&at| !gradients[at].defined()).collect();
            resident.take(&gradients, write).map_err(failed)?;
            return Ok(sum);
        }
        let own = |at: usize| gradients[at].defined().then(|| read(&gradients[at])).transpose();
        self.flat.deliver(gradient, write, own)?;
        Ok(sum)
    }

    fn device_gradient(&mut self) -> Option<&mut dyn DeviceGradient> {
        self.resident.as_mut().map(|resident| resident as &mut dyn DeviceGradient)
    }

    fn unused(&self) -> &[usize] {
        &self.flat.unused
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        *outputs = no_grad(|| self.outputs(batch))?.1;
        self.flat.sum(outputs, batch)
    }
}
