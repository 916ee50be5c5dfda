//! Norms: values brought to mean 0 and variance 1, then scaled and shifted by learnt numbers.

use super::math::{sum, sum_pairs};
use super::parameters::{Initial, Parameters};
use super::wide::wide;
use crate::model::Write;
use std::ops::Range;

/// Keeps the division finite, as in PyTorch.
const EPS: f32 = 1e-5;

/// A norm over each row (Ba, Kiros & Hinton 2016).
#[derive(Clone, Debug)]
pub(crate) struct LayerNorm {
    width: usize,
    weight: Range<usize>,
    bias: Range<usize>,
}

/// What the way back of a norm needs.
#[derive(Debug, Default)]
pub(crate) struct Normed {
    /// The values at mean 0 and variance 1.
    pub(crate) plain: Vec<f32>,
    /// What each row was multiplied by.
    pub(crate) scales: Vec<f32>,
}

impl LayerNorm {
    pub(crate) fn new(parameters: &mut Parameters, name: &str, width: usize) -> LayerNorm {
        let weight = parameters.add(format!("{name}.weight"), &[width], Initial::Constant(1.0));
        let bias = parameters.add(format!("{name}.bias"), &[width], Initial::Constant(0.0));
        LayerNorm { width, weight, bias }
    }

    /// The place of its first parameter.
    pub(crate) fn first(&self) -> usize {
        self.weight.start
    }

    pub(crate) fn forward(&self, parameters: &[f32], input: &[f32], output: &mut [f32], normed: &mut Normed) {
        let plain = super::fit(&mut normed.plain, input.len());
        let scales = super::fit(&mut normed.scales, input.len() / self.width);
        layer_forward(
            input,
            &parameters[self.weight.clone()],
            &parameters[self.bias.clone()],
            output,
            plain,
            scales,
        );
    }

    /// Adds the gradient of the input to `into`, and writes those of the parameters.
    pub(crate) fn backward(
        &self,
        parameters: &[f32],
        normed: &Normed,
        slope: &[f32],
        gradient: &mut [f32],
        write: Write,
        into: &mut [f32],
    ) {
        if write == Write::Set {
            gradient[self.weight.clone()].fill(0.0);
            gradient[self.bias.clone()].fill(0.0);
        }
        // Weight and bias lie side by side.
        let (weight, bias) = gradient[self.weight.start..self.bias.end].split_at_mut(self.width);
        layer_backward(
            slope,
            &parameters[self.weight.clone()],
            &normed.plain,
            &normed.scales,
            weight,
            bias,
            into,
        );
    }
}

wide! {
    fn layer_forward(
        input: &[f32], weight: &[f32], bias: &[f32], output: &mut [f32], plain: &mut [f32], scales: &mut [f32],
    ) {
        let width = weight.len();
        let rows = input.chunks_exact(width).zip(output.chunks_exact_mut(width)).zip(plain.chunks_exact_mut(width));
        for (((row, output), plain), scale) in rows.zip(scales) {
            let mean = sum(row, |value| value) / width as f32;
            let variance = sum(row, |value| (value - mean) * (value - mean)) / width as f32;
            *scale = 1.0 / (variance + EPS).sqrt();
            for at in 0..width {
                plain[at] = (row[at] - mean) * *scale;
                output[at] = plain[at] * weight[at] + bias[at];
            }
        }
    }
}

wide! {
    fn layer_backward(
        slope: &[f32], weight: &[f32], plain: &[f32], scales: &[f32],
        weight_gradient: &mut [f32], bias_gradient: &mut [f32], into: &mut [f32],
    ) {
        let width = weight.len();
        let rows = slope.chunks_exact(width).zip(plain.chunks_exact(width)).zip(into.chunks_exact_mut(width));
        for (((slope, plain), into), scale) in rows.zip(scales) {
            for at in 0..width {
                weight_gradient[at] += slope[at] * plain[at];
                bias_gradient[at] += slope[at];
            }
            let mean = sum_pairs(slope, weight, |slope, weight| slope * weight) / width as f32;
            let mut along = [0.0; super::math::LANES];
            for at in 0..width {
                along[at % super::math::LANES] += slope[at] * weight[at] * plain[at];
            }
            let along = along.iter().sum::<f32>() / width as f32;
            for at in 0..width {
                into[at] += scale * (slope[at] * weight[at] - mean - plain[at] * along);
            }
        }
    }
}

