//! The tree-structured Parzen estimator: what is likely under the good trials and unlikely under the others.
//!
//! Bergstra et al. 2011, multivariate as in Falkner et al. 2018, with the constants of Optuna 5 (Watanabe,
//! arXiv 2304.11127). Parameters that are always there together are one group with one estimator; running trials count
//! among the others (constant liar), so that trials in flight keep apart.

use super::parzen::Parzen;
use super::{View, random};
use crate::random::Stream;
use crate::space::{Axis, Point, Space};
use crate::study::loss;
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::MetricMode;
use std::collections::BTreeSet;

/// Ended trials before it learns from them.
pub(super) const STARTUP_TRIALS: usize = 10;
/// Candidates drawn from the good trials, of which the best is taken.
const CANDIDATES: usize = 24;
/// This share of the ended trials is good …
const GOOD_SHARE: f64 = 0.1;
/// … but no more than so many.
const MAX_GOOD: usize = 25;

/// How many of so many ended trials are good.
pub(super) fn good_count(ended: usize) -> usize {
    ((GOOD_SHARE * ended as f64).ceil() as usize).min(MAX_GOOD)
}

/// Where a trial comes among the ended ones: complete by value, stopped by step reached and then by value, failed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rank {
    class: u8,
    major: f64,
    minor: f64,
    number: u64,
}

const COMPLETE: u8 = 0;
const STOPPED: u8 = 1;
const FAILED: u8 = 2;

impl Rank {
    fn of(mode: MetricMode, trial: &Trial) -> Option<Rank> {
        let rank = |class, major, minor| Some(Rank { class, major, minor, number: trial.number });
        // Adding zero makes one of the two zeros.
        let loss = |value: f64| loss(mode, value) + 0.0;
        match trial.state {
            TrialState::Complete => rank(COMPLETE, trial.value().map_or(f64::INFINITY, loss), 0.0),
            TrialState::Stopped | TrialState::Paused => match trial.last_report() {
                Some((step, value)) => rank(STOPPED, -(step as f64), loss(value)),
                None => rank(STOPPED, 1.0, 0.0),
            },
            TrialState::Failed => rank(FAILED, 0.0, 0.0),
            TrialState::Running | TrialState::Cancelled => None,
        }
    }

    fn cmp(&self, other: &Rank) -> std::cmp::Ordering {
        let floats = self.major.total_cmp(&other.major).then(self.minor.total_cmp(&other.minor));
        self.class.cmp(&other.class).then(floats).then(self.number.cmp(&other.number))
    }
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
    ranked: Vec<Rank>,
    ranks: Vec<Option<Rank>>,
    /// Numbers of the good trials.
    good: BTreeSet<u64>,
    /// Whether a trial is in the estimators of the others.
    is_other: Vec<bool>,
    /// Trials whose state has changed since the last suggestion.
    changed: BTreeSet<u64>,
    learned: usize,
}

impl Tpe {
    pub(super) fn new(space: &Space) -> Tpe {
        Tpe {
            groups: group(space),
            ranked: Vec::new(),
            ranks: Vec::new(),
            good: BTreeSet::new(),
            is_other: Vec::new(),
            changed: BTreeSet::new(),
            learned: 0,
        }
    }

    /// How many trials have ended with something to learn from.
    pub(super) fn learned(&self) -> usize {
        self.learned
    }

    pub(super) fn asked(&mut self, trial: &Trial) {
        self.ranks.push(None);
        self.is_other.push(false);
        self.changed.insert(trial.number);
    }

    pub(super) fn moved(&mut self, mode: MetricMode, trial: &Trial) {
        let number = trial.number as usize;
        let learns = |rank: &Option<Rank>| usize::from(rank.is_some_and(|rank| rank.class != FAILED));
        let (old, new) = (self.ranks[number].take(), Rank::of(mode, trial));
        self.learned = self.learned + learns(&new) - learns(&old);
        if let Some(old) = old
            && let Ok(at) = self.ranked.binary_search_by(|rank| rank.cmp(&old))
        {
            self.ranked.remove(at);
        }
        if let Some(new) = new {
            let at = self.ranked.partition_point(|rank| rank.cmp(&new).is_lt());
            self.ranked.insert(at, new);
        }
        self.ranks[number] = new;
        self.changed.insert(trial.number);
    }

