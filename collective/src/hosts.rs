//! Several hosts with as many ranks each: what can stay on a host goes through its shared memory, and every byte crosses
//! the wire once for the host instead of once for each rank.
//!
//! The ranks at one place of every host are a *lane*. A large reduction folds the shards of a lane on its host, then among
//! the hosts, and brings the results back the same way; all lanes do so side by side. Hosts hold blocks of ranks whose size
//! is a power of two, so that both folds together are the tree over all ranks: the bits are those of every other transport.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Backend, Call, Deadline};
use crate::convert::convert;
use crate::element::{DType, ReduceOp, shard_range};
use crate::error::{AbortReason, Error, Op, Result, Signature};
use crate::fault::{Cause, Fault};
use crate::shm::{self, Shm};
use crate::tcp::{self, Clash, Small, Tcp, TcpFault, Team, is_small};

/// The ranks of each host, in order, if the hosts are such as can be gone through this way: two or more, with blocks of
/// ranks of one size that is a power of two from 2.
pub(crate) fn blocks(hosts: &[&str]) -> Option<Vec<Vec<usize>>> {
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    for rank in 0..hosts.len() {
        match blocks.last_mut() {
            Some(last) if hosts[last[0]] == hosts[rank] => last.push(rank),
            _ => blocks.push(vec![rank]),
        }
    }
    let size = blocks.first().map_or(0, Vec::len);
    let names: std::collections::BTreeSet<&str> = hosts.iter().copied().collect();
    let even = blocks.iter().all(|block| block.len() == size) && names.len() == blocks.len();
    (even && blocks.len() > 1 && size > 1 && size.is_power_of_two()).then_some(blocks)
}

/// The poison of the memory and that of the connections, which follow each other.
struct HostsFault {
    shared: Arc<dyn Fault>,
    wide: Arc<TcpFault>,
}

impl Fault for HostsFault {
    fn poison(&self, cause: Cause) {
        self.wide.poison(cause);
        self.shared.poison(cause);
    }

    fn cause(&self) -> Option<Cause> {
        self.wide.cause().or_else(|| self.shared.cause())
    }

    fn left(&self, rank: usize) -> bool {
        self.wide.left(rank) || self.shared.left(rank)
    }
}

/// A rank's end of its host's memory and of the connections to all others.
pub(crate) struct Hosts {
    shared: Shm,
    wide: Tcp,
    fault: Arc<HostsFault>,
    /// Which host this is, of how many, with how many ranks each.
    host: usize,
    hosts: usize,
    per_host: usize,
    /// This rank's place on its host, and the ranks at that place of all hosts.
    place: usize,
    lane: Arc<Team>,
    /// Operations on the shared memory so far.
    slots: u64,
    /// Short floats, widened.
    wider: Vec<f32>,
}

/// What a part of an operation runs under.
#[derive(Clone, Copy)]
struct Whole {
    seq: u64,
    told: Signature,
    deadline: Deadline,
}

impl Hosts {
    /// `rank` of `blocks`.
    pub(crate) fn new(shared: Shm, wide: Tcp, rank: usize, blocks: &[Vec<usize>]) -> Self {
        let per_host = blocks[0].len();
        let (host, place) = (rank / per_host, rank % per_host);
        let fault = Arc::new(HostsFault { shared: shared.fault(), wide: wide.fault.clone() });
        wide.fault.tie(shared.fault());
        let ranks = (0..blocks.len()).map(|host| host * per_host + place).collect();
        Hosts {
            shared,
            wide,
            fault,
            host,
            hosts: blocks.len(),
            per_host,
            place,
            lane: Arc::new(Team { ranks, me: host }),
            slots: 0,
            wider: Vec::new(),
        }
    }

    /// A part of an operation among the ranks of this host.
    unsafe fn on_host(&mut self, call: &Call, whole: &Whole) -> Result<()> {
        self.slots += u64::from(!call.op.is_message()); // messages have slots of their own
        let &Whole { seq, told, deadline } = whole;
        let running = shm::Running { call, slot: self.slots, seq, told, deadline };
        // SAFETY: passed on.
        unsafe { self.shared.go(&running) }.map_err(|error| self.spread(error))
    }

    /// Tells the other hosts of an error on this one, and answers what all will say.
    #[cold]
    fn spread(&self, error: Error) -> Error {
        match &error {
            &Error::Mismatch { seq, left_rank, left, right_rank, right } => {
                let clash = Clash { seq, left: (left_rank, left), right: (right_rank, right) };
                self.wide.fault.clash(left_rank, clash);
            }
            // Who saw it tells both sides.
            Error::Aborted { reason: AbortReason::Mismatch, .. } => self.wide.fault.await_verdict(),
            // Its own deadline says more here than that it has told the others.
            Error::Timeout { .. } => {
                self.fault.shared.cause().into_iter().for_each(|cause| self.wide.fault.poison(cause));
                return error;
            }
            _ => {}
        }
        self.fault.shared.cause().into_iter().for_each(|cause| self.wide.fault.poison(cause));
        self.wide.fault.verdict().unwrap_or(error)
    }

