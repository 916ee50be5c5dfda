//! The flight recorder: the last operations of each rank, readable by survivors after a death.

use std::any::Any;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
pub use phalanx_core::flight::{FLIGHT_OPS, OpRecord, OpState};
use phalanx_core::flight::{PAGE_BYTES, PAGE_ENTRY_BYTES, PAGE_HEADER_BYTES, PAGE_MAGIC, page_name};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Signature};

/// Whether a rank is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankState {
    /// As far as is known.
    Present,
    /// It dropped its communicator.
    Left,
    /// It died.
    Lost,
}

/// What is known of one rank's operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankRecord {
    /// Whose.
    pub rank: usize,
    /// Whether it is there.
    pub state: RankState,
    /// Up to [`FLIGHT_OPS`] operations, oldest first. Over TCP only one's own are known.
    pub ops: Vec<OpRecord>,
}

/// Nanoseconds of the host's monotonic clock, comparable between processes.
pub(crate) fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid place for the answer; the monotonic clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// One operation in a log, as [`phalanx_core::flight`] lays it out; all zero at first.
#[repr(C, align(64))]
struct Entry {
    /// 0 while it is written, else of [`STATE_WORDS`](phalanx_core::flight::STATE_WORDS).
    state: AtomicU64,
    seq: AtomicU64,
    code: AtomicU64,
    bytes: AtomicU64,
    started_ns: AtomicU64,
    ended_ns: AtomicU64,
}

const STARTED: u64 = 1;
const DONE: u64 = 2;
const FAILED: u64 = 3;

/// The log of one rank, as it lies in memory or in a file. All zero, it is empty.
#[repr(C, align(128))]
pub(crate) struct Log {
    /// [`PAGE_MAGIC`] in a file.
    magic: AtomicU64,
    /// Operations entered so far.
    entered: AtomicU64,
    /// The head has a pair of cache lines to itself.
    _rest: [u64; PAGE_HEADER_BYTES / 8 - 2],
    ring: [Entry; FLIGHT_OPS],
}

const _: () = assert!(size_of::<Log>() == PAGE_BYTES && size_of::<Entry>() == PAGE_ENTRY_BYTES);
const _: () = assert!(std::mem::offset_of!(Log, ring) == PAGE_HEADER_BYTES);

/// A log and whatever keeps its memory alive.
#[derive(Clone)]
pub(crate) struct LogRef {
    log: NonNull<Log>,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: a `Log` is made of atomics, and the owner keeps it alive.
unsafe impl Send for LogRef {}
// SAFETY: as above.
unsafe impl Sync for LogRef {}

impl LogRef {
    /// # Safety
    /// `log` points to a valid `Log` (zeroed or written by this module) for as long as `owner` lives.
    pub(crate) unsafe fn new(log: NonNull<Log>, owner: Arc<dyn Any + Send + Sync>) -> Self {
        LogRef { log, _owner: owner }
    }

    /// A log in this process's own memory.
    pub(crate) fn local() -> Self {
        // SAFETY: a `Log` is made of integers, for which zero is a value.
        let owner: Arc<Log> = unsafe { Arc::new_zeroed().assume_init() };
        LogRef { log: NonNull::from(&*owner), _owner: owner }
    }

    /// A log in a file of its own in `folder`, which outlives this process however it ends. A log that an earlier group of
    /// this rank has left there is replaced.
    pub(crate) fn in_file(folder: &Path, rank: usize) -> Result<Self> {
        let path = folder.join(page_name(rank as u64));
        let map = || -> std::io::Result<Mapped> {
            // Not truncated in place: the earlier group may still write to its own.
            let fresh = path.with_extension("new");
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&fresh)?;
            // Allocated now: a full disk would else be a SIGBUS in the middle of an operation.
            nix::fcntl::posix_fallocate(&file, 0, PAGE_BYTES as i64)?;
            let length = NonZeroUsize::new(PAGE_BYTES).ok_or(std::io::ErrorKind::InvalidInput)?;
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a fresh mapping of a file that nobody else knows yet; it overlaps nothing.
            let mapped = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
            let mapped = Mapped(mapped.cast());
            fs::rename(&fresh, &path)?;
            Ok(mapped)
        };
        let what = || format!("making the flight recorder's page {}", path.display());
        let owner = Arc::new(map().map_err(|e| Error::system(what(), e))?);
        let log = LogRef { log: owner.0, _owner: owner };
        log.log().magic.store(PAGE_MAGIC, Ordering::Release);
        Ok(log)
    }

    fn log(&self) -> &Log {
        // SAFETY: by the contract of `new`.
        unsafe { self.log.as_ref() }
    }

    #[inline]
    fn begin(&self, seq: u64, call: &Signature, started_ns: u64) -> usize {
        let log = self.log();
        let entered = log.entered.load(Ordering::Relaxed);
        let at = entered as usize % FLIGHT_OPS;
        let entry = &log.ring[at];
        entry.state.store(0, Ordering::Release);
        entry.seq.store(seq, Ordering::Relaxed);
        entry.code.store(call.code(), Ordering::Relaxed);
        entry.bytes.store(call.bytes, Ordering::Relaxed);
        entry.started_ns.store(started_ns, Ordering::Relaxed);
        entry.ended_ns.store(0, Ordering::Relaxed);
        entry.state.store(STARTED, Ordering::Release);
        log.entered.store(entered + 1, Ordering::Release);
        at
    }

