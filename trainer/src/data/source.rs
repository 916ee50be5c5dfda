//! Files as messages name them.

use super::error::{CellProblem, DataError};
use std::path::{Path, PathBuf};

/// A file under the name that messages give it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// As the job file names it.
    pub(super) shown: PathBuf,
    /// Where it lies.
    pub(super) path: PathBuf,
}

/// How a row is found again in its file.
#[derive(Clone, Debug)]
pub(super) enum Places {
    /// The byte that the reader was at before each row of a text file, and the column that is predicted.
    Bytes(Vec<u64>, String),
    /// Rows of a table in a binary file, and the column that is predicted.
    Rows(String),
    /// Entries of an array.
    Entries,
    /// A file for each.
    Files(Vec<String>),
}

impl Source {
    pub(super) fn new(base: &Path, path: &str) -> Source {
        Source { shown: PathBuf::from(path), path: base.join(path) }
    }

    /// All bytes of the file.
    pub(super) fn read(&self) -> Result<Vec<u8>, DataError> {
        std::fs::read(&self.path).map_err(|error| self.unreadable(error))
    }

    pub(super) fn unreadable(&self, source: std::io::Error) -> DataError {
        DataError::Read { path: self.path.clone(), source }
    }

    pub(super) fn fail(&self, problem: impl Into<String>) -> DataError {
        DataError::File { path: self.shown.clone(), problem: problem.into() }
    }

    pub(super) fn fail_at(&self, start: u64, problem: String) -> DataError {
        DataError::Line { path: self.shown.clone(), line: self.line(start), problem }
    }

    /// A problem of one cell of a text file.
    pub(super) fn fail_in(&self, start: u64, column: &str, problem: CellProblem) -> DataError {
        self.fail_cell(format!("line {}, column `{column}`", self.line(start)), problem)
    }

    pub(super) fn fail_cell(&self, at: String, problem: CellProblem) -> DataError {
        DataError::Cell { path: self.shown.clone(), at, problem }
    }

    /// A problem of one row's target.
    pub(super) fn fail_target(&self, places: &Places, row: usize, problem: CellProblem) -> DataError {
        match places {
            Places::Bytes(starts, column) => self.fail_in(starts[row], column, problem),
            Places::Rows(column) => self.fail_cell(format!("row {}, column `{column}`", row + 1), problem),
            Places::Entries => self.fail_cell(format!("entry {}", row + 1), problem),
            Places::Files(names) => self.fail_cell(names[row].clone(), problem),
        }
    }

    /// The 1-based line of the row before which the reader was at byte `start`. The reader's own count does not know
    /// blank lines and `\r\n`; looking again costs nothing until something is wrong.
    fn line(&self, start: u64) -> u64 {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let at = (start as usize).min(bytes.len());
        let blank = bytes[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        1 + bytes[..at + blank].iter().filter(|byte| **byte == b'\n').count() as u64
    }
}
