//! What ranks wrote and reported: lines and points, numbered per job from 1 without gaps.
//!
//! Consecutive rows of a job lie together in blocks (see `block`), so that a flood of lines costs the disk little more
//! than its bytes. Commits are safe from a kill at any point; they do not wait for the disk.

mod append;
mod block;
mod read;

use super::database::{Access, Database, Schema};
use super::error::StoreError;
use crate::protocol::LogChunk;
use append::Cache;
use phalanx_core::id::AttemptId;
use phalanx_core::{NodeName, Rank, Time};
use read::Hints;
use sqlx::sqlite::SqliteSynchronous;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

static SCHEMA: Schema = Schema {
    file: "records.db",
    migrations: &[include_str!("../schema/records_1.sql")],
    synchronous: SqliteSynchronous::Normal,
    page_bytes: 16 << 10,
};

/// How much is kept. What goes, goes from the oldest on and by blocks; numbers count on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Bytes of log lines kept of one job.
    pub log_bytes_per_job: u64,
    /// Bytes of log lines kept in all.
    pub log_bytes: u64,
    /// How long lines are kept.
    pub log_age: Duration,
    /// Bytes of points kept of one job; a value takes about ten, its point another five.
    pub point_bytes_per_job: u64,
    /// Names that the metrics of one job may have in all; values under further ones are dropped.
    pub metric_names_per_job: u32,
}

impl Default for RecordLimits {
    fn default() -> Self {
        RecordLimits {
            log_bytes_per_job: 1 << 30,
            log_bytes: 16 << 30,
            log_age: Duration::from_secs(90 * 24 * 3600),
            point_bytes_per_job: 1 << 30,
            metric_names_per_job: 100_000,
        }
    }
}

/// Lines and points from one agent, as they came.
#[derive(Clone, Debug)]
pub struct RecordBatch {
    /// The agent's node.
    pub node: NodeName,
    /// The agent's numbering of events.
    pub outbox: String,
    /// Lines in the order they were written.
    pub lines: Vec<NewLine>,
    /// Points in the order they were reported.
    pub points: Vec<NewPoint>,
}

impl RecordBatch {
    /// An empty one.
    pub fn new(node: NodeName, outbox: String) -> Self {
        RecordBatch { node, outbox, lines: Vec::new(), points: Vec::new() }
    }
}

/// A line to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLine {
    /// The agent's number for it.
    pub event: u64,
    /// Who wrote it.
    pub attempt: AttemptId,
    /// When.
    pub time: Time,
    /// What.
    pub chunk: LogChunk,
}

/// A report to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct NewPoint {
    /// The agent's number for it.
    pub event: u64,
    /// Who reported it.
    pub attempt: AttemptId,
    /// When.
    pub time: Time,
    /// Which rank.
    pub rank: Rank,
    /// The step.
    pub step: u64,
    /// Values by name.
    pub metrics: BTreeMap<String, f64>,
}

/// A recorded line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Counts the job's lines from 1.
    pub seq: u64,
    /// The attempt's number.
    pub attempt: u32,
    /// The rank.
    pub rank: Rank,
    /// Standard error instead of standard output.
    pub stderr: bool,
    /// When it was written.
    pub time: Time,
    /// Without the newline.
    pub line: Vec<u8>,
    /// Another piece of the same line follows.
    pub partial: bool,
    /// A newline ended it.
    pub newline: bool,
}

/// A recorded report, without the values that had been recorded before.
#[derive(Clone, Debug, PartialEq)]
pub struct PointRow {
    /// Counts the job's points from 1.
    pub seq: u64,
    /// The attempt's number.
    pub attempt: u32,
    /// The rank.
    pub rank: Rank,
    /// The step.
    pub step: u64,
    /// When it was reported.
    pub time: Time,
    /// Values by name.
    pub metrics: BTreeMap<String, f64>,
}

/// The value of a metric that was recorded last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latest {
    /// Its step.
    pub step: u64,
    /// Its value.
    pub value: f64,
}

/// The database `records.db`. Clones share it.
#[derive(Clone, Debug)]
pub struct Records(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    limits: RecordLimits,
    cache: Mutex<Cache>,
    hints: Hints,
}

impl Records {
    /// Opens it; for writing it is made where it is missing, and brought up to this version's schema.
    pub async fn open(data_dir: &Path, access: Access, limits: RecordLimits) -> Result<Records, StoreError> {
        let database = Database::open(data_dir, &SCHEMA, access).await?;
        Ok(Records(Arc::new(Inner { database, limits, cache: Mutex::default(), hints: Hints::default() })))
    }

    /// Waits until the files are closed, where this is the last handle.
    pub async fn close(self) {
        if let Some(inner) = Arc::into_inner(self.0) {
            inner.database.close().await;
        }
    }
}
