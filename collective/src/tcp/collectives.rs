//! A rank's end of the connections, and which way an operation goes.

use std::ops::Range;
use std::sync::Arc;

use super::exchange::{Post, Running, SPINS, Sink};
use super::fault::TcpFault;
use super::frame::{Frame, MAX_PAYLOAD_BYTES};
use super::link::{Link, Outgoing};
use super::small::Small;
use crate::backend::{Backend, Call, Deadline};
use crate::config::Wire;
use crate::convert::convert;
use crate::element::{DType, shard_range};
use crate::error::{Op, Result, Signature};
use crate::fault::Fault;
use crate::watch::Watch;

/// Data of all ranks together up to which everybody gets everybody's and folds it: fewer hops, more bytes.
const SMALL_BYTES: usize = 2 * MAX_PAYLOAD_BYTES;

/// Whether `ranks` blocks go the way of [`Tcp::small`].
pub(crate) fn is_small(block_bytes: usize, ranks: usize) -> bool {
    block_bytes * ranks <= SMALL_BYTES
}

/// A rank's end of the connections.
pub(crate) struct Tcp {
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(crate) fault: Arc<TcpFault>,
    /// By rank; none for this one.
    pub(super) links: Vec<Option<Link>>,
    pub(super) spins: u32,
    /// Frames on their way to their queues.
    pub(super) posts: Vec<Post>,
    /// Room for what is not the caller's; of words, so that it is aligned for every type.
    pub(super) scratch: Vec<u64>,
    /// Room for a buffer in half its bits.
    short: Vec<u16>,
    /// Messages sent to and received from each rank.
    sent: Vec<u64>,
    received: Vec<u64>,
    everybody: Arc<Team>,
    wire: Wire,
    _watch: Watch,
}

/// Ranks that run a part of an operation among themselves.
#[derive(Debug)]
pub(crate) struct Team {
    /// In the order in which they are folded.
    pub(crate) ranks: Vec<usize>,
    /// This rank's place among them.
    pub(crate) me: usize,
}

impl Team {
    pub(super) fn len(&self) -> usize {
        self.ranks.len()
    }
}

// SAFETY: the pointers in `posts` are used within one operation only.
unsafe impl Send for Tcp {}

impl Tcp {
    /// `spin` says whether every rank of this host has a CPU.
    pub(crate) fn new(
        rank: usize,
        links: Vec<Option<Link>>,
        fault: Arc<TcpFault>,
        (spin, wire): (bool, Wire),
    ) -> Result<Self> {
        let world = links.len();
        let watch = fault.watch()?;
        Ok(Tcp {
            rank,
            world,
            fault,
            links,
            spins: if spin { SPINS } else { 0 },
            posts: Vec::new(),
            scratch: Vec::new(),
            short: Vec::new(),
            sent: vec![0; world],
            received: vec![0; world],
            everybody: Arc::new(Team { ranks: (0..world).collect(), me: rank }),
            wire,
            _watch: watch,
        })
    }

