//! Why a gang waits, in a code for programs and a text with the numbers for people.

use phalanx_core::{JobId, Time};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// What it asks is held by others.
    WaitingResources,
    /// What it asks is free, or could be, but goes to a gang before it.
    WaitingPriority,
    /// Its queue is at its quota.
    WaitingQuota,
    /// What it asks is free but kept for a gang that has waited longer.
    HeldForReservation,
    /// It could not run on these nodes even if they were empty.
    Infeasible,
    /// No node has the labels it asks for.
    NoMatchingLabel,
    /// No value of its topology label has room for all of it.
    NoTopologyDomain,
}

impl ReasonCode {
    /// The word for it in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            ReasonCode::WaitingResources => "waiting_resources",
            ReasonCode::WaitingPriority => "waiting_priority",
            ReasonCode::WaitingQuota => "waiting_quota",
            ReasonCode::HeldForReservation => "held_for_reservation",
            ReasonCode::Infeasible => "infeasible",
            ReasonCode::NoMatchingLabel => "no_matching_label",
            ReasonCode::NoTopologyDomain => "no_topology_domain",
        }
    }

    /// Whether waiting alone cannot help: the nodes would have to change.
    pub const fn is_infeasible(self) -> bool {
        matches!(self, ReasonCode::Infeasible | ReasonCode::NoMatchingLabel | ReasonCode::NoTopologyDomain)
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a gang does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The kind.
    pub code: ReasonCode,
    /// What it asks, what is free where, what binds, who holds it.
    pub text: String,
    /// Its place among all that waits, from 1; absent where it is parked or not in the queue.
    pub place: Option<u32>,
    /// Jobs that hold what it lacks, those that hold most first.
    pub holders: Vec<JobId>,
    /// When a reservation lets it start at the latest.
    pub starts_by: Option<Time>,
}

impl Reason {
    pub(crate) fn new(code: ReasonCode, text: String) -> Self {
        Reason { code, text, place: None, holders: Vec::new(), starts_by: None }
    }
}

impl Reason {
    /// The text with the reservation, if there is one, as `when` says its time on the caller's clock: `by 100 s`.
    pub fn told(&self, when: impl FnOnce(Time) -> String) -> String {
        match self.starts_by {
            Some(at) => format!("{}; reserved: starts {}", self.text, when(at)),
            None => self.text.clone(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
