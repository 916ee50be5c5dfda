//! Every combination once, parameters that come first moving slowest.

use crate::space::{Param, Point, Space};
use std::collections::BTreeSet;

/// An index per parameter; that of an absent one is 0.
type Digits = Vec<u64>;

/// Where the walk over the grid is, and which points were visited out of turn.
pub(crate) struct Grid {
    counts: Vec<u64>,
    /// The next point in order; `None` once there is no more.
    next: Option<Digits>,
    visited: BTreeSet<Digits>,
}

impl Grid {
    pub(crate) fn new(space: &Space) -> Grid {
        // The reader refuses a grid over a continuum.
        let counts: Vec<u64> = space.params().iter().map(|param| param.count().unwrap_or(1)).collect();
        Grid { next: Some(vec![0; counts.len()]), counts, visited: BTreeSet::new() }
    }

    /// The first unvisited point that has what is given.
    pub(crate) fn next(&mut self, space: &Space, given: &[Option<f64>]) -> Option<Point> {
        let index = |(float, param): (&Option<f64>, &Param)| float.map(|float| param.index_of(float));
        let pinned: Vec<Option<u64>> = given.iter().zip(space.params()).map(index).collect();
        let free = pinned.iter().all(Option::is_none);
        let mut digits: Digits = match &self.next {
            _ if !free => pinned.iter().map(|pin| pin.unwrap_or(0)).collect(),
            Some(next) => next.clone(),
            None => return None,
        };
        loop {
            let point = point_of(space, &digits);
            let canonical = canonical(&digits, &point);
            // A given parameter that is absent here makes this a point of another kind.
            let fits = pinned.iter().zip(&point).all(|(pin, float)| pin.is_none() || float.is_some());
            if fits && !self.visited.contains(&canonical) {
                return Some(point);
            }
            let more = step(&self.counts, &pinned, &point, &mut digits);
            if free {
                self.next = more.then(|| digits.clone());
            }
            if !more {
                return None;
            }
        }
    }

    /// A trial has this point.
    pub(crate) fn visited(&mut self, space: &Space, point: &Point) {
        let index = |(param, float): (&Param, &Option<f64>)| float.map_or(0, |float| param.index_of(float));
        self.visited.insert(space.params().iter().zip(point).map(index).collect());
    }
}

fn point_of(space: &Space, digits: &Digits) -> Point {
    let nothing: Point = vec![None; digits.len()];
    space.complete(&nothing, |index| space.params()[index].nth(digits[index]))
}

fn canonical(digits: &Digits, point: &Point) -> Digits {
    digits.iter().zip(point).map(|(digit, float)| if float.is_some() { *digit } else { 0 }).collect()
}

/// Moves to the next combination; `false` at the end. Absent and pinned parameters do not move.
fn step(counts: &[u64], pinned: &[Option<u64>], point: &Point, digits: &mut Digits) -> bool {
    for index in (0..digits.len()).rev() {
        if pinned[index].is_some() || point[index].is_none() {
            continue;
        }
        if digits[index] + 1 < counts[index] {
            digits[index] += 1;
            return true;
        }
        digits[index] = 0;
    }
    false
}
