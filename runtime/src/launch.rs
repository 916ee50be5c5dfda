//! What an agent needs to start the ranks of an attempt on its node.

use phalanx_core::id::AttemptId;
use phalanx_core::spec::{Params, WorkerSpec};
use phalanx_core::{Cpus, Rank, Secret, TrialOf};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The ranks of one attempt on one node, and what they have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The attempt.
    pub attempt: AttemptId,
    /// What each rank runs.
    pub work: LaunchWork,
    /// The folder they run in.
    pub workdir: PathBuf,
    /// The job's own environment.
    pub env: BTreeMap<String, String>,
    /// Secrets that come into the environment, by name …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_names: Vec<String>,
    /// … and with their values, which are put in when it is sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// CPUs of each rank.
    pub cpus: Cpus,
    /// Memory of each rank in bytes; 0 for no limit.
    pub memory_bytes: u64,
    /// Ranks of the whole gang.
    pub world: u32,
    /// This node's place among the gang's nodes.
    pub group_rank: u32,
    /// The gang's nodes.
    pub group_world: u32,
    /// Where rank 0 can be reached.
    pub master_addr: String,
    /// The port that rank 0's node found free.
    pub master_port: u16,
    /// Attempts before this one that failed.
    pub restart_count: u32,
    /// Attempts that may fail.
    pub max_restarts: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// The folder to go on from.
    pub checkpoint: Option<PathBuf>,
    /// The trial it is, where it belongs to a sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Box<TrialOf>>,
    /// What its processes find at `$PHALANX_PARAMS`; none where there is no such file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Params>,
    /// The attempt goes on without a rank that is killed, and has it started again.
    #[serde(default)]
    pub elastic: bool,
    /// The ranks on this node, by local rank.
    pub ranks: Vec<RankLaunch>,
}

/// One rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankLaunch {
    /// Its place in the gang.
    pub rank: Rank,
    /// Its devices as `CUDA_VISIBLE_DEVICES` names them; empty hides all.
    pub visible_devices: String,
}

/// What a rank runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum LaunchWork {
    /// A program and its arguments.
    Program(Vec<String>),
    /// The built-in trainer of this binary: `phalanx worker --spec FILE`.
    Worker(Box<WorkerSpec>),
}
