//! Optimizers, each one pass over the flat parameters, gradient and state.

use crate::layer::wide::wide;
use crate::model::Tensor;
use phalanx_core::spec::{AdamFields, Optimizer as Kind};
use std::ops::Range;

/// An optimizer and its state: one value in every slot for each parameter that it moves.
#[derive(Clone, Debug)]
pub(crate) struct Optimizer {
    kind: Kind,
    pieces: Vec<Piece>,
    slots: Vec<Vec<f32>>,
    /// The decay of the moving average of the parameters, whose values are the last slot.
    average: Option<f64>,
}

/// Neighbouring parameters that move alike.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    parameters: Range<usize>,
    /// Where their state begins in the slots.
    start: usize,
    /// Whether weight decay holds for them.
    decays: bool,
}

/// The slot of the moving average.
const AVERAGE: &str = "ema";

/// One step's numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// What the gradient is multiplied by.
    pub(crate) scale: f32,
    /// The learning rate.
    pub(crate) lr: f64,
    /// Its number, from 1.
    pub(crate) number: u64,
}

impl Optimizer {
    /// Starts from nothing. It moves the parameters of `own`, ranges in rising order; tensors with one of the texts of
    /// `no_decay` in their names are spared by weight decay.
    pub(crate) fn new(
        kind: Kind,
        average: Option<f64>,
        no_decay: &[String],
        tensors: &[Tensor],
        own: &[Range<usize>],
    ) -> Optimizer {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut start = 0;
        for own in own {
            let inside = tensors.iter().filter(|t| t.range.start < own.end && own.start < t.range.end);
            for tensor in inside {
                let range = tensor.range.start.max(own.start)..tensor.range.end.min(own.end);
                let decays = !no_decay.iter().any(|word| tensor.name.contains(word));
                let len = range.len();
                match pieces.last_mut() {
                    Some(last) if last.decays == decays && last.parameters.end == range.start => {
                        last.parameters.end = range.end;
                    }
                    _ => pieces.push(Piece { parameters: range, start, decays }),
                }
                start += len;
            }
        }
        let slots = slot_names(kind).len() + usize::from(average.is_some());
        Optimizer { kind, pieces, slots: vec![vec![0.0; start]; slots], average }
    }

    /// Lets the moving average begin at the first parameters.
    pub(crate) fn begin_average(&mut self, parameters: &[f32]) {
        if let (Some(_), Some(average)) = (self.average, self.slots.last_mut()) {
            for piece in &self.pieces {
                let own = &parameters[piece.parameters.clone()];
                average[piece.start..piece.start + own.len()].copy_from_slice(own);
            }
        }
    }

    /// The learning rate before any schedule.
    pub(crate) fn lr(&self) -> f64 {
        match self.kind {
            Kind::Sgd { lr, .. } | Kind::Lion { lr, .. } => lr,
            Kind::Adam(fields) | Kind::AdamW(fields) => fields.lr,
        }
    }

    /// Names of the state's slots, as PyTorch names them.
    pub(crate) fn slots(&self) -> Vec<&'static str> {
        let average = self.average.map(|_| AVERAGE);
        slot_names(self.kind).iter().copied().chain(average).collect()
    }

    /// Puts what this optimizer keeps in a slot where its parameters lie in `values`.
    pub(crate) fn spread(&self, slot: usize, values: &mut [f32]) {
        for piece in &self.pieces {
            let len = piece.parameters.len();
            values[piece.parameters.clone()]
                .copy_from_slice(&self.slots[slot][piece.start..piece.start + len]);
        }
    }

    /// Takes its part of a slot from where its parameters lie in `values`.
    pub(crate) fn take(&mut self, slot: usize, values: &[f32]) {
        for piece in &self.pieces {
            let from = &values[piece.parameters.clone()];
            self.slots[slot][piece.start..piece.start + from.len()].copy_from_slice(from);
        }
    }

    /// Moves its parameters by `gradient`, both whole.
    pub(crate) fn update(&mut self, parameters: &mut [f32], gradient: &[f32], step: Step) {
        assert_eq!(parameters.len(), gradient.len());
        for piece in &self.pieces {
            let (parameters, gradient) =
                (&mut parameters[piece.parameters.clone()], &gradient[piece.parameters.clone()]);
            let own = piece.start..piece.start + parameters.len();
            let mut slots: Vec<&mut [f32]> =
                self.slots.iter_mut().map(|slot| &mut slot[own.clone()]).collect();
            let average = self.average.and_then(|decay| Some((decay, slots.pop()?)));
            let kind = if piece.decays { self.kind } else { without_decay(self.kind) };
            apply(kind, parameters, gradient, &mut slots, step);
            if let Some((decay, average)) = average {
                // Early on the average would be the first parameters for long: it follows faster (as in TensorFlow).
                let young = (1 + step.number) as f64 / (10 + step.number) as f64;
                move_average(average, parameters, decay.min(young) as f32);
            }
        }
    }
}

