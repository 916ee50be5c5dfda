//! A rank's end of the shared memory: poison, barrier, and which way an operation goes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::segment::{FOREIGN, SMALL_BYTES, Segment};
use super::word::{Patience, STEP, Waited};
use crate::backend::{Backend, Call, Deadline};
use crate::element::shard_range;
use crate::error::{AbortReason, Error, Op, Result, Signature};
use crate::fault::{Cause, Fault};
use crate::watch::Watch;

/// The poison as it lies in the segment.
pub(crate) struct ShmFault {
    pub(crate) segment: Arc<Segment>,
    /// The group's ranks that share the memory, in its order.
    pub(crate) ranks: Vec<usize>,
}

impl Fault for ShmFault {
    fn poison(&self, cause: Cause) {
        let word = &self.segment.header().poison;
        let _ = word.compare_exchange(0, cause.pack(), Ordering::SeqCst, Ordering::SeqCst); // the first cause stays
        // Also when another was first: it may have died before it came to this.
        for rank in 0..self.segment.layout.world {
            self.segment.flag(rank).arrived.poison();
            self.segment.mail(rank).sent.poison();
            self.segment.mail(rank).taken.poison();
        }
    }

    fn cause(&self) -> Option<Cause> {
        Cause::unpack(self.segment.header().poison.load(Ordering::SeqCst))
    }

    fn left(&self, rank: usize) -> bool {
        let place = self.ranks.iter().position(|&r| r == rank);
        place.is_some_and(|place| self.segment.mail(place).left.load(Ordering::SeqCst) != 0)
    }
}

/// What an operation needs to wait: who it is and how long it may.
#[derive(Clone, Copy)]
pub(crate) struct Running<'a> {
    pub(crate) call: &'a Call,
    /// Counts operations on this memory, for the choice of slots.
    pub(crate) slot: u64,
    /// The operation that the caller knows, of which this may be a part: its number and what must be equal on all ranks.
    pub(crate) seq: u64,
    pub(crate) told: Signature,
    pub(crate) deadline: Deadline,
}

/// A rank's end of the shared memory.
pub(crate) struct Shm {
    pub(super) segment: Arc<Segment>,
    pub(super) fault: Arc<ShmFault>,
    /// This rank's place among those that share the memory, and how many there are. Errors speak of [`Self::name`]s.
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) patience: Patience,
    /// Barriers entered, in steps of the flag.
    barriers: u32,
    /// Chunks staged so far by the group, for the choice of slots.
    pub(super) chunks: u64,
    /// Room for the pointers of a fold, so that an operation allocates nothing.
    pub(super) sources: Vec<*const u8>,
    pub(super) outs: Vec<*mut u8>,
    /// Where each rank's buffer of the running operation lies; see [`FOREIGN`].
    pub(super) places: Vec<u64>,
    _watch: Watch,
}

// SAFETY: the pointers in `sources` and `outs` are used within one operation only.
unsafe impl Send for Shm {}

impl Shm {
    /// `ranks` are the group's ranks that share the memory, of which `rank` is this one; `cpus` is how many CPUs they may use
    /// between them, `pidfds` are those of the others.
    pub(crate) fn new(
        segment: Arc<Segment>,
        (rank, ranks): (usize, Vec<usize>),
        cpus: usize,
        pidfds: Vec<(usize, OwnedFd)>,
    ) -> Result<Self> {
        let world = segment.layout.world;
        let rank = ranks.iter().position(|&r| r == rank).unwrap_or(0);
        let fault = Arc::new(ShmFault { segment: segment.clone(), ranks });
        let watched = fault.clone();
        let (ranks, fds): (Vec<usize>, Vec<OwnedFd>) = pidfds.into_iter().unzip();
        let handler = Box::new(move |index: usize, _: &OwnedFd| {
            if !watched.left(ranks[index]) {
                watched.poison(Cause::Lost { rank: ranks[index] });
            }
            false
        });
        Ok(Shm {
            segment,
            fault,
            rank,
            world,
            patience: Patience::new(world, cpus),
            barriers: 0,
            chunks: 0,
            sources: Vec::with_capacity(world),
            outs: Vec::with_capacity(world),
            places: vec![FOREIGN; world],
            _watch: Watch::start(fds, handler)?,
        })
    }

    /// The group's rank at a place.
    pub(super) fn name(&self, place: usize) -> usize {
        self.fault.ranks[place]
    }

    /// Waits until all ranks are here. It succeeds on every rank or on none: whether a flag got here before its poison is
    /// the same for whoever looks.
    pub(super) fn barrier(&mut self, running: &Running<'_>, patience: Patience) -> Result<()> {
        self.barriers = self.barriers.wrapping_add(STEP);
        let target = self.barriers;
        if !self.segment.flag(self.rank).arrived.advance() {
            return Err(self.why(self.rank));
        }
        for step in 1..self.world {
            let peer = (self.rank + step) % self.world;
            match self.segment.flag(peer).arrived.wait(target, patience, &running.deadline) {
                Waited::Ready => {}
                Waited::Poisoned => return Err(self.why(peer)),
                Waited::TimedOut => {
                    let rank = self.name(self.rank);
                    self.fault.poison(Cause::Aborted { rank, reason: AbortReason::TimedOut });
                    // Now no flag moves any more.
                    let here = |&p: &usize| !self.segment.flag(p).arrived.reached(target);
                    let missing: Vec<usize> =
                        (0..self.world).filter(here).map(|place| self.name(place)).collect();
                    if missing.is_empty() {
                        return Ok(());
                    }
                    return Err(running.deadline.error(running.call, running.seq, missing));
                }
            }
        }
        Ok(())
    }

