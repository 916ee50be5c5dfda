//! `[train] model`: which network, and its shape.

use super::kind;
use crate::spec::reader::Table;
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

/// A built-in model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ModelSpec {
    /// One affine map.
    Linear,
    /// Affine maps with an activation between them.
    Mlp {
        /// Widths of the hidden layers.
        hidden: Vec<u32>,
        /// Between the layers.
        activation: Activation,
        /// The share of hidden values that a training step leaves out.
        #[serde(default)]
        dropout: f64,
    },
    /// Convolutions with pooling between them, then affine maps.
    Cnn(CnnSpec),
    /// A transformer (Vaswani et al. 2017): a causal language model of text, or an encoder that classifies.
    Transformer(TransformerSpec),
    /// None of the built-in ones: the caller of the trainer brings it.
    Custom,
}

/// A stack of convolutions for images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CnnSpec {
    /// Channels of each convolution, whose padding keeps width and height.
    pub channels: Vec<u32>,
    /// Width and height of the filters; odd.
    pub kernel: u32,
    /// Width, height and stride of the pooling after each convolution; 1 for none.
    pub pool: u32,
    /// Between convolution and activation.
    pub norm: Norm,
    /// Widths of the hidden affine layers behind the convolutions.
    pub hidden: Vec<u32>,
    /// After each convolution and each hidden layer.
    pub activation: Activation,
    /// The share of hidden values that a training step leaves out.
    pub dropout: f64,
}

/// The shape of a transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransformerSpec {
    /// Blocks of attention and feed-forward.
    pub layers: u32,
    /// Values a token.
    pub width: u32,
    /// Heads of attention; they divide the width.
    pub heads: u32,
    /// Width inside the feed-forward part.
    pub feed_forward: u32,
    /// The share of values that a training step leaves out, after embedding, attention and feed-forward.
    pub dropout: f64,
    /// Whether a language model's outputs use the weights of its token embedding.
    pub tied: bool,
}

/// How the values of a convolution are brought to one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Norm {
    /// Not at all.
    None,
    /// Over groups of channels of one image (Wu & He 2018): unlike a norm over the batch it does not depend on how
    /// workers share a batch.
    Group,
}

/// The function between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x · Φ(x).
    Gelu,
    /// tanh x.
    Tanh,
}

const ACTIVATIONS: [(&str, Activation); 3] =
    [("relu", Activation::Relu), ("gelu", Activation::Gelu), ("tanh", Activation::Tanh)];
/// Largest width, number of channels or tokens of a layer.
const WIDTHS: std::ops::RangeInclusive<i64> = 1..=65_536;
/// Most layers of a list.
const LAYERS: usize = 64;

pub(super) fn read(table: Table<'_>) -> Option<ModelSpec> {
    #[derive(Clone, Copy)]
    enum Kind {
        Linear,
        Mlp,
        Cnn,
        Transformer,
    }
    let kinds = [
        ("mlp", Kind::Mlp),
        ("linear", Kind::Linear),
        ("cnn", Kind::Cnn),
        ("transformer", Kind::Transformer),
    ];
    let model = match kind(&table, &kinds)? {
        Kind::Linear => ModelSpec::Linear,
        Kind::Mlp => ModelSpec::Mlp {
            hidden: read_widths(&table, "hidden", &[128]),
            activation: read_activation(&table),
            dropout: read_dropout(&table),
        },
        Kind::Cnn => ModelSpec::Cnn(read_cnn(&table)),
        Kind::Transformer => ModelSpec::Transformer(read_transformer(&table)),
    };
    table.finish();
    Some(model)
}

fn read_cnn(table: &Table<'_>) -> CnnSpec {
    let kernel = table.integer("kernel", 1..=31).unwrap_or(3) as u32;
    if kernel.is_multiple_of(2) {
        let message = format!("`{}` is {kernel}; it must be odd", table.path_of("kernel"));
        table.problem(table.span_of("kernel"), message);
    }
    CnnSpec {
        channels: read_widths(table, "channels", &[16, 32]),
        kernel,
        pool: table.integer("pool", 1..=16).unwrap_or(2) as u32,
        norm: table.word("norm", &[("group", Norm::Group), ("none", Norm::None)]).unwrap_or(Norm::Group),
        hidden: read_list(table, "hidden", 0, &[64]),
        activation: read_activation(table),
        dropout: read_dropout(table),
    }
}

fn read_transformer(table: &Table<'_>) -> TransformerSpec {
    let width = table.integer("width", WIDTHS).unwrap_or(128) as u32;
    let heads = table.integer("heads", 1..=1024).unwrap_or(4) as u32;
    if !width.is_multiple_of(heads) {
        let message =
            format!("`{}` is {heads}, which does not divide the width {width}", table.path_of("heads"));
        table.problem(table.span_of("heads"), message);
    }
    TransformerSpec {
        layers: table.integer("layers", 1..=LAYERS as i64).unwrap_or(2) as u32,
        width,
        heads,
        feed_forward: table.integer("feed_forward", 1..=1 << 20).map_or(4 * width, |wide| wide as u32),
        dropout: read_dropout(table),
        tied: table.boolean("tied").unwrap_or(true),
    }
}

fn read_activation(table: &Table<'_>) -> Activation {
    table.word("activation", &ACTIVATIONS).unwrap_or(Activation::Relu)
}

fn read_dropout(table: &Table<'_>) -> f64 {
    table.number("dropout", "0 or more and below 1", |share| (0.0..1.0).contains(&share)).unwrap_or(0.0)
}

fn read_widths(table: &Table<'_>, key: &'static str, default: &[u32]) -> Vec<u32> {
    read_list(table, key, 1, default)
}

/// Widths of layers: a list of at least so many, or one number for one layer.
fn read_list(table: &Table<'_>, key: &'static str, least: usize, default: &[u32]) -> Vec<u32> {
    let width = |width: i64| width as u32;
    match table.value(key).map(|value| value.get_ref()) {
        None => default.to_vec(),
        Some(DeValue::Integer(_)) => table.integer(key, WIDTHS).map(width).into_iter().collect(),
        Some(_) => {
            let Some(widths) = table.integers(key, WIDTHS) else { return default.to_vec() };
            if widths.len() < least || widths.len() > LAYERS {
                let message = format!(
                    "`{}` lists {} layers; it must be {least} to {LAYERS}",
                    table.path_of(key),
                    widths.len()
                );
                table.problem(table.span_of(key), message);
            }
            widths.into_iter().map(width).collect()
        }
    }
}
