//! What a study refuses; a refusal changes nothing.

use thiserror::Error;

/// Why a study refuses a request or a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// No trial has this number.
    #[error("there is no trial {0}; ask for one first")]
    UnknownTrial(u64),
    /// The trial has ended.
    #[error("trial {0} has been told already; ask for another one")]
    Told(u64),
    /// Steps of a trial only grow.
    #[error(
        "trial {number} has reported step {last} already, and step {step} goes backwards; report steps in order"
    )]
    Backwards {
        /// The trial.
        number: u64,
        /// Its last step.
        last: u64,
        /// The step reported now.
        step: u64,
    },
    /// As many values as objectives are needed.
    #[error("trial {number} is told {found} values for {wanted} objectives; tell one value for each")]
    ValueCount {
        /// The trial.
        number: u64,
        /// How many objectives there are.
        wanted: usize,
        /// How many values came.
        found: usize,
    },
    /// A complete trial is told a value for each constraint.
    #[error("trial {number} is told {found} values for {wanted} constraints; tell one value for each")]
    MeasureCount {
        /// The trial.
        number: u64,
        /// How many constraints there are.
        wanted: usize,
        /// How many values came.
        found: usize,
    },
    /// A value of what no constraint is about.
    #[error("`constraints` names `{0}`, which no [[constraint]] does")]
    UnknownConstraint(String),
    /// A constraint whose metric has no value.
    #[error("`constraints` lacks `{0}`; tell a value for each [[constraint]]")]
    MissingConstraint(String),
    /// What is known from older studies is known from the start.
    #[error("trials of older studies are taken in before the first trial is asked for, not later")]
    Begun,
    /// An older study that looked for something else.
    #[error(
        "the older study improves or keeps other metrics; learn from one with the same objectives and constraints"
    )]
    OtherGoal,
    /// A complete trial has a value.
    #[error("trial {0} has no value; tell one, or tell that it failed")]
    NoValue(u64),
    /// The log belongs to a study with other settings.
    #[error("the log was made with another `{0}`; take the old sweep file, or start a new log")]
    OtherStudy(&'static str),
    /// A record that cannot follow the ones before it.
    #[error("the log is damaged: {0}; restore it from a copy, or start a new one")]
    BadLog(String),
}
