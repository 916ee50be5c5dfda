//! What can go wrong, and what an operation looked like when it did.

use serde::{Deserialize, Serialize};

pub use phalanx_core::flight::{Op, Signature};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

/// What went wrong. After any error of an operation but [`Error::Invalid`] and [`Error::ArenaFull`] the communicator stays poisoned and
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
    /// There is not memory enough for the arenas.
    #[error(
        "arenas of {arena_bytes} bytes for {ranks} ranks of this host take {wanted_bytes} bytes with what belongs to them, \
         and {free_bytes} are free; ask for a smaller `arena_bytes`, or give the ranks more memory"
    )]
    NoMemory {
        /// Room for buffers of each rank.
        arena_bytes: u64,
        /// How many ranks share the memory that is free.
        ranks: usize,
        /// What all of it takes.
        wanted_bytes: u64,
        /// What is free: of the host, or of the tightest limit of a cgroup.
        free_bytes: u64,
    },
    /// There is no GPU to use, or no library for it.
    #[error("{what}")]
    NoDevice {
        /// What is missing, and what to do.
        what: String,
    },
    /// NCCL failed.
    #[error("NCCL's {call} failed with {code}: {text}; NCCL_DEBUG=INFO shows more")]
    Nccl {
        /// Which of its functions.
        call: &'static str,
        /// Its answer, of `ncclResult_t`.
        code: i32,
        /// The same in words, with what it says besides.
        text: String,
    },
    /// The CUDA driver failed.
    #[error("{what}: {text}; see `nvidia-smi` and `dmesg`")]
    Cuda {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        text: String,
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
    fn messages_name_ranks() {
        let e = Error::Timeout { op: Op::Barrier, seq: 4, missing: vec![1, 2, 5], waited_ms: 30 };
        assert_eq!(
            e.to_string(),
            "barrier (operation 4) waited 30 ms for ranks 1, 2 and 5; see what they were doing, or allow more time"
        );
        assert_eq!(rank_list(&[3]), "rank 3");
    }
}
