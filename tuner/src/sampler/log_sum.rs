//! Weighted sums of exponentials, by their logarithms. The loops are written in lanes and without calls, so that they
//! become vector instructions; a lane computes the same on every processor.

use std::f64::consts::LOG2_E;

/// Sums that grow beside each other.
const LANES: usize = 8;
/// Terms smaller than e to minus this, relative to the largest, add nothing to a sum of floats.
const NEGLIGIBLE: f64 = 45.0;

/// A sum under way: `total` times e to the power of `largest`.
#[derive(Clone, Copy)]
pub(super) struct LogSum {
    largest: f64,
    total: f64,
}

impl LogSum {
    /// Nothing yet.
    pub(super) const ZERO: LogSum = LogSum { largest: f64::NEG_INFINITY, total: 0.0 };

    /// Adds e to the power of each term, times its weight.
    #[inline(always)]
    pub(super) fn add(&mut self, terms: &[f64], weights: &[f64]) {
        let largest = largest(terms);
        if largest > self.largest {
            self.total *= (self.largest - largest).exp();
            self.largest = largest;
        }
        let mut sums = [0.0; LANES];
        let (chunks, rest) = terms.as_chunks::<LANES>();
        let (weights, last) = weights.as_chunks::<LANES>();
        let floor = self.largest - NEGLIGIBLE;
        for (chunk, weights) in chunks.iter().zip(weights) {
            // In many dimensions most terms are far below, and young neighbours are so together.
            if !chunk.iter().fold(false, |any, term| any | (*term > floor)) {
                continue;
            }
            for lane in 0..LANES {
                sums[lane] += weights[lane] * exp(chunk[lane] - self.largest);
            }
        }
        for (lane, (term, weight)) in rest.iter().zip(last).enumerate() {
            sums[lane] += weight * exp(term - self.largest);
        }
        self.total += sums.iter().sum::<f64>();
    }

    /// The logarithm of the sum.
    pub(super) fn ln(self) -> f64 {
        self.largest + self.total.ln()
    }
}

#[inline(always)]
fn largest(terms: &[f64]) -> f64 {
    let mut most = [f64::NEG_INFINITY; LANES];
    let (chunks, rest) = terms.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
        }
    }
    most.into_iter().chain(rest.iter().copied()).fold(f64::NEG_INFINITY, f64::max)
}

/// e to the power of what is not positive; below `-NEGLIGIBLE` it is that of it.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Added to a float, this rounds it to a whole number, which is in the lowest bits then.
    const SHIFT: f64 = 1.5 * (1_u64 << 52) as f64;
    /// ln 2 in two parts; a whole number of the first is exact.
    const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_588e-10];
    /// 1/k! from k = 10 on: for half of ln 2 what is left out is in the thirteenth digit.
    const FACTORIALS: [f64; 11] = [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let x = if x > -NEGLIGIBLE { x } else { -NEGLIGIBLE };
    let shifted = x * LOG2_E + SHIFT;
    let twos = shifted - SHIFT;
    let rest = (x - twos * LN_2[0]) - twos * LN_2[1];
    let power = FACTORIALS.into_iter().fold(0.0, |sum, factor| sum * rest + factor);
    // The whole number goes into the exponent.
    f64::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_have_twelve_digits() {
        for step in 0..45_000 {
            let x = -1e-3 * f64::from(step);
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-12, "{x}: {} and {}", exp(x), x.exp());
        }
        assert!(exp(f64::NEG_INFINITY) < 1e-19);
    }

    #[test]
    fn sums_of_any_length_are_those_of_their_terms() {
        for count in [1, 7, 8, 9, 30] {
            let terms: Vec<f64> = (0..count).map(|at| -700.0 - f64::from(at * 5 % 11)).collect();
            let weights: Vec<f64> = (0..count).map(|at| f64::from(at + 1)).collect();
            let mut sum = LogSum::ZERO;
            let half = terms.len() / 2;
            sum.add(&terms[..half], &weights[..half]);
            sum.add(&terms[half..], &weights[half..]);
            let plain: f64 =
                terms.iter().zip(&weights).map(|(term, weight)| weight * (term + 700.0).exp()).sum();
            assert!((sum.ln() - (plain.ln() - 700.0)).abs() < 1e-12, "{count}");
        }
    }
}
