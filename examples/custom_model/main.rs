//! A model of one's own, written with burn, as a rank of a gang.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation};
use phalanx_trainer::adapter::burn::{Burn, values};

/// Two hidden layers, and a way around them.
#[derive(Module, Debug)]
struct Net {
    up: Linear,
    across: Linear,
    down: Linear,
    around: Linear,
}

impl Net {
    fn new(inputs: usize, outputs: usize, seed: u64, device: &Device) -> Net {
        // All ranks begin alike.
        device.seed(seed);
        Net {
            up: LinearConfig::new(inputs, 64).init(device),
            across: LinearConfig::new(64, 64).init(device),
            down: LinearConfig::new(64, outputs).init(device),
            around: LinearConfig::new(inputs, outputs).init(device),
        }
    }

    fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        let hidden = activation::gelu(self.up.forward(input.clone()));
        let hidden = activation::gelu(self.across.forward(hidden));
        self.down.forward(hidden) + self.around.forward(input)
    }
}

fn main() -> std::process::ExitCode {
    let file = std::env::args().nth(1).unwrap_or_else(|| "examples/custom_model/train.toml".to_owned());
    phalanx_trainer::main(file, |data, seed| {
        let (inputs, outputs) = (data.sample.width().unwrap_or(0), data.outputs());
        Ok(Box::new(Burn::new(
            data,
            |device| Net::new(inputs, outputs, seed, device),
            |net: &Net, batch, device| net.forward(values(batch, device)),
        )))
    })
}
