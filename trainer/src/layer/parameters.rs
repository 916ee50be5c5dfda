//! The flat parameters of a model while it is put together.

use crate::Error;
use crate::model::Tensor;
use crate::random::{Stream, key, symmetric, unit};
use std::ops::Range;

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Initial {
    /// Every value this.
    Constant(f32),
    /// Uniform from minus this to this.
    Uniform(f32),
    /// Normal with this standard deviation.
    Normal(f32),
}

/// Most parameters of a model: 4 GiB of them.
const PARAMETERS: usize = 1 << 30;

/// Tensors one after the other, drawn by a seed.
#[derive(Debug)]
pub(crate) struct Parameters {
    tensors: Vec<Tensor>,
    values: Vec<f32>,
    /// So many there are to be; beyond the limit none are drawn any more.
    count: usize,
    key: u64,
}

impl Parameters {
    pub(crate) fn new(seed: u64) -> Parameters {
        Parameters { tensors: Vec::new(), values: Vec::new(), count: 0, key: key(seed, Stream::Parameters) }
    }

    /// Adds a tensor and says where it lies.
    pub(crate) fn add(&mut self, name: String, shape: &[usize], initial: Initial) -> Range<usize> {
        let start = self.count;
        let end = start + shape.iter().product::<usize>();
        self.count = end;
        if end > PARAMETERS {
            return start..end;
        }
        let key = self.key;
        let value = |at: usize| match initial {
            Initial::Constant(value) => value,
            Initial::Uniform(bound) => bound * symmetric(key, at as u64),
            Initial::Normal(deviation) => deviation * normal(key, at as u64),
        };
        self.values.extend((start..end).map(value));
        self.tensors.push(Tensor { name, shape: shape.to_vec(), range: start..end });
        start..end
    }

    /// The tensors and their values, if there are not too many.
    pub(crate) fn finish(self) -> Result<(Vec<Tensor>, Vec<f32>), Error> {
        match self.count {
            count if count > PARAMETERS => Err(Error::Configuration(format!(
                "`train.model` has {count} parameters; the limit is {PARAMETERS}; make it smaller"
            ))),
            _ => Ok((self.tensors, self.values)),
        }
    }
}

/// A normal number (Box & Muller 1958), by functions that have the same bits on every machine.
fn normal(key: u64, index: u64) -> f32 {
    let (first, second) = (unit(key, 2 * index), unit(!key, 2 * index + 1));
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - first));
    (radius * libm::cos(std::f64::consts::TAU * second)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_follow_one_another_and_are_drawn_as_asked() {
        let mut parameters = Parameters::new(3);
        assert_eq!(parameters.add("a".into(), &[100, 200], Initial::Normal(0.5)), 0..20_000);
        assert_eq!(parameters.add("b".into(), &[7], Initial::Constant(1.0)), 20_000..20_007);
        let (tensors, drawn) = parameters.finish().unwrap();
        let values = &drawn[..20_000];
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 2e4;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 2e4;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.01, "{mean} {variance}");
        assert_eq!(drawn[20_000..], [1.0; 7]);
        assert_eq!(tensors[1].range, 20_000..20_007);
    }
}
