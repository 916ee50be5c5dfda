//! What happened, in the order it was committed: written with what it tells of, never changed, dropped by age alone.

use super::StoreError;
use super::state::{State, key};
use phalanx_core::{Event, NewEvent, Time};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use std::time::{SystemTime, UNIX_EPOCH};

/// Events that are kept; of more the oldest go.
const KEPT: i64 = 1_000_000;
/// The statements that write an event and let the oldest go, with these parameters.
macro_rules! insert {
    ($time:literal, $actor:literal, $action:literal, $target:literal, $text:literal, $kept:literal) => {
        concat!(
            "INSERT INTO event (time, actor, action, target, text) VALUES (",
            $time,
            ", ",
            $actor,
            ", ",
            $action,
            ", ",
            $target,
            ", ",
            $text,
            "); DELETE FROM event WHERE seq <= last_insert_rowid() - ",
            $kept,
            ";"
        )
    };
}
pub(super) use insert;

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Gives those statements an event, at the time of its commit.
pub(super) fn bind<'q>(query: Query<'q>, event: &'q NewEvent) -> Query<'q> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let query = query.bind(key(u64::try_from(now.as_micros()).unwrap_or(u64::MAX)));
    query.bind(&event.actor).bind(&event.action).bind(&event.target).bind(&event.text).bind(KEPT)
}

/// Writes an event.
pub(super) async fn save(connection: &mut SqliteConnection, event: &NewEvent) -> Result<(), sqlx::Error> {
    let query = sqlx::query(insert!("?1", "?2", "?3", "?4", "?5", "?6"));
    bind(query, event).execute(connection).await.map(drop)
}

impl State {
    /// Events by their numbers, the oldest first; of one target or of all.
    pub async fn events(
        &self,
        target: Option<&str>,
        after_seq: u64,
        limit: u32,
    ) -> Result<Vec<Event>, StoreError> {
        let sql =
            "SELECT seq, time, actor, action, target, text FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let of_target = "SELECT seq, time, actor, action, target, text FROM event
            WHERE target = ?3 AND seq > ?1 ORDER BY seq LIMIT ?2";
        let query = sqlx::query(if target.is_some() { of_target } else { sql });
        let query = query.bind(key(after_seq)).bind(limit);
        let query = if let Some(target) = target { query.bind(target.to_owned()) } else { query };
        let rows = query.fetch_all(self.readers()).await.map_err(|error| self.error(&error))?;
        Ok(rows.iter().map(event).collect())
    }

    /// The number of the event before the last `count` ones; 0 where there are no more.
    pub async fn before_last_events(&self, target: Option<&str>, count: u32) -> Result<u64, StoreError> {
        let sql = "SELECT seq FROM event ORDER BY seq DESC LIMIT 1 OFFSET ?1";
        let of_target = "SELECT seq FROM event WHERE target = ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?1";
        let query = sqlx::query_scalar(if target.is_some() { of_target } else { sql }).bind(count);
        let query = if let Some(target) = target { query.bind(target.to_owned()) } else { query };
        let found: Option<i64> =
            query.fetch_optional(self.readers()).await.map_err(|error| self.error(&error))?;
        Ok(found.unwrap_or(0) as u64)
    }
}

fn event(row: &SqliteRow) -> Event {
    let what = NewEvent { actor: row.get(2), action: row.get(3), target: row.get(4), text: row.get(5) };
    Event { seq: row.get::<i64, _>(0) as u64, time: Time::from_micros(row.get::<i64, _>(1) as u64), what }
}
