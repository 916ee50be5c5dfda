//! A rank's GPU in a group: operations go into a stream, and their ends, deaths of peers and deadlines are polled for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::comm::{Comm, Span, Step};
use super::device::{Device, Stream};
use super::library::{Library, UniqueId};
use crate::backend::{Call, Deadline};
use crate::element::shard_range;
use crate::error::{AbortReason, Error, Op, Result};
use crate::fault::{Cause, Fault};

/// Looks without a pause before the first sleep: small operations take less.
const SPINS: u32 = 2000;
/// Then between two looks; doubles up to the longest, which bounds how late a death is heard.
const FIRST_SLEEP: Duration = Duration::from_micros(20);
const LAST_SLEEP: Duration = Duration::from_millis(1);

/// A peer may leave when its own part is done; what it sent arrives within this, or it was not sent.
const LAST_KERNELS: Duration = Duration::from_millis(100);

/// What a rank has found on its machine before it meets the others.
pub(crate) struct Prepared {
    library: &'static Library,
    device: Arc<Device>,
}

impl Prepared {
    /// NCCL and the rank's GPU.
    pub(crate) fn new(ordinal: usize) -> Result<Self> {
        let device = Device::open(ordinal)?;
        Ok(Prepared { library: Library::load()?, device })
    }

    pub(crate) fn unique_id(&self) -> Result<UniqueId> {
        self.library.unique_id()
    }
}

/// A rank's GPU in a group.
pub(crate) struct Nccl {
    pub(crate) device: Arc<Device>,
    pub(crate) stream: Stream,
    /// None in a world of one, and after a failure.
    comm: Option<Comm>,
    rank: usize,
    world: usize,
    fault: Arc<dyn Fault>,
}

impl Nccl {
    /// Joins the others over NCCL.
    pub(crate) fn join(
        prepared: Prepared,
        (rank, world): (usize, usize),
        id: UniqueId,
        fault: Arc<dyn Fault>,
        deadline: Deadline,
    ) -> Result<Self> {
        let Prepared { library, device } = prepared;
        let stream = Stream::new(device.clone())?;
        let comm = match world {
            1 => None,
            _ => {
                let call = Call { peer: 0, ..Call::barrier() };
                let mut left_since = None;
                let mut patience = || go_on(&fault, (&call, 0), &deadline, (rank, world), &mut left_since);
                Some(Comm::join(library, (rank, world), id, &mut patience).inspect_err(|_| {
                    fault.poison(Cause::Aborted { rank, reason: AbortReason::Broken });
                })?)
            }
        };
        Ok(Nccl { device, stream, comm, rank, world, fault })
    }

    /// Runs an operation on device memory. An error ends the communicator: what is in flight is aborted.
    ///
    /// # Safety
    /// `call.data` is the address of `call.bytes()` bytes on the device, which nobody else touches until this returns.
    pub(crate) unsafe fn run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()> {
        if self.world == 1 {
            return Ok(());
        }
        // SAFETY: passed on.
        let result = unsafe { self.try_run(call, seq, deadline) };
        if let Err(error) = &result {
            // The peers cannot go on without this rank; the first cause stays.
            let reason = match error {
                Error::Timeout { .. } => AbortReason::TimedOut,
                _ => AbortReason::Broken,
            };
            self.fault.poison(Cause::Aborted { rank: self.rank, reason });
            self.comm = None; // aborts, so that no kernel waits for a dead peer for ever
        }
        result
    }

