//! The record of a job: what was asked, what has happened, and why it is where it is.

use crate::flight::LastWords;
use crate::id::{AttemptId, JobId, NodeName, Rank, TrialId};
use crate::resources::DeviceShare;
use crate::spec::{JobSpec, Params};
use crate::state::{AttemptState, JobState};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The exit code of a job that outran its time limit.
pub const TIME_LIMIT_CODE: i32 = 124;
/// The exit code of a job that failed by the service's own trouble.
pub const SERVICE_TROUBLE_CODE: i32 = 125;
/// The exit code of a job that a person ended.
pub const INTERRUPTED_CODE: i32 = 130;

/// The exit code of a trial's job that was stopped early: nothing has gone wrong.
pub const STOPPED_CODE: i32 = 0;

/// Everything the service knows of a job. Serialised whole into the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// The folder relative paths of the specification start from.
    pub base_dir: PathBuf,
    /// Belongs to a `run` without a service, and ends with it.
    pub embedded: bool,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it waits, or how it ended.
    pub reason: Reason,
    /// Its own code, once it has ended.
    pub exit_code: Option<i32>,
    /// When it was submitted.
    pub submitted: Time,
    /// When all its ranks had first started.
    pub started: Option<Time>,
    /// When its last process was gone.
    pub ended: Option<Time>,
    /// Attempts that failed and count against `max_failures`.
    pub failures: u32,
    /// Every run of its gang, the oldest first.
    pub attempts: Vec<Attempt>,
    /// Checkpoints in the service's keeping, by attempt, and within one in the order they were taken over.
    pub checkpoints: Vec<KeptCheckpoint>,
    /// The placement group it runs in, by its number: a later one of the same name is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<JobId>,
    /// The trial it is, where it belongs to a sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Box<TrialOf>>,
    /// The attempt under way: what the service must remember to go on with it after a restart.
    pub run: Option<Run>,
}

impl Job {
    /// The latest attempt's id, before the first one with number 0.
    pub fn attempt_id(&self) -> AttemptId {
        AttemptId { job: self.id, number: self.attempts.last().map_or(0, |attempt| attempt.number) }
    }
}

/// The trial that a job is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialOf {
    /// Its sweep and its number there.
    pub id: TrialId,
    /// What it runs with.
    pub params: Params,
    /// The metric whose reports by rank 0 are answered only once they are judged; none where nothing stops early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<String>,
    /// Another trial's checkpoint that it starts from, in population-based training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
}

/// Why something is as it is: a code for programs, a text with the numbers for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Such as `waiting_resources`.
    pub code: String,
    /// One sentence.
    pub text: String,
}

impl Reason {
    /// A reason from its parts.
    pub fn new(code: &str, text: impl Into<String>) -> Self {
        Reason { code: code.to_owned(), text: text.into() }
    }
}

/// One run of a job's gang.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Where it is in its life.
    pub state: AttemptState,
    /// When it was placed.
    pub placed: Time,
    /// When all its ranks had started.
    pub started: Option<Time>,
    /// When its last process was gone.
    pub ended: Option<Time>,
    /// The first failing rank's code; 0 when every rank ended well.
    pub exit_code: Option<i32>,
    /// The first failing rank.
    pub failed_rank: Option<Rank>,
    /// What happened, for people.
    pub message: String,
    /// Where each rank runs, by rank.
    pub ranks: Vec<RankRun>,
}

/// One rank of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankRun {
    /// Its node.
    pub node: NodeName,
    /// The devices it was given.
    pub gpus: Vec<DeviceShare>,
    /// Its process started.
    pub running: bool,
    /// Its code, once its process has ended.
    pub exit_code: Option<i32>,
    /// How often it has been started again, in an attempt that went on without it meanwhile.
    #[serde(default)]
    pub life: u32,
    /// Its node was lost, and the attempt went on without it.
    #[serde(default)]
    pub lost: bool,
}

/// The attempt under way, between its placement and the end of its last process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How far each of its nodes is.
    pub nodes: BTreeMap<NodeName, NodeRun>,
    /// The port that rank 0's node keeps for the gang's rendezvous.
    pub master_port: u16,
    /// Every node has kept its place, and the ranks have been ordered to start.
    pub launched: bool,
    /// Why it is being ended, if it is.
    pub ending: Option<Ending>,
    /// The job it ends for, where it gives way: what becomes free is that one's.
    #[serde(default)]
    pub gives_way_to: Option<JobId>,
    /// Where the ranks of the next attempt run, where it is resized.
    #[serde(default)]
    pub next: Vec<RankRun>,
    /// Who trains with whom, where the gang goes on without a rank that is killed.
    #[serde(default)]
    pub assembly: Option<Assembly>,
}

/// The groups in which the ranks of an elastic gang train, one after the other: a new one after each death, and one that
/// takes in those that have been started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assembly {
    /// Counts the groups from 1; 0 before the first.
    pub epoch: u32,
    /// The ranks of the latest, in their order in it, but for those that have died since.
    pub members: Vec<Member>,
    /// Where they met: the first one's port.
    pub port: u16,
    /// Ranks that want to stand in the next one, and the port that each offers.
    pub callers: BTreeMap<Rank, u16>,
    /// It has lost a member.
    pub broken: bool,
    /// The members have been asked to leave it, because others wait.
    pub leave: bool,
}

/// One process of a rank in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The rank.
    pub rank: Rank,
    /// Its [life](RankRun::life).
    pub life: u32,
}

/// How far a node is with an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRun {
    /// The agent's process that was asked; an attempt does not outlive it.
    pub incarnation: String,
    /// It keeps a place for the attempt.
    pub reserved: bool,
    /// No process of the attempt is left there.
    pub gone: bool,
    /// What its ranks were doing at the end, where they kept a flight recorder.
    #[serde(default)]
    pub flight: Vec<LastWords>,
}

/// Why an attempt is being ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// A rank failed.
    Failure {
        /// Its code.
        code: i32,
        /// Another attempt would fare no better.
        for_good: bool,
    },
    /// A person ended the job.
    Cancelled,
    /// A person paused the job.
    Paused,
    /// Its trial is at a rung, and goes on from its checkpoint if its sweep promotes it.
    Rung,
    /// Its trial was stopped early, or its sweep has come to its end.
    Stopped,
    /// The job outran its time limit.
    TimeLimit,
    /// Another gang takes its place.
    Preempted,
    /// It goes on with fewer or more workers, as `Run::next` has them.
    Resized,
    /// A node was lost with some of its ranks, or could not start them: not the job's fault.
    Lost,
    /// The service is being shut down.
    Shutdown,
}

/// A checkpoint in the service's keeping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptCheckpoint {
    /// The attempt that made it.
    pub attempt: u32,
    /// The step it was made at.
    pub step: u64,
    /// When it was durable.
    pub time: Time,
    /// The last value of the policy's metric before it was made.
    pub metric: Option<f64>,
    /// The folder.
    pub path: PathBuf,
    /// The node whose disk it is on.
    pub node: NodeName,
}
