//! The same with candle.

use candle_core::{Device, Result, Tensor, Var};
use phalanx_trainer::Error;
use phalanx_trainer::adapter::candle::{Candle, values};

/// An affine map's weight and bias; every rank draws the same.
fn affine(name: &str, inputs: usize, outputs: usize, seed: u64) -> Result<[(String, Var); 2]> {
    let bound = 1.0 / (inputs as f32).sqrt();
    let noise =
        |at: u64| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let weight: Vec<f32> = (1..=(inputs * outputs) as u64).map(|at| bound * noise(at * at)).collect();
    let weight = Var::from_vec(weight, (inputs, outputs), &Device::Cpu)?;
    let bias = Var::from_vec(vec![0f32; outputs], outputs, &Device::Cpu)?;
    Ok([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)])
}

fn variables(inputs: usize, outputs: usize, seed: u64) -> Result<Vec<(String, Var)>> {
    let up = affine("up", inputs, 64, seed)?;
    let down = affine("down", 64, outputs, seed + 1)?;
    Ok(up.into_iter().chain(down).collect())
}

fn main() -> std::process::ExitCode {
    let file = std::env::args().nth(1).unwrap_or_else(|| "examples/custom_model/train.toml".to_owned());
    phalanx_trainer::main(file, |data, seed| {
        let inputs = data.sample.width().unwrap_or(0);
        let variables =
            variables(inputs, data.outputs(), seed).map_err(|error| Error::Model(error.to_string()))?;
        let own: Vec<Tensor> = variables.iter().map(|(_, variable)| variable.as_tensor().clone()).collect();
        let model = Candle::new(variables, data, move |batch| {
            let hidden = values(batch)?.matmul(&own[0])?.broadcast_add(&own[1])?.gelu()?;
            hidden.matmul(&own[2])?.broadcast_add(&own[3])
        })?;
        Ok(Box::new(model))
    })
}
