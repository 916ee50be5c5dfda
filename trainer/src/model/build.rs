//! The built-in model that a specification asks for.

use super::{Cnn, Mlp, Model, Transformer};
use crate::Error;
use crate::data::{Dataset, Sample};
use phalanx_core::spec::{Activation, CnnSpec, ModelSpec, Norm, TrainSpec, TransformerSpec};
#[cfg(feature = "tch")]
use {
    super::libtorch,
    crate::adapter::tch::device,
    phalanx_core::spec::{Backend, Precision},
};

/// The model for this data by the backend that is asked for, and its name in checkpoints, which tells its shape.
#[cfg(feature = "tch")]
pub(crate) fn build(train: &TrainSpec, data: &Dataset) -> Result<(String, Box<dyn Model>), Error> {
    match train.backend {
        Backend::Tch => libtorch::build(train, data),
        Backend::Auto if train.precision == Precision::Bf16 => libtorch::build(train, data),
        Backend::Auto if device().is_ok_and(|device| device.is_cuda()) => libtorch::build(train, data),
        Backend::Auto | Backend::Burn => layers(train, data),
    }
}

/// The model for this data, and its name in checkpoints, which tells its shape.
#[cfg(not(feature = "tch"))]
pub(crate) use layers as build;

/// The model as layers of our own.
pub(crate) fn layers(train: &TrainSpec, data: &Dataset) -> Result<(String, Box<dyn Model>), Error> {
    match &train.model {
        ModelSpec::Linear => affine(train, data, "linear", &[], Activation::Relu, 0.0),
        ModelSpec::Mlp { hidden, activation, dropout } => {
            affine(train, data, "mlp", hidden, *activation, *dropout)
        }
        ModelSpec::Cnn(spec) => cnn(train, data, spec),
        ModelSpec::Transformer(spec) => transformer(train, data, spec),
        ModelSpec::Custom => Err(Error::Configuration(
            "`train.model` is missing; the built-in trainer has linear, mlp, cnn and transformer".to_owned(),
        )),
    }
}

fn affine(
    train: &TrainSpec,
    data: &Dataset,
    kind: &str,
    hidden: &[u32],
    activation: Activation,
    dropout: f64,
) -> Result<(String, Box<dyn Model>), Error> {
    let Some(width) = data.sample.width() else { return Err(unfit(kind, data, "a transformer")) };
    let mut widths = vec![width];
    widths.extend(hidden.iter().map(|&width| width as usize));
    widths.push(data.outputs());
    let shape = join(&widths);
    let name = match kind {
        "linear" => format!("linear {shape}"),
        _ => format!("{kind} {shape} {}", word(activation)),
    };
    Ok((name, Box::new(Mlp::new(&widths, activation, dropout, data.loss, train.seed)?)))
}

fn cnn(train: &TrainSpec, data: &Dataset, spec: &CnnSpec) -> Result<(String, Box<dyn Model>), Error> {
    let Sample::Image(shape) = data.sample else { return Err(unfit("cnn", data, "an mlp or a transformer")) };
    let model = Cnn::new(spec, shape, data.outputs(), data.loss, train.seed)?;
    let norm = if spec.norm == Norm::Group { " group-norm" } else { "" };
    let name = format!(
        "cnn {} convolved to {} by {}, pooled by {}{norm}, {} {}",
        join(&shape),
        join(&spec.channels),
        spec.kernel,
        spec.pool,
        join(&[&spec.hidden[..], &[data.outputs() as u32]].concat()),
        word(spec.activation)
    );
    Ok((name, Box::new(model)))
}

fn transformer(
    train: &TrainSpec,
    data: &Dataset,
    spec: &TransformerSpec,
) -> Result<(String, Box<dyn Model>), Error> {
    if let Sample::Image(_) = data.sample {
        return Err(unfit("transformer", data, "a cnn or an mlp"));
    }
    let model = Transformer::new(spec, data.sample, data.outputs(), data.loss, train.seed)?;
    let reads = match data.sample {
        Sample::Text { vocabulary, context } => format!("{context} tokens of {vocabulary}"),
        Sample::Tokens { vocabulary, context } => format!("up to {context} tokens of {vocabulary}"),
        Sample::Features(width) => format!("{width} features"),
        Sample::Image(_) => unreachable!("refused above"),
    };
    let name = format!(
        "transformer {reads}, {} layers of {} with {} heads and {}, to {}",
        spec.layers,
        spec.width,
        spec.heads,
        spec.feed_forward,
        data.outputs()
    );
    Ok((name, Box::new(model)))
}

fn unfit(kind: &str, data: &Dataset, instead: &str) -> Error {
    let sample = match data.sample {
        Sample::Features(_) => "rows of features",
        Sample::Image(_) => "images",
        Sample::Tokens { .. } | Sample::Text { .. } => "text",
    };
    Error::Configuration(format!(
        "`train.model` is \"{kind}\", and {} holds {sample}; use {instead}",
        data.path.display()
    ))
}

fn word(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu => "relu",
        Activation::Gelu => "gelu",
        Activation::Tanh => "tanh",
    }
}

fn join<T: ToString>(numbers: &[T]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join("-")
}
