//! One rank's end of an NCCL communicator: calls go out at once, and their ends are polled for, so that no dead peer and no
//! hung network can keep this process.

use std::ffi::{c_int, c_void};
use std::time::Duration;

use super::library::{Code, Config, IN_PROGRESS, Library, RawComm, RawStream, SUCCESS, UniqueId};
use crate::element::{DType, ReduceOp};
use crate::error::{Error, Result};

/// A rank's end of a communicator. Every call is made from one thread at a time, with the rank's device current.
///
/// Dropping it aborts what is in flight and gives everything back; [`Comm::finish`] ends it in peace.
pub struct Comm {
    library: &'static Library,
    raw: RawComm,
}

// SAFETY: NCCL takes calls on a communicator from any thread, one at a time.
unsafe impl Send for Comm {}

/// What [`Comm`]'s waits are bounded by: it says how long to go on, or why not to.
pub type Patience<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Between two looks while NCCL is at work.
const LOOK: Duration = Duration::from_micros(50);

/// `ncclDataType_t` of nccl.h.
fn data_type(dtype: DType) -> c_int {
    match dtype {
        DType::U8 => 1,
        DType::I64 => 4,
        DType::F16 => 6,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::BF16 => 9,
    }
}

/// `ncclRedOp_t` of nccl.h.
fn reduction(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Max => 2,
        ReduceOp::Min => 3,
        ReduceOp::Mean => 4,
    }
}

/// Device memory: where it is, how many elements, of what.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The device's address.
    pub address: u64,
    /// Elements.
    pub len: usize,
    /// Of this type.
    pub dtype: DType,
}

impl Span {
    /// A part of it.
    pub fn part(&self, range: std::ops::Range<usize>) -> Span {
        let address = self.address + (range.start * self.dtype.size()) as u64;
        Span { address, len: range.len(), dtype: self.dtype }
    }

    fn pointer(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.address as usize)
    }
}

/// What goes through a communicator.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// In place, to all.
    AllReduce(Span, ReduceOp),
    /// From the first span of all ranks to the second of the root.
    Reduce(Span, Span, ReduceOp, usize),
    /// The rank's part of the first goes into the second.
    ReduceScatter(Span, Span, ReduceOp),
    /// The first of every rank, into the second.
    AllGather(Span, Span),
    /// From the root, in place.
    Broadcast(Span, usize),
    /// To a rank.
    Send(Span, usize),
    /// From a rank.
    Recv(Span, usize),
}

impl Comm {
    /// Joins `world` ranks that have the same id; returns once all have come.
    ///
    /// # Errors
    /// [`Error::Nccl`], and what `patience` says.
    pub fn join(
        library: &'static Library,
        (rank, world): (usize, usize),
        id: UniqueId,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        let mut config = Config::non_blocking();
        let mut raw: RawComm = std::ptr::null_mut();
        // SAFETY: both places live for the call; the config says how large it is.
        let code = unsafe {
            (library.symbols.comm_init_rank_config)(&mut raw, world as c_int, id, rank as c_int, &mut config)
        };
        Comm::made(library, "ncclCommInitRankConfig", (raw, code), patience)
    }

    /// Those with the same colour make a communicator of their own, in the order of their keys.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where the library is older than 2.18, [`Error::Nccl`], and what `patience` says.
    pub fn split(&mut self, (color, key): (i32, i32), patience: Patience<'_>) -> Result<Comm> {
        let split = self.library.symbols.comm_split.ok_or_else(|| too_old("ncclCommSplit", "2.18"))?;
        let mut config = Config::non_blocking();
        let mut raw: RawComm = std::ptr::null_mut();
        // SAFETY: as in `join`; this communicator is alive.
        let code = unsafe { split(self.raw, color, key, &mut raw, &mut config) };
        self.settle("ncclCommSplit", patience)?;
        Comm::made(self.library, "ncclCommSplit", (raw, code), patience)
    }

    /// Those that are not `lost` make a communicator without them; what was in flight is aborted.
    ///
    /// # Errors
    /// [`Error::NoDevice`] where the library is older than 2.27, [`Error::Nccl`], and what `patience` says.
    pub fn shrink(&mut self, lost: &[usize], patience: Patience<'_>) -> Result<Comm> {
        /// `NCCL_SHRINK_ABORT` of nccl.h.
        const ABORT: c_int = 1;
        let shrink = self.library.symbols.comm_shrink.ok_or_else(|| too_old("ncclCommShrink", "2.27"))?;
        let mut lost: Vec<c_int> = lost.iter().map(|&rank| rank as c_int).collect();
        let mut config = Config::non_blocking();
        let mut raw: RawComm = std::ptr::null_mut();
        // SAFETY: as in `join`; the list is as long as it is said to be.
        let code =
            unsafe { shrink(self.raw, lost.as_mut_ptr(), lost.len() as c_int, &mut raw, &mut config, ABORT) };
        Comm::made(self.library, "ncclCommShrink", (raw, code), patience)
    }

