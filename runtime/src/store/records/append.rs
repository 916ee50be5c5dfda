//! The way in: each event counts once, each value of a step counts once, and what is too much goes.

use super::block::{self, Builder, Line, Point};
use super::{NewLine, NewPoint, RecordBatch, RecordLimits, Records};
use crate::store::error::StoreError;
use crate::store::state::key;
use phalanx_core::{JobId, NodeName, Time};
use sqlx::sqlite::{Sqlite, SqliteConnection};
use sqlx::{QueryBuilder, Row};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Series kept in memory; beyond this those of jobs that wrote nothing just now are forgotten, and read again.
const CACHED_SERIES: usize = 200_000;
/// Rows that one statement inserts; SQLite takes 32,766 parameters.
const ROWS_PER_STATEMENT: usize = 1000;
/// Blocks looked at together when some have to go.
const TRIM_BLOCKS: i64 = 64;
/// Between two looks for lines that are too old, by the clock of the lines.
const EXPIRY_MICROS: u64 = 60_000_000;
/// Gives pages that hold nothing back to the disk, at most 64 MiB a time.
const VACUUM: &str = "PRAGMA incremental_vacuum(4096)";
/// Besides its bytes, a line counts as this many against the bound on logs.
const LINE_HEAD_BYTES: usize = 16;

/// What the writer knows without asking the database. Whatever is being changed is taken out and only put back after
/// the commit, so an error, or a future that is dropped halfway, just means reading it again.
#[derive(Debug, Default)]
pub(super) struct Cache {
    applied: HashMap<(NodeName, String), u64>,
    jobs: HashMap<JobId, Progress>,
    next_expiry: Time,
}

/// How far a job has got.
#[derive(Debug, Default)]
struct Progress {
    line_seq: u64,
    point_seq: u64,
    line_bytes: u64,
    point_bytes: u64,
    names: HashMap<String, u32>,
    series: HashMap<SeriesKey, Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct SeriesKey {
    attempt: u32,
    name: u32,
    rank: u32,
}

/// One metric of one rank in one attempt.
#[derive(Clone, Copy, Debug)]
struct Series {
    step_max: u64,
    last_seq: u64,
    last_step: u64,
    last_value: f64,
}

/// What a batch brings for one job.
#[derive(Default)]
struct Share<'a> {
    lines: Vec<&'a NewLine>,
    points: Vec<&'a NewPoint>,
}

impl Records {
    /// Records a batch: all of it or nothing. Events that have been recorded before are passed over, so a batch may
    /// be handed in again, alone or as part of another.
    pub async fn append(&self, batch: &RecordBatch) -> Result<(), StoreError> {
        let inner = &*self.0;
        let mut cache = inner.cache.lock().await;
        let mut writer = inner.database.writer().await?;
        let done = async {
            let connection = writer.begin().await?;
            let changed = record(connection, &mut cache, batch, &inner.limits).await?;
            writer.commit().await?;
            sqlx::Result::Ok(changed)
        };
        match done.await {
            Ok(changed) => {
                let expired = changed.next_expiry.is_some();
                cache.keep(changed);
                if expired {
                    // The rows are committed; giving pages back to the disk can wait for the next time.
                    let _ = writer.run(VACUUM).await;
                }
                Ok(())
            }
            Err(error) => {
                writer.undo().await;
                Err(inner.database.error(&error))
            }
        }
    }

    /// The last event of an agent that has been recorded; 0 before the first.
    pub async fn applied(&self, node: &NodeName, outbox: &str) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar("SELECT seq FROM applied WHERE node = ? AND outbox = ?");
        let found = query.bind(node.as_str()).bind(outbox).fetch_optional(self.0.database.readers()).await;
        Ok(found.map_err(|error| self.0.database.error(&error))?.map_or(0, |seq: i64| seq as u64))
    }
}

/// What to know once the commit is done.
struct Changed {
    agent: (NodeName, String),
    applied: u64,
    jobs: Vec<(JobId, Progress)>,
    next_expiry: Option<Time>,
}

