//! Losses and scores of outputs against targets.

use crate::data::Targets;
use phalanx_core::spec::Loss;

/// Sums over judged rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Of losses.
    pub loss: f64,
    /// Of rows whose class was found.
    pub correct: u64,
    /// Of squared errors, for targets that are numbers.
    pub squared_error: f64,
}

/// Turns `outputs` (a row of `width` for each of `rows`) into `scale` × the gradient of their summed loss, which it returns.
pub(super) fn backward(
    loss: Loss,
    outputs: &mut [f32],
    width: usize,
    targets: &Targets,
    rows: &[u32],
    scale: f32,
) -> f64 {
    let mut sum = 0.0;
    for (output, &row) in outputs.chunks_exact_mut(width).zip(rows) {
        match targets {
            Targets::Classes(classes) => {
                sum += f64::from(cross_entropy(output, classes[row as usize] as usize, Some(scale)));
            }
            Targets::Values(values) => {
                let (value, slope) = pointwise(loss, output[0], values[row as usize]);
                output[0] = slope * scale;
                sum += f64::from(value);
            }
        }
    }
    sum
}

/// Judges `outputs`, which it may overwrite.
pub(super) fn score(loss: Loss, outputs: &mut [f32], width: usize, targets: &Targets, rows: &[u32]) -> Score {
    let mut score = Score::default();
    for (output, &row) in outputs.chunks_exact_mut(width).zip(rows) {
        match targets {
            Targets::Classes(classes) => {
                let class = classes[row as usize] as usize;
                score.correct += u64::from(largest(output) == class);
                score.loss += f64::from(cross_entropy(output, class, None));
            }
            Targets::Values(values) => {
                let target = values[row as usize];
                score.loss += f64::from(pointwise(loss, output[0], target).0);
                // Under bce the output is a logit: above 0 it says 1.
                score.correct += u64::from(loss == Loss::Bce && (output[0] > 0.0) == (target > 0.5));
                score.squared_error += (f64::from(output[0]) - f64::from(target)).powi(2);
            }
        }
    }
    score
}

/// The first of the largest.
fn largest(output: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in output.iter().enumerate() {
        if *value > output[best] {
            best = at;
        }
    }
    best
}

/// −log softmax(output)[class]; with a scale, `output` becomes scale × the gradient.
fn cross_entropy(output: &mut [f32], class: usize, scale: Option<f32>) -> f32 {
    let top = output.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let truth = output[class] - top;
    let mut sum = 0.0;
    for value in output.iter_mut() {
        *value = (*value - top).exp();
        sum += *value;
    }
    if let Some(scale) = scale {
        let factor = scale / sum;
        output.iter_mut().for_each(|value| *value *= factor);
        output[class] -= scale;
    }
    sum.ln() - truth
}

/// Loss of one output and its slope.
fn pointwise(loss: Loss, output: f32, target: f32) -> (f32, f32) {
    let error = output - target;
    match loss {
        Loss::Mse => (error * error, 2.0 * error),
        Loss::Mae => (error.abs(), if error == 0.0 { 0.0 } else { error.signum() }),
        // log(1 + e^x) − x·t, written so that no exponential overflows.
        Loss::Bce => {
            let tail = (-output.abs()).exp();
            let sigmoid = if output >= 0.0 { 1.0 / (1.0 + tail) } else { tail / (1.0 + tail) };
            (output.max(0.0) - output * target + tail.ln_1p(), sigmoid - target)
        }
        Loss::CrossEntropy => unreachable!("cross-entropy has classes, not values"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_of_known_outputs() {
        let mut output = [1.0f32, 2.0, 3.0];
        let loss = cross_entropy(&mut output, 2, Some(1.0));
        assert!((loss - 0.407_605_96).abs() < 1e-6, "{loss}");
        for (found, expected) in output.iter().zip([0.090_030_57, 0.244_728_47, -0.334_759_05]) {
            assert!((found - expected).abs() < 1e-6);
        }
        let mut far = [1e4f32, 0.0];
        assert_eq!(cross_entropy(&mut far, 0, None), 0.0);
        let mut far = [1e4f32, 0.0];
        assert_eq!(cross_entropy(&mut far, 1, None), 1e4);
    }

    #[test]
    fn a_nan_output_is_a_nan_loss() {
        assert!(cross_entropy(&mut [f32::NAN, 1.0], 1, None).is_nan());
        for loss in [Loss::Mse, Loss::Mae, Loss::Bce] {
            assert!(pointwise(loss, f32::NAN, 1.0).0.is_nan(), "{loss:?}");
        }
    }

    #[test]
    fn pointwise_slopes_match_differences() {
        for loss in [Loss::Mse, Loss::Mae, Loss::Bce] {
            for (output, target) in [(0.3, 1.0), (-2.0, 0.0), (40.0, 0.0), (-40.0, 1.0), (1.7, 1.0)] {
                const STEP: f32 = 1e-2;
                let up = f64::from(pointwise(loss, output + STEP, target).0);
                let down = f64::from(pointwise(loss, output - STEP, target).0);
                let difference = (up - down) / (2.0 * f64::from(STEP));
                let slope = f64::from(pointwise(loss, output, target).1);
                assert!(
                    (difference - slope).abs() < 2e-3 * slope.abs().max(1.0),
                    "{loss:?}: {difference} {slope}"
                );
            }
        }
    }

    #[test]
    fn scores_count_what_was_found() {
        let targets = Targets::Classes(vec![1, 0, 1]);
        let mut outputs = [0.0, 1.0, 5.0, 4.0, 2.0, 1.0];
        assert_eq!(score(Loss::CrossEntropy, &mut outputs, 2, &targets, &[0, 1, 2]).correct, 2);
        let targets = Targets::Values(vec![1.0, 0.0]);
        let bce = score(Loss::Bce, &mut [3.0, -1.0], 1, &targets, &[0, 1]);
        assert_eq!(bce.correct, 2);
        let mse = score(Loss::Mse, &mut [3.0, -1.0], 1, &targets, &[0, 1]);
        assert_eq!((mse.squared_error, mse.loss), (5.0, 5.0));
    }
}
