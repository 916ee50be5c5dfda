//! Bayesian optimisation by a Gaussian process: outputs warped, hyperparameters the most probable ones, the next trial
//! where the logarithm of expected improvement is largest (Jones et al. 1998; Ament et al., arXiv 2310.20708).
//!
//! Trials in flight are taken in as if they brought about what is expected of them (kriging believer, Ginsbourger et al.
//! 2010): the next one goes elsewhere, and has to improve upon them too. They share the work: one of them looks over the
//! whole box, the others around the best trial as long as that pays, where what is missed by not waiting for each other
//! is least (global and local steps as in Diouane et al., arXiv 2101.06808). In many dimensions it looks only near the
//! best trial, in a region that grows with success and shrinks without (Eriksson et al., arXiv 1910.01739). With
//! constraints what is promised counts as far as a point is likely to keep them; before any trial has kept them all,
//! that alone counts.

mod acquisition;
mod descent;
mod limits;
mod model;
mod region;
mod warp;

use super::{View, fidelity};
use crate::random::Stream;
use crate::space::{Axis, Point, Scale, Space};
use crate::trial::{Trial, TrialState};
use acquisition::{log_ei, log_ei_slopes};
use descent::{Bounds, minimise};
use limits::Limit;
use model::{Hyper, Metric, Model};
use region::{pays, region_side};

/// Candidates spread over the whole box …
const SPREAD_CANDIDATES: usize = 256;
/// … and around the best trials.
const NEAR_CANDIDATES: usize = 128;
/// How many of the best trials candidates are laid around.
const CENTRES: usize = 4;
/// Candidates of each sort from which the slope is followed.
const CLIMBS: usize = 3;
/// Iterations of a climb, and the share of gain that ends it.
const CLIMB_ITERATIONS: usize = 30;
const CLIMB_TOLERANCE: f64 = 1e-6;
/// Rounds over the coordinates that have no slope.
const EXCHANGES: usize = 3;
/// A fit holds until this many hundredths more observations have come.
const REFIT_PERCENT: usize = 8;
/// Observations that take part in a fit and in the model: the best and the latest, beyond it.
const MAX_OBSERVATIONS: usize = 300;
/// More dimensions than this are searched in a trust region.
const WHOLE_BOX_DIMS: usize = 20;
/// So many standard deviations worse than expected is what trials in flight are taken for: they were chosen because
/// they looked good, so they will be less good than they look.
const DOUBT: f64 = 0.5;
/// Of so many trials in flight one at least looks over the whole box.
const MOST_SHARING: u64 = 4;
/// Where the others look: so much of each side of the box, around the best trial …
const REGION_SIDE: f64 = 0.3;
/// … once so many trials a dimension have ended: before, nobody knows where to look closer.
const REGION_TRIALS_PER_DIM: usize = 4;
/// Closer than this, in a unit box, two points are one.
const SAME: f64 = 1e-9;

/// How one coordinate of the unit box belongs to a parameter.
#[derive(Clone, Copy, Debug)]
struct Coordinate {
    param: usize,
    axis: Axis,
}

impl Coordinate {
    fn metric(&self) -> Metric {
        if matches!(self.axis, Axis::Categories(_)) { Metric::Hamming } else { Metric::Square }
    }

    /// From a parameter's float; absent ones lie in the middle.
    fn encode(&self, float: Option<f64>) -> f64 {
        match (self.axis, float) {
            (Axis::Numeric(scale), Some(float)) => {
                let (low, high) = scale.ends();
                (scale.bend(float) - low) / (high - low)
            }
            (Axis::Numeric(_), None) => 0.5,
            // No category has this index: absence is one of its own.
            (_, None) => -1.0,
            (_, Some(index)) => index,
        }
    }

    fn decode(&self, place: f64) -> f64 {
        match self.axis {
            Axis::Numeric(scale) => {
                let (low, high) = scale.ends();
                scale.unbend(low + place * (high - low))
            }
            _ => place,
        }
    }

    /// The place in the unit box of the value that belongs to a share.
    fn at(&self, unit: f64) -> f64 {
        match self.axis {
            Axis::Numeric(Scale { step: 0.0, .. }) => unit,
            axis => self.encode(Some(axis.at(unit))),
        }
    }