    /// At least `bytes` of room, to be put back. It only grows: to zero it each time would cost more than an operation.
    pub(super) fn take_scratch(&mut self, bytes: usize) -> Vec<u64> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let words = bytes.div_ceil(size_of::<u64>()).max(1);
        if scratch.len() < words {
            scratch.resize(words, 0);
        }
        scratch
    }

    /// Posts `range` of the caller's buffer, in bytes, to a peer.
    pub(super) fn post(&mut self, running: &Running<'_>, to: usize, phase: u32, range: Range<usize>) {
        for (at, length) in payloads(range) {
            // SAFETY: within the caller's buffer.
            let payload = unsafe { running.call.data.add(at) };
            self.posts.push(Post {
                to,
                out: Outgoing { frame: running.frame(phase, at, length), payload },
                urgent: false,
            });
        }
    }

    unsafe fn collective(&mut self, running: &Running<'_>) -> Result<()> {
        let (call, team) = (running.call, self.everybody.clone());
        let size = call.dtype.size();
        let shards: Vec<Range<usize>> = (0..self.world)
            .map(|rank| shard_range(call.len, self.world, rank))
            .map(|shard| shard.start * size..shard.end * size)
            .collect();
        let block = if call.op == Op::Allgather { shards[0].len() } else { call.bytes() };
        let small = is_small(block, self.world);
        // SAFETY: passed on.
        unsafe {
            match call.op {
                Op::Broadcast => self.broadcast(running, &team, call.peer),
                Op::Allgather if small => self.small(running, &team, &Small::Gather(&shards)),
                Op::ReduceScatter if small => {
                    self.small(running, &team, &Small::Reduce(shard_range(call.len, self.world, self.rank)))
                }
                _ if small => self.small(running, &team, &Small::Reduce(0..call.len)),
                _ => self.shards(running, &team, shards),
            }
        }
    }

    /// Large operations of f32 may go over the wire in half the bits.
    ///
    /// # Safety
    /// As [`Backend::run`]; `shards` lie within the buffer.
    pub(crate) unsafe fn shards(
        &mut self,
        running: &Running<'_>,
        team: &Team,
        shards: Vec<Range<usize>>,
    ) -> Result<()> {
        let call = running.call;
        if self.wire != Wire::Bf16 || call.dtype != DType::F32 || call.reduce.is_none() {
            // SAFETY: passed on.
            return unsafe { self.exact_shards(running, team, shards) };
        }
        let mut short = std::mem::take(&mut self.short);
        short.resize(short.len().max(call.len), 0);
        let data: *mut u8 = short.as_mut_ptr().cast();
        let half = |range: &Range<usize>| range.start / 2..range.end / 2;
        let shards: Vec<Range<usize>> = shards.iter().map(half).collect();
        let results = match call.op {
            Op::ReduceScatter => vec![shards[team.me].clone()],
            _ => shards.clone(),
        };
        // SAFETY: `short` has room for every element and lives on here; ranges are of elements of two bytes.
        let result = unsafe {
            convert((DType::F32, call.data), (DType::BF16, data), call.len);
            let narrow = Call { dtype: DType::BF16, data, ..*call };
            let result = self.exact_shards(&Running { call: &narrow, ..*running }, team, shards);
            for range in results {
                let (from, to) = (data.add(range.start), call.data.add(range.start * 2));
                convert((DType::BF16, from), (DType::F32, to), range.len() / 2);
            }
            result
        };
        self.short = short;
        result
    }

    /// Along a binomial tree below the root, which is a place in the team, forwarding what comes piece by piece.
    ///
    /// # Safety
    /// As [`Backend::run`].
    pub(crate) unsafe fn broadcast(&mut self, running: &Running<'_>, team: &Team, root: usize) -> Result<()> {
        let world = team.len();
        let place = (team.me + world - root) % world;
        let lowest = if place == 0 { world.next_power_of_two() } else { place & place.wrapping_neg() };
        let rank_at = |place: usize| team.ranks[(place + root) % world];
        let steps =
            std::iter::successors(Some(lowest / 2), |step| Some(step / 2)).take_while(|&step| step > 0);
        let children: Vec<usize> =
            steps.map(|step| place + step).filter(|&p| p < world).map(rank_at).collect();
        let bytes = running.call.bytes();
        if place == 0 {
            children.iter().for_each(|&child| self.post(running, child, 0, 0..bytes));
        }
        let missing = if place == 0 { 0 } else { payloads(0..bytes).count() };
        let mut sink =
            Forward { call: running.call, parent: rank_at(place - (lowest & place)), children, missing };
        // SAFETY: passed on.
        unsafe { self.drive(running, &mut sink) }
    }

    /// Sends to, or receives from, one rank.
    ///
    /// # Safety
    /// As [`Backend::run`].
    pub(crate) unsafe fn message(&mut self, running: &mut Running<'_>) -> Result<()> {
        let (call, peer) = (running.call, running.call.peer);
        let counter = if call.op == Op::Send { &mut self.sent[peer] } else { &mut self.received[peer] };
        *counter += 1;
        running.seq = *counter;
        let missing = if call.op == Op::Send { 0 } else { payloads(0..call.bytes()).count() };
        if call.op == Op::Send {
            self.post(running, peer, 0, 0..call.bytes());
        } else {
            let sent = Signature { op: Op::Send, peer: self.rank as u32, ..running.told };
            running.code = sent.code();
        }
        let mut sink = Forward { call, parent: peer, children: Vec::new(), missing };
        // SAFETY: passed on.
        unsafe { self.drive(running, &mut sink) }
    }
}

/// Ranges of bytes as frames carry them: (offset, length). Nothing is one empty frame.
pub(super) fn payloads(range: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let count = range.len().div_ceil(MAX_PAYLOAD_BYTES).max(1);
    (0..count).map(move |n| {
        let at = range.start + n * MAX_PAYLOAD_BYTES;
        (at, MAX_PAYLOAD_BYTES.min(range.end - at))
    })
}

/// The caller's whole buffer from one rank, passed on as it comes.
struct Forward<'a> {
    call: &'a Call,
    parent: usize,
    children: Vec<usize>,
    /// Frames to come.
    missing: usize,
}

impl Sink for Forward<'_> {
    fn expects(&self, peer: usize) -> bool {
        self.missing > 0 && peer == self.parent
    }

    fn place(&mut self, _: usize, frame: &Frame) -> Result<Option<*mut u8>, String> {
        let end = frame.offset.checked_add(u64::from(frame.length));
        if end.is_none_or(|end| end > self.call.bytes() as u64) {
            return Err("a payload beyond the end of the buffer".into());
        }
        // SAFETY: within the caller's buffer.
        Ok(Some(unsafe { self.call.data.add(frame.offset as usize) }))
    }

    fn arrived(&mut self, _: usize, frame: &Frame, posts: &mut Vec<Post>) {
        self.missing -= 1;
        for &to in &self.children {
            // SAFETY: as in `place`.
            let payload = unsafe { self.call.data.add(frame.offset as usize) };
            posts.push(Post { to, out: Outgoing { frame: *frame, payload }, urgent: false });
        }
    }
}

impl Backend for Tcp {
    unsafe fn run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()> {
        let told = call.signature();
        let mut running = Running { call, seq, deadline, told, code: told.code() };
        // SAFETY: passed on.
        unsafe {
            match call.op {
                Op::Send | Op::Recv => self.message(&mut running),
                _ => self.collective(&running),
            }
        }
    }

    fn leave(&mut self) {
        self.fault.goodbye();
    }

    fn fault(&self) -> Arc<dyn Fault> {
        self.fault.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_cover_a_range() {
        assert_eq!(payloads(5..5).collect::<Vec<_>>(), [(5, 0)]);
        let long: Vec<_> = payloads(1..MAX_PAYLOAD_BYTES + 3).collect();
        assert_eq!(long, [(1, MAX_PAYLOAD_BYTES), (1 + MAX_PAYLOAD_BYTES, 2)]);
    }
}
