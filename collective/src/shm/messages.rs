//! Send and receive: the sender's two mail slots, filled and emptied in turn.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::group::{Running, Shm};
use super::segment::{MAIL_BYTES, MAIL_SLOTS, Mail};
use super::word::{STEP, Waited, Word};
use crate::error::{AbortReason, Error, Op, Result, Signature};
use crate::fault::{Cause, Fault};

/// A receiver that leaves does not touch the sender's counter: a waiting sender looks after it this often.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Shm {
    /// Returns when the receiver has taken everything.
    ///
    /// # Safety
    /// As [`crate::backend::Backend::run`].
    pub(super) unsafe fn send(&mut self, running: &Running<'_>) -> Result<()> {
        let call = running.call;
        let segment = self.segment.clone();
        let mail = segment.mail(self.rank);
        // All of ours is taken, so nobody reads these.
        mail.to.store(call.peer as u32, Ordering::SeqCst);
        mail.code.store(running.told.code(), Ordering::SeqCst);
        mail.bytes.store(call.bytes() as u64, Ordering::SeqCst);
        for piece in 0..pieces(call.bytes()) {
            let number = mail.sent.count() / STEP;
            let emptied = mail.sent.count().wrapping_sub((MAIL_SLOTS as u32 - 1) * STEP);
            self.wait_taken(running, mail, emptied)?;
            let at = piece * MAIL_BYTES;
            let bytes = MAIL_BYTES.min(call.bytes() - at);
            // SAFETY: the slot is ours to fill: what was in it is taken.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    call.data.add(at),
                    segment.mail_slot(self.rank, number).as_ptr(),
                    bytes,
                )
            };
            if !mail.sent.advance() {
                return Err(self.why(self.rank));
            }
        }
        self.wait_taken(running, mail, mail.sent.count())
    }

    /// Waits until the receiver has taken pieces up to `target`.
    fn wait_taken(&self, running: &Running<'_>, mail: &Mail, target: u32) -> Result<()> {
        let to = running.call.peer;
        loop {
            let reached = |value: u32| Word::is_at_least(value, target);
            match mail.taken.wait_for(reached, self.patience, &running.deadline, LOOK_AGAIN) {
                Waited::Ready => return Ok(()),
                Waited::Poisoned => return Err(self.why_message(running)),
                Waited::TimedOut if running.deadline.left().is_none() => return Err(self.give_up(running)),
                Waited::TimedOut if self.fault.left(self.name(to)) && !mail.taken.reached(target) => {
                    self.fault.poison(Cause::Lost { rank: self.name(to) });
                    return Err(self.why(to));
                }
                Waited::TimedOut => {}
            }
        }
    }

    /// # Safety
    /// As [`crate::backend::Backend::run`].
    pub(super) unsafe fn recv(&mut self, running: &Running<'_>) -> Result<()> {
        let call = running.call;
        let segment = self.segment.clone();
        let mail = segment.mail(call.peer);
        for piece in 0..pieces(call.bytes()) {
            self.wait_sent(running, mail)?;
            let sent = mail.code.load(Ordering::SeqCst);
            let wanted = Signature { op: Op::Send, peer: self.name(self.rank) as u32, ..running.told };
            if sent != wanted.code() || mail.bytes.load(Ordering::SeqCst) != wanted.bytes {
                return Err(self.unfit(running, mail));
            }
            let at = piece * MAIL_BYTES;
            let bytes = MAIL_BYTES.min(call.bytes() - at);
            let slot = segment.mail_slot(call.peer, mail.taken.count() / STEP);
            // SAFETY: the sender does not touch the slot until it is taken.
            unsafe { std::ptr::copy_nonoverlapping(slot.as_ptr(), call.data.add(at), bytes) };
            if !mail.taken.advance() {
                return Err(self.why(call.peer));
            }
        }
        Ok(())
    }

    /// Waits until the partner has a piece for us. Nobody but us takes it, and `to` changes only when all is taken: if
    /// nothing was taken while we looked at `to`, it belongs to the piece we saw.
    fn wait_sent(&self, running: &Running<'_>, mail: &Mail) -> Result<()> {
        let me = self.rank as u32;
        let ours = |sent: u32| {
            let taken = mail.taken.count();
            Word::is_beyond(sent, taken)
                && mail.to.load(Ordering::SeqCst) == me
                && mail.taken.count() == taken
        };
        match mail.sent.wait_for(ours, self.patience, &running.deadline, Duration::MAX) {
            Waited::Ready => Ok(()),
            Waited::Poisoned => Err(self.why(running.call.peer)),
            Waited::TimedOut => Err(self.give_up(running)),
        }
    }

    fn give_up(&self, running: &Running<'_>) -> Error {
        let rank = self.name(self.rank);
        self.fault.poison(Cause::Aborted { rank, reason: AbortReason::TimedOut });
        running.deadline.error(running.call, running.seq, vec![self.name(running.call.peer)])
    }

    /// What is sent is not what we want: leaves word for the sender, who names both sides as well.
    #[cold]
    fn unfit(&self, running: &Running<'_>, theirs: &Mail) -> Error {
        let (me, them) = (self.name(self.rank), self.name(running.call.peer));
        let ours = self.segment.mail(self.rank);
        ours.wanted_code.store(running.told.code(), Ordering::SeqCst);
        ours.wanted_bytes.store(running.told.bytes, Ordering::SeqCst);
        self.fault.poison(Cause::Aborted { rank: me, reason: AbortReason::Mismatch });
        let sent =
            Signature::from_code(theirs.code.load(Ordering::SeqCst), theirs.bytes.load(Ordering::SeqCst));
        match sent {
            Some(left) => Error::Mismatch {
                seq: running.seq,
                left_rank: them,
                left,
                right_rank: me,
                right: running.told,
            },
            None => Error::Corrupt { rank: them, what: "a message of a kind that does not exist".into() },
        }
    }

    /// Why a sender cannot go on.
    fn why_message(&self, running: &Running<'_>) -> Error {
        let to = running.call.peer;
        let theirs = self.segment.mail(to);
        let code = theirs.wanted_code.load(Ordering::SeqCst);
        let wanted = Signature::from_code(code, theirs.wanted_bytes.load(Ordering::SeqCst));
        match (self.fault.cause(), wanted) {
            (Some(Cause::Aborted { rank, reason: AbortReason::Mismatch }), Some(right))
                if rank == self.name(to) =>
            {
                let (left_rank, left) = (self.name(self.rank), running.told);
                Error::Mismatch { seq: running.seq, left_rank, left, right_rank: rank, right }
            }
            _ => self.why(to),
        }
    }
}

/// An empty message is one empty piece.
fn pieces(bytes: usize) -> usize {
    bytes.div_ceil(MAIL_BYTES).max(1)
}
