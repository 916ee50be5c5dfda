//! The tree-structured Parzen estimator: what is likely under the good trials and unlikely under the others.
//!
//! Bergstra et al. 2011, multivariate as in Falkner et al. 2018, with the constants of Optuna 5 (Watanabe,
//! arXiv 2304.11127); other than there, the random start is a Latin hypercube, the best candidate's numbers are refined, and
//! part of the trials are drawn around the best one alone. Parameters that are always there together are one group with one
//! estimator; running trials count among the others (constant liar), so that trials in flight keep apart.
//!
//! With several objectives (Ozaki et al. 2022) the good trials are the foremost fronts, of the last one those of most
//! hypervolume, and every parameter has an estimator of its own, as in Optuna 5: good trials lie all along the front, and
//! what is good of one parameter says little of another.

use super::leaders::{self, Leaders};
use super::parzen::{Along, Parzen};
use super::rank::Rank;
use super::{View, random};
use crate::random::Stream;
use crate::space::{Axis, Point, Space};
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::Objective;
use std::collections::BTreeSet;

/// Ended trials before it learns from them.
pub(super) const STARTUP_TRIALS: usize = 10;
/// Candidates drawn from the good trials, of which the best is taken.
const CANDIDATES: usize = 24;
/// One trial in so many is drawn from all good ones, the others from around the best: on a slope the best one is ahead of
/// the other good ones, which hold a search back. With trials in flight it is one of those …
const SHARING: (u64, u64) = (2, 4);
/// … and this part of the candidates and refinements is drawn: the more there are to choose from, the further from all
/// that is known is the most promising, and what it brings comes too late for those that are drawn meanwhile.
const PART_IN_FLIGHT: usize = 2;
/// Then each of its numbers is drawn anew so often from the same good trial, and kept where that is better: in many
/// dimensions the best of a few whole draws is still a poor one. What is chosen of a list stays, so that choices are as
/// varied as draws are.
const REFINEMENTS: usize = 2;
/// This share of the ended trials is good …
const GOOD_SHARE: f64 = 0.1;
/// … but no more than so many.
const MAX_GOOD: usize = 25;
/// The youngest of the others count, and no more: older ones have little weight, and would make each trial of a long
/// search dearer than the one before.
const MAX_OTHERS: usize = 200;

/// How many of so many ended trials are good.
pub(super) fn good_count(ended: usize) -> usize {
    share_of(ended).min(MAX_GOOD)
}

fn share_of(ended: usize) -> usize {
    (GOOD_SHARE * ended as f64).ceil() as usize
}

/// Parameters that are always there together.
struct Group {
    params: Vec<usize>,
    good: Parzen,
    others: Parzen,
}

impl Group {
    /// The trial's floats in this group, if the group is there in it.
    fn floats(&self, point: &Point) -> Option<Vec<f64>> {
        point[self.params[0]]
            .is_some()
            .then(|| self.params.iter().filter_map(|param| point[*param]).collect())
    }
}

/// The estimators, kept up to the log.
pub(super) struct Tpe {
    /// In an order in which parents are decided before groups that wait for them.
    groups: Vec<Group>,
    /// Ended trials, the best first.
    ranked: BTreeSet<Rank>,
    ranks: Vec<Option<Rank>>,
    /// With several objectives: who may be good among the complete ones.
    leaders: Option<Leaders>,
    /// The good trials, by their places among all that are known, as everywhere here.
    good: BTreeSet<usize>,
    /// Those that the estimators of the others may have: neither good nor cancelled.
    rest: BTreeSet<usize>,
    /// Whether a trial is in the estimators of the others.
    is_other: Vec<bool>,
    /// Trials whose state has changed since the last suggestion.
    changed: BTreeSet<usize>,
    learned: usize,
    is_running: Vec<bool>,
    running: usize,
}

/// How the candidates of a trial are drawn.
struct Manner {
    /// The trial that all are drawn around; else any good one.
    around: Option<usize>,
    candidates: usize,
    refinements: usize,
}

impl Tpe {
    pub(super) fn new(space: &Space, several: bool) -> Tpe {
        Tpe {
            groups: group(space, several),
            ranked: BTreeSet::new(),
            ranks: Vec::new(),
            leaders: several.then(Leaders::default),
            good: BTreeSet::new(),
            rest: BTreeSet::new(),
            is_other: Vec::new(),
            changed: BTreeSet::new(),
            learned: 0,
            is_running: Vec::new(),
            running: 0,
        }
    }

    /// How many trials have ended with something to learn from.
    pub(super) fn learned(&self) -> usize {
        self.learned
    }