    fn across<'a>(&self, call: &'a Call, whole: &Whole) -> tcp::Running<'a> {
        let &Whole { seq, told, deadline } = whole;
        tcp::Running { call, seq, deadline, told, code: told.code() }
    }

    /// The elements of the buffer that are the shards of a host's ranks: they lie together.
    fn block(&self, call: &Call, host: usize) -> Range<usize> {
        let world = self.hosts * self.per_host;
        let first = shard_range(call.len, world, host * self.per_host);
        let last = shard_range(call.len, world, (host + 1) * self.per_host - 1);
        first.start..last.end
    }

    /// A part of a call: other elements, another kind.
    fn part(call: &Call, op: Op, range: Range<usize>) -> Call {
        // The mean is taken at the end, of all.
        let reduce = if call.reduce == Some(ReduceOp::Mean) { Some(ReduceOp::Sum) } else { call.reduce };
        // SAFETY: within the caller's buffer.
        let data = unsafe { call.data.add(range.start * call.dtype.size()) };
        Call { op, reduce, len: range.len(), data, peer: 0, ..*call }
    }

    unsafe fn collective(&mut self, call: &Call, whole: &Whole) -> Result<()> {
        let lane = self.lane.clone();
        // SAFETY: passed on; ranges are of the caller's buffer.
        unsafe {
            match call.op {
                Op::Barrier => {
                    self.on_host(call, whole)?;
                    self.wide.small(&self.across(call, whole), &lane, &Small::Reduce(0..0))
                }
                Op::Broadcast => {
                    let (root_host, root) = (call.peer / self.per_host, call.peer % self.per_host);
                    if root == self.place {
                        self.wide.broadcast(&self.across(call, whole), &lane, root_host)?;
                    }
                    self.on_host(&Call { peer: root, ..*call }, whole)
                }
                Op::Allgather if is_small(call.bytes(), 1) => {
                    let own = self.block(call, self.host);
                    self.on_host(&Self::part(call, Op::Allgather, own), whole)?;
                    let blocks = (0..self.hosts).map(|host| self.bytes(call, self.block(call, host)));
                    let blocks: Vec<Range<usize>> = blocks.collect();
                    self.wide.small(&self.across(call, whole), &lane, &Small::Gather(&blocks))
                }
                Op::Allreduce | Op::ReduceScatter if is_small(call.bytes(), self.hosts) => {
                    self.on_host(&Self::part(call, Op::Allreduce, 0..call.len), whole)?;
                    self.wide.small(&self.across(call, whole), &lane, &Small::Reduce(0..call.len))
                }
                _ => self.large(call, whole),
            }
        }
    }

    fn bytes(&self, call: &Call, range: Range<usize>) -> Range<usize> {
        let size = call.dtype.size();
        range.start * size..range.end * size
    }

    /// Folds each host's block here, then this lane's shard of every block among the hosts, and the same way back.
    unsafe fn large(&mut self, call: &Call, whole: &Whole) -> Result<()> {
        let (lane, world) = (self.lane.clone(), self.hosts * self.per_host);
        // SAFETY: passed on; parts lie within the caller's buffer.
        unsafe {
            if call.op != Op::Allgather {
                for host in 0..self.hosts {
                    let block = self.block(call, host);
                    self.on_host(&Self::part(call, Op::ReduceScatter, block), whole)?;
                }
            }
            let shards = lane.ranks.iter().map(|&rank| self.bytes(call, shard_range(call.len, world, rank)));
            let shards = shards.collect();
            self.wide.shards(&self.across(call, whole), &lane, shards)?;
            if call.op != Op::ReduceScatter {
                for host in 0..self.hosts {
                    let block = self.block(call, host);
                    self.on_host(&Self::part(call, Op::Allgather, block), whole)?;
                }
            }
        }
        Ok(())
    }

    /// Short floats are folded in f32 from end to end and rounded once, as everywhere.
    unsafe fn widened(&mut self, call: &Call, whole: &Whole) -> Result<()> {
        let mut wider = std::mem::take(&mut self.wider);
        wider.resize(wider.len().max(call.len), 0.0);
        let data: *mut u8 = wider.as_mut_ptr().cast();
        // SAFETY: `wider` has room for every element and lives on here; the caller's buffer is passed on.
        let result = unsafe {
            convert((call.dtype, call.data), (DType::F32, data), call.len);
            let result = self.collective(&Call { dtype: DType::F32, data, ..*call }, whole);
            if result.is_ok() {
                convert((DType::F32, data), (call.dtype, call.data), call.len);
            }
            result
        };
        self.wider = wider;
        result
    }

    unsafe fn message(&mut self, call: &Call, whole: &Whole) -> Result<()> {
        // SAFETY: passed on.
        unsafe {
            if call.peer / self.per_host == self.host {
                self.on_host(&Call { peer: call.peer % self.per_host, ..*call }, whole)
            } else {
                let mut running = self.across(call, whole);
                self.wide.message(&mut running)
            }
        }
    }
}

impl Backend for Hosts {
    unsafe fn run(&mut self, call: &Call, seq: u64, deadline: Deadline) -> Result<()> {
        let whole = Whole { seq, told: call.signature(), deadline };
        let short = matches!(call.dtype, DType::BF16 | DType::F16) && call.reduce.is_some();
        // SAFETY: passed on.
        unsafe {
            match call.op {
                Op::Send | Op::Recv => self.message(call, &whole),
                _ if short => self.widened(call, &whole),
                _ => self.collective(call, &whole),
            }
        }
    }

    fn settle(&mut self) {
        self.shared.settle();
    }

    fn leave(&mut self) {
        self.wide.leave();
        self.shared.leave();
    }

    fn fault(&self) -> Arc<dyn Fault> {
        self.fault.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_even_blocks_of_a_power_of_two_go_this_way() {
        assert_eq!(blocks(&["a", "a", "b", "b"]), Some(vec![vec![0, 1], vec![2, 3]]));
        assert_eq!(blocks(&["a", "a", "b", "b", "c", "c"]).map(|b| b.len()), Some(3));
        for other in [
            &["a", "a"][..],
            &["a", "b"],
            &["a", "a", "b"],
            &["a", "b", "a", "b"],
            &["a", "a", "b", "b", "a", "a"],
            &["a", "a", "a", "b", "b", "b"],
            &[],
        ] {
            assert_eq!(blocks(other), None, "{other:?}");
        }
    }
}
