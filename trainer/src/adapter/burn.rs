//! Models written with burn.

use super::Flat;
use crate::Error;
use crate::data::{Batch, Dataset};
use crate::model::{Gradient, Model, Tensor, Write};
use ::burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use ::burn::tensor::{Device, Gradients, Int, Tensor as Values, TensorData};

/// A burn module, and how it makes outputs of a batch: a row for each target, as [`Model::evaluate`] has them.
pub struct Burn<M, F> {
    flat: Flat,
    /// In use but for the moment in which its parameters are replaced.
    module: Option<M>,
    device: Device,
    forward: F,
}

impl<M: Module, F: Fn(&M, &Batch, &Device) -> Values<2>> Burn<M, F> {
    /// A model of this data, on the first GPU of the rank's bundle in a build with the feature `burn-cuda`, else on the CPU.
    /// `build` makes the module on the device it is given, which differentiates; `forward` runs a batch through it.
    pub fn new(data: &Dataset, build: impl FnOnce(&Device) -> M, forward: F) -> Burn<M, F> {
        Burn::on(device(), data, build, forward)
    }

    /// The same on another device, of a backend that the program has turned on in burn.
    pub fn on(device: Device, data: &Dataset, build: impl FnOnce(&Device) -> M, forward: F) -> Burn<M, F> {
        let device = device.autodiff();
        let module = build(&device);
        let mut reader = Reader { flat: Flat::new(data), path: Vec::new() };
        module.visit(&mut reader);
        Burn { flat: reader.flat, module: Some(module), device, forward }
    }

    fn outputs(&mut self, batch: &Batch) -> Result<Values<2>, Error> {
        let Some(module) = self.module.take() else {
            return Err(Error::Model("its parameters could not be replaced".to_owned()));
        };
        let module = module.map(&mut Loader { flat: &self.flat, device: &self.device, at: 0 });
        let outputs = (self.forward)(&module, batch, &self.device);
        self.module = Some(module);
        Ok(outputs)
    }
}

#[cfg(feature = "burn-cuda")]
fn device() -> Device {
    if super::has_gpu() { Device::cuda(0) } else { Device::flex() }
}

#[cfg(not(feature = "burn-cuda"))]
fn device() -> Device {
    Device::flex()
}

/// The batch's features or pixels as `[samples, values]`.
pub fn values(batch: &Batch, device: &Device) -> Values<2> {
    let shape = [batch.rows, batch.values.len() / batch.rows];
    Values::from_data(TensorData::new(batch.values.clone(), shape), device)
}

/// The batch's tokens as `[samples, tokens]`.
pub fn tokens(batch: &Batch, device: &Device) -> Values<2, Int> {
    let tokens: Vec<i32> = batch.tokens.iter().map(|&token| token as i32).collect();
    let shape = [batch.rows, tokens.len() / batch.rows];
    Values::from_data(TensorData::new(tokens, shape), device)
}

fn read<const D: usize>(values: Values<D>) -> Result<Vec<f32>, Error> {
    values.into_data().try_to_vec().map_err(|error| Error::Model(format!("{error:?}")))
}

/// Takes the first parameters of a module and their names.
struct Reader {
    flat: Flat,
    path: Vec<String>,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Values<D>>) {
        let values = param.val();
        let shape = values.dims().to_vec();
        self.flat.add(self.path.join("."), shape, &read(values).unwrap_or_default());
    }
}

/// Puts the flat parameters into a module.
struct Loader<'a> {
    flat: &'a Flat,
    device: &'a Device,
    at: usize,
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Values<D>>) -> Param<Values<D>> {
        let tensor = &self.flat.tensors[self.at];
        self.at += 1;
        let values = self.flat.parameters[tensor.range.clone()].to_vec();
        let data = TensorData::new(values, tensor.shape.clone());
        let device = self.device;
        param.map(move |_| Values::from_data(data, device).require_grad())
    }
}

/// Takes the gradients of a module's parameters.
struct Taker<'a> {
    gradients: &'a Gradients,
    taken: Vec<Result<Option<Vec<f32>>, Error>>,
}

impl ModuleVisitor for Taker<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Values<D>>) {
        self.taken.push(param.val().grad(self.gradients).map(read).transpose());
    }
}

impl<M: Module, F: Fn(&M, &Batch, &Device) -> Values<2>> Model for Burn<M, F> {
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
        let outputs = self.outputs(batch)?;
        let shape = outputs.dims();
        let mut slope = read(outputs.clone())?;
        let sum = self.flat.slope(&mut slope, batch, scale)?;
        let slope = Values::<2>::from_data(TensorData::new(slope, shape), &self.device);
        // The gradient of this product's sum is what the outputs' gradient makes of the parameters.
        let gradients = (outputs * slope).sum().backward();
        let mut taker = Taker { gradients: &gradients, taken: Vec::new() };
        if let Some(module) = &self.module {
            module.visit(&mut taker);
        }
        let mut taken = taker.taken;
        self.flat.deliver(gradient, write, |_| taken.pop().unwrap_or(Ok(None)))?;
        Ok(sum)
    }

    fn unused(&self) -> &[usize] {
        &self.flat.unused
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        *outputs = read(self.outputs(batch)?)?;
        self.flat.sum(outputs, batch)
    }
}
