//! Independent draws, each from a stream of its own (Bergstra & Bengio 2012).

use super::View;
use crate::random::Stream;
use crate::space::Point;

pub(super) fn suggest(view: &View<'_>, given: &[Option<f64>]) -> Point {
    view.space.complete(given, |index| draw(view, index))
}

/// One parameter, evenly over its axis.
pub(super) fn draw(view: &View<'_>, index: usize) -> f64 {
    let param = &view.space.params()[index];
    param.axis.at(Stream::new(view.seed, view.number(), "random", &param.name).unit())
}
