//! The flight recorder: how a rank notes its collective operations in a page that outlives it, how the page is read, and
//! what the pages of a gang say about its end.
//!
//! A rank writes the page in place, through a mapping of a file, so that it is whole after a SIGKILL at any point. Whoever
//! reads it afterwards needs the bytes and nothing else.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Operations that a page keeps.
pub const FLIGHT_OPS: usize = 1024;
/// Bytes before the first entry.
pub const PAGE_HEADER_BYTES: usize = 128;
/// Bytes of an entry: a cache line.
pub const PAGE_ENTRY_BYTES: usize = 64;
/// Bytes of a page.
pub const PAGE_BYTES: usize = PAGE_HEADER_BYTES + FLIGHT_OPS * PAGE_ENTRY_BYTES;
/// The first word of a page; its last byte is the version.
pub const PAGE_MAGIC: u64 = u64::from_le_bytes(*b"phxflt\0\x01");
/// Operations of each rank that travel to the service after a death: the one that diverged is among the very last.
pub const LAST_WORDS: usize = 8;
/// The states of an entry as they stand in a page; anything else is an entry that is being written.
pub const STATE_WORDS: [(u64, OpState); 3] =
    [(1, OpState::Started), (2, OpState::Done), (3, OpState::Failed)];

/// The name of a rank's page in the attempt's scratch folder.
pub fn page_name(rank: u64) -> String {
    format!("flight-{rank}")
}

/// Type of the elements of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DType {
    /// Bytes; moved but never reduced.
    U8 = 1,
    /// 32-bit float.
    F32 = 2,
    /// 64-bit float.
    F64 = 3,
    /// bfloat16; folded in f32 and rounded once.
    BF16 = 4,
    /// IEEE half; folded in f32 and rounded once.
    F16 = 5,
    /// 64-bit integer; sums wrap, the mean rounds towards zero.
    I64 = 6,
}

impl DType {
    const ALL: [DType; 6] = [DType::U8, DType::F32, DType::F64, DType::BF16, DType::F16, DType::I64];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::BF16 | DType::F16 => 2,
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::U8 => "u8",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I64 => "i64",
        })
    }
}

/// How values of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ReduceOp {
    /// The sum.
    Sum = 1,
    /// The sum divided by the world size.
    Mean = 2,
    /// The smallest; NaN if any is NaN.
    Min = 3,
    /// The largest; NaN if any is NaN.
    Max = 4,
}

impl ReduceOp {
    const ALL: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Min, ReduceOp::Max];
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReduceOp::Sum => "sum",
            ReduceOp::Mean => "mean",
            ReduceOp::Min => "min",
            ReduceOp::Max => "max",
        })
    }
}

/// Kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Op {
    /// Every rank ends with the reduction of all.
    Allreduce = 1,
    /// Every rank ends with its shard of the reduction.
    ReduceScatter = 2,
    /// Every rank ends with every rank's shard.
    Allgather = 3,
    /// Every rank ends with the root's data.
    Broadcast = 4,
    /// No rank leaves before all have come.
    Barrier = 5,
    /// Data to one rank.
    Send = 6,
    /// Data from one rank.
    Recv = 7,
}

impl Op {
    const ALL: [Op; 7] =
        [Op::Allreduce, Op::ReduceScatter, Op::Allgather, Op::Broadcast, Op::Barrier, Op::Send, Op::Recv];

    /// Between two ranks; such operations are counted apart from those of all.
    pub fn is_message(self) -> bool {
        matches!(self, Op::Send | Op::Recv)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Allreduce => "allreduce",
            Op::ReduceScatter => "reduce_scatter",
            Op::Allgather => "allgather",
            Op::Broadcast => "broadcast",
            Op::Barrier => "barrier",
            Op::Send => "send",
            Op::Recv => "recv",
        })
    }
}

/// An operation as one rank called it: what must be equal on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Kind.
    pub op: Op,
    /// Element type.
    pub dtype: DType,
    /// Reduction, where the kind has one.
    pub reduce: Option<ReduceOp>,
    /// Root of a broadcast, partner of a send or receive, else 0.
    pub peer: u32,
    /// Size of the whole buffer in bytes.
    pub bytes: u64,
}

