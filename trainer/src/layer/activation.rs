//! Activations and dropout, in place.

use super::math::{gelu, tanh};
use super::wide::wide;
use phalanx_core::spec::Activation;

wide! {
    /// Adds a bias to each row and applies the activation. `slopes` takes the slopes of gelu and tanh; those of relu are
    /// told by its results.
    pub(crate) fn activate(activation: Activation, values: &mut [f32], bias: &[f32], slopes: &mut [f32]) {
        let width = bias.len();
        match activation {
            Activation::Relu => {
                for row in values.chunks_exact_mut(width) {
                    for (value, bias) in row.iter_mut().zip(bias) {
                        let sum = *value + bias;
                        // Not `max`, which would turn NaN into 0 and hide a diverged run.
                        *value = if sum < 0.0 { 0.0 } else { sum };
                    }
                }
            }
            Activation::Tanh => {
                for (row, slopes) in values.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width)) {
                    for ((value, bias), slope) in row.iter_mut().zip(bias).zip(slopes) {
                        *value = tanh(*value + bias);
                        *slope = 1.0 - *value * *value;
                    }
                }
            }
            Activation::Gelu => {
                for (row, slopes) in values.chunks_exact_mut(width).zip(slopes.chunks_exact_mut(width)) {
                    for ((value, bias), slope) in row.iter_mut().zip(bias).zip(slopes) {
                        (*value, *slope) = gelu(*value + bias);
                    }
                }
            }
        }
    }
}

wide! {
    /// Multiplies `gradient` by the slopes of the activation whose results were `outputs`, dropped out or not.
    pub(crate) fn deactivate(activation: Activation, gradient: &mut [f32], outputs: &[f32], slopes: &[f32]) {
        match activation {
            Activation::Gelu | Activation::Tanh => {
                gradient.iter_mut().zip(slopes).for_each(|(g, slope)| *g *= slope);
            }
            // Branchless, so that it vectorises.
            Activation::Relu => {
                gradient.iter_mut().zip(outputs).for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 });
            }
        }
    }
}

wide! {
    /// Adds a bias to each row.
    pub(crate) fn add_bias(values: &mut [f32], bias: &[f32]) {
        for row in values.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
}

wide! {
    /// Adds `from` to `to`.
    pub(crate) fn add(to: &mut [f32], from: &[f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

wide! {
    /// Adds the columns' sums to `to`.
    pub(crate) fn add_column_sums(to: &mut [f32], values: &[f32]) {
        for row in values.chunks_exact(to.len()) {
            to.iter_mut().zip(row).for_each(|(to, value)| *to += value);
        }
    }
}

/// Which values a training step leaves out: a pure function of the sample and the place, so that it is the same
/// whatever the number of workers, and again on the way back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// A value stays where its 32 random bits reach this.
    threshold: u32,
    /// What makes up for those left out.
    scale: f32,
}

impl Dropout {
    /// Leaves out this share, from 0 to below 1.
    pub(crate) fn new(share: f64) -> Dropout {
        Dropout { threshold: (share * 2f64.powi(32)) as u32, scale: (1.0 / (1.0 - share)) as f32 }
    }

    /// Leaves values out of `values`, an equal part of which belongs to each sample; `place` tells the uses of one model
    /// apart. Without noise (a model that is judged) nothing happens.
    pub(crate) fn apply(self, values: &mut [f32], noise: &[u64], place: u32) {
        if self.threshold == 0 || noise.is_empty() {
            return;
        }
        let width = values.len() / noise.len();
        for (values, noise) in values.chunks_exact_mut(width).zip(noise) {
            leave_out(
                values,
                (*noise ^ (noise >> 32)) as u32 ^ place.wrapping_mul(GOLDEN),
                self.threshold,
                self.scale,
            );
        }
    }
}

/// 2^32 / φ.
const GOLDEN: u32 = 0x9e37_79b9;

wide! {
    fn leave_out(values: &mut [f32], key: u32, threshold: u32, scale: f32) {
        for (at, value) in values.iter_mut().enumerate() {
            // The finaliser of MurmurHash3 over a Weyl sequence.
            let mut bits = key.wrapping_add((at as u32).wrapping_mul(GOLDEN));
            bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
            bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
            bits ^= bits >> 16;
            *value = if bits < threshold { 0.0 } else { *value * scale };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_leaves_out_its_share_and_keeps_the_mean() {
        let noise: Vec<u64> = (0..50).map(|row| crate::random::mix(row + 1)).collect();
        let mut values = vec![1.0f32; 50 * 400];
        Dropout::new(0.3).apply(&mut values, &noise, 1);
        let left_out = values.iter().filter(|value| **value == 0.0).count() as f64 / 20_000.0;
        assert!((left_out - 0.3).abs() < 0.01, "{left_out}");
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        // Another sample, and another place of the same sample, loses others.
        assert_ne!(values[..400], values[400..800]);
        let mut other = vec![1.0f32; 400];
        Dropout::new(0.3).apply(&mut other, &noise[..1], 2);
        assert_ne!(values[..400], other[..]);
        // A part of a batch loses what it loses in the whole.
        let mut part = vec![1.0f32; 400];
        Dropout::new(0.3).apply(&mut part, &noise[1..2], 1);
        assert_eq!(values[400..800], part[..]);
        Dropout::new(0.3).apply(&mut part, &[], 1);
        assert_eq!(values[400..800], part[..]);
    }
}