    fn made(
        library: &'static Library,
        call: &'static str,
        (raw, code): (RawComm, Code),
        patience: Patience<'_>,
    ) -> Result<Comm> {
        library.check(call, code)?;
        if raw.is_null() {
            return Err(Error::Nccl { call, code, text: "it made no communicator".to_owned() });
        }
        let mut comm = Comm { library, raw };
        comm.settle(call, patience)?;
        Ok(comm)
    }

    /// What the communicator found out by itself: done, still at work, or an error.
    pub(super) fn state(&self, call: &'static str) -> Result<bool> {
        let mut state: Code = SUCCESS;
        // SAFETY: the communicator is alive, the place a live integer.
        let code = unsafe { (self.library.symbols.comm_get_async_error)(self.raw, &mut state) };
        self.library.check("ncclCommGetAsyncError", code)?;
        match state {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            code => Err(self.library.error(call, code)),
        }
    }

    /// Until NCCL takes the next call.
    fn settle(&mut self, call: &'static str, patience: Patience<'_>) -> Result<()> {
        while !self.state(call)? {
            patience()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Puts steps into a stream, as one group. They run later; [`Self::state`] and the stream tell.
    ///
    /// # Errors
    /// [`Error::Nccl`], and what `patience` says.
    ///
    /// # Safety
    /// Spans are memory of the current device that nobody else touches until the stream has come past them; `stream` is of
    /// that device too.
    pub unsafe fn enqueue(
        &mut self,
        steps: &[Step],
        stream: RawStream,
        patience: Patience<'_>,
    ) -> Result<()> {
        let s = &self.library.symbols;
        // SAFETY: takes nothing.
        self.library.check("ncclGroupStart", unsafe { (s.group_start)() })?;
        let mut result = Ok(());
        for step in steps {
            // SAFETY: passed on.
            result = result.and(unsafe { self.put(step, stream) });
        }
        // Also after an error: a group that stays open would swallow every later call of this thread.
        // SAFETY: takes nothing.
        let ended = self.library.check("ncclGroupEnd", unsafe { (s.group_end)() });
        result.and(ended)?;
        self.settle("ncclGroupEnd", patience)
    }

    unsafe fn put(&self, step: &Step, stream: RawStream) -> Result<()> {
        let (s, comm) = (&self.library.symbols, self.raw);
        // SAFETY: by the contract of `enqueue`; counts are those of the spans.
        let (call, code) = unsafe {
            match *step {
                Step::AllReduce(at, op) => {
                    let (p, ty) = (at.pointer(), data_type(at.dtype));
                    ("ncclAllReduce", (s.all_reduce)(p, p, at.len, ty, reduction(op), comm, stream))
                }
                Step::Reduce(from, to, op, root) => {
                    let (p, q, ty) = (from.pointer(), to.pointer(), data_type(from.dtype));
                    let root = root as c_int;
                    ("ncclReduce", (s.reduce)(p, q, from.len, ty, reduction(op), root, comm, stream))
                }
                Step::ReduceScatter(from, to, op) => {
                    let (p, q, ty) = (from.pointer(), to.pointer(), data_type(to.dtype));
                    ("ncclReduceScatter", (s.reduce_scatter)(p, q, to.len, ty, reduction(op), comm, stream))
                }
                Step::AllGather(from, to) => {
                    let (p, q, ty) = (from.pointer(), to.pointer(), data_type(from.dtype));
                    ("ncclAllGather", (s.all_gather)(p, q, from.len, ty, comm, stream))
                }
                Step::Broadcast(at, root) => {
                    let (p, ty) = (at.pointer(), data_type(at.dtype));
                    ("ncclBroadcast", (s.broadcast)(p, p, at.len, ty, root as c_int, comm, stream))
                }
                Step::Send(at, to) => {
                    let (p, ty) = (at.pointer(), data_type(at.dtype));
                    ("ncclSend", (s.send)(p, at.len, ty, to as c_int, comm, stream))
                }
                Step::Recv(at, from) => {
                    let (p, ty) = (at.pointer(), data_type(at.dtype));
                    ("ncclRecv", (s.recv)(p, at.len, ty, from as c_int, comm, stream))
                }
            }
        };
        self.library.check(call, code)
    }

    /// Ends it in peace: waits for what is in flight, on every rank.
    ///
    /// # Errors
    /// [`Error::Nccl`], and what `patience` says; it is aborted then.
    pub fn finish(mut self, patience: Patience<'_>) -> Result<()> {
        // SAFETY: the communicator is alive.
        let code = unsafe { (self.library.symbols.comm_finalize)(self.raw) };
        self.library.check("ncclCommFinalize", code)?;
        self.settle("ncclCommFinalize", patience)?;
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        // SAFETY: finalized, and never used again.
        self.library.check("ncclCommDestroy", unsafe { (self.library.symbols.comm_destroy)(raw) })
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        // SAFETY: the communicator is alive, and never used again.
        let code = unsafe { (self.library.symbols.comm_abort)(self.raw) };
        if let Err(error) = self.library.check("ncclCommAbort", code) {
            tracing::warn!(%error, "a communicator could not be aborted");
        }
    }
}

fn too_old(call: &str, since: &str) -> Error {
    Error::NoDevice { what: format!("this NCCL has no {call}; it came with {since}") }
}
