//! One trial of a study.

use crate::space::Point;
use crate::study::loss;
use phalanx_core::spec::{Objective, Params};
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
    /// Covariance matrix adaptation.
    Cmaes,
    /// Genetic algorithm.
    Nsga2,
    /// Tree-structured Parzen estimator for several objectives.
    Motpe,
    /// Population-based training.
    Pbt,
}

/// Where a trial of population-based training comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The member that it is, from 0.
    pub member: u64,
    /// How many intervals lie behind it: its own is over at step `(generation + 1) · interval`.
    pub generation: u64,
    /// The trial whose checkpoint it starts from: the member's own last one, or a better member's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

impl Origin {
    /// The word for it, as in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Enqueued => "enqueued",
            Origin::Random => "random",
            Origin::Grid => "grid",
            Origin::Sobol => "sobol",
            Origin::Tpe => "tpe",
            Origin::Gp => "gp",
            Origin::Cmaes => "cmaes",
            Origin::Nsga2 => "nsga2",
            Origin::Motpe => "motpe",
            Origin::Pbt => "pbt",
        }
    }
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
    /// The same where there are constraints: with a value for each of their metrics, too.
    Measured {
        /// A value for each objective; none for the value it last reported.
        values: Vec<f64>,
        /// A value for each constraint.
        measured: Vec<f64>,
    },
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
    /// Its place in a population.
    pub lineage: Option<Lineage>,
    /// Where it is.
    pub state: TrialState,
    /// What it heard last.
    pub decision: Decision,
    /// (step, value) in growing order of steps.
    pub reports: Vec<(u64, f64)>,
    /// What it was told with; empty before, and where it ended without a value.
    pub values: Vec<f64>,
    /// The constraints' metrics, as told.
    pub measured: Vec<f64>,
    /// By how much it is outside of the constraints' bounds, in sum; 0 where it is feasible.
    pub violation: f64,
    /// Its place among all trials that the study knows, those of older studies first.
    pub(crate) index: usize,
    /// The last step since it started or was resumed.
    pub(crate) run_step: Option<u64>,
}

impl Trial {
    pub(crate) fn new(index: usize, number: u64, origin: Origin, params: Params, point: Point) -> Trial {
        Trial {
            number,
            params,
            point,
            origin,
            lineage: None,
            state: TrialState::Running,
            decision: Decision::Continue,
            reports: Vec::new(),
            values: Vec::new(),
            measured: Vec::new(),
            violation: 0.0,
            index,
            run_step: None,
        }
    }

    /// Whether it keeps every constraint, as far as is known.
    pub fn is_feasible(&self) -> bool {
        self.violation == 0.0
    }

    /// Its losses: lower is better, what is not a number is infinite.
    pub(crate) fn losses(&self, objectives: &[Objective]) -> Vec<f64> {
        objectives.iter().zip(&self.values).map(|(objective, value)| loss(objective.mode, *value)).collect()
    }

    /// The last (step, value) it reported.
    pub fn last_report(&self) -> Option<(u64, f64)> {
        self.reports.last().copied()
    }

    /// Its first value as told, else as last reported.
    pub fn value(&self) -> Option<f64> {
        self.values.first().copied().or(self.last_report().map(|(_, value)| value))
    }
}