/// A norm over groups of channels of one image (Wu & He 2018), the image lying channel-last.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    channels: usize,
    groups: usize,
    pub(crate) weight: Range<usize>,
    pub(crate) bias: Range<usize>,
}

/// As many groups as divide the channels, up to eight.
pub(crate) fn groups(channels: usize) -> usize {
    const GROUPS: usize = 8;
    (1..=GROUPS).rev().find(|groups| channels.is_multiple_of(*groups)).unwrap_or(1)
}

impl GroupNorm {
    pub(crate) fn new(parameters: &mut Parameters, name: &str, channels: usize) -> GroupNorm {
        let weight = parameters.add(format!("{name}.weight"), &[channels], Initial::Constant(1.0));
        let bias = parameters.add(format!("{name}.bias"), &[channels], Initial::Constant(0.0));
        GroupNorm { channels, groups: groups(channels), weight, bias }
    }

    /// The groups of one image, each of which has one scale.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Norms the values of one image in place; `plain` takes them before weight and bias.
    pub(crate) fn forward(
        &self,
        parameters: &[f32],
        values: &mut [f32],
        plain: &mut [f32],
        scales: &mut [f32],
    ) {
        let width = self.channels / self.groups;
        let count = (values.len() / self.groups) as f32;
        for (group, scale) in scales.iter_mut().enumerate() {
            let columns = group * width..(group + 1) * width;
            let of = |f: &dyn Fn(f32) -> f32| {
                let rows = values.chunks_exact(self.channels);
                rows.map(|row| row[columns.clone()].iter().map(|&value| f(value)).sum::<f32>()).sum::<f32>()
            };
            let mean = of(&|value| value) / count;
            let variance = of(&|value| (value - mean) * (value - mean)) / count;
            *scale = 1.0 / (variance + EPS).sqrt();
            let rows = values.chunks_exact(self.channels).zip(plain.chunks_exact_mut(self.channels));
            for (row, plain) in rows {
                for at in columns.clone() {
                    plain[at] = (row[at] - mean) * *scale;
                }
            }
        }
        let (weight, bias) = (&parameters[self.weight.clone()], &parameters[self.bias.clone()]);
        for (row, plain) in values.chunks_exact_mut(self.channels).zip(plain.chunks_exact(self.channels)) {
            for at in 0..self.channels {
                row[at] = plain[at] * weight[at] + bias[at];
            }
        }
    }

    /// Turns the gradient of one image's results into that of its values, and adds those of weight and bias.
    pub(crate) fn backward(
        &self,
        parameters: &[f32],
        slope: &mut [f32],
        plain: &[f32],
        scales: &[f32],
        weight_gradient: &mut [f32],
        bias_gradient: &mut [f32],
    ) {
        let weight = &parameters[self.weight.clone()];
        let mut along = vec![[0f32; 2]; self.channels];
        for (row, plain) in slope.chunks_exact(self.channels).zip(plain.chunks_exact(self.channels)) {
            for at in 0..self.channels {
                along[at][0] += row[at];
                along[at][1] += row[at] * plain[at];
            }
        }
        for at in 0..self.channels {
            bias_gradient[at] += along[at][0];
            weight_gradient[at] += along[at][1];
        }
        let width = self.channels / self.groups;
        let count = (slope.len() / self.groups) as f32;
        let mut means = vec![[0f32; 3]; self.channels];
        for (group, scale) in scales.iter().enumerate() {
            let columns = group * width..(group + 1) * width;
            let mean =
                |which: usize| columns.clone().map(|at| along[at][which] * weight[at]).sum::<f32>() / count;
            let of_group = [mean(0), mean(1), *scale];
            means[columns.clone()].fill(of_group);
        }
        for (row, plain) in slope.chunks_exact_mut(self.channels).zip(plain.chunks_exact(self.channels)) {
            for at in 0..self.channels {
                let [mean, along, scale] = means[at];
                row[at] = scale * (row[at] * weight[at] - mean - plain[at] * along);
            }
        }
    }
}
