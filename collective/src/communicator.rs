//! The public operations.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::Transport;
use crate::arena::{Arena, ArenaBuffer};
use crate::backend::{Backend, Call, Deadline, Place};
use crate::config::{Config, TransportChoice};
use crate::element::{DType, Element, Number, ReduceOp, shard_range};
use crate::error::{AbortReason, Error, Op, Result};
use crate::fault::{Cause, Fault};
use crate::nccl::{Device, Nccl};
use crate::queue::{Pending, Queue};
use crate::recorder::{LogRef, RankRecord, RankState, Recorder, now_ns};

/// What a rendezvous leaves behind.
pub(crate) struct Group {
    pub(crate) transport: Transport,
    pub(crate) backend: Box<dyn Backend>,
    /// For device memory, where the group was asked for it.
    pub(crate) nccl: Option<Nccl>,
    pub(crate) arena: Option<Arc<Arena>>,
    /// This rank's log first in use, and all that can be read.
    pub(crate) own_log: LogRef,
    pub(crate) logs: Vec<(usize, LogRef)>,
}

/// What runs operations, one at a time.
pub(crate) struct Engine {
    backend: Box<dyn Backend>,
    nccl: Option<Nccl>,
    recorder: Recorder,
    timeout: Duration,
    collectives: u64,
    messages: u64,
    failed: Option<Error>,
}

impl Engine {
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let counter = match call.op {
            Op::Send | Op::Recv => &mut self.messages,
            _ => &mut self.collectives,
        };
        *counter += 1;
        let seq = *counter;
        let started_ns = now_ns();
        let at = self.recorder.begin(seq, &call.signature(), started_ns);
        let deadline = Deadline::new(started_ns, self.timeout);
        // SAFETY: passed on.
        let result = unsafe {
            match (call.place, &mut self.nccl) {
                (Place::Device, Some(nccl)) => nccl.run(call, seq, deadline),
                _ => self.backend.run(call, seq, deadline),
            }
        };
        self.recorder.end(at, result.is_ok());
        if let Err(error) = &result {
            tracing::debug!(%error, seq, "a collective operation failed");
            self.failed = Some(error.clone());
        }
        result
    }
}

impl Engine {
    pub(crate) fn nccl(&self) -> Option<&Nccl> {
        self.nccl.as_ref()
    }

    /// Says goodbye on all ways.
    fn leave(&mut self) {
        if let Some(nccl) = &mut self.nccl {
            nccl.leave(Deadline::new(now_ns(), LEAVE_TIMEOUT));
        }
        self.backend.leave();
    }
}

/// How long the end of an NCCL communicator waits for ranks that are still in it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives a group up from any thread, e.g. when a signal says to stop.
#[derive(Clone)]
pub struct AbortHandle {
    rank: usize,
    fault: Option<Arc<dyn Fault>>,
}

impl AbortHandle {
    /// Poisons the group: every waiting rank returns [`Error::Aborted`], and so does every later operation.
    pub fn abort(&self) {
        self.give_up(AbortReason::Requested);
    }

    fn give_up(&self, reason: AbortReason) {
        if let Some(fault) = &self.fault {
            fault.poison(Cause::Aborted { rank: self.rank, reason });
        }
    }
}

struct Members {
    engine: Arc<Mutex<Engine>>,
    /// Started by the first operation that is not waited for.
    queue: Option<Queue>,
    device: Option<Arc<Device>>,
    arena: Option<Arc<Arena>>,
    fault: Arc<dyn Fault>,
    logs: Vec<(usize, LogRef)>,
}

/// One rank's membership of a group.
///
/// All ranks call the same operations, with equal lengths and types, in the same order. Operations are in place and block
/// until done, unless started with a `start_` method. Dropping it is a clean goodbye (unless the thread panics, which
/// gives the group up): peers that still need this rank then get [`Error::PeerLost`].
pub struct Communicator {
    rank: usize,
    world: usize,
    epoch: u64,
    transport: Transport,
    /// `None` in a world of one.
    members: Option<Members>,
}

impl Communicator {
    /// A world of one: no socket, no thread, no shared memory; operations leave the data as it is.
    pub fn solo() -> Self {
        Communicator { rank: 0, world: 1, epoch: 0, transport: Transport::Solo, members: None }
    }

