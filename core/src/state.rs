//! The states of jobs, attempts and nodes, and the only moves between them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Defines an enum whose variants have one name on the wire, in the store and in JSON.
macro_rules! named_states {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every state, in the order of a life.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// The name people and programs meet.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownState;

            fn from_str(text: &str) -> Result<Self, UnknownState> {
                Self::ALL.iter().copied().find(|s| s.as_str() == text).ok_or_else(|| UnknownState(text.to_owned()))
            }
        }
    };
}

/// A name that no state has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a state")]
pub struct UnknownState(String);

named_states! {
    /// Where a job is in its life.
    JobState {
        /// Waits for its gang to be placed.
        Queued = "QUEUED",
        /// Placed; its ranks are being started.
        Starting = "STARTING",
        /// All its ranks have started.
        Running = "RUNNING",
        /// Ended at a person's wish, to go on later from its checkpoint.
        Paused = "PAUSED",
        /// An attempt failed and another one follows.
        Restarting = "RESTARTING",
        /// Gave its place to another; waits to go on.
        Preempted = "PREEMPTED",
        /// Every rank ended with exit code 0.
        Succeeded = "SUCCEEDED",
        /// It failed for good.
        Failed = "FAILED",
        /// A person ended it.
        Cancelled = "CANCELLED",
    }
}

named_states! {
    /// Where a placement group is in its life.
    GroupState {
        /// Waits for its bundles to be placed.
        Pending = "PENDING",
        /// Placed; its nodes are asked to keep the places.
        Reserving = "RESERVING",
        /// Every bundle is kept.
        Ready = "READY",
        /// Some bundles were lost with their node and wait to be placed again; the others stand.
        Repairing = "REPAIRING",
        /// Removed; what ran in it is being ended.
        Removing = "REMOVING",
        /// Nothing of it is left.
        Removed = "REMOVED",
    }
}

impl JobState {
    /// Nothing follows: no process of it is left and none will start.
    pub const fn is_terminal(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// It waits for the scheduler.
    pub const fn is_waiting(self) -> bool {
        matches!(self, JobState::Queued | JobState::Restarting | JobState::Preempted)
    }

    /// It has an attempt under way.
    pub const fn is_active(self) -> bool {
        matches!(self, JobState::Starting | JobState::Running)
    }

    /// Whether `next` may follow: the one table of legal moves.
    pub fn may_become(self, next: JobState) -> bool {
        use JobState::*;
        match self {
            Queued | Restarting | Preempted => matches!(next, Starting | Paused | Failed | Cancelled),
            Starting => {
                matches!(next, Running | Paused | Restarting | Preempted | Succeeded | Failed | Cancelled)
            }
            Running => matches!(next, Paused | Restarting | Preempted | Succeeded | Failed | Cancelled),
            Paused => matches!(next, Queued | Cancelled),
            Succeeded | Failed | Cancelled => false,
        }
    }
}

named_states! {
    /// Where an attempt is in its life.
    AttemptState {
        /// Devices reserved, ranks being started.
        Starting = "STARTING",
        /// All ranks have started.
        Running = "RUNNING",
        /// Asked to end; its processes are not all gone yet.
        Stopping = "STOPPING",
        /// Every rank ended with exit code 0.
        Succeeded = "SUCCEEDED",
        /// A rank failed.
        Failed = "FAILED",
        /// Ended by a person.
        Cancelled = "CANCELLED",
        /// Ended to be resumed later.
        Paused = "PAUSED",
        /// Ended for another gang.
        Preempted = "PREEMPTED",
        /// Ended to go on with fewer or more workers.
        Resized = "RESIZED",
        /// Its node or agent was lost.
        Lost = "LOST",
    }
}

impl AttemptState {
    /// Every process of the attempt is gone.
    pub const fn is_over(self) -> bool {
        !matches!(self, AttemptState::Starting | AttemptState::Running | AttemptState::Stopping)
    }
}

named_states! {
    /// Where a sweep is in its life.
    SweepState {
        /// No trial has started yet.
        Queued = "QUEUED",
        /// Trials run.
        Running = "RUNNING",
        /// At a person's wish, to go on later.
        Paused = "PAUSED",
        /// At its end, with at least one complete trial.
        Succeeded = "SUCCEEDED",
        /// At its end without a complete trial, or after too many failed ones.
        Failed = "FAILED",
        /// A person ended it.
        Cancelled = "CANCELLED",
    }
}

impl SweepState {
    /// Nothing follows: every trial of it has ended.
    pub const fn is_terminal(self) -> bool {
        matches!(self, SweepState::Succeeded | SweepState::Failed | SweepState::Cancelled)
    }
}

named_states! {
    /// Where a trial is in its life.
    TrialState {
        /// Waits to be placed.
        Queued = "QUEUED",
        /// Its job runs.
        Running = "RUNNING",
        /// At a rung, or paused by a person.
        Paused = "PAUSED",
        /// It came to its end.
        Complete = "COMPLETE",
        /// It was stopped early.
        Stopped = "STOPPED",
        /// It failed.
        Failed = "FAILED",
        /// A person ended it.
        Cancelled = "CANCELLED",
    }
}

impl TrialState {
    /// Nothing follows.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, TrialState::Queued | TrialState::Running | TrialState::Paused)
    }
}

named_states! {
    /// Whether a node takes work.
    NodeState {
        /// Its agent is there and takes work.
        Ready = "READY",
        /// It finishes what it runs and takes nothing new.
        Draining = "DRAINING",
        /// Its agent has been silent for the node timeout.
        Lost = "LOST",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for &state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("running".parse::<JobState>().is_err());
    }

    #[test]
    fn nothing_follows_a_terminal_state_and_every_other_can_be_cancelled() {
        for &state in JobState::ALL {
            let moves = JobState::ALL.iter().filter(|&&next| state.may_become(next)).count();
            assert_eq!(moves == 0, state.is_terminal(), "{state}");
            assert_eq!(state.may_become(JobState::Cancelled), !state.is_terminal(), "{state}");
            assert!(!state.may_become(state), "{state}");
        }
    }
}
