//! The decision: which gang runs where, and why the others wait.
//!
//! Architecture invariant: this crate is pure. [`plan`] sees a [`Cluster`] and a [`Queue`] and answers a [`Plan`]; it
//! reads no clock, does no I/O and draws no random number, and the same state gives the same plan. Amounts are integers
//! and every order that can reach a decision is an ordered map's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod amounts;
mod assign;
mod bundle;
mod check;
mod cluster;
mod decide;
mod devices;
mod explain;
mod grow;
mod index;
mod lanes;
mod node;
mod outlook;
mod place;
mod plan;
mod preempt;
mod queue;
mod reason;
mod reserve;
pub mod simulate;
mod standing;
pub mod trace;

pub use amounts::{Amounts, Kind};
pub use bundle::{Bundle, Holder};
pub use check::{check, check_quota};
pub use cluster::{Cluster, DeviceView, HoldError, NodeView};
pub use lanes::{Discipline, QueueConfig, Share};
pub use plan::{Eviction, Plan, Policy, Resize, explain, plan};
pub use queue::{Pending, Queue};
pub use reason::{Reason, ReasonCode};
pub use standing::Standing;

// What tests and fuzz targets share names the crate as they do.
#[cfg(test)]
extern crate self as phalanx_scheduler;
#[cfg(test)]
mod tests;
