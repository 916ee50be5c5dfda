//! The decision: which gang runs where, and why the others wait.
//!
//! Architecture invariant: this crate is pure. [`plan`] sees a [`Cluster`] and a [`Queue`] and answers a [`Plan`]; it
//! reads no clock, does no I/O and draws no random number, and the same state gives the same plan. Amounts are integers
//! and every order that can reach a decision is an ordered map's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod assign;
mod bundle;
mod check;
mod cluster;
mod explain;
mod index;
mod node;
mod place;
mod plan;
mod queue;
mod reason;

pub use bundle::{Bundle, Holder};
pub use check::check;
pub use cluster::{Cluster, DeviceView, HoldError, NodeView};
pub use plan::{Plan, Policy, explain, plan};
pub use queue::{Pending, Queue};
pub use reason::{Reason, ReasonCode};

#[cfg(test)]
mod tests;
