//! What a service and its agents say to each other, as the model's own types.
//!
//! Events are numbered by the agent and kept until the service has committed them; commands are idempotent. So both
//! sides may repeat themselves after a cut, and the controller and the agent can be driven by a simulator that loses,
//! repeats and delays messages.

pub mod wire;

use crate::launch::Launch;
use phalanx_core::flight::LastWords;
use phalanx_core::id::AttemptId;
use phalanx_core::resources::Capacity;
use phalanx_core::{NodeName, Rank, Time};
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
    },
    /// A rank's process ended.
    RankExited(RankExit),
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
    /// Delete a checkpoint's folder.
    DropCheckpoint {
        /// The folder.
        path: PathBuf,
    },
}