impl Signature {
    /// Everything but the size in one word; 0 is never a code.
    pub fn code(&self) -> u64 {
        self.op as u64
            | (self.dtype as u64) << 8
            | self.reduce.map_or(0, |r| r as u64) << 16
            | u64::from(self.peer) << 32
    }

    /// The operation of a [`Self::code`] and a size; none where the code is none.
    pub fn from_code(code: u64, bytes: u64) -> Option<Self> {
        let reduce = match (code >> 16) as u8 {
            0 => None,
            reduce => Some(ReduceOp::ALL.into_iter().find(|known| *known as u8 == reduce)?),
        };
        Some(Signature {
            op: Op::ALL.into_iter().find(|known| *known as u8 == code as u8)?,
            dtype: DType::ALL.into_iter().find(|known| *known as u8 == (code >> 8) as u8)?,
            reduce,
            peer: (code >> 32) as u32,
            bytes,
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::Barrier => return f.write_str("barrier"),
            Op::Broadcast => write!(f, "broadcast from rank {}", self.peer)?,
            Op::Send => write!(f, "send to rank {}", self.peer)?,
            Op::Recv => write!(f, "recv from rank {}", self.peer)?,
            op => write!(f, "{op}")?,
        }
        if let Some(reduce) = self.reduce {
            write!(f, " {reduce}")?;
        }
        write!(f, " of {} x {}", self.bytes / self.dtype.size() as u64, self.dtype)
    }
}

/// How far an operation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpState {
    /// It was entered and not left.
    Started,
    /// It ended well.
    Done,
    /// It ended with an error.
    Failed,
}

/// One recorded operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpRecord {
    /// Its number, from 1; collectives and point-to-point operations count apart.
    pub seq: u64,
    /// What was called.
    pub call: Signature,
    /// How far it got.
    pub state: OpState,
    /// When it was entered, in ns of the host's monotonic clock.
    pub started_ns: u64,
    /// When it was left; 0 while it runs.
    pub ended_ns: u64,
}

/// What a rank was doing at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// Whose.
    pub rank: u32,
    /// Its last operations, oldest first; at most [`LAST_WORDS`].
    pub ops: Vec<OpRecord>,
}

impl LastWords {
    /// From the bytes of a rank's page; none if they are no page or nothing is in it.
    pub fn read(rank: u32, page: &[u8]) -> Option<Self> {
        let mut ops = read_page(page)?;
        ops.drain(..ops.len().saturating_sub(LAST_WORDS));
        (!ops.is_empty()).then_some(LastWords { rank, ops })
    }

    fn collective(&self) -> Option<&OpRecord> {
        self.ops.iter().rev().find(|op| !op.call.op.is_message())
    }
}

/// The operations in a page, oldest first; `None` if it is no page.
pub fn read_page(page: &[u8]) -> Option<Vec<OpRecord>> {
    let word = |at: usize| {
        let bytes = page.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    if page.len() < PAGE_BYTES || word(0)? != PAGE_MAGIC {
        return None;
    }
    let entered = word(8)?;
    let oldest = entered.saturating_sub(FLIGHT_OPS as u64);
    let read = |n: u64| {
        let at = PAGE_HEADER_BYTES + (n % FLIGHT_OPS as u64) as usize * PAGE_ENTRY_BYTES;
        let (_, state) = *STATE_WORDS.iter().find(|(known, _)| Some(*known) == word(at))?;
        Some(OpRecord {
            seq: word(at + 8)?,
            call: Signature::from_code(word(at + 16)?, word(at + 24)?)?,
            state,
            started_ns: word(at + 32)?,
            ended_ns: word(at + 40)?,
        })
    };
    Some((oldest..entered).filter_map(read).collect())
}

/// What the pages of a gang say about its end, for people: the operation that diverged, or who was missing where, or how far
/// all had come. `None` where there are no pages.
pub fn diagnose(ranks: &[LastWords]) -> Option<String> {
    diverged(ranks).or_else(|| missing(ranks)).or_else(|| together(ranks))
}

/// The first operation that two ranks called differently.
fn diverged(ranks: &[LastWords]) -> Option<String> {
    let collectives = |rank: &'_ LastWords| -> Vec<(u64, Signature)> {
        rank.ops.iter().filter(|op| !op.call.op.is_message()).map(|op| (op.seq, op.call)).collect()
    };
    let (first, rest) = ranks.split_first()?;
    let first_calls = collectives(first);
    let mut found: Option<(u64, Signature, u32, Signature)> = None;
    for other in rest {
        for (seq, theirs) in collectives(other) {
            let ours = first_calls.iter().find(|(at, _)| *at == seq);
            if let Some((_, ours)) = ours
                && *ours != theirs
                && found.is_none_or(|(earlier, ..)| seq < earlier)
            {
                found = Some((seq, *ours, other.rank, theirs));
            }
        }
    }
    let (seq, ours, rank, theirs) = found?;
    Some(format!("at operation {seq} rank {} called {ours}, rank {rank} {theirs}", first.rank))
}

