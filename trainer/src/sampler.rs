//! Which samples a step takes: a pure function of the seed, the epoch and the index, whatever the number of workers.

use crate::random::{Stream, draw, key};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A shuffled order of `0..len` that is computed, not stored: any place of it is found at once, so that a run
/// resumes in the middle of an epoch for nothing.
///
/// A Feistel network on the product of two ranges that just covers `len` (Black & Rogaway 2002), walked until it
/// lands inside; fewer than one walk in `sqrt(len)` takes a second round.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    left: u64,
    right: u64,
    key: u64,
}

/// Half rounds of the network. Four make it hard to tell from random (Luby & Rackoff 1988); these are cheap.
const ROUNDS: u64 = 8;

impl Permutation {
    pub(crate) fn new(len: u64, seed: u64, stream: Stream) -> Permutation {
        let left = len.isqrt().max(1);
        let right = len.div_ceil(left).max(1);
        Permutation { len, left, right, key: key(seed, stream) }
    }

    /// The element at place `index`, which must be below the length.
    pub(crate) fn at(&self, index: u64) -> u64 {
        assert!(index < self.len, "place {index} of a permutation of {}", self.len);
        let mut value = index;
        loop {
            value = self.scramble(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn scramble(&self, value: u64) -> u64 {
        let (mut left, mut right) = (value / self.right, value % self.right);
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                left = add_below(left, self.noise(round, right), self.left);
            } else {
                right = add_below(right, self.noise(round, left), self.right);
            }
        }
        left * self.right + right
    }

    fn noise(&self, round: u64, half: u64) -> u64 {
        draw(self.key.wrapping_add(round << 48), half)
    }
}

/// `value` moved round a circle of `bound` places by `noise`, a number of 64 bits scaled to the bound.
fn add_below(value: u64, noise: u64, bound: u64) -> u64 {
    let step = ((u128::from(noise) * u128::from(bound)) >> 64) as u64;
    let sum = value + step;
    if sum >= bound { sum - bound } else { sum }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Epochs done.
    pub(crate) epoch: u64,
    /// Samples of the present epoch done.
    pub(crate) index: u64,
}

/// Cuts epochs into global batches and global batches into the parts of workers.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    samples: u64,
    batch: u64,
    seed: u64,
    order: Permutation,
    epoch: u64,
}

impl Sampler {
    /// Samples `0..samples`, in global batches of `batch`. The last batch of an epoch holds what is left.
    pub(crate) fn new(samples: u64, batch: u64, seed: u64) -> Sampler {
        assert!(samples > 0 && batch > 0, "{samples} samples in batches of {batch}");
        Sampler { samples, batch, seed, order: Permutation::new(samples, seed, Stream::Epoch(0)), epoch: 0 }
    }

    /// Steps of one epoch.
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.samples.div_ceil(self.batch)
    }

    /// Places of the epoch's order that the global batch after `position` takes.
    pub(crate) fn batch(&self, position: Position) -> Range<u64> {
        position.index..(position.index + self.batch).min(self.samples)
    }

    /// Where a run stands after the global batch that follows `position`.
    pub(crate) fn advance(&self, position: Position) -> Position {
        let end = self.batch(position).end;
        let step = position.step + 1;
        if end == self.samples {
            Position { step, epoch: position.epoch + 1, index: 0 }
        } else {
            Position { step, epoch: position.epoch, index: end }
        }
    }

    /// Puts the samples at `places` of `epoch`'s order into `rows`.
    pub(crate) fn fill(&mut self, epoch: u64, places: Range<u64>, rows: &mut Vec<u32>) {
        if epoch != self.epoch {
            self.order = Permutation::new(self.samples, self.seed, Stream::Epoch(epoch));
            self.epoch = epoch;
        }
        rows.clear();
        rows.extend(places.map(|place| self.order.at(place) as u32));
    }
}

/// Part `part` of `parts` of a range: contiguous, together the whole, none more than one longer than another.
pub(crate) fn part_of(range: &Range<u64>, part: u64, parts: u64) -> Range<u64> {
    let len = u128::from(range.end - range.start);
    let cut = |at: u64| range.start + (len * u128::from(at) / u128::from(parts)) as u64;
    cut(part)..cut(part + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_epoch_takes_every_sample_once(len in 1u64..3000, seed: u64, epoch in 0u64..1000) {
            let order = Permutation::new(len, seed, Stream::Epoch(epoch));
            let seen: BTreeSet<u64> = (0..len).map(|index| order.at(index)).collect();
            prop_assert_eq!(seen.len() as u64, len);
            prop_assert_eq!(seen.last().copied(), Some(len - 1));
        }

        #[test]
        fn any_number_of_workers_takes_the_same_batches(
            samples in 1u64..500, batch in 1u64..100, world in 1u64..9, seed: u64,
        ) {
            let batch = batch.min(samples);
            let mut whole = Sampler::new(samples, batch, seed);
            let mut split = whole.clone();
            let (mut expected, mut piece) = (Vec::new(), Vec::new());
            let mut position = Position::default();
            for _ in 0..2 * whole.steps_per_epoch() {
                let places = whole.batch(position);
                prop_assert!(places.end > places.start && places.end - places.start <= batch);
                whole.fill(position.epoch, places.clone(), &mut expected);
                let mut got = Vec::new();
                for rank in 0..world {
                    split.fill(position.epoch, part_of(&places, rank, world), &mut piece);
                    got.extend_from_slice(&piece);
                }
                prop_assert_eq!(&got, &expected);
                position = whole.advance(position);
            }
            prop_assert_eq!(position, Position { step: 2 * whole.steps_per_epoch(), epoch: 2, index: 0 });
        }

        #[test]
        fn resuming_anywhere_loses_and_repeats_nothing(samples in 1u64..300, batch in 1u64..50, at in 0u64..40) {
            let batch = batch.min(samples);
            let sampler = Sampler::new(samples, batch, 3);
            let mut position = Position::default();
            let mut straight = Vec::new();
            for _ in 0..40 + at {
                straight.push((position.epoch, sampler.batch(position)));
                position = sampler.advance(position);
            }
            let mut position = Position::default();
            for _ in 0..at { position = sampler.advance(position); }
            let json = serde_json::to_string(&position).unwrap();
            let mut position: Position = serde_json::from_str(&json).unwrap();
            for expected in &straight[at as usize..] {
                prop_assert_eq!(&(position.epoch, sampler.batch(position)), expected);
                position = sampler.advance(position);
            }
        }
    }

    /// Over many orders of seven elements each element is at each place about as often as at any other.
    #[test]
    fn orders_are_even() {
        const LEN: u64 = 7;
        const ORDERS: u64 = 70_000;
        let mut counts = [[0u64; LEN as usize]; LEN as usize];
        for epoch in 0..ORDERS {
            let order = Permutation::new(LEN, 5, Stream::Epoch(epoch));
            for place in 0..LEN {
                counts[place as usize][order.at(place) as usize] += 1;
            }
        }
        let expected = (ORDERS / LEN) as f64;
        for count in counts.iter().flatten() {
            assert!((*count as f64 / expected - 1.0).abs() < 0.06, "{counts:?}");
        }
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let order = Permutation::new(10_000, 1, Stream::Epoch(0));
        let close = (1..10_000).filter(|&at| order.at(at).abs_diff(order.at(at - 1)) < 100).count();
        // Two random places of 10,000 are closer than 100 with probability 2 %.
        assert!((100..320).contains(&close), "{close}");
    }
}