    unsafe fn try_run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()> {
        self.device.enter()?;
        let steps = self.steps(call);
        let (fault, rank, world) = (self.fault.clone(), self.rank, self.world);
        let Some(comm) = &mut self.comm else {
            return Err(fault.cause().unwrap_or(Cause::Lost { rank }).error());
        };
        let mut left_since = None;
        let mut patience = || go_on(&fault, (call, seq), &deadline, (rank, world), &mut left_since);
        // SAFETY: spans lie within the caller's memory, and the stream is waited for below or the communicator aborted.
        unsafe { comm.enqueue(&steps, self.stream.raw(), &mut patience)? };
        let (mut spins, mut sleep) = (0, FIRST_SLEEP);
        while !self.stream.is_done()? {
            patience()?;
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            comm.state("an operation")?;
            std::thread::sleep(sleep);
            sleep = (sleep * 2).min(LAST_SLEEP);
        }
        // A communicator that failed lets its kernels end.
        comm.state("an operation").map(|_| ())
    }

    /// What an operation is in NCCL's words. NCCL knows no shards of unequal size; those go one by one, as one group.
    fn steps(&self, call: &Call) -> Vec<Step> {
        let whole = Span { address: call.data as u64, len: call.len, dtype: call.dtype };
        let even = call.len.is_multiple_of(self.world);
        let shard = |rank| whole.part(shard_range(call.len, self.world, rank));
        let own = shard(self.rank);
        match (call.op, call.reduce) {
            (_, _) if call.len == 0 && call.op != Op::Barrier => Vec::new(),
            (Op::Allreduce, Some(op)) => vec![Step::AllReduce(whole, op)],
            (Op::ReduceScatter, Some(op)) if even => vec![Step::ReduceScatter(whole, own, op)],
            (Op::ReduceScatter, Some(op)) => {
                let to = |root| Step::Reduce(shard(root), shard(root), op, root);
                (0..self.world).filter(|&root| shard(root).len > 0).map(to).collect()
            }
            (Op::Allgather, _) if even => vec![Step::AllGather(own, whole)],
            (Op::Allgather, _) => {
                let from = |root| Step::Broadcast(shard(root), root);
                (0..self.world).filter(|&root| shard(root).len > 0).map(from).collect()
            }
            (Op::Broadcast, _) => vec![Step::Broadcast(whole, call.peer)],
            (Op::Send, _) => vec![Step::Send(whole, call.peer)],
            (Op::Recv, _) => vec![Step::Recv(whole, call.peer)],
            // A barrier is the host's, and a reduction without a rule does not exist.
            (Op::Barrier | Op::Allreduce | Op::ReduceScatter, _) => Vec::new(),
        }
    }

    /// Ends the communicator in peace, if the group is whole; else it is aborted.
    pub(crate) fn leave(&mut self, deadline: Deadline) {
        let Some(comm) = self.comm.take() else { return };
        if self.fault.cause().is_some() || self.device.enter().is_err() {
            return;
        }
        let (fault, call) = (self.fault.clone(), Call::barrier());
        // A peer that has left already has done its part.
        let ended = comm.finish(&mut || match (fault.cause(), deadline.left()) {
            (Some(cause), _) => Err(cause.error()),
            (None, None) => Err(deadline.error(&call, 0, Vec::new())),
            (None, Some(_)) => Ok(()),
        });
        if let Err(error) = ended {
            tracing::debug!(%error, "a communicator was aborted at its end");
        }
    }
}

/// Why not to wait any longer.
fn go_on(
    fault: &Arc<dyn Fault>,
    (call, seq): (&Call, u64),
    deadline: &Deadline,
    (rank, world): (usize, usize),
    left_since: &mut Option<Instant>,
) -> Result<()> {
    let needed = |&peer: &usize| peer != rank && (!call.op.is_message() || peer == call.peer);
    if let Some(rank) = (0..world).filter(needed).find(|&peer| fault.left(peer))
        && left_since.get_or_insert_with(Instant::now).elapsed() > LAST_KERNELS
    {
        fault.poison(Cause::Lost { rank });
    }
    if let Some(cause) = fault.cause() {
        return Err(cause.error());
    }
    // Who is missing, NCCL does not say.
    deadline.left().map(|_| ()).ok_or_else(|| deadline.error(call, seq, Vec::new()))
}