    #[inline]
    fn end(&self, at: usize, ok: bool, ended_ns: u64) {
        let entry = &self.log().ring[at];
        entry.ended_ns.store(ended_ns, Ordering::Relaxed);
        entry.state.store(if ok { DONE } else { FAILED }, Ordering::Release);
    }

    /// The operations that are kept, oldest first. One that is overwritten meanwhile is left out.
    pub(crate) fn read(&self) -> Vec<OpRecord> {
        let log = self.log();
        let entered = log.entered.load(Ordering::Acquire);
        let oldest = entered.saturating_sub(FLIGHT_OPS as u64);
        (oldest..entered).filter_map(|n| read_entry(&log.ring[n as usize % FLIGHT_OPS])).collect()
    }
}

/// A log's mapping of a file.
struct Mapped(NonNull<Log>);

// SAFETY: a `Log` is made of atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped in `LogRef::in_file` with this length; whatever points into it keeps this alive.
        if let Err(error) = unsafe { munmap(self.0.cast(), PAGE_BYTES) } {
            tracing::error!(%error, "the flight recorder's page could not be unmapped");
        }
    }
}

/// What a rank notes its operations in: the log that its peers can read, and the one that outlives it.
pub(crate) struct Recorder {
    logs: Vec<LogRef>,
}

impl Recorder {
    /// The first is the one in reach of peers.
    pub(crate) fn new(shared: LogRef, lasting: Option<LogRef>) -> Self {
        Recorder { logs: [shared].into_iter().chain(lasting).collect() }
    }

    /// Notes that an operation is entered; the answer goes to [`Self::end`]. One writer only.
    #[inline]
    pub(crate) fn begin(&self, seq: u64, call: &Signature, started_ns: u64) -> usize {
        // All logs are as old, so the place is the same.
        self.logs.iter().fold(0, |_, log| log.begin(seq, call, started_ns))
    }

    /// Notes that the operation was left.
    #[inline]
    pub(crate) fn end(&self, at: usize, ok: bool) {
        let ended_ns = now_ns();
        self.logs.iter().for_each(|log| log.end(at, ok, ended_ns));
    }
}

fn read_entry(entry: &Entry) -> Option<OpRecord> {
    let state = match entry.state.load(Ordering::Acquire) {
        STARTED => OpState::Started,
        DONE => OpState::Done,
        FAILED => OpState::Failed,
        _ => return None,
    };
    let seq = entry.seq.load(Ordering::Acquire);
    let call = Signature::from_code(entry.code.load(Ordering::Acquire), entry.bytes.load(Ordering::Acquire))?;
    let started_ns = entry.started_ns.load(Ordering::Acquire);
    let ended_ns = entry.ended_ns.load(Ordering::Acquire);
    let whole = entry.state.load(Ordering::Acquire) != 0 && entry.seq.load(Ordering::Acquire) == seq;
    whole.then_some(OpRecord { seq, call, state, started_ns, ended_ns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::DType;
    use crate::error::Op;
    use phalanx_core::flight::read_page;

    #[test]
    fn the_last_operations_are_kept_in_order() {
        let log = LogRef::local();
        let call = Signature { op: Op::Allgather, dtype: DType::U8, reduce: None, peer: 0, bytes: 7 };
        for seq in 1..=FLIGHT_OPS as u64 + 3 {
            let at = log.begin(seq, &call, seq);
            if seq % 2 == 0 {
                log.end(at, seq % 4 == 0, seq + 1);
            }
        }
        let ops = log.read();
        assert_eq!(ops.len(), FLIGHT_OPS);
        assert_eq!((ops[0].seq, ops[0].state), (4, OpState::Done));
        assert_eq!((ops[1].state, ops[1].ended_ns), (OpState::Started, 0));
        assert_eq!(ops[2].state, OpState::Failed);
        assert_eq!(ops.last().map(|o| o.seq), Some(FLIGHT_OPS as u64 + 3));
    }

    #[test]
    fn a_page_is_read_as_it_was_written_and_replaced_by_the_next_group() {
        let folder = tempfile::tempdir().unwrap();
        let call = Signature { op: Op::Broadcast, dtype: DType::F64, reduce: None, peer: 2, bytes: 16 };
        let page = || std::fs::read(folder.path().join(page_name(3))).unwrap();
        let first = LogRef::in_file(folder.path(), 3).unwrap();
        let recorder = Recorder::new(LogRef::local(), Some(first.clone()));
        recorder.end(recorder.begin(1, &call, 5), true);
        recorder.begin(2, &call, 6);
        let ops = read_page(&page()).unwrap();
        assert_eq!(ops, first.read());
        assert_eq!((ops[0].state, ops[1].state, ops[1].call), (OpState::Done, OpState::Started, call));
        let _second = LogRef::in_file(folder.path(), 3).unwrap();
        assert_eq!(read_page(&page()), Some(Vec::new()));
        recorder.begin(3, &call, 7); // the first is still there for those that hold it
        assert_eq!(first.read().len(), 3);
        let error = LogRef::in_file(Path::new("/absent"), 0).err().unwrap();
        assert!(error.to_string().contains("flight-0"), "{error}");
    }
}