/// Who did not come to, or did not leave, the last operation.
fn missing(ranks: &[LastWords]) -> Option<String> {
    let furthest = ranks.iter().filter_map(LastWords::collective).max_by_key(|op| op.seq)?;
    let (seq, call) = (furthest.seq, furthest.call);
    let behind: Vec<&LastWords> =
        ranks.iter().filter(|rank| rank.collective().is_none_or(|op| op.seq < seq)).collect();
    let at = |state: OpState| -> Vec<u32> {
        let there = ranks
            .iter()
            .filter(|rank| rank.collective().is_some_and(|op| op.seq == seq && op.state == state));
        there.map(|rank| rank.rank).collect()
    };
    if behind.is_empty() {
        // Those that heard of the death failed it; who only entered it died in it.
        let (inside, failed) = (at(OpState::Started), at(OpState::Failed));
        if inside.is_empty() || failed.is_empty() {
            return None;
        }
        return Some(format!("{} did not come out of operation {seq}, {call}", rank_list(&inside)));
    }
    let ranks_behind: Vec<u32> = behind.iter().map(|rank| rank.rank).collect();
    let waiting: Vec<u32> =
        ranks.iter().map(|rank| rank.rank).filter(|rank| !ranks_behind.contains(rank)).collect();
    let mut text = format!(
        "{} did not come to operation {seq}, {call}, in which {} waited",
        rank_list(&ranks_behind),
        rank_list(&waiting)
    );
    if let [one] = behind[..]
        && let Some(last) = one.ops.last()
    {
        let word = match last.state {
            OpState::Started => "it was in",
            OpState::Done | OpState::Failed => "its last was",
        };
        text.push_str(&format!("; {word} operation {}, {}", last.seq, last.call));
    }
    Some(text)
}

/// Nobody was behind: how far all had come.
fn together(ranks: &[LastWords]) -> Option<String> {
    let last = ranks.iter().filter_map(LastWords::collective).max_by_key(|op| op.seq)?;
    let left = ranks.iter().any(|rank| rank.collective().is_some_and(|op| op.state == OpState::Done));
    let place = if left { "the last operation of all ranks was" } else { "all ranks were in operation" };
    Some(format!("{place} {}, {}", last.seq, last.call))
}