    /// Why `peer`'s counter is poisoned.
    pub(super) fn why(&self, peer: usize) -> Error {
        let rank = self.name(peer);
        if self.fault.cause().is_none() {
            // Only a rank that leaves poisons no more than its own counters.
            self.fault.poison(Cause::Lost { rank });
        }
        self.fault.cause().unwrap_or(Cause::Lost { rank }).error()
    }

    /// Offset of the buffer in this rank's arena, if it lies there.
    fn place(&self, call: &Call) -> u64 {
        let base = self.segment.arena(self.rank).as_ptr() as usize;
        let data = call.data as usize;
        let inside = data >= base && data + call.bytes() <= base + self.segment.layout.arena_bytes;
        if inside { (data - base) as u64 } else { FOREIGN }
    }

    /// Announces the call, waits until all have, and compares: every rank comes to the same verdict. Leaves everybody's
    /// buffer places in `self.places`.
    fn open(&mut self, running: &Running<'_>, place: u64) -> Result<()> {
        let parity = running.slot as usize % 2;
        let ours = running.told;
        let code = ours.code();
        let announced = &self.segment.flag(self.rank).announced[parity];
        announced.code.store(code, Ordering::Relaxed);
        announced.bytes.store(ours.bytes, Ordering::Relaxed);
        announced.place.store(place, Ordering::Relaxed);
        self.barrier(running, self.patience)?;
        let mut fits = true;
        for peer in 0..self.world {
            let theirs = &self.segment.flag(peer).announced[parity];
            fits &= theirs.code.load(Ordering::Relaxed) == code
                && theirs.bytes.load(Ordering::Relaxed) == ours.bytes;
            self.places[peer] = theirs.place.load(Ordering::Relaxed);
        }
        if fits { Ok(()) } else { Err(self.mismatch(running)) }
    }

    /// Names rank 0's call and the first that differs from it.
    #[cold]
    fn mismatch(&self, running: &Running<'_>) -> Error {
        let seq = running.seq;
        let announced = |rank: usize| {
            let a = &self.segment.flag(rank).announced[running.slot as usize % 2];
            Signature::from_code(a.code.load(Ordering::Relaxed), a.bytes.load(Ordering::Relaxed))
        };
        let rank = self.name(self.rank);
        self.fault.poison(Cause::Aborted { rank, reason: AbortReason::Mismatch });
        let left = announced(0);
        let differs = (1..self.world).find(|&rank| announced(rank) != left).unwrap_or(0);
        match (left, announced(differs)) {
            (Some(left), Some(right)) => {
                let (left_rank, right_rank) = (self.name(0), self.name(differs));
                Error::Mismatch { seq, left_rank, left, right_rank, right }
            }
            _ => Error::Corrupt { rank: self.name(differs), what: "an operation that does not exist".into() },
        }
    }

    /// Runs an operation, or a part of one, among the ranks that share the memory. Its peer is a place.
    ///
    /// # Safety
    /// As [`Backend::run`].
    #[inline(never)]
    pub(crate) unsafe fn go(&mut self, running: &Running<'_>) -> Result<()> {
        // SAFETY: passed on.
        unsafe {
            match running.call.op {
                Op::Send => self.send(running),
                Op::Recv => self.recv(running),
                _ => self.collective(running),
            }
        }
    }

    unsafe fn collective(&mut self, running: &Running<'_>) -> Result<()> {
        let call = running.call;
        // SAFETY: the caller's promises on the buffer are passed on; after `open` all ranks are in this operation, and
        // each way ends only when no other rank touches our buffer any more.
        unsafe {
            if call.bytes() <= SMALL_BYTES {
                self.fill_small(call, running.slot);
                self.open(running, FOREIGN)?;
                self.finish_small(call, running.slot);
                return Ok(());
            }
            let place = self.place(call);
            self.open(running, place)?;
            if self.places.contains(&FOREIGN) {
                return self.staged(running);
            }
            self.direct(call);
        }
        self.barrier(running, self.patience.while_moving(call.bytes()))
    }

    /// Elements of `rank`'s shard as the caller sees it.
    pub(super) fn shard(&self, call: &Call, rank: usize) -> std::ops::Range<usize> {
        shard_range(call.len, self.world, rank)
    }
}

impl Backend for Shm {
    // Not inlined, so that the compiler never sees the caller's borrow and the pointer that others write through together.
    #[inline(never)]
    unsafe fn run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()> {
        // SAFETY: passed on.
        unsafe { self.go(&Running { call, slot: seq, seq, told: call.signature(), deadline }) }
    }

    #[inline(never)]
    unsafe fn unsynchronised(&mut self, call: &Call) -> bool {
        let place = self.place(call);
        // SAFETY: passed on; every rank's buffer lies where ours does.
        unsafe {
            if call.bytes() <= SMALL_BYTES {
                self.fill_small(call, 0);
                self.finish_small(call, 0);
            } else if place == FOREIGN {
                return false;
            } else {
                self.places.fill(place);
                self.direct(call);
            }
        }
        true
    }

    fn settle(&mut self) {
        self.segment.prefault();
    }

    fn leave(&mut self) {
        let mail = self.segment.mail(self.rank);
        mail.left.store(1, Ordering::SeqCst);
        // Whoever waits for this rank, or will, hears of it; all that it has come to stays.
        self.segment.flag(self.rank).arrived.poison();
        mail.sent.poison();
    }

    fn fault(&self) -> Arc<dyn Fault> {
        self.fault.clone()
    }
}
