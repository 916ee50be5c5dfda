//! Large operations: every rank receives all others' contributions to its own shard, folds them, and sends the result to
//! all. As many bytes as a ring moves, in two hops instead of 2 (n - 1), and the fold is the tree that shared memory folds.

use std::ops::Range;

use super::collectives::{Tcp, Team, payloads};
use super::exchange::{Post, Running, Sink};
use super::frame::{Frame, MAX_PAYLOAD_BYTES};
use super::link::Outgoing;
use crate::error::{Op, Result};
use crate::reduce::fold;

/// Contributions of each rank that may wait for those of others: few, so that they are folded while in the cache.
const WINDOW: usize = 2;
/// Phases of a frame.
const CONTRIBUTION: u32 = 0;
const RESULT: u32 = 1;

impl Tcp {
    /// `shards` are the team's parts of the caller's buffer, in bytes.
    ///
    /// # Safety
    /// As [`crate::backend::Backend::run`]; `shards` lie within the buffer.
    pub(super) unsafe fn exact_shards(
        &mut self,
        running: &Running<'_>,
        team: &Team,
        shards: Vec<Range<usize>>,
    ) -> Result<()> {
        let call = running.call;
        let (folds, gathers) = (call.op != Op::Allgather, call.op != Op::ReduceScatter);
        for step in 1..team.len() {
            let place = (team.me + step) % team.len();
            let peer = team.ranks[place];
            if folds {
                self.post(running, peer, CONTRIBUTION, shards[place].clone());
            } else {
                self.post(running, peer, RESULT, shards[team.me].clone());
            }
        }
        let mut scratch = self.take_scratch(if folds { team.len() * WINDOW * MAX_PAYLOAD_BYTES } else { 0 });
        let frames = |place: usize| payloads(shards[place].clone()).count();
        let (mut contributions, mut results) = (vec![0; self.world], vec![0; self.world]);
        for (place, &rank) in team.ranks.iter().enumerate().filter(|(place, _)| *place != team.me) {
            contributions[rank] = if folds { frames(team.me) } else { 0 };
            results[rank] = if gathers { frames(place) } else { 0 };
        }
        let mut sink = Shards {
            running: *running,
            team,
            contributions,
            results,
            shards,
            folded: 0,
            gathers,
            window: scratch.as_mut_ptr().cast(),
            sources: Vec::with_capacity(team.len()),
        };
        // SAFETY: the caller's buffer is passed on; `scratch` lives on here.
        let result = unsafe { self.drive(running, &mut sink) };
        self.scratch = scratch;
        result
    }
}

struct Shards<'a> {
    running: Running<'a>,
    team: &'a Team,
    /// By place in the team, in bytes of the caller's buffer.
    shards: Vec<Range<usize>>,
    /// Frames still to come, by rank.
    contributions: Vec<usize>,
    results: Vec<usize>,
    /// Payloads of our shard that are folded.
    folded: usize,
    gathers: bool,
    /// `WINDOW` payloads of each member.
    window: *mut u8,
    sources: Vec<*const u8>,
}

impl Shards<'_> {
    fn own(&self) -> Range<usize> {
        self.shards[self.team.me].clone()
    }

    fn place_of(&self, peer: usize) -> usize {
        self.team.ranks.iter().position(|&rank| rank == peer).unwrap_or(self.team.me)
    }

    /// Where a member's contribution to the `n`th payload of our shard waits.
    fn slot(&self, place: usize, n: usize) -> *mut u8 {
        // SAFETY: within the window, which has that many slots for each member.
        unsafe { self.window.add((place * WINDOW + n % WINDOW) * MAX_PAYLOAD_BYTES) }
    }

    fn payloads_of_own(&self) -> usize {
        payloads(self.own()).count()
    }

    /// Contributions of `peer` that are here. They come in order.
    fn received(&self, peer: usize) -> usize {
        self.payloads_of_own() - self.contributions[peer]
    }

    /// Folds the next payload of our shard, to which all have contributed, and posts it.
    fn fold_next(&mut self, posts: &mut Vec<Post>) {
        let (call, own, team) = (self.running.call, self.own(), self.team);
        let at = own.start + self.folded * MAX_PAYLOAD_BYTES;
        let length = MAX_PAYLOAD_BYTES.min(own.end - at);
        // SAFETY: within our shard of the caller's buffer, to which nobody else contributes or writes.
        let ours = unsafe { call.data.add(at) };
        self.sources.clear();
        for place in 0..team.len() {
            let source = if place == team.me { ours } else { self.slot(place, self.folded) };
            self.sources.push(source);
        }
        if let Some(reduce) = call.reduce {
            let len = length / call.dtype.size();
            // SAFETY: all sources hold `length` bytes; the slots are read before they are given away again.
            unsafe { fold(call.dtype, (reduce, call.parts), &self.sources, &[ours], len) };
        }
        self.folded += 1;
        if self.gathers {
            for to in (1..team.len()).map(|step| team.ranks[(team.me + step) % team.len()]) {
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
        let place = self.place_of(peer);
        let (range, left) = match frame.phase {
            CONTRIBUTION => (self.own(), self.contributions[peer]),
            _ => (self.shards[place].clone(), self.results[peer]),
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
        Ok((n < self.folded + WINDOW).then(|| self.slot(place, n)))
    }

    fn arrived(&mut self, peer: usize, frame: &Frame, posts: &mut Vec<Post>) {
        if frame.phase != CONTRIBUTION {
            self.results[peer] -= 1;
            return;
        }
        self.contributions[peer] -= 1;
        let me = self.team.ranks[self.team.me];
        let others = self.team.ranks.iter().filter(|&&rank| rank != me);
        let here = others.map(|&rank| self.received(rank)).min().unwrap_or(0);
        while self.folded < here {
            self.fold_next(posts);
        }
    }
}
