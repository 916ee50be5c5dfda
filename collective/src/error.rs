//! What can go wrong, and what an operation looked like when it did.

use serde::{Deserialize, Serialize};

use crate::element::{DType, ReduceOp};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Op::Allreduce, Op::ReduceScatter, Op::Allgather, Op::Broadcast, Op::Barrier, Op::Send, Op::Recv]
            .into_iter()
            .find(|o| *o as u8 == code)
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
    pub(crate) fn code(&self) -> u64 {
        self.op as u64
            | (self.dtype as u64) << 8
            | self.reduce.map_or(0, |r| r as u64) << 16
            | u64::from(self.peer) << 32
    }

    pub(crate) fn from_code(code: u64, bytes: u64) -> Option<Self> {
        let reduce = match (code >> 16) as u8 {
            0 => None,
            reduce => Some(ReduceOp::from_code(reduce)?),
        };
        Some(Signature {
            op: Op::from_code(code as u8)?,
            dtype: DType::from_code((code >> 8) as u8)?,
            reduce,
            peer: (code >> 32) as u32,
            bytes,
        })
    }
}

impl std::fmt::Display for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// Why a rank gave the group up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum AbortReason {
    /// It called `abort`.
    Requested = 1,
    /// It dropped its communicator while it panicked.
    Panicked = 2,
    /// A deadline passed on it.
    TimedOut = 3,
    /// It saw operations that do not fit together.
    Mismatch = 4,
    /// It received bytes that are no frame of this group, or its system failed it.
    Broken = 5,
}

impl std::fmt::Display for AbortReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AbortReason::Requested => "it asked for it",
            AbortReason::Panicked => "it panicked",
            AbortReason::TimedOut => "an operation timed out there",
            AbortReason::Mismatch => "it saw operations that do not fit together",
            AbortReason::Broken => "its connection broke or brought bytes that were not expected",
        })
    }
}

/// What went wrong. After any error but [`Error::Invalid`] and [`Error::ArenaFull`] the communicator stays poisoned and
/// every later operation returns the same error: drop it and meet again in a new epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A peer died or left while it was needed.
    #[error("rank {rank} was lost; see its log, then start the group again in a new epoch")]
    PeerLost {
        /// Who.
        rank: usize,
    },
    /// A rank gave the group up.
    #[error("rank {rank} gave the group up because {reason}; see its log for the first error")]
    Aborted {
        /// Who.
        rank: usize,
        /// Why.
        reason: AbortReason,
    },
    /// Ranks did not come to an operation before its deadline.
    #[error(
        "{op} (operation {seq}) waited {waited_ms} ms for {}; see what they were doing, or allow more time",
        rank_list(missing)
    )]
    Timeout {
        /// Kind of the operation.
        op: Op,
        /// Its sequence number, from 1.
        seq: u64,
        /// Who had not come.
        missing: Vec<usize>,
        /// How long was waited.
        waited_ms: u64,
    },
    /// Ranks did not come to the rendezvous before its deadline.
    #[error(
        "the rendezvous waited {waited_ms} ms for {}; see whether they started and can reach rank 0",
        rank_list(missing)
    )]
    RendezvousTimeout {
        /// Who had not come, as far as this rank knows.
        missing: Vec<usize>,
        /// How long was waited.
        waited_ms: u64,
    },
    /// Ranks were started with different configurations.
    #[error(
        "the configuration of {} differs from that of rank 0; start all ranks with the same",
        rank_list(ranks)
    )]
    ConfigMismatch {
        /// Who differs from rank 0.
        ranks: Vec<usize>,
    },
    /// The group that listens at the address is a newer one.
    #[error(
        "this rank is of epoch {ours}, the group at that address of {theirs}; let it end, it was replaced"
    )]
    WrongEpoch {
        /// This rank's.
        ours: u64,
        /// The group's.
        theirs: u64,
    },
    /// Rank 0 refused this rank.
    #[error("rank 0 refused this rank: {reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// Ranks called different operations at one place in the sequence.
    #[error(
        "operations do not fit together at number {seq}: rank {left_rank} called {left}, rank {right_rank} {right}; \
         make every rank call the same operations in the same order"
    )]
    Mismatch {
        /// Sequence number, from 1.
        seq: u64,
        /// One rank …
        left_rank: usize,
        /// … and what it called.
        left: Signature,
        /// The other …
        right_rank: usize,
        /// … and what that called.
        right: Signature,
    },
    /// A peer's bytes were not what the protocol allows.
    #[error(
        "rank {rank} sent bytes that are not of this group: {what}; check the network and that versions are equal"
    )]
    Corrupt {
        /// From whom.
        rank: usize,
        /// What was wrong.
        what: String,
    },
    /// The arena has no room left for a buffer.
    #[error(
        "the arena has {free_bytes} bytes left in one piece, {wanted_bytes} were asked for; raise `arena_bytes`"
    )]
    ArenaFull {
        /// Asked for.
        wanted_bytes: usize,
        /// Largest free piece.
        free_bytes: usize,
    },
    /// An argument cannot be right.
    #[error("{what}")]
    Invalid {
        /// What, and what to do.
        what: String,
    },
    /// The operating system refused something.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: String,
        /// Its answer.
        cause: String,
    },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Error::System { what: what.into(), cause: cause.to_string() }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Error::Invalid { what: what.into() }
    }

    /// Whether the group is unusable after this error.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Error::Invalid { .. } | Error::ArenaFull { .. })
    }
}

/// "rank 3", "ranks 1, 2 and 5", "no rank that is known".
pub(crate) fn rank_list(ranks: &[usize]) -> String {
    match ranks {
        [] => "a rank that is not known".into(),
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_survives_its_code() {
        for op in [Op::Allreduce, Op::Barrier, Op::Recv] {
            for reduce in [None, Some(ReduceOp::Max)] {
                let s = Signature { op, dtype: DType::BF16, reduce, peer: 70_000, bytes: 12 };
                assert_eq!(Signature::from_code(s.code(), 12), Some(s));
                assert_ne!(s.code(), 0);
            }
        }
        assert_eq!(Signature::from_code(0, 0), None);
    }

    #[test]
    fn messages_name_ranks() {
        let e = Error::Timeout { op: Op::Barrier, seq: 4, missing: vec![1, 2, 5], waited_ms: 30 };
        assert_eq!(
            e.to_string(),
            "barrier (operation 4) waited 30 ms for ranks 1, 2 and 5; see what they were doing, or allow more time"
        );
        assert_eq!(rank_list(&[3]), "rank 3");
    }
}
