//! Small operations: everybody gets everybody's data in log2(world) hops and folds it alone (J. Bruck et al., "Efficient
//! Algorithms for All-to-All Communications in Multiport Message-Passing Systems", 1997).

use super::collectives::Tcp;
use super::exchange::{Post, Running, Sink};
use super::frame::{Frame, MAX_PAYLOAD_BYTES};
use super::link::Outgoing;
use crate::element::shard_range;
use crate::error::{Op, Result};
use crate::reduce::fold;

impl Tcp {
    /// `block` is the size of what each rank contributes, in bytes.
    ///
    /// # Safety
    /// As [`crate::backend::Backend::run`].
    pub(super) unsafe fn small(&mut self, running: &Running<'_>, block: usize) -> Result<()> {
        let (call, world, rank) = (running.call, self.world, self.rank);
        let size = call.dtype.size();
        let stride = block.next_multiple_of(size_of::<u64>());
        let mut scratch = self.take_scratch(world * stride);
        let blocks: *mut u8 = scratch.as_mut_ptr().cast();
        let shard = |rank| {
            let range = shard_range(call.len, world, rank);
            (range.start * size, range.len() * size)
        };
        let (from, length) = if call.op == Op::Allgather { shard(rank) } else { (0, block) };
        // SAFETY: within the caller's buffer and a block of ours.
        unsafe { std::ptr::copy_nonoverlapping(call.data.add(from), blocks, length) };
        // SAFETY: `scratch` has room for `world` strides and lives on here.
        let result = unsafe { self.spread(running, blocks, stride) };
        if result.is_ok() {
            // Block `n` is that of rank `self.rank + n`.
            // SAFETY: within the blocks.
            let block_of = |of: usize| unsafe { blocks.add((of + world - rank) % world * stride) };
            // SAFETY: blocks hold whole contributions; ranges are within the caller's buffer.
            unsafe {
                match (call.op, call.reduce) {
                    (Op::Allreduce | Op::ReduceScatter, Some(reduce)) => {
                        let (at, length) =
                            if call.op == Op::Allreduce { (0, call.bytes()) } else { shard(rank) };
                        let sources: Vec<*const u8> =
                            (0..world).map(|of| block_of(of).add(at).cast_const()).collect();
                        fold(call.dtype, (reduce, call.parts), &sources, &[call.data.add(at)], length / size);
                    }
                    (Op::Allgather, _) => {
                        for of in (0..world).filter(|&of| of != rank) {
                            let (at, length) = shard(of);
                            std::ptr::copy_nonoverlapping(block_of(of), call.data.add(at), length);
                        }
                    }
                    _ => {}
                }
            }
        }
        self.scratch = scratch;
        result
    }

    /// In hop `h`, everybody sends the first `2^h` blocks it has to the rank `2^h` below and gets as many from the one above.
    unsafe fn spread(&mut self, running: &Running<'_>, blocks: *mut u8, stride: usize) -> Result<()> {
        let (world, rank) = (self.world, self.rank);
        let mut have = 1;
        let mut phase = 0;
        while have < world {
            let count = have.min(world - have);
            let (to, from) = ((rank + world - have) % world, (rank + have) % world);
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