    /// How many trials are in flight.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    pub(super) fn asked(&mut self, trial: &Trial) {
        self.admit(trial);
    }

    /// Makes room for a trial: one of an older study was never asked for.
    fn admit(&mut self, trial: &Trial) {
        let index = trial.index;
        if self.ranks.len() <= index {
            self.ranks.resize(index + 1, None);
            self.is_other.resize(index + 1, false);
            self.is_running.resize(index + 1, false);
        }
        let runs = trial.state == TrialState::Running;
        let ran = std::mem::replace(&mut self.is_running[index], runs);
        self.running = self.running + usize::from(runs) - usize::from(ran);
        self.changed.insert(index);
    }

    pub(super) fn moved(&mut self, objectives: &[Objective], trial: &Trial) {
        self.admit(trial);
        let learns = |rank: &Option<Rank>| usize::from(rank.as_ref().is_some_and(Rank::teaches));
        let (old, new) = (self.ranks[trial.index].take(), Rank::of(objectives[0].mode, trial));
        self.learned = self.learned + learns(&new) - learns(&old);
        if let Some(old) = old {
            self.ranked.remove(&old);
        }
        if let Some(new) = new {
            self.ranked.insert(new);
            if let Some(leaders) = self.leaders.as_mut().filter(|_| new.is_whole()) {
                leaders.insert(trial.index, trial.losses(objectives));
            }
        }
        self.ranks[trial.index] = new;
    }

    /// The good trials now.
    fn select(&mut self) -> BTreeSet<usize> {
        let first = |count: usize| self.ranked.iter().take(count).map(|rank| rank.index).collect();
        let Some(leaders) = &mut self.leaders else { return first(good_count(self.learned)) };
        let count = share_of(self.learned).min(leaders::MAX_GOOD);
        // Whole ones come first.
        let enough = self.ranked.iter().nth(count).is_some_and(Rank::is_whole);
        if enough { leaders.best(count).iter().copied().collect() } else { first(count) }
    }

    /// Puts every trial into the estimators it belongs to now.
    fn update(&mut self, trials: &[Trial]) {
        let good = self.select();
        let mut touched = std::mem::take(&mut self.changed);
        touched.extend(self.good.symmetric_difference(&good));
        let oldest = self.oldest_other();
        for &index in &touched {
            if trials[index].state != TrialState::Cancelled && !good.contains(&index) {
                self.rest.insert(index);
            } else {
                self.rest.remove(&index);
            }
        }
        // Where the window of the others has moved, trials between its old and its new end come or go.
        let (from, to) = (oldest, self.oldest_other());
        touched.extend(self.rest.range(from.min(to)..from.max(to)));
        for index in touched {
            let trial = &trials[index];
            let (was_good, is_good) = (self.good.contains(&index), good.contains(&index));
            let is_other = index >= to && self.rest.contains(&index);
            let was_other = std::mem::replace(&mut self.is_other[index], is_other);
            for group in &mut self.groups {
                let Some(floats) = group.floats(&trial.point) else { continue };
                group.good.set(index as u64, &floats, was_good, is_good);
                group.others.set(index as u64, &floats, was_other, is_other);
            }
        }
        for group in &mut self.groups {
            group.good.refresh();
            group.others.refresh();
        }
        self.good = good;
    }

    /// The oldest of the others that still counts.
    fn oldest_other(&self) -> usize {
        self.rest.iter().rev().nth(MAX_OTHERS - 1).copied().unwrap_or(0)
    }

    fn manner(&self, number: u64) -> Manner {
        let whole = Manner { around: None, candidates: CANDIDATES, refinements: REFINEMENTS };
        // With several objectives there is no best one.
        if self.leaders.is_some() {
            return whole;
        }
        let sharing = (self.running as u64 + 1).clamp(SHARING.0, SHARING.1);
        let best = self.ranked.first().map(|rank| rank.index);
        let part = if self.running > 0 { PART_IN_FLIGHT } else { 1 };
        Manner {
            around: best.filter(|_| !number.is_multiple_of(sharing)),
            candidates: CANDIDATES / part,
            refinements: REFINEMENTS / part,
        }
    }

    /// A point of what is likely under the good trials and unlikely under the others.
    pub(super) fn suggest(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Point {
        self.update(view.trials);
        let manner = self.manner(view.number());
        let mut proposal: Point = vec![None; given.len()];
        for group in &self.groups {
            // The decided parents are all in the proposal: their groups come before this one.
            settle_single(view.space, &mut proposal);
            if !view.space.is_active(group.params[0], &proposal) {
                continue;
            }
            let best = best_candidate(view, group, given, &manner);
            group.params.iter().zip(best).for_each(|(param, float)| proposal[*param] = Some(float));
        }
        view.space.complete(given, |param| proposal[param].unwrap_or_else(|| random::draw(view, param)))
    }
}

/// Parameters of one value are in no group and may be parents all the same.
fn settle_single(space: &Space, proposal: &mut Point) {
    for (index, param) in space.params().iter().enumerate() {
        if param.axis == Axis::Single && proposal[index].is_none() && space.is_active(index, proposal) {
            proposal[index] = Some(0.0);
        }
    }
}

