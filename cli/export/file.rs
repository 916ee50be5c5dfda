//! A file that appears whole or not at all.

use super::cannot_write;
use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file under a name of its own until [`WholeFile::commit`] gives it the one that was asked for. Dropped before that
/// it leaves nothing behind.
///
/// It is open while it is written to and not in between, so that there may be more of them than open files.
pub(super) struct WholeFile {
    path: PathBuf,
    partial: PathBuf,
    committed: bool,
}

impl WholeFile {
    /// An empty file, which will replace the one at `path`.
    pub(super) fn create(path: &Path) -> Result<WholeFile, Failure> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial"));
        File::create(&partial).map_err(|error| cannot_write(path, &error))?;
        Ok(WholeFile { path: path.to_owned(), partial, committed: false })
    }

    /// Opens it to write at its end.
    pub(super) fn open(&self) -> io::Result<File> {
        OpenOptions::new().append(true).open(&self.partial)
    }

    /// Writes at its end.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.open().and_then(|mut file| file.write_all(bytes)).map_err(|error| self.failed(&error))
    }

    /// Puts it in its place and names that.
    pub(super) fn commit(mut self) -> Result<PathBuf, Failure> {
        let moved = std::fs::rename(&self.partial, &self.path);
        moved.map_err(|error| self.failed(&error))?;
        self.committed = true;
        Ok(self.path.clone())
    }

    /// What to say where it cannot be written.
    pub(super) fn failed(&self, error: &dyn std::fmt::Display) -> Failure {
        cannot_write(&self.path, error)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.committed {
            // There is nobody left to tell.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let names = || {
            let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<Vec<_>>()
        };
        drop(WholeFile::create(&path).unwrap());
        assert!(names().is_empty());
        let file = WholeFile::create(&path).unwrap();
        file.append(b"one").unwrap();
        file.append(b" two").unwrap();
        assert!(!path.exists());
        assert_eq!(file.commit().unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
        assert_eq!(names(), ["a.csv"]);
    }
}
