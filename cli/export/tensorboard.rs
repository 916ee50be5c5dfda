//! Event files for TensorBoard: a run folder per job or trial, a tag per metric.
//!
//! The folder itself has what rank 0 reported; what other ranks reported is in runs of their own below it, because a run
//! has one curve per tag. A later attempt goes on from its first step: TensorBoard then drops what the one before had
//! reported from there on, as it does for its own programs.

use super::events::Event;
use super::file::WholeFile;
use super::{Run, Sink};
use crate::failure::Failure;
use phalanx_api::{time_of, v1 as pb};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Written at once. A file is open only while it is written to: ranks may be more than open files.
const BUFFER_BYTES: usize = 64 << 10;

/// The run folders below one folder.
pub(super) struct Runs {
    dir: PathBuf,
    /// The folder and the begin of the run whose points come now.
    folder: PathBuf,
    begin: f64,
    ranks: BTreeMap<i32, EventFile>,
    files: Vec<PathBuf>,
}

impl Runs {
    /// Runs below this folder.
    pub(super) fn new(dir: &Path) -> Runs {
        Runs {
            dir: dir.to_owned(),
            folder: dir.to_owned(),
            begin: 0.0,
            ranks: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    fn end_run(&mut self) -> Result<(), Failure> {
        for file in std::mem::take(&mut self.ranks).into_values() {
            self.files.push(file.finish()?);
        }
        Ok(())
    }

    fn rank(&mut self, rank: i32) -> Result<&mut EventFile, Failure> {
        use std::collections::btree_map::Entry;
        match self.ranks.entry(rank) {
            Entry::Occupied(file) => Ok(file.into_mut()),
            Entry::Vacant(place) => {
                let folder = match rank {
                    0 => self.folder.clone(),
                    _ => self.folder.join(format!("rank-{rank}")),
                };
                Ok(place.insert(EventFile::create(&folder, self.begin)?))
            }
        }
    }
}

impl Sink for Runs {
    fn begin(&mut self, run: &Run) -> Result<(), Failure> {
        self.end_run()?;
        self.folder = self.dir.join(&run.name);
        self.begin = run.begin.as_ref().map_or(0.0, seconds);
        self.rank(0).map(drop)
    }

    fn point(&mut self, point: &pb::MetricPoint) -> Result<(), Failure> {
        self.rank(point.rank)?.point(point)
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Failure> {
        self.end_run()?;
        Ok(self.files)
    }
}

/// The event file of one run.
struct EventFile {
    file: WholeFile,
    buffer: Vec<u8>,
    attempt: Option<i32>,
}

impl EventFile {
    /// In `folder`; the name goes by the begin of the job, so that a later export replaces it.
    fn create(folder: &Path, begin: f64) -> Result<EventFile, Failure> {
        std::fs::create_dir_all(folder).map_err(|error| super::cannot_write(folder, &error))?;
        let file =
            WholeFile::create(&folder.join(format!("events.out.tfevents.{:010}.phalanx", begin as u64)))?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        Event::version(begin).append_to(&mut buffer);
        Event::session(begin, 0).append_to(&mut buffer);
        Ok(EventFile { file, buffer, attempt: None })
    }

    fn point(&mut self, point: &pb::MetricPoint) -> Result<(), Failure> {
        let time = point.time.as_ref().map_or(0.0, seconds);
        let step = i64::try_from(point.step).unwrap_or(i64::MAX);
        let before = self.attempt.replace(point.attempt);
        if before.is_some_and(|before| before != point.attempt) {
            Event::session(time, step).append_to(&mut self.buffer);
        }
        Event::scalars(time, step, point.metrics.iter()).append_to(&mut self.buffer);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.file.append(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<PathBuf, Failure> {
        self.flush()?;
        self.file.commit()
    }
}

fn seconds(time: &prost_types::Timestamp) -> f64 {
    time_of(time).as_micros() as f64 / 1e6
}