/// The best of some draws from the good trials, its numbers refined one after the other.
fn best_candidate(view: &View<'_>, group: &Group, given: &[Option<f64>], manner: &Manner) -> Vec<f64> {
    let stream = |purpose, param: usize| {
        Stream::new(view.seed, view.number(), purpose, &view.space.params()[param].name)
    };
    let mut kernels = stream("tpe kernel", group.params[0]);
    // The best trial may be without these parameters.
    let around = manner.around.and_then(|index| group.good.position(index as u64));
    let mut kernel = || around.unwrap_or_else(|| group.good.pick(kernels.unit()));
    let kernels: Vec<usize> = (0..manner.candidates).map(|_| kernel()).collect();
    let empty = || Vec::with_capacity(group.params.len());
    let mut candidates: Vec<Vec<f64>> = std::iter::repeat_with(empty).take(manner.candidates).collect();
    for (dim, &param) in group.params.iter().enumerate() {
        let mut stream = stream("tpe", param);
        for (candidate, kernel) in candidates.iter_mut().zip(&kernels) {
            let float = group.good.draw(dim, *kernel, stream.unit());
            candidate.push(given[param].unwrap_or(float));
        }
    }
    let best = most_promising(&group.good.log_pdf(&candidates), &group.others.log_pdf(&candidates));
    let (mut candidate, kernel) = (candidates.swap_remove(best), kernels[best]);
    let (mut good, mut others) = (Along::new(&group.good, &candidate), Along::new(&group.others, &candidate));
    for (dim, &param) in group.params.iter().enumerate() {
        if given[param].is_none() && matches!(view.space.params()[param].axis, Axis::Numeric(_)) {
            let mut stream = stream("tpe refine", param);
            let mut floats = vec![candidate[dim]];
            floats.extend((0..manner.refinements).map(|_| group.good.draw(dim, kernel, stream.unit())));
            candidate[dim] = floats[most_promising(&good.log_pdf(&floats), &others.log_pdf(&floats))];
        }
        good.settle(candidate[dim]);
        others.settle(candidate[dim]);
    }
    candidate
}

/// Where the first logarithm exceeds the second by most; the first of equals.
fn most_promising(good: &[f64], others: &[f64]) -> usize {
    let better = |best: usize, at: usize| {
        if good[at] - others[at] > good[best] - others[best] { at } else { best }
    };
    (0..good.len()).reduce(better).unwrap_or(0)
}

/// Groups parameters by their conditions, or takes each for itself; parents' groups come first.
fn group(space: &Space, apart: bool) -> Vec<Group> {
    let params = space.params();
    let mut depths = vec![0_usize; params.len()];
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, param) in params.iter().enumerate() {
        depths[index] = param.when.iter().map(|(parent, _)| depths[*parent] + 1).max().unwrap_or(0);
        if param.axis == Axis::Single {
            continue;
        }
        match groups.iter_mut().find(|(_, members)| !apart && params[members[0]].when == param.when) {
            Some((_, members)) => members.push(index),
            None => groups.push((depths[index], vec![index])),
        }
    }
    groups.sort_by_key(|(depth, _)| *depth);
    let group = |(_, members): (usize, Vec<usize>)| {
        let axes = || members.iter().map(|index| params[*index].axis);
        let good = if apart { Parzen::unfading(axes()) } else { Parzen::new(axes()) };
        Group { good, others: Parzen::new(axes()), params: members.clone() }
    };
    groups.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use crate::space::tests::sweep;
    use phalanx_core::spec::Params;

    #[test]
    fn some_are_drawn_around_the_best_and_in_flight_more_from_fewer() {
        let spec = sweep("[params]\nx = { kind = \"float\", low = 0, high = 1 }\n");
        let mut tpe = Tpe::new(&Space::new(&spec.params), false);
        let trial = |at: usize| {
            let point = vec![Some(at as f64 / 20.0)];
            Trial::new(at, at as u64, Origin::Random, Params::new(), point)
        };
        for at in 0..20 {
            tpe.asked(&trial(at));
            let mut ended = trial(at);
            ended.state = TrialState::Complete;
            ended.values = vec![(at as f64 - 7.0).abs()];
            tpe.moved(&spec.objectives, &ended);
        }
        let around = |tpe: &Tpe| [20, 21, 22, 23].map(|number| tpe.manner(number).around);
        assert_eq!((tpe.running(), around(&tpe)), (0, [None, Some(7), None, Some(7)]));
        assert_eq!((tpe.manner(20).candidates, tpe.manner(20).refinements), (24, 2));
        (20..23).for_each(|at| tpe.asked(&trial(at)));
        assert_eq!((tpe.running(), around(&tpe)), (3, [None, Some(7), Some(7), Some(7)]));
        assert_eq!((tpe.manner(20).candidates, tpe.manner(20).refinements), (12, 1));
        let mut failed = trial(21);
        failed.state = TrialState::Failed;
        tpe.moved(&spec.objectives, &failed);
        assert_eq!(tpe.running(), 2);
    }
}