impl Cache {
    fn keep(&mut self, changed: Changed) {
        self.applied.insert(changed.agent, changed.applied);
        if let Some(next) = changed.next_expiry {
            self.next_expiry = next;
            // Their sizes have changed.
            self.jobs.clear();
        }
        let series =
            |jobs: &HashMap<JobId, Progress>| jobs.values().map(|job| job.series.len() + 1).sum::<usize>();
        if series(&self.jobs) > CACHED_SERIES {
            self.jobs.clear();
        }
        // A job that is cached nowhere is read again; one whose sizes have just been changed must be.
        if changed.next_expiry.is_none() {
            self.jobs.extend(changed.jobs);
        }
    }
}

async fn record(
    connection: &mut SqliteConnection,
    cache: &mut Cache,
    batch: &RecordBatch,
    limits: &RecordLimits,
) -> sqlx::Result<Changed> {
    let agent = (batch.node.clone(), batch.outbox.clone());
    // Taken out, as the jobs are below: whether the commit takes place is not known until it has been heard of.
    let before = match cache.applied.remove(&agent) {
        Some(applied) => applied,
        None => read_applied(connection, &agent).await?,
    };
    let mut shares: BTreeMap<JobId, Share<'_>> = BTreeMap::new();
    let (mut applied, mut latest) = (before, Time::ZERO);
    for line in batch.lines.iter().filter(|line| line.event > before) {
        shares.entry(line.attempt.job).or_default().lines.push(line);
        (applied, latest) = (applied.max(line.event), latest.max(line.time));
    }
    for point in batch.points.iter().filter(|point| point.event > before) {
        shares.entry(point.attempt.job).or_default().points.push(point);
        applied = applied.max(point.event);
    }
    let mut jobs = Vec::with_capacity(shares.len());
    for (job, share) in shares {
        let mut progress = match cache.jobs.remove(&job) {
            Some(progress) => progress,
            None => read_progress(connection, job).await?,
        };
        write_lines(connection, job, &mut progress, &share.lines).await?;
        write_points(connection, job, &mut progress, &share.points, limits).await?;
        trim(connection, job, &mut progress, limits).await?;
        write_progress(connection, job, &progress).await?;
        jobs.push((job, progress));
    }
    if applied > before {
        let query = sqlx::query("INSERT OR REPLACE INTO applied (node, outbox, seq) VALUES (?, ?, ?)");
        query.bind(agent.0.as_str()).bind(&agent.1).bind(key(applied)).execute(&mut *connection).await?;
    }
    let mut next_expiry = None;
    if latest >= cache.next_expiry && latest > Time::ZERO {
        expire(connection, latest, limits).await?;
        next_expiry = Some(latest + std::time::Duration::from_micros(EXPIRY_MICROS));
    }
    Ok(Changed { agent, applied, jobs, next_expiry })
}

async fn read_applied(connection: &mut SqliteConnection, agent: &(NodeName, String)) -> sqlx::Result<u64> {
    let query = sqlx::query_scalar("SELECT seq FROM applied WHERE node = ? AND outbox = ?");
    let found: Option<i64> = query.bind(agent.0.as_str()).bind(&agent.1).fetch_optional(connection).await?;
    Ok(found.unwrap_or(0) as u64)
}

async fn read_progress(connection: &mut SqliteConnection, job: JobId) -> sqlx::Result<Progress> {
    let id = key(job.0);
    let mut progress = Progress::default();
    let query =
        sqlx::query("SELECT line_seq, point_seq, line_bytes, point_bytes FROM job WHERE id = ?").bind(id);
    let Some(row) = query.fetch_optional(&mut *connection).await? else { return Ok(progress) };
    let number = |column: usize| row.get::<i64, _>(column) as u64;
    (progress.line_seq, progress.point_seq) = (number(0), number(1));
    (progress.line_bytes, progress.point_bytes) = (number(2), number(3));
    for row in
        sqlx::query("SELECT name, id FROM name WHERE job = ?").bind(id).fetch_all(&mut *connection).await?
    {
        progress.names.insert(row.get(0), row.get(1));
    }
    let sql =
        "SELECT attempt, name, rank, step_max, last_seq, last_step, last_bits FROM series WHERE job = ?";
    for row in sqlx::query(sql).bind(id).fetch_all(connection).await? {
        let number = |column: usize| row.get::<i64, _>(column) as u64;
        let series = Series {
            step_max: number(3),
            last_seq: number(4),
            last_step: number(5),
            last_value: f64::from_bits(number(6)),
        };
        progress.series.insert(SeriesKey { attempt: row.get(0), name: row.get(1), rank: row.get(2) }, series);
    }
    Ok(progress)
}

