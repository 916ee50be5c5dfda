//! `cnn`: convolutions with norm, activation and pooling, then affine maps.

use super::{Gradient, Model, Tensor, Write, loss};
use crate::Error;
use crate::data::Batch;
use crate::layer::affine::Stack;
use crate::layer::convolution::{Convolution, Filters, Order, Plane};
use crate::layer::fit;
use crate::layer::parameters::Parameters;
use phalanx_core::spec::{CnnSpec, Loss, Norm};

/// A stack of convolutions with a stack of affine maps on top. Images come as channels, rows, columns.
#[derive(Debug)]
pub struct Cnn {
    convolutions: Vec<Convolution>,
    head: Stack,
    tensors: Vec<Tensor>,
    parameters: Vec<f32>,
    loss: Loss,
    /// What the convolutions gave, channel-first as PyTorch flattens it, and its gradient.
    flat: Vec<f32>,
    slopes: [Vec<f32>; 2],
}

impl Cnn {
    /// A model of images of `shape` (channels, height, width) with `outputs` outputs. Its tensors have the names of an
    /// `nn.Sequential` of `Conv2d`, `GroupNorm`, the activation and `MaxPool2d` for each convolution, `Flatten`, and the
    /// affine maps.
    ///
    /// # Errors
    /// [`Error::Configuration`] if the images are too small for so much pooling, or it has too many parameters.
    pub fn new(
        spec: &CnnSpec,
        shape: [usize; 3],
        outputs: usize,
        loss: Loss,
        seed: u64,
    ) -> Result<Cnn, Error> {
        let mut parameters = Parameters::new(seed);
        let [channels, height, width] = shape;
        let mut plane = Plane { channels, height, width };
        let (mut convolutions, mut module) = (Vec::new(), 0);
        let (norm, pool) = (spec.norm == Norm::Group, spec.pool as usize);
        for (at, &channels) in spec.channels.iter().enumerate() {
            let order = if at == 0 { Order::ChannelFirst } else { Order::ChannelLast };
            let filters = Filters {
                channels: channels as usize,
                kernel: spec.kernel as usize,
                pool,
                activation: spec.activation,
                norm,
            };
            if plane.height < pool || plane.width < pool {
                return Err(Error::Configuration(format!(
                    "`train.model` pools images of {height} by {width} away: convolution {} gets {} by {}, less than `pool = {pool}`; use fewer `channels` or a smaller `pool`",
                    at + 1,
                    plane.height,
                    plane.width,
                )));
            }
            let convolution = Convolution::new(&mut parameters, module, plane, order, &filters);
            plane = convolution.output;
            convolutions.push(convolution);
            // The convolution, its norm and activation, its pooling.
            module += 2 + usize::from(norm) + usize::from(pool > 1);
        }
        let mut widths = vec![plane.len()];
        widths.extend(spec.hidden.iter().map(|&width| width as usize));
        widths.push(outputs);
        let head = Stack::new(&mut parameters, "", module + 1, &widths, spec.activation, spec.dropout);
        let (tensors, parameters) = parameters.finish()?;
        Ok(Cnn {
            convolutions,
            head,
            tensors,
            parameters,
            loss,
            flat: Vec::new(),
            slopes: Default::default(),
        })
    }

    fn forward(&mut self, images: &[f32], noise: &[u64]) -> &mut [f32] {
        for at in 0..self.convolutions.len() {
            let (before, after) = self.convolutions.split_at_mut(at);
            after[0].forward(&self.parameters, before.last().map_or(images, Convolution::outputs));
        }
        let Some(last) = self.convolutions.last() else { unreachable!("a cnn has a convolution") };
        transpose(
            last.outputs(),
            last.output.places(),
            last.output.channels,
            fit(&mut self.flat, last.outputs().len()),
        );
        self.head.forward(&self.parameters, &self.flat, noise)
    }

    fn backward(&mut self, images: &[f32], noise: &[u64], gradient: &mut dyn Gradient, write: Write) {
        let Cnn { convolutions, head, parameters, flat, slopes: [slope, next], .. } = self;
        let pulled = fit(next, flat.len());
        head.backward(parameters, flat, noise, gradient, write, Some(pulled));
        let Some(last) = convolutions.last() else { unreachable!("a cnn has a convolution") };
        transpose(pulled, last.output.channels, last.output.places(), fit(slope, flat.len()));
        for at in (0..convolutions.len()).rev() {
            let (before, after) = convolutions.split_at_mut(at);
            match before.last() {
                None => after[0].backward(parameters, images, slope, gradient.open(), write, None),
                Some(below) => {
                    let input = below.outputs();
                    let into = fit(next, input.len());
                    after[0].backward(parameters, input, slope, gradient.open(), write, Some(into));
                    std::mem::swap(slope, next);
                }
            }
            gradient.finished(after[0].first());
        }
    }
}