wide! {
    fn apply(kind: Kind, parameters: &mut [f32], gradient: &[f32], slots: &mut [&mut [f32]], step: Step) {
        let Step { scale, lr, number } = step;
        match (kind, slots) {
            (Kind::Sgd { weight_decay, .. }, []) => sgd(parameters, gradient, scale, lr, weight_decay),
            (Kind::Sgd { momentum, weight_decay, .. }, [buffer]) => {
                sgd_momentum(parameters, gradient, buffer, scale, lr, momentum, weight_decay);
            }
            (Kind::Adam(fields), [first, second]) => {
                adam::<false>(parameters, gradient, first, second, &AdamStep::new(fields, scale, lr, number));
            }
            (Kind::AdamW(fields), [first, second]) => {
                adam::<true>(parameters, gradient, first, second, &AdamStep::new(fields, scale, lr, number));
            }
            (Kind::Lion { betas, weight_decay, .. }, [buffer]) => {
                lion(parameters, gradient, buffer, scale, lr, betas, weight_decay);
            }
            (kind, slots) => unreachable!("{kind:?} with {} slots", slots.len()),
        }
    }
}

wide! {
    fn move_average(average: &mut [f32], parameters: &[f32], decay: f32) {
        for (average, parameter) in average.iter_mut().zip(parameters) {
            *average += (1.0 - decay) * (parameter - *average);
        }
    }
}

fn without_decay(kind: Kind) -> Kind {
    match kind {
        Kind::Sgd { lr, momentum, .. } => Kind::Sgd { lr, momentum, weight_decay: 0.0 },
        Kind::Adam(fields) => Kind::Adam(AdamFields { weight_decay: 0.0, ..fields }),
        Kind::AdamW(fields) => Kind::AdamW(AdamFields { weight_decay: 0.0, ..fields }),
        Kind::Lion { lr, betas, .. } => Kind::Lion { lr, betas, weight_decay: 0.0 },
    }
}

/// The name of an optimizer in files and messages.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sgd { .. } => "sgd",
        Kind::Adam(_) => "adam",
        Kind::AdamW(_) => "adamw",
        Kind::Lion { .. } => "lion",
    }
}

fn slot_names(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Sgd { momentum: 0.0, .. } => &[],
        Kind::Sgd { .. } => &["momentum_buffer"],
        Kind::Adam(_) | Kind::AdamW(_) => &["exp_avg", "exp_avg_sq"],
        Kind::Lion { .. } => &["exp_avg"],
    }
}

#[inline(always)]
fn sgd(parameters: &mut [f32], gradient: &[f32], scale: f32, lr: f64, weight_decay: f64) {
    let (lr, weight_decay) = (lr as f32, weight_decay as f32);
    for (parameter, gradient) in parameters.iter_mut().zip(gradient) {
        *parameter -= lr * (gradient * scale + weight_decay * *parameter);
    }
}

#[inline(always)]
fn sgd_momentum(
    parameters: &mut [f32],
    gradient: &[f32],
    buffer: &mut [f32],
    scale: f32,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
) {
    let (lr, momentum, weight_decay) = (lr as f32, momentum as f32, weight_decay as f32);
    for ((parameter, gradient), velocity) in parameters.iter_mut().zip(gradient).zip(buffer) {
        *velocity = momentum * *velocity + (gradient * scale + weight_decay * *parameter);
        *parameter -= lr * *velocity;
    }
}

