//! One trial of a study.

use crate::space::Point;
use phalanx_core::spec::Params;
use serde::{Deserialize, Serialize};

/// What made a trial's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The file, maybe filled in by the sampler.
    Enqueued,
    /// Independent draws.
    Random,
    /// The next grid point.
    Grid,
    /// The next point of a low-discrepancy sequence.
    Sobol,
    /// Tree-structured Parzen estimator.
    Tpe,
    /// Gaussian process.
    Gp,
}

/// What a trial hears after a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Go on.
    #[default]
    Continue,
    /// End; it does not come back.
    Stop,
    /// Keep a checkpoint and free the devices; it may come back.
    Pause,
}

/// Where a trial is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialState {
    /// Asked for and not told.
    Running,
    /// At a rung, waiting to be promoted.
    Paused,
    /// It came to its end.
    Complete,
    /// It was stopped early.
    Stopped,
    /// It broke.
    Failed,
    /// A person ended it.
    Cancelled,
}

impl TrialState {
    /// Whether it has been told.
    pub fn is_told(self) -> bool {
        !matches!(self, TrialState::Running | TrialState::Paused)
    }
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With a value for each objective.
    Values(Vec<f64>),
    /// With the value it last reported.
    LastReport,
    /// Early, with the value it last reported, if any.
    Stopped,
    /// It broke.
    Failed,
    /// A person ended it.
    Cancelled,
}

/// Everything a study knows of a trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Counts from 0.
    pub number: u64,
    /// What it runs with.
    pub params: Params,
    /// The same for samplers.
    pub point: Point,
    /// What made them.
    pub origin: Origin,
    /// Where it is.
    pub state: TrialState,
    /// What it heard last.
    pub decision: Decision,
    /// (step, value) in growing order of steps.
    pub reports: Vec<(u64, f64)>,
    /// What it was told with; empty before, and where it ended without a value.
    pub values: Vec<f64>,
    /// The last step since it started or was resumed.
    pub(crate) run_step: Option<u64>,
}

impl Trial {
    /// The last (step, value) it reported.
    pub fn last_report(&self) -> Option<(u64, f64)> {
        self.reports.last().copied()
    }

    /// Its first value as told, else as last reported.
    pub fn value(&self) -> Option<f64> {
        self.values.first().copied().or(self.last_report().map(|(_, value)| value))
    }
}
