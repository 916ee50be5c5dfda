//! Optimizers, each one pass over the flat parameters, gradient and state.

use phalanx_core::spec::{AdamFields, Optimizer as Kind};

/// An optimizer and its state: one value per parameter in every slot.
#[derive(Clone, Debug)]
pub(crate) struct Optimizer {
    kind: Kind,
    slots: Vec<Vec<f32>>,
}

impl Optimizer {
    /// Starts from nothing.
    pub(crate) fn new(kind: Kind, parameters: usize) -> Optimizer {
        let slots = slot_names(kind).iter().map(|_| vec![0.0; parameters]).collect();
        Optimizer { kind, slots }
    }

    /// The learning rate before any schedule.
    pub(crate) fn lr(&self) -> f64 {
        match self.kind {
            Kind::Sgd { lr, .. } | Kind::Lion { lr, .. } => lr,
            Kind::Adam(fields) | Kind::AdamW(fields) => fields.lr,
        }
    }

    /// State by name, as PyTorch names it.
    pub(crate) fn state(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        slot_names(self.kind).iter().copied().zip(self.slots.iter().map(Vec::as_slice))
    }

    /// State by name, to be restored.
    pub(crate) fn state_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut [f32])> {
        slot_names(self.kind).iter().copied().zip(self.slots.iter_mut().map(Vec::as_mut_slice))
    }

    /// Moves `parameters` by `gradient`, scaled by `scale`, at learning rate `lr`; `step` counts from 1.
    pub(crate) fn update(
        &mut self,
        parameters: &mut [f32],
        gradient: &[f32],
        scale: f32,
        lr: f64,
        step: u64,
    ) {
        assert_eq!(parameters.len(), gradient.len());
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, as was just asked.
            #[allow(unsafe_code)]
            unsafe {
                self.apply_avx2(parameters, gradient, scale, lr, step);
            }
            return;
        }
        self.apply(parameters, gradient, scale, lr, step);
    }

    /// [`Self::apply`] compiled for vectors of eight: the same operations, hence the same bits.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn apply_avx2(&mut self, parameters: &mut [f32], gradient: &[f32], scale: f32, lr: f64, step: u64) {
        self.apply(parameters, gradient, scale, lr, step);
    }

    #[inline(always)]
    fn apply(&mut self, parameters: &mut [f32], gradient: &[f32], scale: f32, lr: f64, step: u64) {
        match (self.kind, self.slots.as_mut_slice()) {
            (Kind::Sgd { weight_decay, .. }, []) => sgd(parameters, gradient, scale, lr, weight_decay),
            (Kind::Sgd { momentum, weight_decay, .. }, [buffer]) => {
                sgd_momentum(parameters, gradient, buffer, scale, lr, momentum, weight_decay);
            }
            (Kind::Adam(fields), [first, second]) => {
                adam::<false>(parameters, gradient, first, second, &AdamStep::new(fields, scale, lr, step));
            }
            (Kind::AdamW(fields), [first, second]) => {
                adam::<true>(parameters, gradient, first, second, &AdamStep::new(fields, scale, lr, step));
            }
            (Kind::Lion { betas, weight_decay, .. }, [buffer]) => {
                lion(parameters, gradient, buffer, scale, lr, betas, weight_decay);
            }
            (kind, slots) => unreachable!("{kind:?} with {} slots", slots.len()),
        }
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

/// What a gradient is multiplied by so that its norm is at most `clip`.
pub(crate) fn clip_scale(gradient: &[f32], clip: f64) -> f32 {
    // As in torch.nn.utils.clip_grad_norm_.
    const EPS: f64 = 1e-6;
    (clip / (squared_norm(gradient).sqrt() + EPS)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A quadratic bowl whose gradient the references and the fused updates both see.
    fn gradient(parameters: &[f64]) -> Vec<f64> {
        parameters.iter().enumerate().map(|(at, p)| p * (1.0 + at as f64) - 0.5).collect()
    }

    fn start() -> Vec<f64> {
        (0..37).map(|at| (f64::from(at) * 0.37).sin()).collect()
    }

    /// Runs both for 50 steps; `reference` moves one parameter by the textbook formula in f64.
    fn compare(kind: Kind, lr: f64, reference: impl Fn(&mut f64, f64, &mut [f64; 2], i32)) {
        let mut expected = start();
        let mut state = vec![[0.0; 2]; expected.len()];
        let mut found: Vec<f32> = expected.iter().map(|&p| p as f32).collect();
        let mut optimizer = Optimizer::new(kind, found.len());
        for step in 1..=50 {
            let slope = gradient(&expected);
            for ((p, g), s) in expected.iter_mut().zip(slope).zip(&mut state) {
                reference(p, g, s, step);
            }
            let slope = gradient(&found.iter().map(|&p| f64::from(p)).collect::<Vec<_>>());
            // Scaled by 4 and back: `scale` must reach the gradient and nothing else.
            let slope: Vec<f32> = slope.iter().map(|&g| (g * 4.0) as f32).collect();
            optimizer.update(&mut found, &slope, 0.25, lr, step as u64);
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
        let mut optimizer = Optimizer::new(kind, 4);
        for step in 1..=30 {
            for at in 0..4 {
                let u = 0.9 * mean[at] + 0.1 * slope[at];
                let sign = if u == 0.0 { 0.0 } else { u.signum() };
                expected[at] -= 1e-3 * (sign + 0.5 * expected[at]);
                mean[at] = 0.99 * mean[at] + 0.01 * slope[at];
            }
            optimizer.update(&mut found, &slope.map(|g| g as f32), 1.0, 1e-3, step);
        }
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found}, not {expected}");
        }
    }

    #[test]
    fn wide_vectors_have_the_same_bits() {
        let fields = AdamFields { lr: 0.02, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.3 };
        for kind in [
            Kind::Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.1 },
            Kind::AdamW(fields),
            Kind::Lion { lr: 1e-3, betas: [0.9, 0.99], weight_decay: 0.5 },
        ] {
            let mut wide: Vec<f32> = (0..1003).map(|at| (at as f32 * 0.37).sin()).collect();
            let mut narrow = wide.clone();
            let (mut one, mut other) = (Optimizer::new(kind, 1003), Optimizer::new(kind, 1003));
            for step in 1..5 {
                let slope: Vec<f32> = wide.iter().map(|p| (p * 3.1).cos()).collect();
                one.update(&mut wide, &slope, 0.7, 0.02, step);
                other.apply(&mut narrow, &slope, 0.7, 0.02, step);
            }
            assert!(wide.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits()), "{kind:?}");
        }
    }

    #[test]
    fn clipping_bounds_the_norm_and_leaves_small_gradients() {
        let gradient: Vec<f32> = (0..5000).map(|at| (at as f32 * 0.1).sin()).collect();
        let norm = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert!((squared_norm(&gradient).sqrt() - norm).abs() < 1e-4 * norm);
        let scale = f64::from(clip_scale(&gradient, 2.0));
        assert!((norm * scale - 2.0).abs() < 1e-3);
        assert_eq!(clip_scale(&gradient, norm * 1.1), 1.0);
    }
}