/// The numbers of one Adam step, computed once for all parameters.
struct AdamStep {
    scale: f32,
    /// Learning rate over the first moment's bias correction.
    rate: f32,
    /// Inverse root of the second moment's bias correction.
    second_correction: f32,
    betas: [f32; 2],
    eps: f32,
    /// Added to the gradient (Adam), or what is left of a parameter (AdamW).
    decay: f32,
    shrink: f32,
}

impl AdamStep {
    fn new(fields: AdamFields, scale: f32, lr: f64, step: u64) -> AdamStep {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        AdamStep {
            scale,
            rate: (lr / correction(fields.betas[0])) as f32,
            second_correction: (1.0 / correction(fields.betas[1]).sqrt()) as f32,
            betas: fields.betas.map(|beta| beta as f32),
            eps: fields.eps as f32,
            decay: fields.weight_decay as f32,
            shrink: (1.0 - lr * fields.weight_decay) as f32,
        }
    }
}

#[inline(always)]
fn adam<const DECOUPLED: bool>(
    parameters: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    step: &AdamStep,
) {
    let [beta1, beta2] = step.betas;
    let len = parameters.len();
    // One length for all lets the compiler drop the bounds checks and vectorise.
    let (gradient, first, second) = (&gradient[..len], &mut first[..len], &mut second[..len]);
    for at in 0..len {
        let mut slope = gradient[at] * step.scale;
        let mut parameter = parameters[at];
        if DECOUPLED {
            parameter *= step.shrink;
        } else {
            slope += step.decay * parameter;
        }
        first[at] = beta1 * first[at] + (1.0 - beta1) * slope;
        second[at] = beta2 * second[at] + (1.0 - beta2) * slope * slope;
        let spread = second[at].sqrt() * step.second_correction + step.eps;
        parameters[at] = parameter - step.rate * first[at] / spread;
    }
}

#[inline(always)]
fn lion(
    parameters: &mut [f32],
    gradient: &[f32],
    buffer: &mut [f32],
    scale: f32,
    lr: f64,
    betas: [f64; 2],
    weight_decay: f64,
) {
    let [beta1, beta2] = betas.map(|beta| beta as f32);
    let (rate, shrink) = (lr as f32, (1.0 - lr * weight_decay) as f32);
    for ((parameter, gradient), mean) in parameters.iter_mut().zip(gradient).zip(buffer) {
        let slope = gradient * scale;
        let direction = beta1 * *mean + (1.0 - beta1) * slope;
        // `signum` of 0 is 1; a parameter without a gradient stays where it is.
        let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
        *parameter = *parameter * shrink - rate * sign;
        *mean = beta2 * *mean + (1.0 - beta2) * slope;
    }
}

/// Lanes of [`squared_norm`], fixed so that the sum has the same bits on every machine.
const LANES: usize = 16;
/// Values summed in f32 before they are added to the f64 total.
const BLOCK: usize = 1024;

wide! {
/// The sum of squares, always folded in the same order.
pub(crate) fn squared_norm(values: &[f32]) -> f64 {
    let mut total = 0.0;
    for block in values.chunks(BLOCK) {
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value * value;
            }
        }
        let rest: f64 = rest.iter().map(|&value| f64::from(value).powi(2)).sum();
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest;
    }
    total
}
}

