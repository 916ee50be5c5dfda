//! The same with tch, on libtorch.

use phalanx_trainer::adapter::tch::{Tch, device, values};
use tch::nn::{self, Module};

fn main() -> std::process::ExitCode {
    let file = std::env::args().nth(1).unwrap_or_else(|| "examples/custom_model/train.toml".to_owned());
    phalanx_trainer::main(file, |data, seed| {
        let device = device()?;
        // All ranks begin alike.
        tch::manual_seed(seed as i64);
        let store = nn::VarStore::new(device);
        let (inputs, outputs) = (data.sample.width().unwrap_or(0) as i64, data.outputs() as i64);
        let net = nn::seq()
            .add(nn::linear(store.root() / "up", inputs, 64, Default::default()))
            .add_fn(|hidden| hidden.gelu("none"))
            .add(nn::linear(store.root() / "down", 64, outputs, Default::default()));
        Ok(Box::new(Tch::of_store(&store, data, move |batch| Ok(net.forward(&values(batch, device)?)))?))
    })
}