    /// Meets the other ranks. Rank 0 listens at the master address; all must call this with the same world, epoch and
    /// fingerprint.
    ///
    /// # Errors
    /// [`Error::RendezvousTimeout`] naming the ranks that did not come, [`Error::PeerLost`] for one that came and died,
    /// [`Error::ConfigMismatch`], [`Error::WrongEpoch`], [`Error::Rejected`], [`Error::Invalid`], [`Error::System`].
    pub fn connect(config: Config) -> Result<Self> {
        config.validate()?;
        if config.world == 1 && config.transport != TransportChoice::Nccl {
            let mut solo = Communicator::solo();
            solo.epoch = config.epoch;
            return Ok(solo);
        }
        let group = crate::rendezvous::meet(&config)?;
        let fault = group.backend.fault();
        let device = group.nccl.as_ref().map(|nccl| nccl.device.clone());
        let engine = Engine {
            backend: group.backend,
            nccl: group.nccl,
            recorder: Recorder::new(group.own_log, lasting_log(&config)),
            timeout: config.op_timeout,
            collectives: 0,
            messages: 0,
            failed: None,
        };
        let members = Members {
            engine: Arc::new(Mutex::new(engine)),
            queue: None,
            device,
            arena: group.arena,
            fault,
            logs: group.logs,
        };
        Ok(Communicator {
            rank: config.rank,
            world: config.world,
            epoch: config.epoch,
            transport: group.transport,
            members: Some(members),
        })
    }

    /// This process's place in the group, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Generation of the group.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What the data moves over.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The elements of a buffer of `len` that are this rank's in [`Self::reduce_scatter`] and [`Self::allgather`].
    pub fn shard(&self, len: usize) -> Range<usize> {
        shard_range(len, self.world, self.rank)
    }

    /// A buffer that peers can reach, for the fast path of large operations. Over shared memory it is cut from the arena
    /// that was allocated at the rendezvous ([`Config::arena_bytes`]); otherwise it is plain memory.
    ///
    /// # Errors
    /// [`Error::ArenaFull`].
    pub fn arena_alloc<T: Element>(&self, len: usize) -> Result<ArenaBuffer<T>> {
        match self.members.as_ref().and_then(|m| m.arena.as_ref()) {
            Some(arena) => ArenaBuffer::in_arena(arena, len),
            None => ArenaBuffer::on_heap(len),
        }
    }