    /// Puts every trial into the estimators it belongs to now.
    fn update(&mut self, trials: &[Trial]) {
        let count = good_count(self.learned);
        let good: BTreeSet<u64> = self.ranked[..count].iter().map(|rank| rank.number).collect();
        let mut touched = std::mem::take(&mut self.changed);
        touched.extend(self.good.symmetric_difference(&good));
        for number in touched {
            let trial = &trials[number as usize];
            let is_good = good.contains(&number);
            let is_other = trial.state != TrialState::Cancelled && !is_good;
            let was_good = self.good.contains(&number);
            let was_other = std::mem::replace(&mut self.is_other[number as usize], is_other);
            for group in &mut self.groups {
                let Some(floats) = group.floats(&trial.point) else { continue };
                group.good.set(number, &floats, was_good, is_good);
                group.others.set(number, &floats, was_other, is_other);
            }
        }
        for group in &mut self.groups {
            group.good.refresh();
            group.others.refresh();
        }
        self.good = good;
    }

    /// A point of what is likely under the good trials and unlikely under the others.
    pub(super) fn suggest(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Point {
        self.update(view.trials);
        let mut proposal: Point = vec![None; given.len()];
        for group in &self.groups {
            // The decided parents are all in the proposal: their groups come before this one.
            settle_single(view.space, &mut proposal);
            if !view.space.is_active(group.params[0], &proposal) {
                continue;
            }
            let best = best_candidate(view, group, given);
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

fn best_candidate(view: &View<'_>, group: &Group, given: &[Option<f64>]) -> Vec<f64> {
    let name = |param: usize| view.space.params()[param].name.as_str();
    let mut kernels = Stream::new(view.seed, view.number(), "tpe kernel", name(group.params[0]));
    let kernels: Vec<usize> = (0..CANDIDATES).map(|_| group.good.pick(kernels.unit())).collect();
    let empty = || Vec::with_capacity(group.params.len());
    let mut candidates: Vec<Vec<f64>> = std::iter::repeat_with(empty).take(CANDIDATES).collect();
    for (dim, &param) in group.params.iter().enumerate() {
        let mut stream = Stream::new(view.seed, view.number(), "tpe", name(param));
        for (candidate, kernel) in candidates.iter_mut().zip(&kernels) {
            let float = group.good.draw(dim, *kernel, stream.unit());
            candidate.push(given[param].unwrap_or(float));
        }
    }
    let (good, others) = (group.good.log_pdf(&candidates), group.others.log_pdf(&candidates));
    let mut best = 0;
    for index in 1..CANDIDATES {
        if good[index] - others[index] > good[best] - others[best] {
            best = index;
        }
    }
    candidates.swap_remove(best)
}

/// Groups parameters by their conditions; parents' groups come first.
fn group(space: &Space) -> Vec<Group> {
    let params = space.params();
    let mut depths = vec![0_usize; params.len()];
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, param) in params.iter().enumerate() {
        depths[index] = param.when.iter().map(|(parent, _)| depths[*parent] + 1).max().unwrap_or(0);
        if param.axis == Axis::Single {
            continue;
        }
        match groups.iter_mut().find(|(_, members)| params[members[0]].when == param.when) {
            Some((_, members)) => members.push(index),
            None => groups.push((depths[index], vec![index])),
        }
    }
    groups.sort_by_key(|(depth, _)| *depth);
    let group = |(_, members): (usize, Vec<usize>)| {
        let axes = || members.iter().map(|index| params[*index].axis);
        Group { good: Parzen::new(axes()), others: Parzen::new(axes()), params: members.clone() }
    };
    groups.into_iter().map(group).collect()
}
