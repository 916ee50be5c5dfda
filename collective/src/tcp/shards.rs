//! Large operations: every rank receives all others' contributions to its own shard, folds them, and sends the result to
//! all. As many bytes as a ring moves, in two hops instead of 2 (n - 1), and the fold is the tree that shared memory folds.

use std::ops::Range;

use super::collectives::{Tcp, payloads};
use super::exchange::{Post, Running, Sink};
use super::frame::{Frame, MAX_PAYLOAD_BYTES};
use super::link::Outgoing;
use crate::element::shard_range;
use crate::error::{Op, Result};
use crate::reduce::fold;

/// Contributions of each rank that may wait for those of others: few, so that they are folded while in the cache.
const WINDOW: usize = 2;
/// Phases of a frame.
const CONTRIBUTION: u32 = 0;
const RESULT: u32 = 1;

impl Tcp {
    /// # Safety
    /// As [`crate::backend::Backend::run`].
    pub(super) unsafe fn shards(&mut self, running: &Running<'_>) -> Result<()> {
        let call = running.call;
        let (world, rank, size) = (self.world, self.rank, call.dtype.size());
        let shard = |rank| {
            let range = shard_range(call.len, world, rank);
            range.start * size..range.end * size
        };
        let (folds, gathers) = (call.op != Op::Allgather, call.op != Op::ReduceScatter);
        for step in 1..world {
            let peer = (rank + step) % world;
            if folds {
                self.post(running, peer, CONTRIBUTION, shard(peer));
            } else {
                self.post(running, peer, RESULT, shard(rank));
            }
        }
        let mut scratch = self.take_scratch(if folds { world * WINDOW * MAX_PAYLOAD_BYTES } else { 0 });
        let frames = |rank| payloads(shard(rank)).count();
        let mut sink = Shards {
            running: *running,
            world,
            rank,
            own: shard(rank),
            contributions: (0..world)
                .map(|peer| if folds && peer != rank { frames(rank) } else { 0 })
                .collect(),
            results: (0..world).map(|peer| if gathers && peer != rank { frames(peer) } else { 0 }).collect(),
            shards: (0..world).map(shard).collect(),
            folded: 0,
            gathers,
            window: scratch.as_mut_ptr().cast(),
            sources: Vec::with_capacity(world),
        };
        // SAFETY: the caller's buffer is passed on; `scratch` lives on here.
        let result = unsafe { self.drive(running, &mut sink) };
        self.scratch = scratch;
        result
    }
}

struct Shards<'a> {
    running: Running<'a>,
    world: usize,
    rank: usize,
    /// Our shard, in bytes of the caller's buffer …
    own: Range<usize>,
    /// … and everybody's.
    shards: Vec<Range<usize>>,
    /// Frames still to come from each rank.
    contributions: Vec<usize>,
    results: Vec<usize>,
    /// Payloads of our shard that are folded.
    folded: usize,
    gathers: bool,
    /// `WINDOW` payloads of each rank.
    window: *mut u8,
    sources: Vec<*const u8>,
}

impl Shards<'_> {
    /// Where `peer`'s contribution to the `n`th payload of our shard waits.
    fn slot(&self, peer: usize, n: usize) -> *mut u8 {
        // SAFETY: within the window, which has that many slots for each rank.
        unsafe { self.window.add((peer * WINDOW + n % WINDOW) * MAX_PAYLOAD_BYTES) }
    }

    fn payloads_of_own(&self) -> usize {
        payloads(self.own.clone()).count()
    }

    /// Contributions of `peer` that are here. They come in order.
    fn received(&self, peer: usize) -> usize {
        self.payloads_of_own() - self.contributions[peer]
    }

    /// Folds the next payload of our shard, to which all have contributed, and posts it.
    fn fold_next(&mut self, posts: &mut Vec<Post>) {
        let call = self.running.call;
        let at = self.own.start + self.folded * MAX_PAYLOAD_BYTES;
        let length = MAX_PAYLOAD_BYTES.min(self.own.end - at);
        // SAFETY: within our shard of the caller's buffer, to which nobody else contributes or writes.
        let ours = unsafe { call.data.add(at) };
        self.sources.clear();
        for rank in 0..self.world {
            let source = if rank == self.rank { ours } else { self.slot(rank, self.folded) };
            self.sources.push(source);
        }
        if let Some(reduce) = call.reduce {
            // SAFETY: all sources hold `length` bytes; the slots are read before they are given away again.
            unsafe {
                fold(call.dtype, (reduce, call.parts), &self.sources, &[ours], length / call.dtype.size())
            };
        }
        self.folded += 1;
        if self.gathers {
            for to in (1..self.world).map(|step| (self.rank + step) % self.world) {
                let frame = self.running.frame(RESULT, at, length);
                posts.push(Post { to, out: Outgoing { frame, payload: ours }, urgent: true });
            }
        }
    }
}

impl Sink for Shards<'_> {
    fn expects(&self, peer: usize) -> bool {
        self.contributions[peer] + self.results[peer] > 0
    }

    fn place(&mut self, peer: usize, frame: &Frame) -> Result<Option<*mut u8>, String> {
        let (range, left) = match frame.phase {
            CONTRIBUTION => (&self.own, self.contributions[peer]),
            _ => (&self.shards[peer], self.results[peer]),
        };
        let all = payloads(range.clone()).count();
        let due = payloads(range.clone()).nth(all.saturating_sub(left)).filter(|_| left > 0);
        if due != Some((frame.offset as usize, frame.length as usize)) {
            return Err(format!("a payload at {} of {} bytes that is not due", frame.offset, frame.length));
        }
        if frame.phase != CONTRIBUTION {
            // SAFETY: within `peer`'s shard of the caller's buffer; our contribution to it is sent, or it could not have
            // come to a result.
            return Ok(Some(unsafe { self.running.call.data.add(frame.offset as usize) }));
        }
        let n = self.received(peer);
        Ok((n < self.folded + WINDOW).then(|| self.slot(peer, n)))
    }

    fn arrived(&mut self, peer: usize, frame: &Frame, posts: &mut Vec<Post>) {
        if frame.phase != CONTRIBUTION {
            self.results[peer] -= 1;
            return;
        }
        self.contributions[peer] -= 1;
        let others = |rank: &usize| *rank != self.rank;
        let here = (0..self.world).filter(others).map(|rank| self.received(rank)).min().unwrap_or(0);
        while self.folded < here {
            self.fold_next(posts);
        }
    }
}
