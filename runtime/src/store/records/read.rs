//! The way out: pages of lines and points by their numbers, from the front or from the end.

use super::block::{self, Line};
use super::{Latest, LogRow, PointRow, Records};
use crate::store::error::StoreError;
use crate::store::state::key;
use futures_util::TryStreamExt;
use phalanx_core::{JobId, Rank, Time};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::{Mutex, PoisonError};

/// Places remembered for followers of one rank or attempt.
const HINTS: usize = 1024;

/// How far a reader who wants one rank or attempt has looked in vain: without it, each look of somebody who follows a
/// quiet rank would go over all that the others have written since.
#[derive(Debug, Default)]
pub(super) struct Hints(Mutex<HashMap<Place, u64>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    job: JobId,
    lines: bool,
    rank: Option<Rank>,
    attempt: Option<u32>,
    after: u64,
}

impl Hints {
    fn get(&self, place: &Place) -> u64 {
        let hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hints.get(place).copied().unwrap_or(place.after)
    }

    fn put(&self, place: Place, through: u64) {
        if through <= place.after {
            return;
        }
        let mut hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hints.len() >= HINTS {
            hints.clear();
        }
        hints.insert(place, through);
    }
}

impl Records {
    /// Lines with numbers above `after_seq`, the oldest first, of one rank or attempt only where asked. Ends at
    /// `limit_rows`, or before the bytes of the lines go past `limit_bytes`; the first line comes however long it is.
    pub async fn lines(
        &self,
        job: JobId,
        after_seq: u64,
        limit_rows: u32,
        limit_bytes: usize,
        rank: Option<Rank>,
        attempt: Option<u32>,
    ) -> Result<Vec<LogRow>, StoreError> {
        let place = Place { job, lines: true, rank, attempt, after: after_seq };
        let sql = "SELECT first_seq, body FROM line_block WHERE job = ?1 AND last_seq > ?2
            AND (?3 IS NULL OR ranks & ?3 != 0) AND (?4 IS NULL OR ?4 BETWEEN attempt_min AND attempt_max)
            ORDER BY last_seq";
        let (mut rows, mut room) = (Vec::new(), limit_bytes);
        let through = self.scan(place, sql, |first_seq, body| {
            for (seq, line) in (first_seq..).zip(block::lines(body)) {
                let line = line.ok_or("a block of lines does not parse")?;
                if seq <= after_seq || !is_wanted(rank, attempt, line.rank, line.attempt) {
                    continue;
                }
                if !rows.is_empty() && line.bytes.len() > room || rows.len() >= limit_rows as usize {
                    return Ok(Break(()));
                }
                room = room.saturating_sub(line.bytes.len());
                rows.push(log_row(seq, &line));
            }
            Ok(Continue(()))
        });
        let through = through.await?;
        if rows.is_empty() {
            self.0.hints.put(place, through);
        }
        Ok(rows)
    }

    /// The last lines, the oldest of them first; otherwise like [`Records::lines`].
    pub async fn tail(
        &self,
        job: JobId,
        limit_rows: u32,
        limit_bytes: usize,
        rank: Option<Rank>,
        attempt: Option<u32>,
    ) -> Result<Vec<LogRow>, StoreError> {
        let place = Place { job, lines: true, rank, attempt, after: 0 };
        let sql = "SELECT first_seq, body FROM line_block WHERE job = ?1 AND last_seq > ?2
            AND (?3 IS NULL OR ranks & ?3 != 0) AND (?4 IS NULL OR ?4 BETWEEN attempt_min AND attempt_max)
            ORDER BY last_seq DESC";
        let (mut rows, mut room) = (Vec::new(), limit_bytes);
        self.scan(place, sql, |first_seq, body| {
            let lines: Option<Vec<Line<'_>>> = block::lines(body).collect();
            let lines = lines.ok_or("a block of lines does not parse")?;
            for (at, line) in lines.iter().enumerate().rev() {
                if !is_wanted(rank, attempt, line.rank, line.attempt) {
                    continue;
                }
                if !rows.is_empty() && line.bytes.len() > room || rows.len() >= limit_rows as usize {
                    return Ok(Break(()));
                }
                room = room.saturating_sub(line.bytes.len());
                rows.push(log_row(first_seq + at as u64, line));
            }
            Ok(Continue(()))
        })
        .await?;
        rows.reverse();
        Ok(rows)
    }

