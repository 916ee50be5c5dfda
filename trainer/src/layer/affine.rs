//! Affine maps, and stacks of them with an activation between.

use super::activation::{Dropout, activate, add_bias, add_column_sums, deactivate};
use super::fit;
use super::parameters::{Initial, Parameters};
use super::product::{View, product};
use crate::model::{Gradient, Write};
use phalanx_core::spec::Activation;
use std::ops::Range;

/// One affine map. Its weight is `[outputs, inputs]`, as PyTorch's `Linear` has it.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    weight: Range<usize>,
    bias: Range<usize>,
}

impl Affine {
    /// Adds its parameters under `name`, drawn as PyTorch draws those of a `Linear`: uniformly from ±1/√inputs (He et
    /// al. 2015).
    pub(crate) fn new(parameters: &mut Parameters, name: &str, inputs: usize, outputs: usize) -> Affine {
        let initial = Initial::Uniform(1.0 / (inputs as f32).sqrt());
        Affine::with(parameters, name, inputs, outputs, initial, initial)
    }

    /// The same, drawn otherwise.
    pub(crate) fn with(
        parameters: &mut Parameters,
        name: &str,
        inputs: usize,
        outputs: usize,
        weight: Initial,
        bias: Initial,
    ) -> Affine {
        let weight = parameters.add(format!("{name}.weight"), &[outputs, inputs], weight);
        let bias = parameters.add(format!("{name}.bias"), &[outputs], bias);
        Affine { inputs, outputs, weight, bias }
    }

    pub(crate) fn weight<'a>(&self, parameters: &'a [f32]) -> View<'a> {
        View::rows(&parameters[self.weight.clone()], self.inputs)
    }

    pub(crate) fn bias<'a>(&self, parameters: &'a [f32]) -> &'a [f32] {
        &parameters[self.bias.clone()]
    }

    /// Rows of `input` through the weights alone.
    pub(crate) fn weigh(&self, parameters: &[f32], input: &[f32], output: &mut [f32]) {
        product(output, View::rows(input, self.inputs), self.weight(parameters).t(), Write::Set);
    }

    /// Rows of `input` through the map.
    pub(crate) fn forward(&self, parameters: &[f32], input: &[f32], output: &mut [f32]) {
        self.weigh(parameters, input, output);
        add_bias(output, self.bias(parameters));
    }

    /// The place of its first parameter.
    pub(crate) fn first(&self) -> usize {
        self.weight.start
    }

    /// The gradient of the parameters from that of the outputs, `slope`.
    pub(crate) fn backward(&self, input: &[f32], slope: &[f32], gradient: &mut [f32], write: Write) {
        let slopes = View::rows(slope, self.outputs);
        product(&mut gradient[self.weight.clone()], slopes.t(), View::rows(input, self.inputs), write);
        let bias = &mut gradient[self.bias.clone()];
        if write == Write::Set {
            bias.fill(0.0);
        }
        add_column_sums(bias, slope);
    }

    /// The gradient of the input from that of the outputs.
    pub(crate) fn pull(&self, parameters: &[f32], slope: &[f32], into: &mut [f32], write: Write) {
        product(into, View::rows(slope, self.outputs), self.weight(parameters), write);
    }
}

/// Affine maps with an activation and dropout after all but the last.
#[derive(Debug)]
pub(crate) struct Stack {
    maps: Vec<Affine>,
    activation: Activation,
    dropout: Dropout,
    /// What each map gave in the present pass.
    passed: Vec<Passed>,
    /// Gradients on their way back.
    slopes: [Vec<f32>; 2],
}

#[derive(Debug, Default)]
struct Passed {
    outputs: Vec<f32>,
    slopes: Vec<f32>,
}

impl Stack {
    /// Maps of these widths from input to output. Their parameters have the names of an `nn.Sequential`'s modules, in
    /// which activations count too, from `prefix` and `module` on.
    pub(crate) fn new(
        parameters: &mut Parameters,
        prefix: &str,
        module: usize,
        widths: &[usize],
        activation: Activation,
        dropout: f64,
    ) -> Stack {
        let map = |(at, pair): (usize, &[usize])| {
            Affine::new(parameters, &format!("{prefix}{}", module + 2 * at), pair[0], pair[1])
        };
        let maps: Vec<Affine> = widths.windows(2).enumerate().map(map).collect();
        let passed = maps.iter().map(|_| Passed::default()).collect();
        Stack { maps, activation, dropout: Dropout::new(dropout), passed, slopes: Default::default() }
    }

    /// Values a row of the outputs.
    pub(crate) fn width(&self) -> usize {
        self.maps[self.maps.len() - 1].outputs
    }

    /// Runs rows through; the outputs may be overwritten by their gradient before the way back.
    pub(crate) fn forward(&mut self, parameters: &[f32], input: &[f32], noise: &[u64]) -> &mut [f32] {
        let rows = input.len() / self.maps[0].inputs;
        let last = self.maps.len() - 1;
        for at in 0..=last {
            let map = &self.maps[at];
            let (before, after) = self.passed.split_at_mut(at);
            let input = before.last().map_or(input, |passed| &passed.outputs);
            let Passed { outputs, slopes } = &mut after[0];
            let outputs = fit(outputs, rows * map.outputs);
            map.weigh(parameters, input, outputs);
            if at == last {
                add_bias(outputs, map.bias(parameters));
                continue;
            }
            let slopes = match self.activation {
                Activation::Relu => &mut [],
                Activation::Gelu | Activation::Tanh => fit(slopes, outputs.len()),
            };
            activate(self.activation, outputs, map.bias(parameters), slopes);
            self.dropout.apply(outputs, noise, at as u32);
        }
        &mut self.passed[last].outputs
    }

    /// The gradient of the parameters, each finished before the one in front of it, and of the input if `into` wants it. The
    /// outputs hold their gradient.
    pub(crate) fn backward(
        &mut self,
        parameters: &[f32],
        input: &[f32],
        noise: &[u64],
        gradient: &mut dyn Gradient,
        write: Write,
        into: Option<&mut [f32]>,
    ) {
        let last = self.maps.len() - 1;
        let rows = input.len() / self.maps[0].inputs;
        let [slope, next] = &mut self.slopes;
        std::mem::swap(slope, &mut self.passed[last].outputs);
        for at in (1..=last).rev() {
            let (map, Passed { outputs, slopes }) = (&self.maps[at], &self.passed[at - 1]);
            map.backward(outputs, slope, gradient.open(), write);
            gradient.finished(map.first());
            let next_slope = fit(next, rows * map.inputs);
            map.pull(parameters, slope, next_slope, Write::Set);
            self.dropout.apply(next_slope, noise, at as u32 - 1);
            deactivate(self.activation, next_slope, outputs, slopes);
            std::mem::swap(slope, next);
        }
        self.maps[0].backward(input, slope, gradient.open(), write);
        gradient.finished(self.maps[0].first());
        if let Some(into) = into {
            self.maps[0].pull(parameters, slope, into, Write::Set);
        }
        std::mem::swap(slope, &mut self.passed[last].outputs);
    }
}
