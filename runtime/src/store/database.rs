//! An SQLite file: opening, migrating, one writer and several readers.

use super::error::StoreError;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool,
    SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// Connections that read at the same time.
const READERS: u32 = 4;
/// How long a connection waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection.
const READER_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows that are read ahead of the one looked at; they may be large, and most readers stop early.
const ROWS_AHEAD: usize = 2;
/// The write-ahead log is moved into the database when it gets this long, and cut back to it when it has been longer.
/// Seldom enough to write much in one go, often enough to open quickly.
const LOG_BYTES: i64 = 32 << 20;
/// Marks a file as ours (`PRAGMA application_id`): "PHLX".
const APPLICATION_ID: i64 = 0x5048_4c58;

/// What a data folder is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the service, which holds the folder's lock.
    ReadWrite,
    /// By anybody else, whether or not a service runs.
    ReadOnly,
}

/// What makes one database different from another.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) file: &'static str,
    /// Entry N brings version N to version N + 1.
    pub(super) migrations: &'static [&'static str],
    pub(super) synchronous: SqliteSynchronous,
    pub(super) page_bytes: u32,
}

impl Schema {
    fn version(&self) -> i64 {
        self.migrations.len() as i64
    }
}

/// An open database.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    writer: Option<Mutex<Writer>>,
    readers: SqlitePool,
}

impl Database {
    pub(super) async fn open(data_dir: &Path, schema: &Schema, access: Access) -> Result<Self, StoreError> {
        let path = data_dir.join(schema.file);
        let writer = match access {
            Access::ReadWrite => Some(Mutex::new(Writer::open(&path, schema).await?)),
            Access::ReadOnly if path.exists() => None,
            Access::ReadOnly => return Err(StoreError::Absent { path: data_dir.to_owned() }),
        };
        let mut options = SqliteConnectOptions::new()
            .filename(&path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        if writer.is_none() {
            options = check_readable(&path, schema, options, data_dir).await?;
        }
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS)
            // One stays open: on a full disk a new one could not be made.
            .min_connections(1)
            .acquire_timeout(READER_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false);
        let readers =
            pool.connect_with(options).await.map_err(|error| StoreError::database(&path, &error))?;
        Ok(Database { path, writer, readers })
    }

    pub(super) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Waits for its turn to write.
    pub(super) async fn writer(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        match &self.writer {
            Some(writer) => Ok(writer.lock().await),
            None => {
                let message = "it was opened for reading only".to_owned();
                Err(StoreError::Other { path: self.path.clone(), message })
            }
        }
    }

    pub(super) fn error(&self, error: &sqlx::Error) -> StoreError {
        StoreError::database(&self.path, error)
    }

    pub(super) fn corrupt(&self, message: impl Into<String>) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), message: message.into() }
    }

    /// Waits until every connection is closed.
    pub(super) async fn close(self) {
        self.readers.close().await;
        if let Some(writer) = self.writer {
            // The last to close moves the log into the file; where that fails the next to open does it.
            let _ = writer.into_inner().connection.close().await;
        }
    }
}

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    connection: SqliteConnection,
    /// A transaction was begun and nobody has seen it end: its future was dropped, or it failed.
    unfinished: bool,
}

