//! Losses of outputs against targets.

use crate::data::Targets;
use crate::layer::math::{exp, largest, sum as sum_of};
use crate::layer::wide::wide;
use phalanx_core::spec::Loss;

/// Turns `outputs` (a row of `width` for each target) into `scale` × the gradient of their summed loss, which it returns.
pub(crate) fn backward(loss: Loss, outputs: &mut [f32], width: usize, targets: &Targets, scale: f32) -> f64 {
    match targets {
        Targets::Classes(classes) => cross_entropies(outputs, width, classes, scale),
        Targets::Values(values) => {
            let mut sum = 0.0;
            for (output, &target) in outputs.chunks_exact_mut(width).zip(values) {
                let (value, slope) = pointwise(loss, output[0], target);
                output[0] = slope * scale;
                sum += f64::from(value);
            }
            sum
        }
    }
}

/// The summed loss of `outputs`.
pub(crate) fn sum(loss: Loss, outputs: &[f32], width: usize, targets: &Targets) -> f64 {
    let rows = outputs.chunks_exact(width);
    match targets {
        Targets::Classes(classes) => {
            rows.zip(classes).map(|(row, &class)| f64::from(cross_entropy(row, class as usize))).sum()
        }
        Targets::Values(values) => {
            rows.zip(values).map(|(row, &target)| f64::from(pointwise(loss, row[0], target).0)).sum()
        }
    }
}

wide! {
    /// −log softmax(row)[class] summed over rows, which become `scale` × its gradient.
    fn cross_entropies(outputs: &mut [f32], width: usize, classes: &[u32], scale: f32) -> f64 {
        let mut total = 0.0;
        for (row, &class) in outputs.chunks_exact_mut(width).zip(classes) {
            let top = largest(row);
            let truth = row[class as usize] - top;
            for value in row.iter_mut() {
                *value = exp(*value - top);
            }
            let sum = sum_of(row, |value| value);
            let factor = scale / sum;
            row.iter_mut().for_each(|value| *value *= factor);
            row[class as usize] -= scale;
            total += f64::from(sum.ln() - truth);
        }
        total
    }
}

wide! {
    /// −log softmax(row)[class].
    fn cross_entropy(row: &[f32], class: usize) -> f32 {
        let top = largest(row);
        sum_of(row, |value| exp(value - top)).ln() - (row[class] - top)
    }
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
        let expected = 0.407_605_96;
        assert!((cross_entropy(&output, 2) - expected).abs() < 1e-6);
        let loss = backward(Loss::CrossEntropy, &mut output, 3, &Targets::Classes(vec![2]), 1.0);
        assert!((loss - f64::from(expected)).abs() < 1e-6, "{loss}");
        for (found, expected) in output.iter().zip([0.090_030_57, 0.244_728_47, -0.334_759_05]) {
            assert!((found - expected).abs() < 1e-6);
        }
        assert_eq!(cross_entropy(&[1e4f32, 0.0], 0), 0.0);
        assert_eq!(cross_entropy(&[1e4f32, 0.0], 1), 1e4);
    }

    #[test]
    fn a_nan_output_is_a_nan_loss() {
        assert!(cross_entropy(&[f32::NAN, 1.0], 1).is_nan());
        let targets = Targets::Classes(vec![1]);
        assert!(backward(Loss::CrossEntropy, &mut [f32::NAN, 1.0], 2, &targets, 1.0).is_nan());
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
}
