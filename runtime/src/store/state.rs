//! What the service promised: jobs, the changes people watch, requests that may be repeated, and nodes.

use super::database::{Access, Database, Schema};
use super::error::StoreError;
use super::{events, sweeps};
use crate::controller::{LoadedSweep, NodeRecord, QueueWrite, SweepWrite};
use phalanx_core::event::SERVICE;
use phalanx_core::spec::QueueSpec;
use phalanx_core::{Group, GroupState, Job, JobId, NewEvent, NodeName};
use phalanx_scheduler::Share;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow, SqliteSynchronous};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Changes of one job that are kept for watchers; the oldest go first.
const CHANGES_PER_JOB: u64 = 1000;
/// Jobs that passed a waiting one which a starting service looks up; more than any sensible `max_bypass`.
const PASSED: u32 = 10_000;

static SCHEMA: Schema = Schema {
    file: "state.db",
    migrations: &[
        include_str!("schema/state_1.sql"),
        include_str!("schema/state_2.sql"),
        include_str!("schema/state_3.sql"),
        include_str!("schema/state_4.sql"),
        include_str!("schema/state_5.sql"),
    ],
    synchronous: SqliteSynchronous::Full,
    page_bytes: 4096,
};

/// Something to remember.
#[derive(Clone, Debug)]
pub enum Write {
    /// A job as it is now.
    SaveJob {
        /// The job.
        job: Box<Job>,
        /// Those who watch it are told.
        visible: bool,
    },
    /// A request that made a job.
    Request {
        /// The caller's name for it.
        request_id: String,
        /// Tells a repeated request from another one.
        fingerprint: [u8; 32],
        /// The job it made.
        job: JobId,
    },
    /// A node as it is now.
    Node {
        /// The node.
        record: NodeRecord,
    },
    /// Placement groups as they are now; those that are removed are forgotten.
    Groups(Vec<Group>),
    /// A sweep, what has changed of its trials, and what its study has decided.
    Sweep(Box<SweepWrite>),
    /// The number of the next job or group, where that of the last one may be forgotten.
    NextId(JobId),
    /// A node that will not come back.
    RemoveNode(NodeName),
    /// A queue that was changed over the API.
    Queue(QueueWrite),
    /// Something that happened.
    Event(NewEvent),
    /// What a queue has had.
    Share {
        /// The queue.
        queue: String,
        /// What it has had.
        share: Share,
    },
}

/// What a starting service goes on from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Jobs that are not over, in the order of their ids.
    pub live_jobs: Vec<Job>,
    /// The id of the next job.
    pub next_job: u64,
    /// Nodes in the order of their names.
    pub nodes: Vec<NodeRecord>,
    /// Queues that were set over the API, by name.
    pub queues: BTreeMap<String, QueueSpec>,
    /// What queues have had.
    pub shares: Vec<(String, Share)>,
    /// Jobs that are over and had started although one submitted before them still waits.
    pub passed: Vec<JobId>,
    /// Placement groups in the order of their numbers.
    pub groups: Vec<Group>,
    /// Sweeps that are not over, in the order of their ids.
    pub sweeps: Vec<LoadedSweep>,
    /// The id of the next sweep.
    pub next_sweep: u64,
}

/// The database `state.db`. Clones share it.
#[derive(Clone, Debug)]
pub struct State(pub(super) Arc<Database>);

impl State {
    /// Opens it; for writing it is made where it is missing, and brought up to this version's schema.
    pub async fn open(data_dir: &Path, access: Access) -> Result<State, StoreError> {
        Ok(State(Arc::new(Database::open(data_dir, &SCHEMA, access).await?)))
    }

    /// Writes all of it or nothing, on the disk when it returns: one synchronous write, so hand in together what
    /// belongs together. Returns the number of each visible change, in the order of the writes.
    pub async fn commit(&self, writes: &[Write]) -> Result<Vec<(JobId, u64)>, StoreError> {
        let mut writer = self.0.writer().await?;
        let started = Instant::now();
        let done = async {
            let connection = writer.begin().await?;
            let mut changes = Vec::new();
            for write in writes {
                changes.extend(apply(connection, write).await?);
            }
            writer.commit().await?;
            Ok(changes)
        };
        let done = done.await;
        match &done {
            Ok(_) => metrics::histogram!("phalanx_commit_seconds").record(started.elapsed().as_secs_f64()),
            Err(_) => writer.undo().await,
        }
        done.map_err(|error| self.0.error(&error))
    }