impl Writer {
    async fn open(path: &Path, schema: &Schema) -> Result<Self, StoreError> {
        // Made here for its mode, which SQLite then gives to the files beside it.
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|error| StoreError::io(path, &error))?;
        check_header(path, schema)?;
        let failed = |error: sqlx::Error| StoreError::database(path, &error);
        let options = SqliteConnectOptions::new()
            .filename(path)
            .page_size(schema.page_bytes)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(schema.synchronous)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("journal_size_limit", LOG_BYTES.to_string())
            .pragma("wal_autocheckpoint", (LOG_BYTES / i64::from(schema.page_bytes)).to_string())
            .disable_statement_logging();
        let connection = options.connect().await.map_err(failed)?;
        let mut writer = Writer { connection, unfinished: false };
        let transaction = writer.begin().await.map_err(failed)?;
        migrate(path, schema, transaction).await?;
        writer.commit().await.map_err(failed)?;
        Ok(writer)
    }

    /// Begins a transaction. What an earlier one left unfinished is undone first, so a caller may simply return on an
    /// error, and a future that is dropped halfway leaves nothing half done.
    pub(super) async fn begin(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        self.undo().await;
        self.unfinished = true;
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        Ok(&mut self.connection)
    }

    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        self.unfinished = false;
        Ok(())
    }

    /// Undoes what is unfinished, so that readers and the disk's space do not wait for the next transaction.
    pub(super) async fn undo(&mut self) {
        if self.unfinished {
            // Fails where SQLite has undone it by itself, as it does on a full disk.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
            self.unfinished = false;
        }
    }

    /// Outside a transaction.
    pub(super) async fn run(&mut self, statement: &'static str) -> Result<(), sqlx::Error> {
        self.undo().await;
        sqlx::query(statement).execute(&mut self.connection).await.map(drop)
    }
}

async fn migrate(path: &Path, schema: &Schema, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let failed = |error: sqlx::Error| StoreError::database(path, &error);
    let found = version(connection).await.map_err(failed)?;
    let known = schema.version();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let application: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(failed)?;
    if (found > 0 || tables > 0) && application != APPLICATION_ID {
        let message = "its tables are not those of phalanx".to_owned();
        return Err(StoreError::Corrupt { path: path.to_owned(), message });
    }
    if found == known {
        return Ok(());
    }
    for statements in &schema.migrations[found as usize..] {
        sqlx::raw_sql(*statements).execute(&mut *connection).await.map_err(failed)?;
    }
    let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {known}");
    sqlx::raw_sql(AssertSqlSafe(marks)).execute(&mut *connection).await.map_err(failed)?;
    Ok(())
}

/// Refuses a file that a later version has written before SQLite touches it.
fn check_header(path: &Path, schema: &Schema) -> Result<(), StoreError> {
    // https://sqlite.org/fileformat2.html#the_database_header: big-endian.
    let (mut header, version_at) = ([0; 100], 60..64);
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        // Empty, or too short to be anything.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        read => read.map_err(|error| StoreError::io(path, &error))?,
    }
    let found = header[version_at].iter().fold(0, |number, &byte| number << 8 | i64::from(byte));
    let known = schema.version();
    if header.starts_with(b"SQLite format 3\0") && found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    Ok(())
}

async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await
}

/// Finds out how the file can be read, and whether it is one that we can read.
async fn check_readable(
    path: &Path,
    schema: &Schema,
    options: SqliteConnectOptions,
    data_dir: &Path,
) -> Result<SqliteConnectOptions, StoreError> {
    let probe = async |options: &SqliteConnectOptions| {
        let mut connection = options.connect().await?;
        let found = version(&mut connection).await;
        connection.close().await?;
        found
    };
    let (options, found) = match probe(&options).await {
        Ok(found) => (options, found),
        Err(error) => {
            // In a folder that we may not write to, the files beside the database cannot be made; without a log of
            // unmoved transactions they are not needed.
            let log = path.with_extension("db-wal");
            let failed = StoreError::database(path, &error);
            if !matches!(failed, StoreError::Io { .. }) || log.metadata().is_ok_and(|log| log.len() > 0) {
                return Err(failed);
            }
            let options = options.immutable(true);
            let found = probe(&options).await.map_err(|error| StoreError::database(path, &error))?;
            (options, found)
        }
    };
    let (path, known) = (path.to_owned(), schema.version());
    match found {
        0 => Err(StoreError::Absent { path: data_dir.to_owned() }),
        _ if found > known => Err(StoreError::Newer { path, found, known }),
        _ if found < known => Err(StoreError::Older { path, found, known }),
        _ => Ok(options),
    }
}