/// `rank 3`, `ranks 1, 2 and 5`.
fn rank_list(ranks: &[u32]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
        [] => "no rank".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allreduce(bytes: u64) -> Signature {
        Signature { op: Op::Allreduce, dtype: DType::F32, reduce: Some(ReduceOp::Sum), peer: 0, bytes }
    }

    fn op(seq: u64, call: Signature, state: OpState) -> OpRecord {
        OpRecord { seq, call, state, started_ns: seq, ended_ns: 0 }
    }

    fn rank(rank: u32, ops: &[(u64, Signature, OpState)]) -> LastWords {
        LastWords { rank, ops: ops.iter().map(|&(seq, call, state)| op(seq, call, state)).collect() }
    }

    #[test]
    fn a_signature_survives_its_code() {
        for op in Op::ALL {
            for reduce in [None, Some(ReduceOp::Max)] {
                let s = Signature { op, dtype: DType::BF16, reduce, peer: 70_000, bytes: 12 };
                assert_eq!(Signature::from_code(s.code(), 12), Some(s));
                assert_ne!(s.code(), 0);
            }
        }
        assert_eq!(Signature::from_code(0, 0), None);
    }

    fn page(ops: &[(u64, u64, Signature)]) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        let mut put = |at: usize, word: u64| page[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(0, PAGE_MAGIC);
        put(8, ops.len() as u64);
        for (n, (state, seq, call)) in ops.iter().enumerate() {
            let at = PAGE_HEADER_BYTES + n % FLIGHT_OPS * PAGE_ENTRY_BYTES;
            for (k, word) in [*state, *seq, call.code(), call.bytes, 7, 9].into_iter().enumerate() {
                put(at + 8 * k, word);
            }
        }
        page
    }

    #[test]
    fn a_page_reads_back_its_last_operations() {
        let ops: Vec<_> = (1..=FLIGHT_OPS as u64 + 2).map(|seq| (2, seq, allreduce(8))).collect();
        let read = read_page(&page(&ops)).unwrap();
        assert_eq!((read.len(), read[0].seq), (FLIGHT_OPS, 3));
        let words = LastWords::read(1, &page(&ops)).unwrap();
        assert_eq!(
            (words.ops.len(), words.ops[0].seq),
            (LAST_WORDS, FLIGHT_OPS as u64 + 3 - LAST_WORDS as u64)
        );
        // One that was being written when its rank died is left out.
        assert_eq!(read_page(&page(&[(2, 1, allreduce(8)), (0, 2, allreduce(8))])).unwrap().len(), 1);
        for wrong in [&[][..], &page(&ops)[..PAGE_BYTES - 1], &[0; PAGE_BYTES]] {
            assert_eq!(read_page(wrong), None);
        }
        assert_eq!(LastWords::read(1, &page(&[])), None);
    }

    #[test]
    fn the_missing_rank_and_the_operation_are_named() {
        use OpState::{Done, Failed, Started};
        let (six, seven) = (allreduce(8), allreduce(400));
        let ahead = [(6, six, Done), (7, seven, Failed)];
        let text = diagnose(&[rank(0, &ahead), rank(1, &[(6, six, Done)]), rank(2, &ahead)]).unwrap();
        assert_eq!(
            text,
            "rank 1 did not come to operation 7, allreduce sum of 100 x f32, in which ranks 0 and 2 waited; its last was \
             operation 6, allreduce sum of 2 x f32"
        );
        let inside = [(7, seven, Started)];
        let text = diagnose(&[rank(0, &ahead), rank(1, &inside), rank(2, &ahead)]).unwrap();
        assert_eq!(text, "rank 1 did not come out of operation 7, allreduce sum of 100 x f32");
        // All died together, or between two operations: nobody is to blame.
        let text = diagnose(&[rank(0, &inside), rank(1, &inside)]).unwrap();
        assert_eq!(text, "all ranks were in operation 7, allreduce sum of 100 x f32");
        let text = diagnose(&[rank(0, &[(6, six, Done)]), rank(1, &[(6, six, Done)])]).unwrap();
        assert_eq!(text, "the last operation of all ranks was 6, allreduce sum of 2 x f32");
        assert_eq!(diagnose(&[]), None);
    }

    #[test]
    fn the_operation_that_diverged_is_named() {
        use OpState::{Done, Failed};
        let barrier = Signature { op: Op::Barrier, dtype: DType::U8, reduce: None, peer: 0, bytes: 0 };
        let good = [(1, barrier, Done), (2, allreduce(8), Failed)];
        let bad = [(1, barrier, Done), (2, allreduce(16), Failed)];
        let text = diagnose(&[rank(0, &good), rank(1, &good), rank(2, &bad)]).unwrap();
        assert_eq!(
            text,
            "at operation 2 rank 0 called allreduce sum of 2 x f32, rank 2 allreduce sum of 4 x f32"
        );
    }
}