    /// Everything a starting service needs.
    pub async fn load(&self) -> Result<Loaded, StoreError> {
        let sql = "SELECT json FROM job WHERE over = 0 ORDER BY id";
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let live_jobs: Vec<Job> = rows.iter().map(|row| self.parse(row)).collect::<Result<_, _>>()?;
        let sql = "SELECT coalesce(max(id), 0) FROM job";
        let last: i64 =
            sqlx::query_scalar(sql).fetch_one(self.0.readers()).await.map_err(|e| self.0.error(&e))?;
        let sql = "SELECT json FROM node ORDER BY name";
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let nodes = rows.iter().map(|row| self.parse(row)).collect::<Result<_, _>>()?;
        let queues: Vec<QueueSpec> = self.all("SELECT json FROM queue ORDER BY name").await?;
        let sql = "SELECT json, queue FROM share ORDER BY queue";
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let shares =
            rows.iter().map(|row| Ok((row.get(1), self.parse(row)?))).collect::<Result<_, StoreError>>()?;
        let sql = "SELECT next FROM counter";
        let next: Option<i64> =
            sqlx::query_scalar(sql).fetch_optional(self.0.readers()).await.map_err(|e| self.0.error(&e))?;
        Ok(Loaded {
            passed: self.passed(&live_jobs).await?,
            live_jobs,
            next_job: (last as u64 + 1).max(next.unwrap_or(0) as u64),
            nodes,
            queues: queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect(),
            shares,
            groups: self.groups().await?,
            sweeps: self.live_sweeps().await?,
            next_sweep: self.last_sweep().await? + 1,
        })
    }

    /// Every placement group, in the order of their numbers.
    pub async fn groups(&self) -> Result<Vec<Group>, StoreError> {
        self.all("SELECT json FROM placement_group ORDER BY id").await
    }

    pub(super) async fn all<T: serde::de::DeserializeOwned>(
        &self,
        sql: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        rows.iter().map(|row| self.parse(row)).collect()
    }

