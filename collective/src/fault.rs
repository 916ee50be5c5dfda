//! The end of a group: the first cause wins, and everybody hears of it.

use crate::error::{AbortReason, Error};

/// Why a group is poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A rank died, or left while it was needed.
    Lost { rank: usize },
    /// A rank gave up.
    Aborted { rank: usize, reason: AbortReason },
}

impl Cause {
    /// As one word that fits shared memory and the wire; never 0.
    pub(crate) fn pack(self) -> u64 {
        match self {
            Cause::Lost { rank } => 0xff << 32 | rank as u64,
            Cause::Aborted { rank, reason } => (reason as u64) << 32 | rank as u64,
        }
    }

    pub(crate) fn unpack(word: u64) -> Option<Self> {
        let rank = (word & 0xffff_ffff) as usize;
        let reason = match word >> 32 {
            0 => return None,
            0xff => return Some(Cause::Lost { rank }),
            1 => AbortReason::Requested,
            2 => AbortReason::Panicked,
            3 => AbortReason::TimedOut,
            4 => AbortReason::Mismatch,
            _ => AbortReason::Broken,
        };
        Some(Cause::Aborted { rank, reason })
    }

    pub(crate) fn error(self) -> Error {
        match self {
            Cause::Lost { rank } => Error::PeerLost { rank },
            Cause::Aborted { rank, reason } => Error::Aborted { rank, reason },
        }
    }
}

/// Where a group's poison is kept. Any thread may poison; waiting ranks wake and fail.
pub(crate) trait Fault: Send + Sync {
    /// Poisons the group unless it is poisoned already, and wakes whoever waits.
    fn poison(&self, cause: Cause);
    /// The cause, once poisoned.
    fn cause(&self) -> Option<Cause>;
    /// Whether a rank has said goodbye.
    fn left(&self, rank: usize) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_survive_packing() {
        use AbortReason::*;
        let aborted = [Requested, Panicked, TimedOut, Mismatch, Broken]
            .map(|reason| Cause::Aborted { rank: 9, reason });
        for cause in aborted.into_iter().chain([Cause::Lost { rank: 0 }]) {
            assert_ne!(cause.pack(), 0);
            assert_eq!(Cause::unpack(cause.pack()), Some(cause));
        }
        assert_eq!(Cause::unpack(0), None);
    }
}