    /// A slope leads along it.
    fn is_smooth(&self) -> bool {
        matches!(self.axis, Axis::Numeric(_))
    }

    /// The values beside one that are no further than a slope could tell.
    fn neighbours(&self, place: f64) -> Vec<f64> {
        match self.axis {
            Axis::Categories(count) => (0..count).map(|index| index as f64).filter(|p| *p != place).collect(),
            Axis::Numeric(scale) if scale.step > 0.0 => {
                let here = self.decode(place);
                let values = [-2.0, -1.0, 1.0, 2.0].map(|steps| here + steps * scale.step);
                let inside = |value: &f64| (scale.low..=scale.high).contains(value);
                values.into_iter().filter(inside).map(|value| self.encode(Some(value))).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The hyperparameters of some observations.
#[derive(Clone)]
struct Fit {
    /// The losses it was made of: a paused trial that went on has another one.
    losses: Vec<f64>,
    hyper: Hyper,
}

/// The sampler; but for the order in which trials ended it keeps only what is dear to compute again.
pub(super) struct Gp {
    coordinates: Vec<Coordinate>,
    /// Trials in the order in which they were first heard to have ended.
    ended: Vec<usize>,
    has_ended: Vec<bool>,
    /// Of the losses, then of each constraint's distances.
    fits: Vec<Option<Fit>>,
}

/// What a search for the next trial works on.
struct Search<'a> {
    coordinates: &'a [Coordinate],
    model: Model,
    limits: Vec<Limit>,
    /// The least feasible loss, to improve on; `None` where no trial is feasible.
    best: Option<f64>,
    /// Points of the best trials, the best first.
    centres: Vec<Vec<f64>>,
    /// Every point there is, so that none is run twice.
    taken: Vec<Vec<f64>>,
    /// What the caller has decided.
    given: Vec<Option<f64>>,
    bounds: Bounds,
    view: &'a View<'a>,
}

impl Gp {
    pub(super) fn new(space: &Space) -> Gp {
        let params = space.params().iter().enumerate().filter(|(_, param)| param.axis != Axis::Single);
        Gp {
            coordinates: params.map(|(param, found)| Coordinate { param, axis: found.axis }).collect(),
            ended: Vec::new(),
            has_ended: Vec::new(),
            fits: Vec::new(),
        }
    }

    pub(super) fn moved(&mut self, trial: &Trial) {
        let ends = !matches!(trial.state, TrialState::Running | TrialState::Cancelled);
        if self.has_ended.len() <= trial.index {
            self.has_ended.resize(trial.index + 1, false);
        }
        if ends && !self.has_ended[trial.index] {
            self.has_ended[trial.index] = true;
            self.ended.push(trial.index);
        }
    }

    /// The point that promises most; `None` where the numbers do not allow a model.
    pub(super) fn suggest(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Option<Point> {
        let level = fidelity::Level::of(view, self.coordinates.len());
        let losses: Vec<f64> =
            self.ended.iter().map(|index| level.loss(view, &view.trials[*index])).collect();
        let points: Vec<Vec<f64>> =
            self.ended.iter().map(|index| self.encoded(&view.trials[*index])).collect();
        let hyper = self.hyper(0, &points, &losses, warp::warp)?;
        let limits = self.limits(view)?;
        let kept = keep(&losses);
        let feasible: Vec<bool> = kept.iter().map(|at| view.trials[self.ended[*at]].is_feasible()).collect();
        let (points, losses): (Vec<Vec<f64>>, Vec<f64>) =
            kept.into_iter().map(|at| (points[at].clone(), losses[at])).unzip();
        let search = self.prepare(view, given, &hyper, (points, &losses, &feasible), limits)?;
        let found = search.best_point().or_else(|| search.widened()?.best_point())?;
        let mut proposal: Point = vec![None; given.len()];
        for (coordinate, place) in self.coordinates.iter().zip(found) {
            proposal[coordinate.param] = Some(coordinate.decode(place));
        }
        Some(view.space.complete(given, |param| proposal[param].unwrap_or(0.0)))
    }

    fn encoded(&self, trial: &Trial) -> Vec<f64> {
        self.coordinates.iter().map(|coordinate| coordinate.encode(trial.point[coordinate.param])).collect()
    }

    fn metrics(&self) -> Vec<Metric> {
        self.coordinates.iter().map(Coordinate::metric).collect()
    }

    /// What is believed of each constraint, from the trials that measured them.
    fn limits(&mut self, view: &View<'_>) -> Option<Vec<Limit>> {
        let measured: Vec<&Trial> = self
            .ended
            .iter()
            .map(|index| &view.trials[*index])
            .filter(|trial| !trial.measured.is_empty())
            .collect();
        let points: Vec<Vec<f64>> = measured.iter().map(|trial| self.encoded(trial)).collect();
        let mut limits = Vec::with_capacity(view.constraints.len());
        for (at, constraint) in view.constraints.iter().enumerate().filter(|_| !measured.is_empty()) {
            let excess: Vec<f64> =
                measured.iter().map(|trial| constraint.excess(trial.measured[at])).collect();
            let hyper = self.hyper(at + 1, &points, &excess, |excess| Some(limits::bend(excess)))?;
            let (mut points, mut excess) = (points.clone(), excess);
            // The latest alone, beyond the bound.
            let old = points.len().saturating_sub(MAX_OBSERVATIONS);
            points.drain(..old);
            excess.drain(..old);
            limits.push(Limit::new(&self.metrics(), &hyper, points, limits::bend(&excess))?);
        }
        Some(limits)
    }

    /// The hyperparameters that belong to so many observations, made fit for a process by `bend`. They follow from the
    /// first of them in the order in which trials ended, up to a number of a fixed sequence: from the log alone, whatever
    /// was asked in between.
    fn hyper(
        &mut self,
        which: usize,
        points: &[Vec<f64>],
        losses: &[f64],
        bend: impl Fn(&[f64]) -> Option<Vec<f64>>,
    ) -> Option<Hyper> {
        let observations = fit_size(losses.len());
        self.fits.resize(self.fits.len().max(which + 1), None);
        if let Some(fit) = &self.fits[which]
            && fit.losses == losses[..observations]
        {
            return Some(fit.hyper.clone());
        }
        let kept = keep(&losses[..observations]);
        let chosen: Vec<Vec<f64>> = kept.iter().map(|at| points[*at].clone()).collect();
        let values = bend(&kept.iter().map(|at| losses[*at]).collect::<Vec<f64>>())?;
        let hyper = Hyper::fit(&self.metrics(), &chosen, &values);
        self.fits[which] = Some(Fit { losses: losses[..observations].to_vec(), hyper: hyper.clone() });
        Some(hyper)
    }

    fn prepare<'a>(
        &'a self,
        view: &'a View<'a>,
        given: &[Option<f64>],
        hyper: &Hyper,
        (points, losses, feasible): (Vec<Vec<f64>>, &[f64], &[bool]),
        limits: Vec<Limit>,
    ) -> Option<Search<'a>> {
        let values = warp::warp(losses)?;
        let mut order: Vec<usize> = (0..losses.len()).collect();
        order.sort_by(|a, b| {
            (!feasible[*a]).cmp(&!feasible[*b]).then(values[*a].total_cmp(&values[*b])).then(a.cmp(b))
        });
        let centres: Vec<Vec<f64>> = order.iter().take(CENTRES).map(|at| points[*at].clone()).collect();
        let mut taken = points.clone();
        let mut model = Model::new(&self.metrics(), hyper, points, values)?;
        let best = model.fitted().zip(feasible).filter(|(_, feasible)| **feasible);
        let mut best = best.map(|(fitted, _)| fitted).min_by(f64::total_cmp);
        let mut running = 0;
        for trial in view.trials.iter().filter(|trial| trial.state == TrialState::Running) {
            running += 1;
            let point = self.encoded(trial);
            taken.push(point.clone());
            let is_feasible =
                limits.iter().map(|limit| limit.log_feasible(&point)).sum::<f64>() > 0.5_f64.ln();
            let value = model.imagine(point, DOUBT);
            best = best.map(|best| if is_feasible { best.min(value) } else { best });
        }
        let given =
            self.coordinates.iter().map(|c| given[c.param].map(|float| c.encode(Some(float)))).collect();
        let looks_near = !view.number().is_multiple_of((running + 1).min(MOST_SHARING))
            && losses.len() >= REGION_TRIALS_PER_DIM * self.coordinates.len()
            && pays(losses, feasible, self.coordinates.len());
        let bounds = self.bounds(hyper, &centres, losses, looks_near);
        let sound = best.is_none_or(f64::is_finite) && (best.is_some() || !limits.is_empty());
        sound.then_some(Search {
            coordinates: &self.coordinates,
            model,
            limits,
            best,
            centres,
            taken,
            given,
            bounds,
            view,
        })
    }

    /// The box to look in: all of it, or a region around the best trial; in many dimensions one whose sides are longer
    /// where the loss changes more slowly.
    fn bounds(&self, hyper: &Hyper, centres: &[Vec<f64>], losses: &[f64], looks_near: bool) -> Bounds {
        let dims = self.coordinates.len();
        let mut bounds = Bounds::unit(dims);
        let Some(centre) = centres.first().filter(|_| looks_near || dims > WHOLE_BOX_DIMS) else {
            return bounds;
        };
        let side = region_side(losses, dims);
        let mean_log: f64 = hyper.weights.iter().map(|w| -0.5 * w.ln()).sum::<f64>() / dims as f64;
        for dim in (0..dims).filter(|dim| self.coordinates[*dim].is_smooth()) {
            let stretched = || side * (-0.5 * hyper.weights[dim].ln() - mean_log).exp().clamp(0.25, 4.0);
            let half = 0.5 * if dims > WHOLE_BOX_DIMS { stretched() } else { REGION_SIDE };
            bounds.low[dim] = (centre[dim] - half).max(0.0);
            bounds.high[dim] = (centre[dim] + half).min(1.0);
        }
        bounds
    }
}

/// The largest number of the sequence of fits that is not above the observations.
fn fit_size(observations: usize) -> usize {
    let next = |size: &usize| Some(size + (size * REFIT_PERCENT / 100).max(1));
    std::iter::successors(Some(1), next).take_while(|size| *size <= observations).last().unwrap_or(0)
}

/// The observations that take part, in order: the better half of the bound and the latest of the others.
fn keep(losses: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..losses.len()).collect();
    if order.len() > MAX_OBSERVATIONS {
        order.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(a.cmp(b)));
        order[MAX_OBSERVATIONS / 2..].sort_unstable_by(|a, b| b.cmp(a));
        order.truncate(MAX_OBSERVATIONS);
        order.sort_unstable();
    }
    order
}

