//! The seam between the public operations and a transport.

use std::sync::Arc;
use std::time::Duration;

use crate::element::{DType, ReduceOp};
use crate::error::{Error, Op, Result, Signature};
use crate::fault::Fault;
use crate::recorder::now_ns;

/// Where an operation's buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this process's memory.
    Host,
    /// On this rank's GPU; the pointer is an address there.
    Device,
}

/// One operation, its types erased.
///
/// The exclusive borrow of the caller's buffer becomes a raw pointer here, once: from then on other ranks may write to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) dtype: DType,
    pub(crate) reduce: Option<ReduceOp>,
    /// Root of a broadcast, partner of a send or receive, else 0.
    pub(crate) peer: usize,
    /// Ranks whose values a mean is of: all of the group, though a part of an operation may be of fewer.
    pub(crate) parts: usize,
    /// Elements of the buffer.
    pub(crate) len: usize,
    pub(crate) data: *mut u8,
    pub(crate) place: Place,
}

impl Call {
    /// No data, and no rank leaves before all have come.
    pub(crate) fn barrier() -> Self {
        let data = std::ptr::NonNull::<u64>::dangling().as_ptr().cast();
        Call {
            op: Op::Barrier,
            dtype: DType::U8,
            reduce: None,
            peer: 0,
            parts: 1,
            len: 0,
            data,
            place: Place::Host,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    pub(crate) fn signature(&self) -> Signature {
        Signature {
            op: self.op,
            dtype: self.dtype,
            reduce: self.reduce,
            peer: self.peer as u32,
            bytes: self.bytes() as u64,
        }
    }
}

/// When an operation gives up waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started_ns: u64,
    timeout_ns: u64,
}

impl Deadline {
    pub(crate) fn new(started_ns: u64, timeout: Duration) -> Self {
        Deadline { started_ns, timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX) }
    }

    pub(crate) fn waited_ms(&self) -> u64 {
        now_ns().saturating_sub(self.started_ns) / 1_000_000
    }

    /// What is left; `None` once it has passed.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.timeout_ns.saturating_sub(now_ns().saturating_sub(self.started_ns));
        (left > 0).then(|| Duration::from_nanos(left))
    }

    pub(crate) fn error(&self, call: &Call, seq: u64, missing: Vec<usize>) -> Error {
        Error::Timeout { op: call.op, seq, missing, waited_ms: self.waited_ms() }
    }
}

/// A transport between the ranks of one group. Operations come one at a time and in the same order on every rank.
pub(crate) trait Backend: Send {
    /// Runs `call`, the `seq`th of its kind (collectives and point-to-point operations count apart).
    ///
    /// # Safety
    /// `call.data` is valid for reads and writes of `call.bytes()` bytes, aligned for its type, and not accessed by
    /// anyone else in this process until this returns.
    unsafe fn run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()>;

    /// Moves the data of `call` as [`Self::run`] does but without any synchronisation, to measure what the memory allows.
    /// False if it cannot.
    ///
    /// # Safety
    /// As [`Self::run`]; all ranks call it between two barriers, with buffers at the same place of their arenas, and
    /// expect nothing of the contents.
    unsafe fn unsynchronised(&mut self, _call: &Call) -> bool {
        false
    }

    /// Called once, when all ranks have what they need.
    fn settle(&mut self) {}

    /// Says goodbye: from now on this rank's end is no death.
    fn leave(&mut self);

    /// Where the group's poison is kept.
    fn fault(&self) -> Arc<dyn Fault>;
}
