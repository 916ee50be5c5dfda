//! A scrambled Sobol sequence (Owen 1997; hash-based scrambling after Burley 2020), the first point the centre.

use super::View;
use crate::random::Stream;
use crate::space::Point;

/// Dimensions of one sequence; parameters beyond them begin another one.
const DIMENSIONS: usize = sobol_burley::NUM_DIMENSIONS as usize;
/// Points of one sequence; beyond them another one begins.
const POINTS: u64 = 1 << 16;

/// The point at an index of the sequence; what is given replaces its coordinates.
pub(super) fn suggest(view: &View<'_>, given: &[Option<f64>], index: u64) -> Point {
    view.space.complete(given, |param| {
        let unit = if index == 0 { 0.5 } else { coordinate(view, param, index - 1) };
        view.space.params()[param].axis.at(unit)
    })
}

fn coordinate(view: &View<'_>, param: usize, index: u64) -> f64 {
    const CELL: f64 = 1.0 / (1_u64 << 24) as f64;
    let sequence = format!("{}/{}", index / POINTS, param / DIMENSIONS);
    let seed = (Stream::new(view.seed, 0, "sobol seed", &sequence).unit() * f64::from(u32::MAX)) as u32;
    let coarse = sobol_burley::sample((index % POINTS) as u32, (param % DIMENSIONS) as u32, seed);
    // The sequence has 24 bits; a draw within the cell gives the others.
    let fine = Stream::new(view.seed, view.number(), "sobol", &view.space.params()[param].name).unit();
    (f64::from(coarse) + fine * CELL).min(1.0 - f64::EPSILON)
}
