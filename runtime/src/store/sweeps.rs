//! Sweeps in `state.db`: what was asked once, what has become of them, their trials, and the logs of their studies.

use super::error::StoreError;
use super::state::{State, json, key, text};
use crate::controller::{LoadedSweep, SweepWrite};
use phalanx_core::spec::Search;
use phalanx_core::sweep::{Asked, SweepNow};
use phalanx_core::{Job, KeptCheckpoint, Sweep, SweepId, Trial};
use phalanx_tuner::Record;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use std::sync::Arc;

pub(super) async fn save(connection: &mut SqliteConnection, write: &SweepWrite) -> Result<(), sqlx::Error> {
    let SweepWrite { sweep, fresh, trials, logged, records } = write;
    let (id, over) = (key(sweep.id.0), sweep.now.state.is_terminal());
    let now = json(&sweep.now)?;
    if *fresh {
        let query = sqlx::query("INSERT INTO sweep (id, over, asked, json) VALUES (?, ?, ?, ?)");
        query.bind(id).bind(over).bind(json(&*sweep.asked)?).bind(now).execute(&mut *connection).await?;
    } else {
        let query = sqlx::query("UPDATE sweep SET over = ?2, json = ?3 WHERE id = ?1");
        query.bind(id).bind(over).bind(now).execute(&mut *connection).await?;
    }
    if !trials.is_empty() {
        // One statement however many there are.
        let sql = "INSERT OR REPLACE INTO trial (sweep, number, changed, over, json)
            SELECT ?1, value ->> '$.number', value ->> '$.changed',
                value ->> '$.state' NOT IN ('QUEUED', 'RUNNING', 'PAUSED'), CAST(value AS BLOB) FROM json_each(?2)";
        sqlx::query(sql).bind(id).bind(text(trials)?).execute(&mut *connection).await?;
    }
    if !records.is_empty() {
        let query = sqlx::query("INSERT INTO study_log (sweep, first, json) VALUES (?, ?, ?)");
        query.bind(id).bind(key(*logged)).bind(json(records)?).execute(connection).await?;
    }
    Ok(())
}

