//! What a study writes down: the log is append-only, and all of a study's state follows from it.

use crate::trial::{Decision, Lineage, Origin, TrialState};
use phalanx_core::report::Metric;
use phalanx_core::spec::{Constraint, Objective, ParamSpec, Params, Search, Stopping, SweepSpec};
use serde::{Deserialize, Serialize};

/// The settings that decisions follow from; a log belongs to one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// What is improved.
    pub objectives: Vec<Objective>,
    /// What the best trials have to keep.
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// Seeds every random choice.
    pub seed: u64,
    /// What proposes.
    pub search: Search,
    /// What stops early.
    pub stopping: Stopping,
    /// The parameters.
    pub params: Vec<ParamSpec>,
    /// Points to try first.
    pub enqueue: Vec<Params>,
}

impl Identity {
    pub(crate) fn of(spec: &SweepSpec) -> Identity {
        Identity {
            objectives: spec.objectives.clone(),
            constraints: spec.constraints.clone(),
            seed: spec.seed,
            search: spec.search,
            stopping: spec.stopping.clone(),
            params: spec.params.clone(),
            enqueue: spec.enqueue.clone(),
        }
    }

    /// The first table in which two differ.
    pub(crate) fn difference(&self, other: &Identity) -> Option<&'static str> {
        let parts = [
            ("sweep.metric", self.objectives == other.objectives),
            ("constraint", self.constraints == other.constraints),
            ("sweep.seed", self.seed == other.seed),
            ("search", self.search == other.search),
            ("stopping", self.stopping == other.stopping),
            ("params", self.params == other.params),
            ("enqueue", self.enqueue == other.enqueue),
        ];
        parts.iter().find(|(_, same)| !same).map(|(name, _)| *name)
    }
}

/// A complete trial of an older study, to learn from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// What it ran with.
    pub params: Params,
    /// Its value for each objective.
    pub values: Vec<Metric>,
    /// Its value of each constraint's metric.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Metric>,
}

/// The complete trials of a log, and those that its study had learnt from.
pub(crate) fn knowledge(log: &[Record]) -> Vec<Known> {
    let mut asked: Vec<&Params> = Vec::new();
    let mut found = Vec::new();
    for record in log {
        match record {
            Record::Known(known) => found.push(known.clone()),
            Record::Asked { params, .. } => asked.push(params),
            Record::Told { number, state: TrialState::Complete, values, measured } => {
                found.extend(asked.get(*number as usize).map(|params| Known {
                    params: (*params).clone(),
                    values: values.clone(),
                    measured: measured.clone(),
                }));
            }
            _ => {}
        }
    }
    found
}

/// One entry of a study's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The first record: whose log this is.
    Study(Box<Identity>),
    /// A trial of an older study, known before the first one of this.
    Known(Known),
    /// A new trial was handed out.
    Asked {
        /// Its number.
        number: u64,
        /// What made the parameters.
        sampler: Origin,
        /// The index of the enqueued point, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        enqueued: Option<usize>,
        /// Its place in a population.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lineage: Option<Lineage>,
        /// The parameters.
        params: Params,
    },
    /// A paused trial was handed out again.
    Resumed {
        /// Its number.
        number: u64,
    },
    /// A trial reported, and this was decided.
    Reported {
        /// Its number.
        number: u64,
        /// The step.
        step: u64,
        /// The value.
        value: Metric,
        /// What it heard.
        decision: Decision,
    },
    /// A trial ended.
    Told {
        /// Its number.
        number: u64,
        /// How.
        state: TrialState,
        /// With which values, if any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        values: Vec<Metric>,
        /// With which values of the constraints' metrics, if any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        measured: Vec<Metric>,
    },
}
