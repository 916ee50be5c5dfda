//! The record of a standing placement group: what was asked, which nodes keep a place for it, and why it waits.

use crate::id::{AttemptId, JobId, NodeName, Rank};
use crate::job::Reason;
use crate::resources::DeviceShare;
use crate::spec::GroupSpec;
use crate::state::GroupState;
use crate::time::Time;
use serde::{Deserialize, Serialize};

/// Everything the service knows of a placement group. Serialised whole into the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its number, of the same sequence as those of jobs: what is placed is placed in the order of these.
    pub id: JobId,
    /// What was asked.
    pub spec: GroupSpec,
    /// Where it is in its life.
    pub state: GroupState,
    /// Why it waits.
    pub reason: Reason,
    /// When it was made.
    pub created: Time,
    /// When all its bundles were first kept.
    pub ready: Option<Time>,
    /// Rounds of reservation so far: each asks for what is missing, all of it or nothing.
    pub rounds: u32,
    /// Where places are kept for it, by round and node.
    pub seats: Vec<Seat>,
}

/// The bundles of one round on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The round, from 1: with the group's id it names the reservation to the node's agent.
    pub round: u32,
    /// The node.
    pub node: NodeName,
    /// The agent's process that was asked.
    pub incarnation: String,
    /// How far the reservation is.
    pub phase: SeatPhase,
    /// The bundles.
    pub bundles: Vec<GroupBundle>,
}

/// A bundle of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupBundle {
    /// Its number in the group.
    pub rank: Rank,
    /// The devices it holds.
    pub gpus: Vec<DeviceShare>,
}

/// How far a reservation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeatPhase {
    /// The agent has been asked: the first phase.
    Asked,
    /// The agent keeps the place until it is told what becomes of the round.
    Reserved,
    /// Every node of the round has said so, and the place stands: the second phase.
    Kept,
    /// Being given back: the agent has to say so, or to be lost.
    Ending,
    /// The agent has nothing of it any more; a job that ran in it is still ending there.
    Gone,
}

impl SeatPhase {
    /// Whether it counts as held for the group.
    pub fn holds(self) -> bool {
        matches!(self, SeatPhase::Asked | SeatPhase::Reserved | SeatPhase::Kept)
    }
}

impl Group {
    /// What a seat is called to its agent, and under what its resources are held.
    pub fn reservation(&self, round: u32) -> AttemptId {
        AttemptId { job: self.id, number: round }
    }

    /// Every bundle that is kept, by its number.
    pub fn kept(&self) -> impl Iterator<Item = (&Seat, &GroupBundle)> {
        let kept = self.seats.iter().filter(|seat| seat.phase == SeatPhase::Kept);
        kept.flat_map(|seat| seat.bundles.iter().map(move |bundle| (seat, bundle)))
    }
}