async fn write_progress(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &Progress,
) -> sqlx::Result<()> {
    let sql = "INSERT OR REPLACE INTO job (id, line_seq, point_seq, line_bytes, point_bytes) VALUES (?, ?, ?, ?, ?)";
    let query = sqlx::query(sql).bind(key(job.0)).bind(key(progress.line_seq)).bind(key(progress.point_seq));
    query.bind(key(progress.line_bytes)).bind(key(progress.point_bytes)).execute(connection).await.map(drop)
}

async fn write_lines(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    lines: &[&NewLine],
) -> sqlx::Result<()> {
    let mut builder = Builder::new();
    for line in lines {
        let chunk = &line.chunk;
        if builder.is_full_for(chunk.line.len() + LINE_HEAD_BYTES) {
            let full = std::mem::replace(&mut builder, Builder::new());
            write_line_block(connection, job, progress, full).await?;
        }
        builder.push_line(Line {
            attempt: line.attempt.number,
            rank: chunk.rank,
            stderr: chunk.stderr,
            partial: chunk.partial,
            newline: chunk.newline,
            time: line.time.as_micros(),
            bytes: &chunk.line,
        });
    }
    write_line_block(connection, job, progress, builder).await
}

async fn write_line_block(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    builder: Builder,
) -> sqlx::Result<()> {
    if builder.rows == 0 {
        return Ok(());
    }
    let first = progress.line_seq + 1;
    progress.line_seq += builder.rows;
    progress.line_bytes += builder.body.len() as u64;
    let sql =
        "INSERT INTO line_block (job, first_seq, last_seq, attempt_min, attempt_max, ranks, last_time, body)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(sql).bind(key(job.0)).bind(key(first)).bind(key(progress.line_seq));
    let query = query.bind(builder.attempt_min).bind(builder.attempt_max).bind(builder.ranks);
    query.bind(key(builder.time_max)).bind(builder.body).execute(connection).await.map(drop)
}

async fn write_points(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    points: &[&NewPoint],
    limits: &RecordLimits,
) -> sqlx::Result<()> {
    if points.is_empty() {
        return Ok(());
    }
    let named = name_points(connection, job, progress, points, limits).await?;
    let mut kept: Vec<Point> = Vec::with_capacity(named.len());
    let mut touched: HashSet<SeriesKey> = HashSet::new();
    // What has been recorded of the steps in hand; only read once a step is not later than all before.
    let mut recorded: Option<HashSet<ValueKey>> = None;
    for at in 0..named.len() {
        let mut point = named[at].clone();
        let mut fresh = Vec::with_capacity(point.values.len());
        for &(name, value) in &point.values {
            let series = SeriesKey { attempt: point.attempt, name, rank: point.rank };
            let value_key = ValueKey { series, step: point.step };
            if progress.series.get(&series).is_some_and(|known| point.step <= known.step_max) {
                if recorded.is_none() {
                    let mut found = read_recorded(connection, job, &named).await?;
                    found.extend(kept.iter().flat_map(value_keys));
                    found.extend(fresh.iter().map(|&(name, _)| ValueKey {
                        series: SeriesKey { name, ..series },
                        step: point.step,
                    }));
                    recorded = Some(found);
                }
                if recorded.as_ref().is_some_and(|recorded| recorded.contains(&value_key)) {
                    continue;
                }
            }
            if let Some(recorded) = &mut recorded {
                recorded.insert(value_key);
            }
            fresh.push((name, value));
        }
        if fresh.is_empty() {
            continue;
        }
        let seq = progress.point_seq + 1 + kept.len() as u64;
        for &(name, value) in &fresh {
            let series = SeriesKey { attempt: point.attempt, name, rank: point.rank };
            let step_max =
                progress.series.get(&series).map_or(point.step, |known| known.step_max.max(point.step));
            let latest = Series { step_max, last_seq: seq, last_step: point.step, last_value: value };
            progress.series.insert(series, latest);
            touched.insert(series);
        }
        point.values = fresh;
        kept.push(point);
    }
    write_series(connection, job, progress, touched).await?;
    let mut builder = Builder::new();
    for point in &kept {
        if builder.is_full_for(point.values.len() * LINE_HEAD_BYTES) {
            let full = std::mem::replace(&mut builder, Builder::new());
            write_point_block(connection, job, progress, full).await?;
        }
        builder.push_point(point);
    }
    write_point_block(connection, job, progress, builder).await
}