    /// Points with numbers above `after_seq`, the oldest first, of one rank or attempt only where asked.
    pub async fn points(
        &self,
        job: JobId,
        after_seq: u64,
        limit_rows: u32,
        rank: Option<Rank>,
        attempt: Option<u32>,
    ) -> Result<Vec<PointRow>, StoreError> {
        let place = Place { job, lines: false, rank, attempt, after: after_seq };
        let sql = "SELECT first_seq, body FROM point_block WHERE job = ?1 AND last_seq > ?2
            AND (?3 IS NULL OR ranks & ?3 != 0) AND (?4 IS NULL OR ?4 BETWEEN attempt_min AND attempt_max)
            ORDER BY last_seq";
        let mut found = Vec::new();
        let through = self.scan(place, sql, |first_seq, body| {
            for (seq, point) in (first_seq..).zip(block::points(body)) {
                let point = point.ok_or("a block of points does not parse")?;
                if seq <= after_seq || !is_wanted(rank, attempt, point.rank, point.attempt) {
                    continue;
                }
                if found.len() >= limit_rows as usize {
                    return Ok(Break(()));
                }
                found.push((seq, point));
            }
            Ok(Continue(()))
        });
        let through = through.await?;
        if found.is_empty() {
            self.0.hints.put(place, through);
            return Ok(Vec::new());
        }
        // Read after the points: a name is there before the first value under it.
        let names = self.names(job).await?;
        let named = |(seq, point): (u64, block::Point)| {
            let name =
                |number: u32| names.get(&number).cloned().ok_or_else(|| self.corrupt("a metric has no name"));
            let metrics = point.values.iter().map(|&(number, value)| Ok((name(number)?, value)));
            Ok(PointRow {
                seq,
                attempt: point.attempt,
                rank: point.rank,
                step: point.step,
                time: Time::from_micros(point.time),
                metrics: metrics.collect::<Result<BTreeMap<_, _>, StoreError>>()?,
            })
        };
        found.into_iter().map(named).collect()
    }

    /// The numbers of a job's last line and last point; 0 before the first.
    pub async fn last_seq(&self, job: JobId) -> Result<(u64, u64), StoreError> {
        let query = sqlx::query("SELECT line_seq, point_seq FROM job WHERE id = ?").bind(key(job.0));
        let row =
            query.fetch_optional(self.0.database.readers()).await.map_err(|e| self.0.database.error(&e))?;
        Ok(row.map_or((0, 0), |row| (row.get::<i64, _>(0) as u64, row.get::<i64, _>(1) as u64)))
    }

    /// The value of a metric that any rank of an attempt reported last.
    pub async fn latest_metric(
        &self,
        job: JobId,
        attempt: u32,
        name: &str,
    ) -> Result<Option<Latest>, StoreError> {
        let sql = "SELECT last_step, last_bits FROM series JOIN name ON name.job = series.job AND name.id = series.name
            WHERE series.job = ? AND attempt = ? AND name.name = ? ORDER BY last_seq DESC LIMIT 1";
        let query = sqlx::query(sql).bind(key(job.0)).bind(attempt).bind(name);
        let row =
            query.fetch_optional(self.0.database.readers()).await.map_err(|e| self.0.database.error(&e))?;
        let number = |row: &SqliteRow, column: usize| row.get::<i64, _>(column) as u64;
        Ok(row.map(|row| Latest { step: number(&row, 0), value: f64::from_bits(number(&row, 1)) }))
    }

    /// Hands over blocks until the taker has enough. Returns the number up to which there was nothing more to hand
    /// over, where the taker has not stopped it.
    async fn scan(
        &self,
        place: Place,
        sql: &'static str,
        mut take: impl FnMut(u64, &[u8]) -> Result<ControlFlow<()>, &'static str>,
    ) -> Result<u64, StoreError> {
        let database = &self.0.database;
        let after = self.0.hints.get(&place);
        let some_only = place.rank.is_some() || place.attempt.is_some();
        // Asked before the search, which finds at least everything up to here.
        let through = if some_only { self.last_seq(place.job).await? } else { (after, after) };
        let query = sqlx::query(sql).bind(key(place.job.0)).bind(key(after));
        let query = query.bind(place.rank.map(block::rank_bit)).bind(place.attempt);
        let mut blocks = query.fetch(database.readers());
        while let Some(row) = blocks.try_next().await.map_err(|error| database.error(&error))? {
            let taken = take(row.get::<i64, _>(0) as u64, row.get::<&[u8], _>(1));
            if taken.map_err(|message| self.corrupt(message))?.is_break() {
                break;
            }
        }
        Ok(if place.lines { through.0 } else { through.1 })
    }

    async fn names(&self, job: JobId) -> Result<HashMap<u32, String>, StoreError> {
        let query = sqlx::query("SELECT id, name FROM name WHERE job = ?").bind(key(job.0));
        let rows = query.fetch_all(self.0.database.readers()).await.map_err(|e| self.0.database.error(&e))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn corrupt(&self, message: &str) -> StoreError {
        self.0.database.corrupt(message)
    }
}

fn is_wanted(rank: Option<Rank>, attempt: Option<u32>, found_rank: Rank, found_attempt: u32) -> bool {
    rank.is_none_or(|rank| rank == found_rank) && attempt.is_none_or(|attempt| attempt == found_attempt)
}

fn log_row(seq: u64, line: &Line<'_>) -> LogRow {
    LogRow {
        seq,
        attempt: line.attempt,
        rank: line.rank,
        stderr: line.stderr,
        time: Time::from_micros(line.time),
        line: line.bytes.to_vec(),
        partial: line.partial,
        newline: line.newline,
    }
}