impl Search<'_> {
    fn value(&self, point: &[f64]) -> f64 {
        let improvement = self.best.map_or(0.0, |best| log_ei(&self.model, best, point));
        let value = improvement + self.limits.iter().map(|limit| limit.log_feasible(point)).sum::<f64>();
        if value.is_nan() { f64::NEG_INFINITY } else { value }
    }

    /// The same with its gradient.
    fn slopes(&self, point: &[f64], gradient: &mut [f64]) -> f64 {
        gradient.fill(0.0);
        let mut value = self.best.map_or(0.0, |best| log_ei_slopes(&self.model, best, point, gradient));
        for limit in &self.limits {
            value += limit.log_feasible_slopes(point, gradient);
        }
        value
    }

    /// The same search over the whole box, where this one is not.
    fn widened(mut self) -> Option<Self> {
        let whole = Bounds::unit(self.coordinates.len());
        let is_whole = self.bounds == whole;
        self.bounds = whole;
        (!is_whole).then_some(self)
    }

    fn best_point(&self) -> Option<Vec<f64>> {
        let mut starts = self.top(self.spread());
        starts.extend(self.top(self.near()));
        let mut climbed: Vec<(f64, Vec<f64>)> = starts.into_iter().map(|start| self.climb(start)).collect();
        climbed.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let chosen = climbed.into_iter().map(|(_, point)| point).find(|point| self.is_new(point));
        // Where every climb ends at a point that was tried, the best candidate that was not.
        let mut others = || {
            let mut all: Vec<(f64, Vec<f64>)> =
                self.spread().into_iter().filter(|p| self.is_new(p)).map(|p| (self.value(&p), p)).collect();
            all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            all.into_iter().next().map(|(_, point)| point)
        };
        chosen.or_else(&mut others)
    }

    fn is_new(&self, point: &[f64]) -> bool {
        let same = |other: &Vec<f64>| other.iter().zip(point).all(|(a, b)| (a - b).abs() < SAME);
        !self.taken.iter().any(same)
    }

    /// The candidates that promise most.
    fn top(&self, candidates: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let mut valued: Vec<(f64, Vec<f64>)> =
            candidates.into_iter().map(|point| (self.value(&point), point)).collect();
        valued.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        valued.into_iter().take(CLIMBS).map(|(_, point)| point).collect()
    }

    fn stream(&self, purpose: &str) -> Stream {
        Stream::new(self.view.seed, self.view.number(), "gp", purpose)
    }

    /// Evenly over the box.
    fn spread(&self) -> Vec<Vec<f64>> {
        let seed = (self.stream("sobol").unit() * f64::from(u32::MAX)) as u32;
        let place = |index: usize, dim: usize| {
            let unit = sobol_burley::sample(index as u32, dim as u32 % sobol_burley::NUM_DIMENSIONS, seed);
            let (low, high) = (self.bounds.low[dim], self.bounds.high[dim]);
            self.given[dim].unwrap_or_else(|| self.coordinates[dim].at(low + f64::from(unit) * (high - low)))
        };
        let dims = self.coordinates.len();
        (0..SPREAD_CANDIDATES).map(|index| (0..dims).map(|dim| place(index, dim)).collect()).collect()
    }

    /// Around the best trials, from very near to a good part of a length away.
    fn near(&self) -> Vec<Vec<f64>> {
        const NEAREST: f64 = 1e-3;
        let dims = self.coordinates.len();
        let mut stream = self.stream("near");
        // In many dimensions a step in all of them at once leads nowhere.
        let share = (20.0 / dims as f64).min(1.0) * 0.7;
        let mut candidates = Vec::with_capacity(NEAR_CANDIDATES);
        for index in 0..NEAR_CANDIDATES {
            let mut point = self.centres[index % self.centres.len()].clone();
            let reach = NEAREST.powf(stream.unit());
            for (dim, place) in point.iter_mut().enumerate() {
                let (moves, unit) = (stream.unit() < share, stream.unit());
                let coordinate = &self.coordinates[dim];
                if let Some(given) = self.given[dim] {
                    *place = given;
                } else if moves && coordinate.is_smooth() {
                    let length = 0.5 / self.model.hyper().weights[dim].sqrt();
                    let moved = *place + reach * length.min(0.5) * (2.0 * unit - 1.0);
                    *place = coordinate.at(moved.clamp(self.bounds.low[dim], self.bounds.high[dim]));
                } else if *place < 0.0 || (moves && stream.unit() < reach) {
                    *place = coordinate.at(unit);
                }
            }
            candidates.push(point);
        }
        candidates
    }

    /// Follows the slope, then exchanges values that have none.
    fn climb(&self, start: Vec<f64>) -> (f64, Vec<f64>) {
        let dims = self.coordinates.len();
        let free = |dim: usize| self.coordinates[dim].is_smooth() && self.given[dim].is_none();
        let bounds = Bounds {
            low: (0..dims).map(|dim| if free(dim) { self.bounds.low[dim] } else { start[dim] }).collect(),
            high: (0..dims).map(|dim| if free(dim) { self.bounds.high[dim] } else { start[dim] }).collect(),
        };
        let (mut point, _) =
            minimise(&start, &bounds, CLIMB_ITERATIONS, CLIMB_TOLERANCE, |point, gradient| {
                let value = self.slopes(point, gradient);
                gradient.iter_mut().for_each(|g| *g = -*g);
                -value
            });
        for (dim, coordinate) in self.coordinates.iter().enumerate() {
            if self.given[dim].is_none() && coordinate.is_smooth() {
                point[dim] = coordinate.encode(Some(coordinate.decode(point[dim])));
            }
        }
        let mut value = self.value(&point);
        for _ in 0..EXCHANGES {
            let mut changed = false;
            for dim in (0..dims).filter(|dim| self.given[*dim].is_none()) {
                for other in self.coordinates[dim].neighbours(point[dim]) {
                    let before = std::mem::replace(&mut point[dim], other);
                    let found = self.value(&point);
                    if found > value {
                        (value, changed) = (found, true);
                    } else {
                        point[dim] = before;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        // A point that was tried is no proposal, however much is promised of its surroundings.
        (if self.is_new(&point) { value } else { f64::NEG_INFINITY }, point)
    }
}

#[cfg(test)]
#[path = "../gp_tests.rs"]
mod tests;