/// What a gradient with this sum of squares is multiplied by so that its norm is at most `clip`.
pub(crate) fn clip_scale(squared_norm: f64, clip: f64) -> f32 {
    // As in torch.nn.utils.clip_grad_norm_.
    const EPS: f64 = 1e-6;
    (clip / (squared_norm.sqrt() + EPS)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quadratic bowl whose gradient the references and the fused updates both see.
    fn gradient(parameters: &[f64]) -> Vec<f64> {
        parameters.iter().enumerate().map(|(at, p)| p * (1.0 + at as f64) - 0.5).collect()
    }

    fn tensor(name: &str, range: Range<usize>) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![range.len()], range }
    }

    fn whole(kind: Kind, len: usize) -> Optimizer {
        Optimizer::new(kind, None, &[], &[tensor("a", 0..len)], std::slice::from_ref(&(0..len)))
    }

    fn start() -> Vec<f64> {
        (0..37).map(|at| (f64::from(at) * 0.37).sin()).collect()
    }

    /// Runs both for 50 steps; `reference` moves one parameter by the textbook formula in f64.
    fn compare(kind: Kind, lr: f64, reference: impl Fn(&mut f64, f64, &mut [f64; 2], i32)) {
        let mut expected = start();
        let mut state = vec![[0.0; 2]; expected.len()];
        let mut found: Vec<f32> = expected.iter().map(|&p| p as f32).collect();
        let mut optimizer = whole(kind, found.len());
        for step in 1..=50 {
            let slope = gradient(&expected);
            for ((p, g), s) in expected.iter_mut().zip(slope).zip(&mut state) {
                reference(p, g, s, step);
            }
            let slope = gradient(&found.iter().map(|&p| f64::from(p)).collect::<Vec<_>>());
            // Scaled by 4 and back: `scale` must reach the gradient and nothing else.
            let slope: Vec<f32> = slope.iter().map(|&g| (g * 4.0) as f32).collect();
            optimizer.update(&mut found, &slope, Step { scale: 0.25, lr, number: step as u64 });
        }
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-4, "{kind:?}: {found}, not {expected}");
        }
    }

    #[test]
    fn sgd_follows_its_formula() {
        let kind = Kind::Sgd { lr: 0.01, momentum: 0.0, weight_decay: 0.1 };
        compare(kind, 0.01, |p, g, _, _| *p -= 0.01 * (g + 0.1 * *p));
        let kind = Kind::Sgd { lr: 0.01, momentum: 0.9, weight_decay: 0.1 };
        compare(kind, 0.01, |p, g, s, _| {
            s[0] = 0.9 * s[0] + g + 0.1 * *p;
            *p -= 0.01 * s[0];
        });
    }

    #[test]
    fn adam_follows_its_formula() {
        let fields = AdamFields { lr: 0.02, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.3 };
        let moments = |g: f64, s: &mut [f64; 2], step: i32| {
            s[0] = 0.9 * s[0] + 0.1 * g;
            s[1] = 0.99 * s[1] + 0.01 * g * g;
            let (m, v) = (s[0] / (1.0 - 0.9f64.powi(step)), s[1] / (1.0 - 0.99f64.powi(step)));
            m / (v.sqrt() + 1e-8)
        };
        compare(Kind::Adam(fields), 0.02, |p, g, s, step| *p -= 0.02 * moments(g + 0.3 * *p, s, step));
        compare(Kind::AdamW(fields), 0.02, |p, g, s, step| {
            *p -= 0.02 * 0.3 * *p;
            *p -= 0.02 * moments(g, s, step);
        });
    }

    #[test]
    fn lion_follows_its_formula() {
        // Lion's sign makes paths part at a hair's breadth; a slope that never crosses zero has none.
        let kind = Kind::Lion { lr: 1e-3, betas: [0.9, 0.99], weight_decay: 0.5 };
        let mut found = vec![1.0f32, -1.0, 0.5, 0.0];
        let mut expected = [1.0f64, -1.0, 0.5, 0.0];
        let slope = [0.3, -0.7, 0.2, 0.0];
        let mut mean = [0.0f64; 4];
        let mut optimizer = whole(kind, 4);
        for step in 1..=30 {
            for at in 0..4 {
                let u = 0.9 * mean[at] + 0.1 * slope[at];
                let sign = if u == 0.0 { 0.0 } else { u.signum() };
                expected[at] -= 1e-3 * (sign + 0.5 * expected[at]);
                mean[at] = 0.99 * mean[at] + 0.01 * slope[at];
            }
            let step = Step { scale: 1.0, lr: 1e-3, number: step };
            optimizer.update(&mut found, &slope.map(|g| g as f32), step);
        }
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }

    #[test]
    fn slices_of_an_optimizer_move_as_the_whole_and_spare_what_does_not_decay() {
        let fields = AdamFields { lr: 0.02, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.3 };
        let tensors = [tensor("a.weight", 0..700), tensor("a.bias", 700..800), tensor("b.weight", 800..1003)];
        let no_decay = ["bias".to_owned()];
        for kind in [
            Kind::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.1 },
            Kind::AdamW(fields),
            Kind::Lion { lr: 1e-3, betas: [0.9, 0.99], weight_decay: 0.5 },
        ] {
            let all = std::slice::from_ref(&(0..1003));
            let new = |own: &[Range<usize>]| Optimizer::new(kind, Some(0.9), &no_decay, &tensors, own);
            let mut whole = new(all);
            assert_eq!(whole.pieces.len(), 3);
            let mut slices = [new(&[0..300, 650..720]), new(&[300..650, 720..1003])];
            let start: Vec<f32> = (0..1003).map(|at| (at as f32 * 0.37).sin()).collect();
            let (mut one, mut other) = (start.clone(), start.clone());
            for number in 1..5 {
                let slope: Vec<f32> = one.iter().map(|p| (p * 3.1).cos()).collect();
                let step = Step { scale: 0.7, lr: 0.02, number };
                whole.update(&mut one, &slope, step);
                slices.iter_mut().for_each(|slice| slice.update(&mut other, &slope, step));
            }
            assert_eq!(one, other, "{kind:?}");
            for slot in 0..whole.slots().len() {
                let (mut expected, mut found) = (vec![0.0; 1003], vec![0.0; 1003]);
                whole.spread(slot, &mut expected);
                slices.iter().for_each(|slice| slice.spread(slot, &mut found));
                assert_eq!(expected, found, "{kind:?}");
                let mut copy = new(all);
                copy.take(slot, &found);
                assert_eq!(copy.slots[slot], whole.slots[slot]);
            }
            let mut plain = Optimizer::new(without_decay(kind), None, &[], &tensors, all);
            let (mut with, mut without) = (start.clone(), start.clone());
            let step = Step { scale: 1.0, lr: 0.02, number: 1 };
            new(all).update(&mut with, &[0.1; 1003], step);
            plain.update(&mut without, &[0.1; 1003], step);
            assert_eq!(with[700..800], without[700..800], "{kind:?}");
            assert_ne!(with[..700], without[..700], "{kind:?}");
        }
    }

    #[test]
    fn the_average_follows_the_parameters() {
        let kind = Kind::Sgd { lr: 1.0, momentum: 0.0, weight_decay: 0.0 };
        let mut optimizer =
            Optimizer::new(kind, Some(0.5), &[], &[tensor("a", 0..1)], std::slice::from_ref(&(0..1)));
        let mut parameters = [4.0];
        optimizer.begin_average(&parameters);
        let mut expected = 4.0;
        for number in 1..20 {
            optimizer.update(&mut parameters, &[1.0], Step { scale: 1.0, lr: 1.0, number });
            let decay = ((1 + number) as f32 / (10 + number) as f32).min(0.5);
            expected = decay * expected + (1.0 - decay) * parameters[0];
            let mut average = [0.0];
            optimizer.spread(0, &mut average);
            assert!((average[0] - expected).abs() < 1e-5);
        }
        assert_eq!(optimizer.slots(), ["ema"]);
    }

    #[test]
    fn clipping_bounds_the_norm_and_leaves_small_gradients() {
        let gradient: Vec<f32> = (0..5000).map(|at| (at as f32 * 0.1).sin()).collect();
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!((squared_norm(&gradient).sqrt() - norm).abs() < 1e-4 * norm);
        let scale = f64::from(clip_scale(norm * norm, 2.0));
        assert!((norm * scale - 2.0).abs() < 1e-3);
        assert_eq!(clip_scale(norm * norm, norm * 1.1), 1.0);
    }
}