    /// The latest jobs that are over, had started and were submitted after one that waits.
    async fn passed(&self, live: &[Job]) -> Result<Vec<JobId>, StoreError> {
        let waiting = live.iter().filter(|job| job.run.is_none() && job.state.is_waiting());
        let Some(oldest) = waiting.map(|job| job.id).min() else { return Ok(Vec::new()) };
        let sql = "SELECT id FROM job WHERE over = 1 AND id > ?
            AND json_array_length(CAST(json AS TEXT), '$.attempts') > 0 ORDER BY id DESC LIMIT ?";
        let query = sqlx::query_scalar(sql).bind(key(oldest.0)).bind(PASSED);
        let ids: Vec<i64> = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        Ok(ids.into_iter().map(|id| JobId(id as u64)).collect())
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let query = sqlx::query("SELECT json FROM job WHERE id = ?").bind(key(id.0));
        let row = query.fetch_optional(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        row.map(|row| self.parse(&row)).transpose()
    }

    /// Jobs with ids below `before`, the newest first; all of them, or only those that are not over.
    pub async fn jobs(
        &self,
        before: Option<JobId>,
        limit: u32,
        unfinished: bool,
    ) -> Result<Vec<Job>, StoreError> {
        let before = before.map_or(i64::MAX, |id| key(id.0));
        let sql = match unfinished {
            true => "SELECT json FROM job WHERE over = 0 AND id < ? ORDER BY id DESC LIMIT ?",
            false => "SELECT json FROM job WHERE id < ? ORDER BY id DESC LIMIT ?",
        };
        let query = sqlx::query(sql).bind(before).bind(limit);
        let rows = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        rows.iter().map(|row| self.parse(row)).collect()
    }

    /// States that a job has been in, by their numbers, the oldest first.
    pub async fn changes(
        &self,
        id: JobId,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<(u64, Job)>, StoreError> {
        let sql = "SELECT json, seq FROM change WHERE job = ? AND seq > ? ORDER BY seq LIMIT ?";
        let query = sqlx::query(sql).bind(key(id.0)).bind(key(after_seq)).bind(limit);
        let rows = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        rows.iter().map(|row| Ok((row.get::<i64, _>(1) as u64, self.parse(row)?))).collect()
    }

    /// States that jobs have been in, of one job or of all, by the numbers of the whole service's changes.
    pub async fn feed(
        &self,
        after: u64,
        job: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<(u64, Job)>, StoreError> {
        // Row ids only grow: the latest change of a job is never dropped, and the file is never rewritten as a whole.
        let sql = "SELECT json, rowid FROM change WHERE rowid > ?1 AND (?2 IS NULL OR job = ?2) ORDER BY rowid LIMIT ?3";
        let query = sqlx::query(sql).bind(key(after)).bind(job.map(|id| key(id.0))).bind(limit);
        let rows = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        rows.iter().map(|row| Ok((row.get::<i64, _>(1) as u64, self.parse(row)?))).collect()
    }

    /// The number of the latest change of any job; 0 before the first.
    pub async fn last_change(&self) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar("SELECT coalesce(max(rowid), 0) FROM change");
        let last: i64 = query.fetch_one(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        Ok(last as u64)
    }

    /// What a request made, and the fingerprint it had.
    pub async fn request(&self, request_id: &str) -> Result<Option<([u8; 32], JobId)>, StoreError> {
        let query = sqlx::query("SELECT fingerprint, job FROM request WHERE id = ?").bind(request_id);
        let row = query.fetch_optional(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let Some(row) = row else { return Ok(None) };
        let fingerprint = row.get::<Vec<u8>, _>(0).try_into();
        let fingerprint = fingerprint.map_err(|_| self.0.corrupt("a fingerprint has another length"))?;
        Ok(Some((fingerprint, JobId(row.get::<i64, _>(1) as u64))))
    }

    /// How many jobs are in each state, by its name.
    pub async fn counts(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let sql = "SELECT state, count(*) FROM job GROUP BY state";
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get::<i64, _>(1) as u64)).collect())
    }

    pub(super) fn readers(&self) -> &sqlx::SqlitePool {
        self.0.readers()
    }

    pub(super) fn error(&self, error: &sqlx::Error) -> StoreError {
        self.0.error(error)
    }

    /// Waits until the files are closed, where this is the last handle.
    pub async fn close(self) {
        if let Some(database) = Arc::into_inner(self.0) {
            database.close().await;
        }
    }

    pub(super) fn parse<T: serde::de::DeserializeOwned>(&self, row: &SqliteRow) -> Result<T, StoreError> {
        serde_json::from_slice(row.get::<&[u8], _>(0))
            .map_err(|error| self.0.corrupt(format!("a record does not parse: {error}")))
    }
}

/// SQLite's integers are signed; no id or number of ours gets that far.
pub(super) fn key(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

async fn apply(
    connection: &mut SqliteConnection,
    write: &Write,
) -> Result<Option<(JobId, u64)>, sqlx::Error> {
    match write {
        Write::SaveJob { job, visible } => return save_job(connection, job, *visible).await,
        Write::Request { request_id, fingerprint, job } => {
            let query = sqlx::query("INSERT INTO request (id, fingerprint, job) VALUES (?, ?, ?)");
            query.bind(request_id).bind(fingerprint.to_vec()).bind(key(job.0)).execute(connection).await?;
        }
        Write::Node { record } => {
            let query = sqlx::query("INSERT OR REPLACE INTO node (name, json) VALUES (?, ?)");
            query.bind(record.name.as_str()).bind(json(record)?).execute(connection).await?;
        }
        Write::Groups(groups) => save_groups(connection, groups).await?,
        Write::Sweep(write) => sweeps::save(connection, write).await?,
        Write::NextId(next) => {
            let query = sqlx::query("INSERT OR REPLACE INTO counter (id, next) VALUES (0, ?)");
            query.bind(key(next.0)).execute(connection).await?;
        }
        Write::RemoveNode(name) => {
            sqlx::query("DELETE FROM node WHERE name = ?").bind(name.as_str()).execute(connection).await?;
        }
        Write::Queue(QueueWrite::Set(queue)) => {
            let query = sqlx::query("INSERT OR REPLACE INTO queue (name, json) VALUES (?, ?)");
            query.bind(&queue.name).bind(json(queue)?).execute(connection).await?;
        }
        Write::Queue(QueueWrite::Reset(name)) => {
            sqlx::query("DELETE FROM queue WHERE name = ?").bind(name).execute(connection).await?;
        }
        Write::Event(event) => events::save(connection, event).await?,
        Write::Share { queue, share } => {
            let query = sqlx::query("INSERT OR REPLACE INTO share (queue, json) VALUES (?, ?)");
            query.bind(queue).bind(json(share)?).execute(connection).await?;
        }
    }
    Ok(None)
}

/// Saves a job; where it is to be seen, also this state of it and that it was entered, with one round trip to the
/// database's thread: it costs more than the statements. Returns the number of the change.
async fn save_job(
    connection: &mut SqliteConnection,
    job: &Job,
    visible: bool,
) -> Result<Option<(JobId, u64)>, sqlx::Error> {
    let json = json(job)?;
    if !visible {
        let sql = "INSERT INTO job (id, state, over, submitted, changes, json) VALUES (?1, ?2, ?3, ?4, 0, ?5)
            ON CONFLICT (id) DO UPDATE SET state = ?2, over = ?3, json = ?5";
        of_job(sqlx::query(sql), job).bind(json).execute(connection).await?;
        return Ok(None);
    }
    let sql = concat!(
        "INSERT INTO job (id, state, over, submitted, changes, json) VALUES (?1, ?2, ?3, ?4, 1, ?5)
            ON CONFLICT (id) DO UPDATE SET state = ?2, over = ?3, changes = changes + 1, json = ?5;
        INSERT INTO change (job, seq, json) SELECT id, changes, json FROM job WHERE id = ?1 RETURNING seq;
        DELETE FROM change WHERE job = ?1 AND seq <= (SELECT changes FROM job WHERE id = ?1) - ?6;",
        events::insert!("?7", "?8", "?9", "?10", "?11", "?12"),
    );
    let action = format!("job.{}", job.state.as_str().to_lowercase());
    let event = NewEvent::new(SERVICE, &action, job.id, job.reason.text.as_str());
    let query = of_job(sqlx::query(sql), job).bind(json).bind(key(CHANGES_PER_JOB));
    // All of them: the statements after a row that is not fetched would not run.
    let rows = events::bind(query, &event).fetch_all(connection).await?;
    let seq = rows.first().map_or(0, |row| row.get::<i64, _>(0));
    Ok(Some((job.id, seq as u64)))
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn of_job<'q>(query: Query<'q>, job: &Job) -> Query<'q> {
    let (state, over) = (job.state.as_str(), job.state.is_terminal());
    query.bind(key(job.id.0)).bind(state).bind(over).bind(key(job.submitted.as_micros()))
}

/// Two statements however many groups there are: each costs more than what it writes.
async fn save_groups(connection: &mut SqliteConnection, groups: &[Group]) -> Result<(), sqlx::Error> {
    let (removed, kept): (Vec<&Group>, Vec<&Group>) =
        groups.iter().partition(|group| group.state == GroupState::Removed);
    if !kept.is_empty() {
        let sql = "INSERT OR REPLACE INTO placement_group (id, json)
            SELECT value ->> '$.id', CAST(value AS BLOB) FROM json_each(?)";
        sqlx::query(sql).bind(text(&kept)?).execute(&mut *connection).await?;
    }
    if !removed.is_empty() {
        let ids: Vec<u64> = removed.iter().map(|group| group.id.0).collect();
        let sql = "DELETE FROM placement_group WHERE id IN (SELECT value FROM json_each(?))";
        sqlx::query(sql).bind(text(&ids)?).execute(connection).await?;
    }
    Ok(())
}

pub(super) fn text(value: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, sqlx::Error> {
    serde_json::to_vec(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}