    /// Reduces element by element over all ranks; every rank ends with the result.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn allreduce<T: Number>(&mut self, data: &mut [T], op: ReduceOp) -> Result<()> {
        self.run(Op::Allreduce, Some(op), 0, data)
    }

    /// Reduces element by element over all ranks; this rank's [shard](Self::shard) of `data` ends with the result, and
    /// its range is returned. The rest of `data` is unspecified afterwards.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reduce_scatter<T: Number>(&mut self, data: &mut [T], op: ReduceOp) -> Result<Range<usize>> {
        self.run(Op::ReduceScatter, Some(op), 0, data)?;
        Ok(self.shard(data.len()))
    }

    /// Gathers every rank's [shard](Self::shard) of `data`; the rest of `data` is overwritten.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn allgather<T: Element>(&mut self, data: &mut [T]) -> Result<()> {
        self.run(Op::Allgather, None, 0, data)
    }

    /// Copies `data` of rank `root` to all.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if there is no such rank.
    pub fn broadcast<T: Element>(&mut self, data: &mut [T], root: usize) -> Result<()> {
        self.check_root(root)?;
        self.run(Op::Broadcast, None, root, data)
    }

    /// Waits until all ranks have called it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier(&mut self) -> Result<()> {
        self.run::<u8>(Op::Barrier, None, 0, &mut [])
    }

    /// Sends `data` to rank `to`, which must [receive](Self::recv) as many elements of the same type. May block until it
    /// does: two ranks that both send to one another first wait for ever (until the deadline).
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if `to` is this rank or none.
    pub fn send<T: Element>(&mut self, data: &[T], to: usize) -> Result<()> {
        self.check_partner(to)?;
        let call = Call {
            op: Op::Send,
            dtype: T::DTYPE,
            reduce: None,
            peer: to,
            parts: self.world,
            len: data.len(),
            data: data.as_ptr().cast::<u8>().cast_mut(),
            place: Place::Host,
        };
        // SAFETY: a send only reads, and the slice is borrowed until it returns.
        unsafe { self.run_call(&call) }
    }

    /// Receives `data` from rank `from`.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Invalid`] if `from` is this rank or none.
    pub fn recv<T: Element>(&mut self, data: &mut [T], from: usize) -> Result<()> {
        self.check_partner(from)?;
        self.run(Op::Recv, None, from, data)
    }

    /// As [`Self::allreduce`], but returns at once; so do all methods whose names begin with `start_`. Operations run in
    /// the order they were started, also with regard to blocking ones, which wait for those in flight.
    ///
    /// # Errors
    /// [`Error::System`] if the communication thread cannot be started. Those of the operation come from
    /// [`Pending::wait`].
    pub fn start_allreduce<T: Number>(&mut self, data: ArenaBuffer<T>, op: ReduceOp) -> Result<Pending<T>> {
        self.start(Op::Allreduce, Some(op), 0, data)
    }

    /// Starts a [`Self::reduce_scatter`]; the result is the range that [`Self::shard`] names.
    ///
    /// # Errors
    /// As [`Self::start_allreduce`].
    pub fn start_reduce_scatter<T: Number>(
        &mut self,
        data: ArenaBuffer<T>,
        op: ReduceOp,
    ) -> Result<Pending<T>> {
        self.start(Op::ReduceScatter, Some(op), 0, data)
    }

    /// Starts an [`Self::allgather`].
    ///
    /// # Errors
    /// As [`Self::start_allreduce`].
    pub fn start_allgather<T: Element>(&mut self, data: ArenaBuffer<T>) -> Result<Pending<T>> {
        self.start(Op::Allgather, None, 0, data)
    }

    /// Starts a [`Self::broadcast`].
    ///
    /// # Errors
    /// As [`Self::start_allreduce`]; [`Error::Invalid`] if there is no such rank.
    pub fn start_broadcast<T: Element>(&mut self, data: ArenaBuffer<T>, root: usize) -> Result<Pending<T>> {
        self.check_root(root)?;
        self.start(Op::Broadcast, None, root, data)
    }

    /// Starts a [`Self::barrier`]; the buffer that comes back is empty.
    ///
    /// # Errors
    /// As [`Self::start_allreduce`].
    pub fn start_barrier(&mut self) -> Result<Pending<u8>> {
        self.start(Op::Barrier, None, 0, ArenaBuffer::on_heap(0)?)
    }

    /// Starts a [`Self::send`]; the buffer comes back as it was.
    ///
    /// # Errors
    /// As [`Self::start_allreduce`]; [`Error::Invalid`] if `to` is this rank or none.
    pub fn start_send<T: Element>(&mut self, data: ArenaBuffer<T>, to: usize) -> Result<Pending<T>> {
        self.check_partner(to)?;
        self.start(Op::Send, None, to, data)
    }

    /// Starts a [`Self::recv`].
    ///
    /// # Errors
    /// As [`Self::start_allreduce`]; [`Error::Invalid`] if `from` is this rank or none.
    pub fn start_recv<T: Element>(&mut self, data: ArenaBuffer<T>, from: usize) -> Result<Pending<T>> {
        self.check_partner(from)?;
        self.start(Op::Recv, None, from, data)
    }

    fn start<T: Element>(
        &mut self,
        op: Op,
        reduce: Option<ReduceOp>,
        peer: usize,
        data: ArenaBuffer<T>,
    ) -> Result<Pending<T>> {
        let world = self.world;
        self.start_with(data, move |data| call_of(op, reduce, (peer, world), data))
    }

    /// Hands a buffer to the communication thread, which makes the call of it and gives it back at its end.
    pub(crate) fn start_with<T: Element, B: Send + 'static>(
        &mut self,
        mut data: B,
        call_of: impl FnOnce(&mut B) -> Call + Send + 'static,
    ) -> Result<Pending<T, B>> {
        let (answer, pending) = Pending::new();
        let Some(members) = &mut self.members else {
            let _ = answer.send((data, Ok(()))); // the receiver is right here
            return Ok(pending);
        };
        let queue = match &mut members.queue {
            Some(queue) => queue,
            none => none.insert(Queue::start(members.engine.clone())?),
        };
        queue.push(Box::new(move |engine| {
            let call = call_of(&mut data);
            // SAFETY: `data` is owned here and not touched until the call has returned.
            let result = unsafe { engine.run(&call) };
            let _ = answer.send((data, result)); // nobody may want it any more
        }));
        Ok(pending)
    }

    /// Gives the group up: every rank gets [`Error::Aborted`].
    pub fn abort(&self) {
        self.abort_handle().abort();
    }

    /// For giving the group up from another thread, also while an operation runs.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { rank: self.rank, fault: self.members.as_ref().map(|m| m.fault.clone()) }
    }

    /// The flight recorder: of every rank whose memory is within reach (all of a host; over TCP only this one) the last
    /// operations. Survivors can read it after a death.
    pub fn flight_record(&self) -> Vec<RankRecord> {
        let Some(members) = &self.members else { return Vec::new() };
        let lost = match members.fault.cause() {
            Some(Cause::Lost { rank }) => Some(rank),
            _ => None,
        };
        let state = |rank| match lost == Some(rank) {
            _ if members.fault.left(rank) => RankState::Left,
            true => RankState::Lost,
            false => RankState::Present,
        };
        members
            .logs
            .iter()
            .map(|(rank, log)| RankRecord { rank: *rank, state: state(*rank), ops: log.read() })
            .collect()
    }

    /// For [`crate::bench`]: see [`Backend::unsynchronised`].
    pub(crate) fn unsynchronised<T: Number>(
        &mut self,
        data: &mut ArenaBuffer<T>,
        op: ReduceOp,
    ) -> Result<()> {
        let call = call_of(Op::Allreduce, Some(op), (0, self.world), data);
        let Some(members) = &self.members else { return Ok(()) };
        let mut engine = members.engine.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the bench keeps to this function's contract.
        match unsafe { engine.backend.unsynchronised(&call) } {
            true => Ok(()),
            false => Err(Error::invalid("only shared memory has a limit without synchronisation; use shm")),
        }
    }

    pub(crate) fn device(&self) -> Option<Arc<Device>> {
        self.members.as_ref()?.device.clone()
    }

    /// Once nothing is in flight.
    pub(crate) fn engine(&self) -> Result<Arc<Mutex<Engine>>> {
        let members = self.members.as_ref().ok_or_else(|| Error::invalid("a world of one has no engine"))?;
        if let Some(queue) = &members.queue {
            queue.drain();
        }
        Ok(members.engine.clone())
    }

    pub(crate) fn check_root(&self, root: usize) -> Result<()> {
        if root < self.world {
            return Ok(());
        }
        Err(Error::invalid(format!("there is no rank {root} in a world of {}", self.world)))
    }

    pub(crate) fn check_partner(&self, partner: usize) -> Result<()> {
        if partner < self.world && partner != self.rank {
            return Ok(());
        }
        let text =
            format!("rank {} cannot exchange with rank {partner} in a world of {}", self.rank, self.world);
        Err(Error::invalid(text))
    }

    fn run<T: Element>(
        &mut self,
        op: Op,
        reduce: Option<ReduceOp>,
        peer: usize,
        data: &mut [T],
    ) -> Result<()> {
        let call = call_of(op, reduce, (peer, self.world), data);
        // SAFETY: the slice is borrowed exclusively until this returns.
        unsafe { self.run_call(&call) }
    }

    /// # Safety
    /// As [`Backend::run`].
    pub(crate) unsafe fn run_call(&mut self, call: &Call) -> Result<()> {
        let Some(members) = &mut self.members else { return Ok(()) };
        if let Some(queue) = &members.queue {
            queue.drain();
        }
        // SAFETY: passed on.
        unsafe { members.engine.lock().unwrap_or_else(PoisonError::into_inner).run(call) }
    }
}

