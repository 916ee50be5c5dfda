//! A block: attention, then feed-forward, each on the normed stream and added to it.

use crate::layer::activation::{Dropout, activate, add, deactivate};
use crate::layer::affine::Affine;
use crate::layer::attention::Attention;
use crate::layer::fit;
use crate::layer::norm::{LayerNorm, Normed};
use crate::layer::parameters::{Initial, Parameters};
use crate::model::Write;
use phalanx_core::spec::Activation;

#[derive(Debug)]
pub(super) struct Block {
    norms: [LayerNorm; 2],
    attention: Attention,
    /// Queries, keys and values of a token.
    query: Affine,
    mix: Affine,
    up: Affine,
    down: Affine,
    dropout: Dropout,
    /// The block's number, by which its dropout differs from that of others.
    number: u32,
    kept: Kept,
}

/// What the way back needs of the way forward.
#[derive(Debug, Default)]
struct Kept {
    normed: [Normed; 2],
    /// What the norms gave.
    inputs: [Vec<f32>; 2],
    /// Queries, keys and values.
    rows: Vec<f32>,
    /// What each token gave to each other.
    weights: Vec<f32>,
    mixed: Vec<f32>,
    hidden: Vec<f32>,
    slopes: Vec<f32>,
}

/// What all blocks share for a moment.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    out: Vec<f32>,
    pulled: Vec<f32>,
    wide: Vec<f32>,
}

impl Block {
    /// Adds its parameters. `deviations` are those of weights, and of the weights of maps that add to the stream.
    pub(super) fn new(
        parameters: &mut Parameters,
        number: usize,
        attention: Attention,
        feed_forward: usize,
        dropout: f64,
        deviations: [f32; 2],
    ) -> Block {
        let width = attention.width;
        let name = |part: &str| format!("blocks.{number}.{part}");
        let [weight, residual] = deviations.map(Initial::Normal);
        let zero = Initial::Constant(0.0);
        let first = LayerNorm::new(parameters, &name("norm1"), width);
        let query =
            Affine::with(parameters, &name("attention.query_key_value"), width, 3 * width, weight, zero);
        let mix = Affine::with(parameters, &name("attention.out"), width, width, residual, zero);
        let second = LayerNorm::new(parameters, &name("norm2"), width);
        let up = Affine::with(parameters, &name("feed_forward.up"), width, feed_forward, weight, zero);
        let down = Affine::with(parameters, &name("feed_forward.down"), feed_forward, width, residual, zero);
        Block {
            norms: [first, second],
            attention,
            query,
            mix,
            up,
            down,
            dropout: Dropout::new(dropout),
            number: number as u32,
            kept: Kept::default(),
        }
    }

    /// The place of its first parameter.
    pub(super) fn first(&self) -> usize {
        self.norms[0].first()
    }

    /// Where dropout happens: after attention (0) and after feed-forward (1). The embedding's place is 0.
    fn place(&self, part: u32) -> u32 {
        1 + 2 * self.number + part
    }

    /// Moves the stream through the block, `tokens` of it a sample.
    pub(super) fn forward(
        &mut self,
        parameters: &[f32],
        stream: &mut [f32],
        tokens: usize,
        lengths: &[u32],
        noise: &[u64],
        work: &mut Workspace,
    ) {
        let (count, width) = (stream.len() / self.attention.width, self.attention.width);
        let out = fit(&mut work.out, stream.len());
        let places = [self.place(0), self.place(1)];
        let kept = &mut self.kept;
        let input = fit(&mut kept.inputs[0], stream.len());
        self.norms[0].forward(parameters, stream, input, &mut kept.normed[0]);
        let rows = fit(&mut kept.rows, count * 3 * width);
        self.query.forward(parameters, input, rows);
        let weights = fit(&mut kept.weights, count * self.attention.heads * tokens);
        let mixed = fit(&mut kept.mixed, stream.len());
        self.attention.forward(rows, tokens, lengths, weights, mixed);
        self.mix.forward(parameters, mixed, out);
        self.dropout.apply(out, noise, places[0]);
        add(stream, out);

        let input = fit(&mut kept.inputs[1], stream.len());
        self.norms[1].forward(parameters, stream, input, &mut kept.normed[1]);
        let hidden = fit(&mut kept.hidden, count * self.up.outputs);
        self.up.weigh(parameters, input, hidden);
        let slopes = fit(&mut kept.slopes, hidden.len());
        activate(Activation::Gelu, hidden, self.up.bias(parameters), slopes);
        self.down.forward(parameters, hidden, out);
        self.dropout.apply(out, noise, places[1]);
        add(stream, out);
    }

    /// Moves the stream's gradient back through the block.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &mut self,
        parameters: &[f32],
        slope: &mut [f32],
        tokens: usize,
        noise: &[u64],
        gradient: &mut [f32],
        write: Write,
        work: &mut Workspace,
    ) {
        let kept = &self.kept;
        let out = fit(&mut work.out, slope.len());
        let pulled = fit(&mut work.pulled, slope.len());
        out.copy_from_slice(slope);
        self.dropout.apply(out, noise, self.place(1));
        self.down.backward(&kept.hidden, out, gradient, write);
        let wide = fit(&mut work.wide, kept.hidden.len());
        self.down.pull(parameters, out, wide, Write::Set);
        deactivate(Activation::Gelu, wide, &kept.hidden, &kept.slopes);
        self.up.backward(&kept.inputs[1], wide, gradient, write);
        self.up.pull(parameters, wide, pulled, Write::Set);
        self.norms[1].backward(parameters, &kept.normed[1], pulled, gradient, write, slope);

        out.copy_from_slice(slope);
        self.dropout.apply(out, noise, self.place(0));
        self.mix.backward(&kept.mixed, out, gradient, write);
        self.mix.pull(parameters, out, pulled, Write::Set);
        let rows = fit(&mut work.wide, kept.rows.len());
        self.attention.backward(&kept.rows, tokens, &kept.weights, pulled, rows);
        self.query.backward(&kept.inputs[0], rows, gradient, write);
        self.query.pull(parameters, rows, pulled, Write::Set);
        self.norms[0].backward(parameters, &kept.normed[0], pulled, gradient, write, slope);
    }
}
