//! Minimises a smooth function in a box: L-BFGS (Nocedal & Wright, algorithm 7.4) on the coordinates that no bound
//! holds, every step projected back into the box. The crates for it either have no bounds or wrap Fortran.

use super::model::dot;
use std::collections::VecDeque;

/// Pairs of steps and gradient changes that are remembered.
const MEMORY: usize = 8;
/// Of the decrease that the gradient promises, a step has to bring this share (Armijo).
const SUFFICIENT: f64 = 1e-4;
/// Halvings of a step before the search ends.
const HALVINGS: usize = 12;

/// The bounds of every coordinate.
#[derive(PartialEq)]
pub(super) struct Bounds {
    pub(super) low: Vec<f64>,
    pub(super) high: Vec<f64>,
}

impl Bounds {
    /// The unit box.
    pub(super) fn unit(dims: usize) -> Bounds {
        Bounds { low: vec![0.0; dims], high: vec![1.0; dims] }
    }

    fn clamp(&self, x: &mut [f64]) {
        for ((x, low), high) in x.iter_mut().zip(&self.low).zip(&self.high) {
            *x = x.clamp(*low, *high);
        }
    }

    /// Whether descent along the gradient would leave the box at this coordinate.
    fn holds(&self, at: usize, x: f64, gradient: f64) -> bool {
        (x <= self.low[at] && gradient > 0.0) || (x >= self.high[at] && gradient < 0.0)
    }
}

/// Goes down from `start` for at most so many iterations; the place and its value. `value` writes the gradient and
/// answers with the value; one that is not finite is a wall.
pub(super) fn minimise(
    start: &[f64],
    bounds: &Bounds,
    iterations: usize,
    tolerance: f64,
    mut value: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> (Vec<f64>, f64) {
    let mut x = start.to_vec();
    bounds.clamp(&mut x);
    let mut gradient = vec![0.0; x.len()];
    let mut here = value(&x, &mut gradient);
    let mut memory: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new();
    for _ in 0..iterations {
        if !here.is_finite() {
            break;
        }
        let held: Vec<bool> = (0..x.len()).map(|at| bounds.holds(at, x[at], gradient[at])).collect();
        let mut step = direction(&gradient, &held, &memory);
        if dot(&step, &gradient) >= 0.0 {
            memory.clear();
            step = direction(&gradient, &held, &memory);
        }
        let Some((next, next_gradient, there)) =
            search(&x, here, &gradient, &step, memory.is_empty(), bounds, &mut value)
        else {
            if memory.is_empty() {
                break;
            }
            memory.clear();
            continue;
        };
        let moved: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let bent: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let gained = here - there;
        (x, gradient, here) = (next, next_gradient, there);
        if dot(&moved, &bent) > 1e-12 * dot(&bent, &bent) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((moved, bent));
        }
        if gained <= tolerance * here.abs().max(1.0) {
            break;
        }
    }
    (x, here)
}

/// The two-loop recursion over the free coordinates.
fn direction(gradient: &[f64], held: &[bool], memory: &VecDeque<(Vec<f64>, Vec<f64>)>) -> Vec<f64> {
    let free = |values: &mut [f64]| {
        values.iter_mut().zip(held).filter(|(_, held)| **held).for_each(|(value, _)| *value = 0.0);
    };
    let mut step: Vec<f64> = gradient.iter().map(|g| -g).collect();
    free(&mut step);
    let mut shares = Vec::with_capacity(memory.len());
    for (moved, bent) in memory.iter().rev() {
        let share = dot(moved, &step) / dot(moved, bent);
        step.iter_mut().zip(bent).for_each(|(s, b)| *s -= share * b);
        shares.push(share);
    }
    if let Some((moved, bent)) = memory.back() {
        let scale = dot(moved, bent) / dot(bent, bent);
        step.iter_mut().for_each(|s| *s *= scale);
    }
    for ((moved, bent), share) in memory.iter().zip(shares.iter().rev()) {
        let back = share - dot(bent, &step) / dot(moved, bent);
        step.iter_mut().zip(moved).for_each(|(s, m)| *s += back * m);
    }
    free(&mut step);
    step
}

/// The first of ever shorter steps that brings enough.
fn search(
    x: &[f64],
    here: f64,
    gradient: &[f64],
    step: &[f64],
    first: bool,
    bounds: &Bounds,
    value: &mut impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Option<(Vec<f64>, Vec<f64>, f64)> {
    // Without curvature the gradient says nothing of lengths: a tenth of the box's width is a fair first step.
    let longest = step.iter().fold(0.0, |most: f64, s| most.max(s.abs()));
    if longest == 0.0 {
        return None;
    }
    let width = bounds.high.iter().zip(&bounds.low).fold(0.0, |most: f64, (high, low)| most.max(high - low));
    let mut length = if first { (0.1 * width / longest).min(1.0) } else { 1.0 };
    let mut there = vec![0.0; x.len()];
    for _ in 0..HALVINGS {
        let mut next: Vec<f64> = x.iter().zip(step).map(|(x, s)| x + length * s).collect();
        bounds.clamp(&mut next);
        let promised: f64 = next.iter().zip(x).zip(gradient).map(|((next, x), g)| (next - x) * g).sum();
        let found = value(&next, &mut there);
        if found.is_finite() && promised < 0.0 && found <= here + SUFFICIENT * promised {
            return Some((next, there, found));
        }
        length *= 0.5;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rosenbrock(x: &[f64], gradient: &mut [f64]) -> f64 {
        let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
        gradient.copy_from_slice(&[-2.0 * a - 400.0 * x[0] * b, 200.0 * b]);
        a * a + 100.0 * b * b
    }

    #[test]
    fn a_curved_valley_is_followed_to_its_end() {
        let bounds = Bounds { low: vec![-2.0; 2], high: vec![2.0; 2] };
        let (x, value) = minimise(&[-1.2, 1.0], &bounds, 200, 0.0, rosenbrock);
        assert!(value < 1e-12 && (x[0] - 1.0).abs() < 1e-5, "{x:?} {value}");
    }

    #[test]
    fn a_bound_holds_and_the_rest_goes_on() {
        // With x ≤ 0.5 the least is at x = 0.5, y = 0.25.
        let bounds = Bounds { low: vec![-2.0; 2], high: vec![0.5, 2.0] };
        let (x, _) = minimise(&[-1.2, 1.0], &bounds, 200, 0.0, rosenbrock);
        assert!(x[0] == 0.5 && (x[1] - 0.25).abs() < 1e-4, "{x:?}");
    }

    #[test]
    fn what_is_not_a_number_is_a_wall() {
        let bounds = Bounds { low: vec![-5.0], high: vec![5.0] };
        let root = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 1.0 - 0.5 / x[0].sqrt();
            x[0] - x[0].sqrt()
        };
        let (x, _) = minimise(&[4.0], &bounds, 100, 0.0, root);
        assert!((x[0] - 0.25).abs() < 1e-5, "{x:?}");
    }
}