fn call_of<T: Element>(
    op: Op,
    reduce: Option<ReduceOp>,
    (peer, world): (usize, usize),
    data: &mut [T],
) -> Call {
    debug_assert_eq!(T::DTYPE.size(), size_of::<T>());
    let dtype: DType = T::DTYPE;
    let place = Place::Host;
    Call { op, dtype, reduce, peer, parts: world, len: data.len(), data: data.as_mut_ptr().cast(), place }
}

/// The log that outlives this process. Training is not worth less without it, so its failure is a warning.
fn lasting_log(config: &Config) -> Option<LogRef> {
    let made = LogRef::in_file(config.flight_dir.as_deref()?, config.rank);
    made.inspect_err(|error| tracing::warn!(%error, "what this rank does will not be known after its death"))
        .ok()
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort_handle().give_up(AbortReason::Panicked);
        }
        if let Some(mut members) = self.members.take() {
            drop(members.queue.take()); // ends what is in flight
            members.engine.lock().unwrap_or_else(PoisonError::into_inner).leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_of_one_changes_nothing() {
        let mut comm = Communicator::connect(Config::new(0, 1)).unwrap();
        let mut data = comm.arena_alloc::<f32>(5).unwrap();
        data.copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        comm.allreduce(&mut data, ReduceOp::Mean).unwrap();
        assert_eq!(comm.reduce_scatter(&mut data, ReduceOp::Sum).unwrap(), 0..5);
        comm.allgather(&mut data).unwrap();
        comm.broadcast(&mut [1u8, 2], 0).unwrap();
        comm.barrier().unwrap();
        let data = comm.start_allreduce(data, ReduceOp::Max).unwrap().wait().unwrap();
        let data = comm.start_reduce_scatter(data, ReduceOp::Sum).unwrap().wait().unwrap();
        let data = comm.start_allgather(data).unwrap().wait().unwrap();
        let data = comm.start_broadcast(data, 0).unwrap().wait().unwrap();
        assert!(comm.start_barrier().unwrap().wait().unwrap().is_empty());
        assert_eq!(&data[..], &[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(comm.broadcast(&mut [1u8], 1).is_err());
        assert!(comm.send(&[1u8], 0).is_err());
        assert!(comm.flight_record().is_empty());
    }
}
