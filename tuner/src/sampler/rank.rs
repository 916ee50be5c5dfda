//! The order in which one-objective samplers learn from ended trials.

use crate::study::loss;
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::MetricMode;
use std::cmp::Ordering;

/// Where a trial comes among the ended ones: complete by value, stopped by step reached and then by value, infeasible by
/// how far it is from feasible, failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rank {
    class: Class,
    major: f64,
    minor: f64,
    /// The trial's place among all that are known.
    pub(super) index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Complete,
    Stopped,
    Infeasible,
    Failed,
}

impl Rank {
    /// `None` while it runs, and where a person ended it.
    pub(super) fn of(mode: MetricMode, trial: &Trial) -> Option<Rank> {
        let rank = |class, major, minor| Some(Rank { class, major, minor, index: trial.index });
        // Adding zero makes one of the two zeros.
        let loss = |value: f64| loss(mode, value) + 0.0;
        match trial.state {
            TrialState::Running | TrialState::Cancelled => None,
            TrialState::Failed => rank(Class::Failed, 0.0, 0.0),
            _ if !trial.is_feasible() => rank(Class::Infeasible, trial.violation, 0.0),
            TrialState::Complete => rank(Class::Complete, trial.value().map_or(f64::INFINITY, loss), 0.0),
            TrialState::Stopped | TrialState::Paused => match trial.last_report() {
                Some((step, value)) => rank(Class::Stopped, -(step as f64), loss(value)),
                None => rank(Class::Stopped, 1.0, 0.0),
            },
        }
    }

    /// Whether there is something to learn from it.
    pub(super) fn teaches(&self) -> bool {
        self.class != Class::Failed
    }

    /// Whether the trial is complete and feasible.
    pub(super) fn is_whole(&self) -> bool {
        self.class == Class::Complete
    }

    /// The loss of a trial that is complete and feasible.
    pub(super) fn loss(&self) -> Option<f64> {
        self.is_whole().then_some(self.major)
    }
}

/// The better first.
impl Ord for Rank {
    fn cmp(&self, other: &Rank) -> Ordering {
        let floats = self.major.total_cmp(&other.major).then(self.minor.total_cmp(&other.minor));
        self.class.cmp(&other.class).then(floats).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Rank) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Rank) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}
