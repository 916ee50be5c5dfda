//! What can go wrong with the data folder, and what a person does about it.

use super::lock::Holder;
use std::path::{Path, PathBuf};

/// Less free space than this, and a failed write is put down to it.
const SCARCE_BYTES: u64 = 1 << 20;

/// Why the store could not do its part. Nothing of what was asked has happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No space is left; it works again by itself once there is some.
    #[error("no space is left on the disk of {}; free some, it goes on by itself", .path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the data folder.
    #[error("{} is in use by process {} ({}); stop that one or use another folder with --data", .path.display(), .holder.pid, .holder.purpose)]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// Nothing has been recorded here.
    #[error("there are no records in {}; `phalanx run` and `phalanx up` make them, --data names another folder", .path.display())]
    Absent {
        /// The data folder.
        path: PathBuf,
    },
    /// A later version has written it.
    #[error("{} has schema version {found}, this phalanx knows versions up to {known}; use the phalanx that wrote it or another folder with --data", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's schema.
        found: i64,
        /// The latest schema known here.
        known: i64,
    },
    /// An earlier version has written it, and it was opened for reading only.
    #[error("{} has schema version {found}, this phalanx reads version {known}; `phalanx up` brings it up to date", .path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// The file's schema.
        found: i64,
        /// The schema wanted.
        known: i64,
    },
    /// What is in the file is not what was written.
    #[error("{} is damaged or no database of phalanx ({message}); restore it from a copy, or move it away to start anew", .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// The system refuses.
    #[error("cannot use {}: {message}; check that the folder exists and belongs to you, or use another with --data", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Anything else.
    #[error("the database {} failed: {message}; try again, and report it if it stays", .path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
}

impl StoreError {
    /// Sorts an error of the system.
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full { path },
            _ => StoreError::Io { path, message: error.to_string() },
        }
    }

    /// Sorts an error of the database by its primary result code.
    pub(super) fn database(path: &Path, error: &sqlx::Error) -> Self {
        let (full, corrupt, not_a_database, io, cannot_open, read_only) = (13, 11, 26, 10, 14, 8);
        let owned = path.to_owned();
        let message = error.to_string();
        match error {
            sqlx::Error::Io(error) => StoreError::io(path, error),
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                StoreError::Corrupt { path: owned, message }
            }
            _ => match primary_code(error) {
                Some(code) if code == full => StoreError::Full { path: owned },
                Some(code) if (code == io || code == cannot_open) && is_scarce(path) => {
                    StoreError::Full { path: owned }
                }
                Some(code) if code == corrupt || code == not_a_database => {
                    StoreError::Corrupt { path: owned, message }
                }
                Some(code) if code == io || code == cannot_open || code == read_only => {
                    StoreError::Io { path: owned, message }
                }
                _ => StoreError::Other { path: owned, message },
            },
        }
    }
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// SQLite reports some failures for want of space as failed I/O.
fn is_scarce(path: &Path) -> bool {
    let folder = path.parent().unwrap_or(path);
    nix::sys::statvfs::statvfs(folder)
        .is_ok_and(|disk| disk.blocks_available() * disk.fragment_size() <= SCARCE_BYTES)
}
