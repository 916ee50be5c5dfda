//! The net in tch.

use crate::layers;
use phalanx_trainer::adapter::tch::{Tch, values};
use phalanx_trainer::{Dataset, Error, Model};
use tch::{Device, Tensor};

pub(crate) fn net(data: &Dataset, seed: u64) -> Result<Box<dyn Model>, Error> {
    let first = layers(data, seed);
    let variable = |tensor: &phalanx_trainer::Tensor| {
        let shape: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
        let values = Tensor::from_slice(&first.parameters()[tensor.range.clone()]);
        values.view(&shape[..]).set_requires_grad(true)
    };
    let own: Vec<Tensor> = first.tensors().iter().map(variable).collect();
    let names = first.tensors().iter().map(|tensor| tensor.name.clone());
    let named: Vec<(String, Tensor)> = names.zip(own.iter().map(Tensor::shallow_clone)).collect();
    Ok(Box::new(Tch::new(named, data, move |batch| {
        let hidden = values(batch, Device::Cpu)?.f_linear(&own[0], Some(&own[1]))?.f_tanh()?;
        hidden.f_linear(&own[2], Some(&own[3]))
    })?))
}
