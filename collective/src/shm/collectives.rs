//! The three ways of a collective: through a slot, directly in the arenas, staged through chunks.

use std::ops::Range;

use super::group::{Running, Shm};
use super::segment::CHUNK_BYTES;
use super::staging::{Step, steps};
use crate::backend::Call;
use crate::element::shard_range;
use crate::error::{Op, Result};
use crate::reduce::fold;

/// Slices of the direct path begin on cache lines.
const LINE_BYTES: usize = 64;

/// Elements of a buffer that `rank` folds for all, where the result does not depend on the cut: whole cache lines.
fn slice_range(call: &Call, world: usize, rank: usize) -> Range<usize> {
    let per_line = LINE_BYTES / call.dtype.size();
    let lines = shard_range(call.len.div_ceil(per_line), world, rank);
    (lines.start * per_line).min(call.len)..(lines.end * per_line).min(call.len)
}

unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: passed on; slots and callers' buffers never overlap, nor do buffers of two ranks.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
}

// SAFETY of this file: `call.data` is the caller's buffer, by the contract of `Backend::run`. Slots, chunks and arenas of
// all ranks lie in the segment. Who may touch which part of them when is said at each function; barriers order it.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Shm {
    /// Puts what others need of ours into our slot. It was read last two operations ago, and between them lies a barrier
    /// to which every reader came after reading.
    pub(super) unsafe fn fill_small(&self, call: &Call, seq: u64) {
        let slot = self.segment.small(self.rank, seq).as_ptr();
        let size = call.dtype.size();
        let part = match call.op {
            Op::Allreduce | Op::ReduceScatter => 0..call.len,
            Op::Allgather => self.shard(call, self.rank),
            Op::Broadcast if call.peer == self.rank => 0..call.len,
            _ => 0..0,
        };
        unsafe { copy(call.data.add(part.start * size), slot.add(part.start * size), part.len() * size) };
    }

    /// Takes what we need from the others' slots.
    pub(super) unsafe fn finish_small(&mut self, call: &Call, seq: u64) {
        let size = call.dtype.size();
        match call.op {
            Op::Allreduce => unsafe { self.fold_small(call, seq, 0..call.len) },
            Op::ReduceScatter => unsafe { self.fold_small(call, seq, self.shard(call, self.rank)) },
            Op::Allgather => {
                for peer in (0..self.world).filter(|&p| p != self.rank) {
                    let part = self.shard(call, peer);
                    let slot = self.segment.small(peer, seq).as_ptr();
                    unsafe {
                        copy(slot.add(part.start * size), call.data.add(part.start * size), part.len() * size)
                    };
                }
            }
            Op::Broadcast if call.peer != self.rank => {
                unsafe { copy(self.segment.small(call.peer, seq).as_ptr(), call.data, call.bytes()) };
            }
            _ => {}
        }
    }

    unsafe fn fold_small(&mut self, call: &Call, seq: u64, part: Range<usize>) {
        let Some(reduce) = call.reduce else { return };
        let start = part.start * call.dtype.size();
        self.sources.clear();
        for rank in 0..self.world {
            self.sources.push(unsafe { self.segment.small(rank, seq).as_ptr().add(start) });
        }
        let out = unsafe { call.data.add(start) };
        unsafe { fold(call.dtype, (reduce, call.parts), &self.sources, &[out], part.len()) };
    }

    /// Where `rank`'s buffer of the running operation lies in its arena.
    unsafe fn placed(&self, rank: usize) -> *mut u8 {
        unsafe { self.segment.arena(rank).as_ptr().add(self.places[rank] as usize) }
    }

    /// All buffers lie in arenas, and all ranks are between the same two barriers: each rank reads and writes its own
    /// slice of all buffers, or only reads what nobody writes.
    pub(super) unsafe fn direct(&mut self, call: &Call) {
        let size = call.dtype.size();
        match (call.op, call.reduce) {
            (Op::Allreduce, Some(reduce)) => {
                let part = slice_range(call, self.world, self.rank);
                self.sources.clear();
                self.outs.clear();
                for rank in 0..self.world {
                    let at = unsafe { self.placed(rank).add(part.start * size) };
                    self.sources.push(at);
                    self.outs.push(at);
                }
                unsafe { fold(call.dtype, (reduce, call.parts), &self.sources, &self.outs, part.len()) };
            }
            (Op::ReduceScatter, Some(reduce)) => {
                let part = self.shard(call, self.rank);
                self.sources.clear();
                for rank in 0..self.world {
                    self.sources.push(unsafe { self.placed(rank).add(part.start * size) });
                }
                let out = unsafe { call.data.add(part.start * size) };
                unsafe { fold(call.dtype, (reduce, call.parts), &self.sources, &[out], part.len()) };
            }
            (Op::Allgather, _) => {
                // Each starts with its neighbour, so that not all read from rank 0 at once.
                for step in 1..self.world {
                    let peer = (self.rank + step) % self.world;
                    let part = self.shard(call, peer);
                    let at = part.start * size;
                    unsafe { copy(self.placed(peer).add(at), call.data.add(at), part.len() * size) };
                }
            }
            (Op::Broadcast, _) if call.peer != self.rank => {
                unsafe { copy(self.placed(call.peer), call.data, call.bytes()) };
            }
            _ => {}
        }
    }

    /// Some buffer is foreign memory: everything goes through chunks.
    pub(super) unsafe fn staged(&mut self, running: &Running<'_>) -> Result<()> {
        let steps = match running.call.op {
            Op::Broadcast => unsafe { self.staged_broadcast(running)? },
            _ => unsafe { self.staged_shards(running)? },
        };
        self.chunks += steps;
        Ok(())
    }

    /// A chunk is cut into one stripe for each rank; step `k` moves the `k`th piece of every rank's shard.
    unsafe fn staged_shards(&mut self, running: &Running<'_>) -> Result<u64> {
        let call = running.call;
        let stripes = Stripes::new(self, call);
        let (folds, gathers) = (call.op != Op::Allgather, call.op != Op::ReduceScatter);
        for step in steps(stripes.count, folds, gathers) {
            match step {
                Step::Fill(k) => unsafe { self.fill_chunk(call, &stripes, k) },
                Step::Barrier => self.barrier(running, self.patience.while_moving(CHUNK_BYTES))?,
                Step::Fold(k) => unsafe { self.fold_stripe(call, &stripes, k, gathers) },
                Step::Gather(k) => unsafe { self.gather_stripes(call, &stripes, k) },
            }
        }
        Ok(stripes.count as u64)
    }

    /// Our buffer's pieces of step `k` into our own chunk: of all shards to be folded, or only of our own.
    unsafe fn fill_chunk(&self, call: &Call, stripes: &Stripes, k: usize) {
        let chunk = self.segment.chunk(self.rank, self.chunks + k as u64).as_ptr();
        let size = call.dtype.size();
        for rank in 0..self.world {
            if call.op == Op::Allgather && rank != self.rank {
                continue;
            }
            let piece = stripes.piece(self, call, rank, k);
            let stripe = unsafe { chunk.add(rank * stripes.stripe_bytes) };
            unsafe { copy(call.data.add(piece.start * size), stripe, piece.len() * size) };
        }
    }

    /// Folds our stripe of everybody's chunk into our buffer and, for others to gather, into our own chunk. Nobody else
    /// touches our stripe of any chunk in this step.
    unsafe fn fold_stripe(&mut self, call: &Call, stripes: &Stripes, k: usize, publish: bool) {
        let Some(reduce) = call.reduce else { return };
        let piece = stripes.piece(self, call, self.rank, k);
        let number = self.chunks + k as u64;
        let at = self.rank * stripes.stripe_bytes;
        self.sources.clear();
        self.outs.clear();
        for rank in 0..self.world {
            self.sources.push(unsafe { self.segment.chunk(rank, number).as_ptr().add(at) });
        }
        self.outs.push(unsafe { call.data.add(piece.start * call.dtype.size()) });
        if publish {
            self.outs.push(self.sources[self.rank].cast_mut());
        }
        unsafe { fold(call.dtype, (reduce, call.parts), &self.sources, &self.outs, piece.len()) };
    }

    /// Every other rank's own stripe of its chunk into our buffer.
    unsafe fn gather_stripes(&self, call: &Call, stripes: &Stripes, k: usize) {
        let size = call.dtype.size();
        for step in 1..self.world {
            let peer = (self.rank + step) % self.world;
            let piece = stripes.piece(self, call, peer, k);
            let chunk = self.segment.chunk(peer, self.chunks + k as u64).as_ptr();
            let stripe = unsafe { chunk.add(peer * stripes.stripe_bytes) };
            unsafe { copy(stripe, call.data.add(piece.start * size), piece.len() * size) };
        }
    }

    /// The root fills chunk after chunk; it is never more than one ahead of a reader.
    unsafe fn staged_broadcast(&mut self, running: &Running<'_>) -> Result<u64> {
        let call = running.call;
        let count = call.bytes().div_ceil(CHUNK_BYTES);
        for k in 0..count {
            let at = k * CHUNK_BYTES;
            let bytes = CHUNK_BYTES.min(call.bytes() - at);
            let chunk = self.segment.chunk(call.peer, self.chunks + k as u64).as_ptr();
            if call.peer == self.rank {
                unsafe { copy(call.data.add(at), chunk, bytes) };
            }
            self.barrier(running, self.patience.while_moving(CHUNK_BYTES))?;
            if call.peer != self.rank {
                unsafe { copy(chunk, call.data.add(at), bytes) };
            }
        }
        Ok(count as u64)
    }
}

/// How shards go through chunks.
struct Stripes {
    stripe_bytes: usize,
    /// Elements of a stripe.
    stripe_len: usize,
    count: usize,
}

impl Stripes {
    fn new(shm: &Shm, call: &Call) -> Self {
        let stripe_bytes = CHUNK_BYTES / shm.world / LINE_BYTES * LINE_BYTES;
        let stripe_len = stripe_bytes / call.dtype.size();
        let longest = (0..shm.world).map(|rank| Self::shard(shm, call, rank).len()).max().unwrap_or(0);
        Stripes { stripe_bytes, stripe_len, count: longest.div_ceil(stripe_len) }
    }

    fn shard(shm: &Shm, call: &Call, rank: usize) -> Range<usize> {
        match call.op {
            Op::Allreduce => slice_range(call, shm.world, rank),
            _ => shm.shard(call, rank),
        }
    }

    /// Elements of step `k` of a rank's shard; none once it is through.
    fn piece(&self, shm: &Shm, call: &Call, rank: usize, k: usize) -> Range<usize> {
        let shard = Self::shard(shm, call, rank);
        let start = (shard.start + k * self.stripe_len).min(shard.end);
        start..(start + self.stripe_len).min(shard.end)
    }
}
