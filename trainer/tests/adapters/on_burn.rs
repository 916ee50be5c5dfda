//! The net in burn.

use crate::{WIDTHS, layers};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::tanh;
use phalanx_trainer::adapter::burn::{Burn, values};
use phalanx_trainer::{Dataset, Error, Model};

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

pub(crate) fn net(data: &Dataset, seed: u64) -> Result<Box<dyn Model>, Error> {
    let mut model = Burn::new(
        data,
        |device| Net {
            first: LinearConfig::new(WIDTHS[0], WIDTHS[1]).init(device),
            second: LinearConfig::new(WIDTHS[1], WIDTHS[2]).init(device),
        },
        |net: &Net, batch, device| net.second.forward(tanh(net.first.forward(values(batch, device)))),
    );
    let names: Vec<String> = model.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(names, ["first.weight", "first.bias", "second.weight", "second.bias"]);
    // burn's weights are the transposed ones.
    let first = layers(data, seed);
    for (tensor, own) in first.tensors().to_vec().iter().zip(model.tensors().to_vec()) {
        let values = &first.parameters()[tensor.range.clone()];
        let into = &mut model.parameters_mut()[own.range];
        match tensor.shape[..] {
            [outputs, inputs] => {
                assert_eq!(own.shape, [inputs, outputs]);
                for (at, into) in into.iter_mut().enumerate() {
                    *into = values[at % outputs * inputs + at / outputs];
                }
            }
            _ => into.copy_from_slice(values),
        }
    }
    Ok(Box::new(model))
}
