//! Small operations: everybody gets everybody's data in log2(world) hops and folds it alone (J. Bruck et al., "Efficient
//! Algorithms for All-to-All Communications in Multiport Message-Passing Systems", 1997).

use std::ops::Range;

use super::collectives::{Tcp, Team};
use super::exchange::{Post, Running, Sink};
use super::frame::{Frame, MAX_PAYLOAD_BYTES};
use super::link::Outgoing;
use crate::error::Result;
use crate::reduce::fold;

/// What becomes of everybody's blocks.
pub(crate) enum Small<'a> {
    /// All of the buffer is everybody's block; these elements of the fold are wanted. Without a rule nothing is folded, and
    /// only the meeting counts.
    Reduce(Range<usize>),
    /// These ranges of the buffer, in bytes, are the blocks of the team.
    Gather(&'a [Range<usize>]),
}

impl Tcp {
    /// # Safety
    /// As [`crate::backend::Backend::run`]; ranges lie within the buffer.
    pub(crate) unsafe fn small(
        &mut self,
        running: &Running<'_>,
        team: &Team,
        what: &Small<'_>,
    ) -> Result<()> {
        let (call, world) = (running.call, team.len());
        let (own, block) = match what {
            Small::Reduce(_) => (0..call.bytes(), call.bytes()),
            Small::Gather(parts) => {
                (parts[team.me].clone(), parts.iter().map(ExactSizeIterator::len).max().unwrap_or(0))
            }
        };
        let stride = block.next_multiple_of(size_of::<u64>());
        let mut scratch = self.take_scratch(world * stride);
        let blocks: *mut u8 = scratch.as_mut_ptr().cast();
        // SAFETY: within the caller's buffer and a block of ours.
        unsafe { std::ptr::copy_nonoverlapping(call.data.add(own.start), blocks, own.len()) };
        // SAFETY: `scratch` has room for `world` strides and lives on here.
        let result = unsafe { self.spread(running, team, blocks, stride) };
        // Block `n` is that of the member `n` places above.
        // SAFETY: within the blocks.
        let block_of = |of: usize| unsafe { blocks.add((of + world - team.me) % world * stride) };
        match (what, call.reduce) {
            _ if result.is_err() => {}
            (Small::Reduce(wanted), Some(reduce)) => {
                let at = wanted.start * call.dtype.size();
                // SAFETY: blocks hold whole contributions; the range is within the caller's buffer.
                unsafe {
                    let sources: Vec<*const u8> =
                        (0..world).map(|of| block_of(of).add(at).cast_const()).collect();
                    let out = call.data.add(at);
                    fold(call.dtype, (reduce, call.parts), &sources, &[out], wanted.len());
                }
            }
            (Small::Reduce(_), None) => {}
            (Small::Gather(parts), _) => {
                for of in (0..world).filter(|&of| of != team.me) {
                    let part = &parts[of];
                    // SAFETY: as above.
                    unsafe {
                        let to = call.data.add(part.start);
                        std::ptr::copy_nonoverlapping(block_of(of), to, part.len());
                    }
                }
            }
        }
        self.scratch = scratch;
        result
    }

    /// In hop `h`, everybody sends the first `2^h` blocks it has to the rank `2^h` below and gets as many from the one above.
    unsafe fn spread(
        &mut self,
        running: &Running<'_>,
        team: &Team,
        blocks: *mut u8,
        stride: usize,
    ) -> Result<()> {
        let (world, me) = (team.len(), team.me);
        let mut have = 1;
        let mut phase = 0;
        while have < world {
            let count = have.min(world - have);
            let (to, from) = (team.ranks[(me + world - have) % world], team.ranks[(me + have) % world]);
            let frame = running.frame(phase, 0, count * stride);
            debug_assert!(count * stride <= MAX_PAYLOAD_BYTES);
            self.posts.push(Post { to, out: Outgoing { frame, payload: blocks }, urgent: false });
            // SAFETY: within the blocks, of which there are `world`.
            let place = unsafe { blocks.add(have * stride) };
            let mut sink = One { from, phase, length: count * stride, place, missing: true };
            // SAFETY: what is sent and what is received are different blocks, all ours.
            unsafe { self.drive(running, &mut sink)? };
            have += count;
            phase += 1;
        }
        Ok(())
    }
}

/// One frame from one rank.
struct One {
    from: usize,
    phase: u32,
    length: usize,
    place: *mut u8,
    missing: bool,
}

impl Sink for One {
    fn expects(&self, peer: usize) -> bool {
        self.missing && peer == self.from
    }

    fn place(&mut self, _: usize, frame: &Frame) -> Result<Option<*mut u8>, String> {
        if frame.phase != self.phase || frame.length as usize != self.length {
            return Err(format!("{} bytes of hop {}, {} expected", frame.length, frame.phase, self.length));
        }
        Ok(Some(self.place))
    }

    fn arrived(&mut self, _: usize, _: &Frame, _: &mut Vec<Post>) {
        self.missing = false;
    }
}
