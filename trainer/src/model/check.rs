//! What tests of models share: made-up batches, and gradients beside finite differences.

use super::{Model, Write};
use crate::data::{Batch, Targets};
use crate::random::{mix, symmetric};

/// A batch of made-up features.
pub(crate) fn features(rows: usize, width: usize, targets: Targets) -> Batch {
    Batch {
        rows,
        values: (0..rows * width).map(|at| symmetric(99, at as u64)).collect(),
        targets,
        noise: (0..rows as u64).map(|row| mix(row + 1)).collect(),
        ..Batch::default()
    }
}

pub(crate) fn classes(count: usize, classes: usize) -> Targets {
    Targets::Classes((0..count).map(|at| (at * 7 % classes) as u32).collect())
}

pub(crate) fn numbers(count: usize) -> Targets {
    Targets::Values((0..count).map(|at| (at % 2) as f32).collect())
}

/// A part of a batch's samples.
fn part(batch: &Batch, samples: std::ops::Range<usize>) -> Batch {
    fn cut<T: Clone>(values: &[T], rows: usize, samples: &std::ops::Range<usize>) -> Vec<T> {
        let each = values.len() / rows;
        values[samples.start * each..samples.end * each].to_vec()
    }
    let rows = batch.rows;
    Batch {
        rows: samples.len(),
        values: cut(&batch.values, rows, &samples),
        tokens: cut(&batch.tokens, rows, &samples),
        lengths: cut(&batch.lengths, rows, &samples),
        noise: cut(&batch.noise, rows, &samples),
        targets: match &batch.targets {
            Targets::Classes(classes) => Targets::Classes(cut(classes, rows, &samples)),
            Targets::Values(values) => Targets::Values(cut(values, rows, &samples)),
        },
    }
}

/// Compares every slope with a central difference of the loss, but for `kinks` of them, and the gradient of the whole
/// with the sum of those of its parts.
#[track_caller]
pub(crate) fn assert_gradients(model: &mut dyn Model, batch: &Batch, kinks: usize, name: &str) {
    const SCALE: f32 = 0.5;
    let len = model.parameters().len();
    let mut gradient = vec![f32::NAN; len];
    let sum = model.forward_backward(batch, SCALE, &mut gradient, Write::Set).unwrap();
    let mut spare = vec![0.0; len];
    let mut total =
        |model: &mut dyn Model| model.forward_backward(batch, SCALE, &mut spare, Write::Set).unwrap();
    assert_eq!(sum, total(model), "{name}: a second pass is the same");
    let mut off = Vec::new();
    // Small steps cross fewer kinks, large ones drown less in the rounding of f32.
    let step = if kinks > 0 { 1e-3f32 } else { 4e-3 };
    for (at, &slope) in gradient.iter().enumerate() {
        let middle = model.parameters()[at];
        let mut loss_at = |steps: f32| {
            model.parameters_mut()[at] = middle + steps * step;
            let loss = total(model);
            model.parameters_mut()[at] = middle;
            loss
        };
        // Differences of fourth order: the losses are far from straight.
        let (near, far) = (loss_at(1.0) - loss_at(-1.0), loss_at(2.0) - loss_at(-2.0));
        let difference = f64::from(SCALE) * (8.0 * near - far) / (12.0 * f64::from(step));
        let error = (difference - f64::from(slope)).abs();
        if error.is_nan() || error > 3e-3 * difference.abs().max(0.3) {
            let tensor = model.tensors().iter().find(|tensor| tensor.range.contains(&at)).unwrap();
            off.push(format!("{} {difference} {slope}", tensor.name));
        }
    }
    assert!(off.len() <= kinks, "{name}: {} of {len}: {off:?}", off.len());

    // Without dropout the loss of an evaluation is that of training.
    let still = Batch { noise: Vec::new(), ..batch.clone() };
    let mut outputs = Vec::new();
    let judged = model.evaluate(&still, &mut outputs).unwrap();
    let trained = model.forward_backward(&still, SCALE, &mut spare, Write::Set).unwrap();
    assert!((judged - trained).abs() < 1e-5 * trained.abs().max(1.0), "{name}: {judged} {trained}");

    let mut parts = vec![7.0; len];
    let first = part(batch, 0..4);
    let mut summed = model.forward_backward(&first, SCALE, &mut parts, Write::Set).unwrap();
    summed += model.forward_backward(&part(batch, 4..batch.rows), SCALE, &mut parts, Write::Add).unwrap();
    assert!((summed - sum).abs() < 1e-5 * sum.abs().max(1.0), "{name}");
    for (whole, parts) in gradient.iter().zip(&parts) {
        assert!((whole - parts).abs() < 2e-5 * whole.abs().max(1.0), "{name}: {whole} {parts}");
    }
    let mut end = 0;
    for tensor in model.tensors() {
        assert_eq!(tensor.range.start, end, "{name}: {}", tensor.name);
        assert_eq!(tensor.range.len(), tensor.shape.iter().product::<usize>(), "{name}: {}", tensor.name);
        end = tensor.range.end;
    }
    assert_eq!(end, len, "{name}");
}