/// The trials of a query with a limit in one row, as a list in JSON: every row takes two switches between threads, and a
/// page has a thousand trials.
macro_rules! trials_sql {
    ($order:literal, $trials:literal) => {
        concat!(
            "SELECT CAST('[' || coalesce(group_concat(CAST(json AS TEXT), ',' ORDER BY ",
            $order,
            "), '') || ']' AS BLOB)
            FROM (",
            $trials,
            " ORDER BY ",
            $order,
            " LIMIT ?)"
        )
    };
}

impl State {
    /// One sweep.
    pub async fn sweep(&self, id: SweepId) -> Result<Option<Sweep>, StoreError> {
        let query = sqlx::query("SELECT json, asked, id FROM sweep WHERE id = ?").bind(key(id.0));
        let row = query.fetch_optional(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        row.map(|row| self.sweep_of(&row)).transpose()
    }

    /// Sweeps with ids below `before`, the newest first.
    pub async fn sweeps(&self, before: Option<SweepId>, limit: u32) -> Result<Vec<Sweep>, StoreError> {
        let before = before.map_or(i64::MAX, |id| key(id.0));
        let sql = "SELECT json, asked, id FROM sweep WHERE id < ? ORDER BY id DESC LIMIT ?";
        let query = sqlx::query(sql).bind(before).bind(limit);
        let rows = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        rows.iter().map(|row| self.sweep_of(row)).collect()
    }

    fn sweep_of(&self, row: &SqliteRow) -> Result<Sweep, StoreError> {
        let asked: Result<Asked, _> = serde_json::from_slice(row.get::<&[u8], _>(1));
        let asked = asked.map_err(|error| self.0.corrupt(format!("a sweep does not parse: {error}")))?;
        let now: SweepNow = self.parse(row)?;
        Ok(Sweep { id: SweepId(row.get::<i64, _>(2) as u64), asked: Arc::new(asked), now })
    }

    /// Trials of a sweep from a number on, in their order.
    pub async fn trials(&self, id: SweepId, from: u64, limit: u32) -> Result<Vec<Trial>, StoreError> {
        let sql = trials_sql!("number", "SELECT json, number FROM trial WHERE sweep = ? AND number >= ?");
        self.trials_by(sqlx::query(sql).bind(key(id.0)).bind(key(from)).bind(limit)).await
    }

    /// Trials of a sweep that have changed later than `after`, in the order of their changes.
    pub async fn changed_trials(
        &self,
        id: SweepId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Trial>, StoreError> {
        let sql = trials_sql!("changed", "SELECT json, changed FROM trial WHERE sweep = ? AND changed > ?");
        self.trials_by(sqlx::query(sql).bind(key(id.0)).bind(key(after)).bind(limit)).await
    }

    async fn trials_by(
        &self,
        query: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    ) -> Result<Vec<Trial>, StoreError> {
        let row = query.fetch_one(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        self.parse(&row)
    }

    pub(super) async fn last_sweep(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(max(id), 0) FROM sweep";
        let last: i64 = sqlx::query_scalar(sql)
            .fetch_one(self.0.readers())
            .await
            .map_err(|error| self.0.error(&error))?;
        Ok(last as u64)
    }

    /// Sweeps that are not over, with all that a starting service goes on from.
    pub(super) async fn live_sweeps(&self) -> Result<Vec<LoadedSweep>, StoreError> {
        let sql = "SELECT json, asked, id FROM sweep WHERE over = 0 ORDER BY id";
        let rows =
            sqlx::query(sql).fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let mut loaded = Vec::new();
        for row in &rows {
            let sweep = self.sweep_of(row)?;
            let id = key(sweep.id.0);
            let sql = trials_sql!("number", "SELECT json, number FROM trial WHERE sweep = ? AND over = 0");
            let open = self.trials_by(sqlx::query(sql).bind(id).bind(i64::MAX)).await?;
            let sql = "SELECT job.json FROM trial JOIN job ON job.id = CAST(trial.json AS TEXT) ->> '$.job'
                WHERE trial.sweep = ? AND trial.over = 0 AND job.over = 1 ORDER BY job.id";
            let found = sqlx::query(sql).bind(id).fetch_all(self.0.readers()).await;
            let found = found.map_err(|error| self.0.error(&error))?;
            let over: Vec<Job> = found.iter().map(|row| self.parse(row)).collect::<Result<_, _>>()?;
            let checkpoints = match sweep.asked.spec.search {
                Search::Pbt(_) => self.checkpoints_of(id).await?,
                _ => Vec::new(),
            };
            loaded.push(LoadedSweep { records: self.records_of(id).await?, sweep, open, over, checkpoints });
        }
        Ok(loaded)
    }

    /// The last checkpoint of every complete trial.
    async fn checkpoints_of(&self, id: i64) -> Result<Vec<(u64, KeptCheckpoint)>, StoreError> {
        let sql = "SELECT job.json, trial.number FROM trial JOIN job ON job.id = CAST(trial.json AS TEXT) ->> '$.job'
            WHERE trial.sweep = ? AND CAST(trial.json AS TEXT) ->> '$.state' = 'COMPLETE' ORDER BY trial.number";
        let rows = sqlx::query(sql).bind(id).fetch_all(self.0.readers()).await;
        let mut found = Vec::new();
        for row in &rows.map_err(|error| self.0.error(&error))? {
            let job: Job = self.parse(row)?;
            found.extend(job.checkpoints.last().map(|latest| (row.get::<i64, _>(1) as u64, latest.clone())));
        }
        Ok(found)
    }

    /// The log of a sweep's study; empty where there is no such sweep.
    pub async fn study_log(&self, id: SweepId) -> Result<Vec<Record>, StoreError> {
        self.records_of(key(id.0)).await
    }

    async fn records_of(&self, id: i64) -> Result<Vec<Record>, StoreError> {
        let query = sqlx::query("SELECT json FROM study_log WHERE sweep = ? ORDER BY first").bind(id);
        let rows = query.fetch_all(self.0.readers()).await.map_err(|error| self.0.error(&error))?;
        let lists: Vec<Vec<Record>> = rows.iter().map(|row| self.parse(row)).collect::<Result<_, _>>()?;
        Ok(lists.into_iter().flatten().collect())
    }
}
