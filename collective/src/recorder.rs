//! The flight recorder: the last operations of each rank, readable by survivors after a death.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::error::Signature;

/// Operations kept for each rank.
pub const FLIGHT_OPS: usize = 1024;

/// How far an operation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpState {
    /// It was entered and not left.
    Started,
    /// It ended well.
    Done,
    /// It ended with an error.
    Failed,
}

/// One recorded operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpRecord {
    /// Its number, from 1; collectives and point-to-point operations count apart.
    pub seq: u64,
    /// What was called.
    pub call: Signature,
    /// How far it got.
    pub state: OpState,
    /// When it was entered, in ns of the host's monotonic clock.
    pub started_ns: u64,
    /// When it was left; 0 while it runs.
    pub ended_ns: u64,
}

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

/// One operation in a log: a cache line, all zero at first.
#[repr(C, align(64))]
struct Entry {
    /// 0 while it is written; see `STARTED` and so on.
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

/// The log of one rank, as it lies in memory. All zero is an empty log.
#[repr(C, align(128))]
pub(crate) struct Log {
    /// Operations entered so far.
    entered: AtomicU64,
    ring: [Entry; FLIGHT_OPS],
}

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

    fn log(&self) -> &Log {
        // SAFETY: by the contract of `new`.
        unsafe { self.log.as_ref() }
    }

    /// Records that an operation is entered; the answer goes to [`Self::end`]. One writer only.
    #[inline]
    pub(crate) fn begin(&self, seq: u64, call: &Signature, started_ns: u64) -> usize {
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

    /// Records that the operation was left.
    #[inline]
    pub(crate) fn end(&self, at: usize, ok: bool) {
        let entry = &self.log().ring[at];
        entry.ended_ns.store(now_ns(), Ordering::Relaxed);
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

    #[test]
    fn the_last_operations_are_kept_in_order() {
        let log = LogRef::local();
        let call = Signature { op: Op::Allgather, dtype: DType::U8, reduce: None, peer: 0, bytes: 7 };
        for seq in 1..=FLIGHT_OPS as u64 + 3 {
            let at = log.begin(seq, &call, seq);
            if seq % 2 == 0 {
                log.end(at, seq % 4 == 0);
            }
        }
        let ops = log.read();
        assert_eq!(ops.len(), FLIGHT_OPS);
        assert_eq!((ops[0].seq, ops[0].state), (4, OpState::Done));
        assert_eq!((ops[1].state, ops[1].ended_ns), (OpState::Started, 0));
        assert_eq!(ops[2].state, OpState::Failed);
        assert_eq!(ops.last().map(|o| o.seq), Some(FLIGHT_OPS as u64 + 3));
    }
}
