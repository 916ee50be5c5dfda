//! The model of Phalanx: ids, resources, specifications and their validation, state transitions, limits.
//!
//! Architecture invariant: this crate is pure. It reads no file, no clock and no environment, starts no thread and
//! draws no random number; everything it needs comes in as an argument and everything it finds out is a value.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod diagnostic;
pub mod event;
pub mod flight;
pub mod group;
pub mod id;
pub mod job;
pub mod limits;
pub mod link;
pub mod overrides;
pub mod quantity;
pub mod report;
pub mod resources;
pub mod secret;
pub mod spec;
pub mod state;
pub mod sweep;
pub mod time;

pub use diagnostic::{Problem, Problems};
pub use event::{Event, NewEvent};
pub use group::{Group, GroupBundle, Seat, SeatPhase};
pub use id::{AttemptId, CheckpointId, JobId, NodeName, Rank, SweepId, TrialId};
pub use job::{Attempt, Ending, Job, KeptCheckpoint, NodeRun, RankRun, Reason, Run, TrialOf};
pub use link::{Link, Links};
pub use resources::{Cpus, Device, DeviceShare, GpuRequest, Resources};
pub use secret::{Secret, SecretError};
pub use spec::{GroupName, GroupSpec, JobSpec, LabelRule, Placement};
pub use state::{AttemptState, GroupState, JobState, NodeState, SweepState, TrialState};
pub use sweep::{BestTrial, Sweep, Trial, TrialCounts, Wish};
pub use time::Time;