/// Gives each name of the points its number, a new one where it has none.
async fn name_points(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    points: &[&NewPoint],
    limits: &RecordLimits,
) -> sqlx::Result<Vec<Point>> {
    let (mut named, mut new_names, mut dropped) = (Vec::with_capacity(points.len()), Vec::new(), 0_u64);
    for point in points {
        let mut values = Vec::with_capacity(point.metrics.len());
        for (name, &value) in &point.metrics {
            let number = match progress.names.get(name) {
                Some(&number) => number,
                None if progress.names.len() as u64 >= u64::from(limits.metric_names_per_job) => {
                    dropped += 1;
                    continue;
                }
                None => {
                    let number = progress.names.len() as u32;
                    progress.names.insert(name.clone(), number);
                    new_names.push((number, name));
                    number
                }
            };
            values.push((number, value));
        }
        let (attempt, rank, step, time) =
            (point.attempt.number, point.rank, point.step, point.time.as_micros());
        named.push(Point { attempt, rank, step, time, values });
    }
    if dropped > 0 {
        let limit = limits.metric_names_per_job;
        tracing::warn!(%job, dropped, limit, "dropped values of metrics: the job has too many names of metrics");
    }
    for rows in new_names.chunks(ROWS_PER_STATEMENT) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT INTO name (job, id, name) ");
        query.push_values(rows, |mut row, (number, name)| {
            row.push_bind(key(job.0)).push_bind(*number).push_bind(name.as_str());
        });
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(named)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ValueKey {
    series: SeriesKey,
    step: u64,
}

fn value_keys(point: &Point) -> impl Iterator<Item = ValueKey> {
    let &Point { attempt, rank, step, .. } = point;
    point.values.iter().map(move |&(name, _)| ValueKey { series: SeriesKey { attempt, name, rank }, step })
}

/// Which of the points' values are in the database already.
async fn read_recorded(
    connection: &mut SqliteConnection,
    job: JobId,
    points: &[Point],
) -> sqlx::Result<HashSet<ValueKey>> {
    let wanted: HashSet<ValueKey> = points.iter().flat_map(value_keys).collect();
    let range = |of: fn(&Point) -> u64| {
        let (least, most) = (points.iter().map(of).min(), points.iter().map(of).max());
        (least.unwrap_or(0), most.unwrap_or(0))
    };
    let (step_min, step_max) = range(|point| point.step);
    let (attempt_min, attempt_max) = range(|point| u64::from(point.attempt));
    let ranks = points.iter().fold(0, |ranks, point| ranks | block::rank_bit(point.rank));
    let sql = "SELECT body FROM point_block WHERE job = ? AND step_max >= ? AND step_min <= ?
        AND attempt_max >= ? AND attempt_min <= ? AND ranks & ? != 0";
    let query = sqlx::query_scalar(sql).bind(key(job.0)).bind(key(step_min)).bind(key(step_max));
    let query = query.bind(key(attempt_min)).bind(key(attempt_max)).bind(ranks);
    let bodies: Vec<Vec<u8>> = query.fetch_all(connection).await?;
    let mut found = HashSet::new();
    for point in bodies.iter().flat_map(|body| block::points(body)) {
        let point = point.ok_or_else(|| sqlx::Error::Decode("a block of points does not parse".into()))?;
        found.extend(value_keys(&point).filter(|value| wanted.contains(value)));
    }
    Ok(found)
}

async fn write_series(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &Progress,
    touched: HashSet<SeriesKey>,
) -> sqlx::Result<()> {
    let mut touched: Vec<SeriesKey> = touched.into_iter().collect();
    // In the order of the table.
    touched.sort_unstable();
    for rows in touched.chunks(ROWS_PER_STATEMENT) {
        let head = "INSERT OR REPLACE INTO series (job, attempt, name, rank, step_max, last_seq, last_step, last_bits) ";
        let mut query = QueryBuilder::<Sqlite>::new(head);
        query.push_values(rows, |mut row, at| {
            let series = progress.series[at];
            row.push_bind(key(job.0)).push_bind(at.attempt).push_bind(at.name).push_bind(at.rank);
            // Stored as the 64 bits they are; only blocks are searched by step.
            row.push_bind(series.step_max as i64).push_bind(key(series.last_seq));
            row.push_bind(series.last_step as i64).push_bind(series.last_value.to_bits() as i64);
        });
        query.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn write_point_block(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    builder: Builder,
) -> sqlx::Result<()> {
    if builder.rows == 0 {
        return Ok(());
    }
    let first = progress.point_seq + 1;
    progress.point_seq += builder.rows;
    progress.point_bytes += builder.body.len() as u64;
    let sql = "INSERT INTO point_block
        (job, first_seq, last_seq, attempt_min, attempt_max, ranks, step_min, step_max, body)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(sql).bind(key(job.0)).bind(key(first)).bind(key(progress.point_seq));
    let query = query.bind(builder.attempt_min).bind(builder.attempt_max).bind(builder.ranks);
    let query = query.bind(key(builder.step_min)).bind(key(builder.step_max));
    query.bind(builder.body).execute(connection).await.map(drop)
}

/// Brings a job back under its bounds; its newest block always stays.
async fn trim(
    connection: &mut SqliteConnection,
    job: JobId,
    progress: &mut Progress,
    limits: &RecordLimits,
) -> sqlx::Result<()> {
    let lines = (
        "SELECT id, length(body) FROM line_block WHERE job = ? ORDER BY last_seq LIMIT ?",
        "DELETE FROM line_block WHERE job = ? AND id <= ?",
    );
    trim_blocks(connection, job, &mut progress.line_bytes, limits.log_bytes_per_job, lines).await?;
    let points = (
        "SELECT id, length(body) FROM point_block WHERE job = ? ORDER BY last_seq LIMIT ?",
        "DELETE FROM point_block WHERE job = ? AND id <= ?",
    );
    trim_blocks(connection, job, &mut progress.point_bytes, limits.point_bytes_per_job, points).await
}

async fn trim_blocks(
    connection: &mut SqliteConnection,
    job: JobId,
    bytes: &mut u64,
    limit: u64,
    (oldest, delete): (&'static str, &'static str),
) -> sqlx::Result<()> {
    while *bytes > limit {
        let blocks =
            sqlx::query(oldest).bind(key(job.0)).bind(TRIM_BLOCKS).fetch_all(&mut *connection).await?;
        let mut last_gone = None;
        // Where there are no more than these, the last of them is the newest of all.
        let spared = if (blocks.len() as i64) < TRIM_BLOCKS { 1 } else { 0 };
        for row in &blocks[..blocks.len().saturating_sub(spared)] {
            if *bytes <= limit {
                break;
            }
            last_gone = Some(row.get::<i64, _>(0));
            *bytes = bytes.saturating_sub(row.get::<i64, _>(1) as u64);
        }
        // A job's blocks are numbered in the order of their lines.
        let Some(id) = last_gone else { break };
        sqlx::query(delete).bind(key(job.0)).bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Lets go of lines that are too old, and of the oldest where all jobs together have too many.
async fn expire(connection: &mut SqliteConnection, now: Time, limits: &RecordLimits) -> sqlx::Result<()> {
    let sum = "SELECT coalesce(sum(line_bytes), 0) FROM job";
    let mut total: i64 = sqlx::query_scalar(sum).fetch_one(&mut *connection).await?;
    let cutoff = key((now - limits.log_age).as_micros());
    loop {
        let sql = "SELECT id, length(body), last_time, job FROM line_block ORDER BY id LIMIT ?";
        let blocks = sqlx::query(sql).bind(TRIM_BLOCKS).fetch_all(&mut *connection).await?;
        let mut gone = 0;
        for row in &blocks {
            let (id, bytes, time, job): (i64, i64, i64, i64) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if time >= cutoff && total <= key(limits.log_bytes) {
                break;
            }
            sqlx::query("DELETE FROM line_block WHERE id = ?").bind(id).execute(&mut *connection).await?;
            let sql = "UPDATE job SET line_bytes = max(0, line_bytes - ?) WHERE id = ?";
            sqlx::query(sql).bind(bytes).bind(job).execute(&mut *connection).await?;
            total -= bytes;
            gone += 1;
        }
        if gone < TRIM_BLOCKS {
            return Ok(());
        }
    }
}
