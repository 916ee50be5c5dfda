//! What a placed rank takes, and who holds it.

use crate::queue::Pending;
use phalanx_core::spec::GangSpec;
use phalanx_core::{DeviceShare, NodeName, Rank, Resources, Time};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Where one rank runs and what it takes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The rank.
    pub rank: Rank,
    /// Its node.
    pub node: NodeName,
    /// The devices it sees, in the order it should see them.
    pub gpus: Vec<DeviceShare>,
    /// All it takes; `gpus` names what `takes.gpus` counts.
    pub takes: Resources,
}

/// What the scheduler knows of a gang that holds resources.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Holder {
    /// What reasons call it.
    pub label: String,
    /// Its queue.
    pub queue: String,
    /// Its priority.
    pub priority: i32,
    /// Its place in the order of submission, kept when it is requeued.
    pub sequence: u64,
    /// Whether it may be asked to give way.
    pub preemptible: bool,
    /// When this attempt started.
    pub started: Time,
    /// It ends at the latest so long after its start.
    pub time_limit: Option<Duration>,
    /// When work was last saved: what was done since is lost by a preemption.
    pub saved: Time,
    /// It saves its work so often, counted from `saved`; without it only when it is told to.
    pub saves_every: Option<Duration>,
    /// Service of earlier attempts: GPU-seconds, or CPU-seconds where the gang asks for no GPU.
    pub attained: f64,
    /// How often earlier attempts were preempted.
    pub preemptions: u32,
    /// It may grow, where it is elastic: every rank starts again, so only a gang that can go on from a checkpoint does.
    pub grows: bool,
    /// What it asked for.
    pub gang: Arc<GangSpec>,
}

impl Holder {
    /// The facts of a pending gang that starts at `started`.
    pub fn new(pending: &Pending, started: Time) -> Self {
        Holder {
            label: pending.label.clone(),
            queue: pending.queue.clone(),
            priority: pending.priority,
            sequence: pending.sequence,
            preemptible: pending.preemptible,
            started,
            time_limit: pending.time_limit,
            saved: started,
            saves_every: None,
            attained: pending.attained,
            preemptions: pending.preemptions,
            grows: true,
            gang: Arc::clone(&pending.gang),
        }
    }

    /// Seconds of work that would be lost if it ended at `now`.
    pub(crate) fn unsaved_seconds(&self, now: Time) -> f64 {
        let since = now.since(self.saved);
        match self.saves_every.map(|every| every.as_micros()) {
            Some(every @ 1..) => (since.as_micros() % every) as f64 / 1e6,
            _ => since.as_secs_f64(),
        }
    }

    /// When its time limit ends it.
    pub fn ends_by(&self) -> Option<Time> {
        self.time_limit.map(|limit| self.started + limit)
    }
}