/// Transposes a matrix of `rows` by `columns` for each image.
fn transpose(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    let images = from.chunks_exact(rows * columns).zip(to.chunks_exact_mut(rows * columns));
    for (from, to) in images {
        for (row, values) in from.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                to[column * rows + row] = *value;
            }
        }
    }
}

impl Model for Cnn {
    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error> {
        let (loss, width) = (self.loss, self.head.width());
        let outputs = self.forward(&batch.values, &batch.noise);
        let sum = loss::backward(loss, outputs, width, &batch.targets, scale);
        self.backward(&batch.values, &batch.noise, gradient, write);
        Ok(sum)
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        outputs.clear();
        outputs.extend_from_slice(self.forward(&batch.values, &[]));
        Ok(loss::sum(self.loss, outputs, self.head.width(), &batch.targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::{assert_gradients, classes, features};
    use phalanx_core::spec::Activation;

    fn spec(activation: Activation, norm: Norm, pool: u32) -> CnnSpec {
        CnnSpec { channels: vec![4, 6], kernel: 3, pool, norm, hidden: vec![5], activation, dropout: 0.0 }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (activation, norm, pool, shape) in [
            (Activation::Tanh, Norm::None, 1, [1, 4, 5]),
            (Activation::Gelu, Norm::Group, 1, [2, 4, 3]),
            (Activation::Tanh, Norm::Group, 2, [2, 5, 6]),
            (Activation::Relu, Norm::None, 2, [1, 6, 5]),
        ] {
            let spec = CnnSpec { dropout: 0.2, ..spec(activation, norm, pool) };
            let mut model = Cnn::new(&spec, shape, 3, Loss::CrossEntropy, 3).unwrap();
            let batch = features(9, shape.iter().product(), classes(9, 3));
            // Steps across a change of the largest in a window, or of relu, show as differences that no slope has.
            let kinks = if pool > 1 { model.parameters().len() / 7 } else { 0 };
            assert_gradients(&mut model, &batch, kinks, &format!("{activation:?} {norm:?} {pool} {shape:?}"));
        }
    }

    /// The textbook's convolution, place by place.
    #[test]
    fn a_convolution_is_what_its_definition_says() {
        let spec =
            CnnSpec { hidden: Vec::new(), channels: vec![2, 3], ..spec(Activation::Tanh, Norm::None, 1) };
        let shape @ [channels, height, width] = [2, 4, 5];
        let mut model = Cnn::new(&spec, shape, 2, Loss::CrossEntropy, 1).unwrap();
        let batch = features(1, 40, classes(1, 2));
        let mut found = Vec::new();
        model.evaluate(&batch, &mut found).unwrap();
        let tensor = |name: &str| {
            let tensor = model.tensors.iter().find(|tensor| tensor.name == name).unwrap();
            &model.parameters[tensor.range.clone()]
        };
        let convolve = |input: &[f32], channels: usize, name: &str, filters: usize| {
            let (weight, bias) = (tensor(&format!("{name}.weight")), tensor(&format!("{name}.bias")));
            let mut out = vec![0.0f64; filters * height * width];
            for (at, out) in out.iter_mut().enumerate() {
                let (filter, y, x) = (at / (height * width), at / width % height, at % width);
                let mut sum = f64::from(bias[filter]);
                for (place, weight) in weight[filter * channels * 9..][..channels * 9].iter().enumerate() {
                    let (channel, dy, dx) = (place / 9, place / 3 % 3, place % 3);
                    if let (Some(y), Some(x)) = ((y + dy).checked_sub(1), (x + dx).checked_sub(1))
                        && y < height
                        && x < width
                    {
                        sum += f64::from(*weight) * f64::from(input[(channel * height + y) * width + x]);
                    }
                }
                *out = sum.tanh();
            }
            out.into_iter().map(|value| value as f32).collect::<Vec<f32>>()
        };
        let first = convolve(&batch.values, channels, "0", 2);
        let second = convolve(&first, 2, "2", 3);
        let (weight, bias) = (tensor("5.weight"), tensor("5.bias"));
        for (at, found) in found.iter().enumerate() {
            let row = &weight[at * second.len()..(at + 1) * second.len()];
            let expected = bias[at] + row.iter().zip(&second).map(|(w, x)| w * x).sum::<f32>();
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn images_that_are_pooled_away_are_refused() {
        let spec = CnnSpec { channels: vec![2; 4], ..spec(Activation::Relu, Norm::None, 2) };
        let error = Cnn::new(&spec, [1, 8, 8], 3, Loss::CrossEntropy, 1).unwrap_err().to_string();
        assert!(error.contains("convolution 4 gets 1 by 1, less than `pool = 2`"), "{error}");
    }
}
