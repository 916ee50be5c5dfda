//! The net in candle.

use crate::layers;
use candle_core::{Device, Tensor, Var};
use phalanx_trainer::adapter::candle::{Candle, values};
use phalanx_trainer::{Dataset, Error, Model};

pub(crate) fn net(data: &Dataset, seed: u64) -> Result<Box<dyn Model>, Error> {
    let first = layers(data, seed);
    let variable = |tensor: &phalanx_trainer::Tensor| {
        let values = &first.parameters()[tensor.range.clone()];
        Var::from_slice(values, tensor.shape.as_slice(), &Device::Cpu).unwrap()
    };
    let own: Vec<Var> = first.tensors().iter().map(variable).collect();
    let names = first.tensors().iter().map(|tensor| tensor.name.clone());
    let named: Vec<(String, Var)> = names.zip(own.iter().cloned()).collect();
    let affine = |input: &Tensor, weight: &Var, bias: &Var| {
        input.matmul(&weight.as_tensor().t()?)?.broadcast_add(bias.as_tensor())
    };
    Ok(Box::new(Candle::new(named, data, move |batch| {
        let hidden = affine(&values(batch)?, &own[0], &own[1])?.tanh()?;
        affine(&hidden, &own[2], &own[3])
    })?))
}
