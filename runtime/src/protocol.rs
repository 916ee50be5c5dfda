//! What a service and its agents say to each other, as the model's own types.
//!
//! Events are numbered by the agent and kept until the service has committed them; commands are idempotent. So both
//! sides may repeat themselves after a cut, and the controller and the agent can be driven by a simulator that loses,
//! repeats and delays messages.

pub mod wire;

use crate::launch::Launch;
use phalanx_core::flight::LastWords;
use phalanx_core::id::AttemptId;
use phalanx_core::job::Member;
use phalanx_core::report::Place;
use phalanx_core::resources::Capacity;
use phalanx_core::{NodeName, Rank, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The first message of an agent's session.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// The node's name.
    pub node: NodeName,
    /// Changes each time the agent's process starts: what an older one ran is gone.
    pub incarnation: String,
    /// Names the numbering of events: a new one starts from 1 where an agent's data was lost.
    pub outbox: String,
    /// What the node has.
    pub capacity: Capacity,
    /// Attempts that the agent has taken in (reserved or later) and whose `Gone` is not yet acknowledged.
    pub attempts: Vec<AttemptId>,
    /// Where other ranks reach the node.
    pub address: String,
}

/// Something that happened to an attempt on a node.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentEvent {
    /// Counts from 1 over the agent's whole life.
    pub seq: u64,
    /// The attempt.
    pub attempt: AttemptId,
    /// When.
    pub time: Time,
    /// What.
    pub what: Happening,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// The attempt's place is kept; the port is for the gang's rendezvous, where rank 0 is on this node.
    Reserved {
        /// A free port, or 0.
        master_port: u16,
    },
    /// The attempt cannot start here.
    Refused {
        /// Why, for people.
        message: String,
    },
    /// A rank's process started.
    RankStarted {
        /// The rank.
        rank: Rank,
        /// Its process.
        pid: u32,
        /// How often it has been started before, in this attempt.
        life: u32,
    },
    /// A rank's process ended.
    RankExited(RankExit),
    /// A rank wants to stand in a group with the others: at its start, or because its group has lost one.
    RankMeets {
        /// The rank, and how often it had been started before.
        who: Member,
        /// The group that it has left; 0 for none.
        epoch: u32,
        /// The port at which the others would find it.
        port: u16,
    },
    /// What the node's ranks were doing when the attempt ended, where they kept a flight recorder.
    Flight {
        /// By rank.
        ranks: Vec<LastWords>,
    },
    /// No process of the attempt is left on the node. Nothing follows for this attempt.
    Gone {
        /// Processes that could not be ended, for people; empty when all are gone.
        unreaped: String,
    },
    /// A rank wrote a line.
    Log(LogChunk),
    /// A rank reported metrics.
    Report {
        /// The rank.
        rank: Rank,
        /// The step.
        step: u64,
        /// Values by name.
        metrics: BTreeMap<String, f64>,
    },
    /// A checkpoint was taken over and is durable.
    Checkpoint {
        /// The step.
        step: u64,
        /// The folder it is in now.
        path: PathBuf,
    },
}

/// How a rank's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankExit {
    /// The rank.
    pub rank: Rank,
    /// 0 to 255; 128 + N for signal N; 127 or 126 where the command could not be started.
    pub code: i32,
    /// For people: `exited with code 3`, `killed by signal 9 (SIGKILL)`, `out of memory`.
    pub message: String,
    /// A `Stop` had been received before it ended.
    pub asked: bool,
    /// The command could not be started at all: another attempt would fare no better.
    pub not_started: bool,
    /// How often it had been started before, in this attempt.
    pub life: u32,
}

impl RankExit {
    /// It did not end by itself: a signal, or the kernel for want of memory.
    pub fn was_killed(&self) -> bool {
        self.code > KILLED_ABOVE && !self.not_started
    }
}

/// Codes above it are signals.
pub(crate) const KILLED_ABOVE: i32 = 128;

/// Who trains with whom in an attempt that goes on without a rank that is killed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Counts the attempt's groups, from 1.
    pub epoch: u32,
    /// The ranks, in their order in it. None: the training is over, and nobody is to begin it anew.
    pub members: Vec<Member>,
    /// Where they meet.
    pub master_addr: String,
    /// The port that the first of them has offered.
    pub master_port: u16,
    /// They are to leave it after their next step.
    pub leave: bool,
    /// A member is lost: they are to leave it at once.
    pub lost: bool,
}

impl Group {
    /// What a rank that has left the group `epoch` is told; nothing while this is not the one it waits for.
    pub fn place_of(&self, who: Member, epoch: u32) -> Option<Place> {
        let rank = self.members.iter().position(|member| *member == who)?;
        (self.epoch > epoch).then(|| Place {
            epoch: self.epoch,
            rank: rank as u32,
            world: self.members.len() as u32,
            master_addr: self.master_addr.clone(),
            master_port: self.master_port,
        })
    }

    /// Nobody trains any more.
    pub fn is_over(&self) -> bool {
        self.epoch > 0 && self.members.is_empty()
    }

    /// Whether those who stand in the group `epoch` are to leave it.
    pub fn leaves(&self, epoch: u32) -> bool {
        self.epoch > epoch || (self.epoch == epoch && self.leave)
    }
}

/// A line that a rank wrote, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// The rank.
    pub rank: Rank,
    /// Standard error instead of standard output.
    pub stderr: bool,
    /// Without the newline.
    pub line: Vec<u8>,
    /// Another piece of the same line follows.
    pub partial: bool,
    /// A newline ended it.
    pub newline: bool,
}

/// What the service wants of an agent.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Keep a place for an attempt; answered by `Reserved` or `Refused`.
    Reserve {
        /// The attempt.
        attempt: AttemptId,
        /// Rank 0 is on this node.
        wants_master_port: bool,
    },
    /// Every node keeps its place: the place stands until a `Stop`, with nothing to run in it. `Refused` where there is no
    /// such place.
    Keep {
        /// What it was reserved as.
        attempt: AttemptId,
    },
    /// Start the attempt's ranks; ignored where they have been started or a `Stop` came first.
    Start(Box<Launch>),
    /// End the attempt; always answered by `Gone`, for an attempt the agent does not know too.
    Stop {
        /// The attempt.
        attempt: AttemptId,
        /// Ask over the socket first, where a rank speaks on it, and signal only after the grace time.
        ask_first: bool,
        /// Between asking, SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// What rank 0 of a trial has reported up to a step has been judged, and it goes on: its reports are answered.
    Judged {
        /// The attempt.
        attempt: AttemptId,
        /// The step.
        step: u64,
    },
    /// Start a rank again whose process was killed, in its place; ignored where it runs in this life or a later one, and
    /// after a `Stop`.
    Restart {
        /// The attempt.
        attempt: AttemptId,
        /// The rank, and how often it has been started before.
        who: Member,
    },
    /// Who trains with whom: answers the ranks that have asked to meet.
    Group {
        /// The attempt.
        attempt: AttemptId,
        /// The latest group.
        group: Group,
    },
    /// Delete a checkpoint's folder.
    DropCheckpoint {
        /// The folder.
        path: PathBuf,
    },
}
