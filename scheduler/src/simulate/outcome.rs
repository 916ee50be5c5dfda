//! What a simulation finds, in the shape of its JSON.

use phalanx_core::Time;
use serde::{Serialize, Serializer};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Jobs, in the order of the scenario.
    pub jobs: Vec<JobOutcome>,
    /// The figures.
    pub summary: Summary,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobOutcome {
    /// Its name.
    pub name: String,
    /// `finished`, `running`, `queued`, `infeasible`, `cancelled` or `failed`.
    pub state: &'static str,
    /// When it was submitted.
    #[serde(serialize_with = "seconds")]
    pub submitted: Time,
    /// When its first attempt started.
    #[serde(serialize_with = "some_seconds")]
    pub start: Option<Time>,
    /// When it ended for good.
    #[serde(serialize_with = "some_seconds")]
    pub end: Option<Time>,
    /// Its attempts.
    pub attempts: Vec<Attempt>,
    /// What it was told while it waited.
    pub reasons: Vec<Told>,
}

/// One run of a job's gang.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// When it started.
    #[serde(serialize_with = "seconds")]
    pub start: Time,
    /// When it ended.
    #[serde(serialize_with = "some_seconds")]
    pub end: Option<Time>,
    /// `finished`, `preempted`, `node_lost`, `resized`, `cancelled`, `time_limit` or `running`.
    pub outcome: &'static str,
    /// Where its ranks ran.
    pub bundles: Vec<PlacedRank>,
}

/// Where a rank ran.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlacedRank {
    /// The rank.
    pub rank: u32,
    /// Its node.
    pub node: String,
    /// Its devices there.
    pub gpus: Vec<u32>,
}

/// A reason that a job was told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    /// When.
    #[serde(serialize_with = "seconds")]
    pub at: Time,
    /// In words.
    pub text: String,
    /// In a code.
    pub code: &'static str,
}

/// The figures of a simulation. Times are in seconds; a figure of nothing is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// From the first submission to the last end of a job.
    pub makespan: Option<f64>,
    /// Mean time from submission to end over finished jobs.
    pub mean_jct: Option<f64>,
    /// Its 95th percentile.
    pub p95_jct: Option<f64>,
    /// GPU time held, of the GPU time that was up.
    pub gpu_utilization: Option<f64>,
    /// The same for CPUs.
    pub cpu_utilization: Option<f64>,
    /// Free GPU time on nodes that no waiting gang could use while some waited, of all free GPU time.
    pub fragmentation: Option<f64>,
    /// Attempts that gave way.
    pub preemptions: u64,
    /// Decisions: one for each job submitted, and one for each other moment at which something was to decide.
    pub decisions: u64,
    /// Median time of a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decide_us_p50: Option<f64>,
    /// Its 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decide_us_p99: Option<f64>,
}

fn seconds<S: Serializer>(time: &Time, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_micros() as f64 / 1e6)
}

fn some_seconds<S: Serializer>(time: &Option<Time>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_micros() as f64 / 1e6).serialize(serializer)
}
