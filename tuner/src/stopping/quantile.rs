//! One quantile of losses that become more and more: what lies below its place in one heap, the rest in another, so that
//! a loss costs a logarithm of how many there are.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A loss in the order of all floats.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Total(f64);

impl Total {
    pub(super) fn of(loss: f64) -> Total {
        // Adding zero makes one of the two zeros.
        Total(loss + 0.0)
    }
}

impl Eq for Total {}

impl Ord for Total {
    fn cmp(&self, other: &Total) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Total {
    fn partial_cmp(&self, other: &Total) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The quantile of a share from 0 to 1.
pub(super) struct Quantile {
    share: f64,
    /// Those up to the place of the quantile, the largest on top; its place is `share · (count − 1)`.
    below: BinaryHeap<Total>,
    /// Those beyond it, the least on top.
    above: BinaryHeap<Reverse<Total>>,
}

impl Quantile {
    pub(super) fn new(share: f64) -> Quantile {
        Quantile { share, below: BinaryHeap::new(), above: BinaryHeap::new() }
    }

    /// Takes one more in, which is a number or infinite.
    pub(super) fn insert(&mut self, loss: f64) {
        self.below.push(Total::of(loss));
        self.above.extend(self.below.pop().map(Reverse));
        let wanted = self.place() as usize + 1;
        while self.below.len() < wanted
            && let Some(Reverse(least)) = self.above.pop()
        {
            self.below.push(least);
        }
    }

    fn place(&self) -> f64 {
        self.share * (self.below.len() + self.above.len()).saturating_sub(1) as f64
    }

    /// On the line between the two that it lies between, as numpy has it; `None` of nothing.
    pub(super) fn linear(&self) -> Option<f64> {
        let a = self.lower()?;
        let b = self.above.peek().map_or(a, |Reverse(least)| least.0);
        let t = self.place().fract();
        let between = if t >= 0.5 { b - (b - a) * (1.0 - t) } else { a + (b - a) * t };
        // Between infinities there is no line: the lower one counts up to the upper one's own place.
        Some(if t == 0.0 || a == b {
            a
        } else if between.is_nan() {
            b
        } else {
            between
        })
    }

    /// The lower of the two that it lies between; `None` of nothing.
    pub(super) fn lower(&self) -> Option<f64> {
        self.below.peek().map(|most| most.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(losses: &[f64], share: f64) -> Quantile {
        let mut quantile = Quantile::new(share);
        losses.iter().for_each(|loss| quantile.insert(*loss));
        quantile
    }

    #[test]
    fn quantiles_are_interpolated() {
        let linear = |losses: &[f64], share| of(losses, share).linear().unwrap();
        assert_eq!(linear(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(linear(&[1.0, 2.0], 0.25), 1.25);
        assert_eq!(linear(&[f64::INFINITY, 1.0], 0.25), f64::INFINITY);
        assert_eq!(linear(&[f64::INFINITY, f64::INFINITY], 0.3), f64::INFINITY);
        assert_eq!(linear(&[f64::NEG_INFINITY, 1.0, 2.0], 0.5), 1.0);
        assert_eq!(of(&[], 0.5).linear(), None);
    }

    proptest! {
        #[test]
        fn they_are_those_of_all_sorted(
            mut losses in prop::collection::vec((0_i32..40).prop_map(f64::from), 1..60),
            share in prop::sample::select(vec![0.0, 0.1, 1.0 / 3.0, 0.5, 0.9, 1.0]),
        ) {
            let quantile = of(&losses, share);
            losses.sort_by(f64::total_cmp);
            let place = share * (losses.len() - 1) as f64;
            let (at, last) = (place as usize, losses.len() - 1);
            prop_assert_eq!(quantile.lower(), Some(losses[at]));
            let line = losses[at] + (losses[(at + 1).min(last)] - losses[at]) * place.fract();
            prop_assert!((quantile.linear().unwrap() - line).abs() < 1e-12);
        }
    }
}
