//! What a model sees at a time.

use super::Targets;

/// What one sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// So many features.
    Features(usize),
    /// An image: channels, height and width; its values lie in this order.
    Image([usize; 3]),
    /// A text of up to `context` tokens, each below `vocabulary`, which has one target.
    Tokens {
        /// Different tokens.
        vocabulary: usize,
        /// Most tokens of a sample.
        context: usize,
    },
    /// A piece of a text, `context` tokens long, of which each token's target is the next one.
    Text {
        /// Different tokens.
        vocabulary: usize,
        /// Tokens of a sample.
        context: usize,
    },
}

impl Sample {
    /// Values of a sample, unless it is made of tokens.
    pub fn width(self) -> Option<usize> {
        match self {
            Sample::Features(width) => Some(width),
            Sample::Image(shape) => Some(shape.iter().product()),
            Sample::Tokens { .. } | Sample::Text { .. } => None,
        }
    }
}

/// Samples side by side, and what is to be said of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Samples.
    pub rows: usize,
    /// Values of features or images, sample after sample; empty for tokens.
    pub values: Vec<f32>,
    /// Tokens, sample after sample, each of the batch's samples as long as its longest; empty for values.
    pub tokens: Vec<u32>,
    /// Tokens of each sample that count; empty where all do.
    pub lengths: Vec<u32>,
    /// One target a sample, or, of a text, one a token.
    pub targets: Targets,
    /// Random bits for each sample, of which dropout is made; empty when the model is judged.
    pub noise: Vec<u64>,
}
