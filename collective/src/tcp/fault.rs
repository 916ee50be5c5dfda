//! The end of a group over TCP: kept locally, told to all over the control connections.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{AbortReason, Error, Result, Signature};
use crate::fault::{Cause, Fault};
use crate::watch::Watch;

/// What is said over a control connection; every message is as long as this.
const MESSAGE_BYTES: usize = 64;
/// A connection's end, or a poisoned memory, is seen before its reason is heard; how long to listen for that.
pub(super) const REASON_TIMEOUT: Duration = Duration::from_millis(50);
const GOODBYE: u64 = 1;
const POISON: u64 = 2;
const MISMATCH: u64 = 3;

/// Operations of two ranks that do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) seq: u64,
    pub(crate) left: (usize, Signature),
    pub(crate) right: (usize, Signature),
}

impl Clash {
    fn error(self) -> Error {
        let ((left_rank, left), (right_rank, right)) = (self.left, self.right);
        Error::Mismatch { seq: self.seq, left_rank, left, right_rank, right }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Goodbye,
    Poison(Cause),
    Mismatch(Clash),
}

impl Message {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let words: [u64; 8] = match self {
            Message::Goodbye => [GOODBYE, 0, 0, 0, 0, 0, 0, 0],
            Message::Poison(cause) => [POISON, cause.pack(), 0, 0, 0, 0, 0, 0],
            Message::Mismatch(Clash { seq, left: (a, x), right: (b, y) }) => {
                [MISMATCH, seq, a as u64, x.code(), x.bytes, b as u64, y.code(), y.bytes]
            }
        };
        let mut bytes = [0; MESSAGE_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Self> {
        let mut words = [0; 8];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(place.try_into().ok()?);
        }
        match words {
            [GOODBYE, ..] => Some(Message::Goodbye),
            [POISON, cause, ..] => Cause::unpack(cause).map(Message::Poison),
            [MISMATCH, seq, a, x, x_bytes, b, y, y_bytes] => {
                let left = (a as usize, Signature::from_code(x, x_bytes)?);
                let right = (b as usize, Signature::from_code(y, y_bytes)?);
                Some(Message::Mismatch(Clash { seq, left, right }))
            }
            _ => None,
        }
    }
}

/// The poison of this process, and the way to tell the others.
pub(crate) struct TcpFault {
    verdict: OnceLock<(Cause, Error)>,
    /// By rank; none for this one.
    controls: Vec<Option<Mutex<TcpStream>>>,
    left: Vec<AtomicBool>,
    /// Wakes the thread that is in an operation.
    pub(crate) wake: EventFd,
    /// The poison of the memory that is shared on this host, where there is both.
    shared: OnceLock<Arc<dyn Fault>>,
}

impl TcpFault {
    /// Takes the control connections, which are non-blocking, by rank.
    pub(crate) fn new(controls: Vec<Option<TcpStream>>) -> Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|e| Error::system("making an eventfd", e))?;
        let left = controls.iter().map(|_| AtomicBool::new(false)).collect();
        let controls = controls.into_iter().map(|c| c.map(Mutex::new)).collect();
        let (verdict, shared) = (OnceLock::new(), OnceLock::new());
        Ok(Arc::new(TcpFault { verdict, controls, left, wake, shared }))
    }

    /// Watches the control connections: what is said there, and their end.
    pub(crate) fn watch(self: &Arc<Self>) -> Result<Watch> {
        let mut fds = Vec::new();
        let mut listeners = Vec::new();
        for (rank, control) in self.controls.iter().enumerate() {
            let Some(control) = control else { continue };
            let control = control.lock().unwrap_or_else(PoisonError::into_inner);
            let cloned =
                control.as_fd().try_clone_to_owned().and_then(|fd| control.try_clone().map(|s| (fd, s)));
            let (fd, stream) = cloned.map_err(|e| Error::system("duplicating a connection", e))?;
            fds.push(fd);
            listeners.push((rank, stream, Vec::new()));
        }
        let fault = self.clone();
        let handler = move |index: usize, _: &OwnedFd| {
            let (rank, stream, heard) = &mut listeners[index];
            fault.listen(*rank, stream, heard)
        };
        Watch::start(fds, Box::new(handler))
    }

    /// Hears `rank` out; false once there is nothing more to come.
    fn listen(&self, rank: usize, stream: &mut TcpStream, heard: &mut Vec<u8>) -> bool {
        loop {
            let mut part = [0; MESSAGE_BYTES];
            match stream.read(&mut part[..MESSAGE_BYTES - heard.len()]) {
                Ok(n) if n > 0 => heard.extend(&part[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => {
                    if !self.left(rank) {
                        self.poison(Cause::Lost { rank });
                    }
                    return false;
                }
            }
            let Ok(bytes) = <&[u8; MESSAGE_BYTES]>::try_from(&heard[..]) else { continue };
            match Message::decode(bytes) {
                Some(Message::Goodbye) => self.left[rank].store(true, Ordering::SeqCst),
                Some(Message::Poison(cause)) => self.settle(cause, cause.error()),
                Some(Message::Mismatch(clash)) => {
                    self.settle(Cause::Aborted { rank, reason: AbortReason::Mismatch }, clash.error());
                }
                None => {
                    let what = "a control message that does not exist".into();
                    let cause = Cause::Aborted { rank, reason: AbortReason::Broken };
                    self.settle(cause, Error::Corrupt { rank, what });
                }
            }
            heard.clear();
        }
    }

    fn settle(&self, cause: Cause, error: Error) {
        let _ = self.verdict.set((cause, error)); // the first stays
        let _ = self.wake.write(1); // fails only when it is told already
        if let Some(shared) = self.shared.get() {
            shared.poison(cause);
        }
    }

    /// Poisons that too from now on.
    pub(crate) fn tie(&self, shared: Arc<dyn Fault>) {
        let _ = self.shared.set(shared.clone()); // once, at the start
        if let Some(cause) = self.cause() {
            shared.poison(cause);
        }
    }

    fn tell(&self, message: Message) {
        let bytes = message.encode();
        for control in self.controls.iter().flatten() {
            // A peer that cannot be told is gone, or will see this connection's end.
            let _ = control.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes);
        }
    }

    /// Poisons the group over operations that do not fit; everybody is told both sides.
    pub(crate) fn clash(&self, rank: usize, clash: Clash) {
        if self.verdict.get().is_none() {
            self.settle(Cause::Aborted { rank, reason: AbortReason::Mismatch }, clash.error());
            self.tell(Message::Mismatch(clash));
        }
    }

    pub(crate) fn verdict(&self) -> Option<Error> {
        self.verdict.get().map(|(_, error)| error.clone())
    }

    /// Listens a little while for a reason that is on its way.
    pub(crate) fn await_verdict(&self) {
        let start = Instant::now();
        while self.verdict().is_none() && start.elapsed() < REASON_TIMEOUT {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(crate) fn goodbye(&self) {
        self.tell(Message::Goodbye);
    }
}

impl Fault for TcpFault {
    fn poison(&self, cause: Cause) {
        if self.verdict.get().is_none() {
            self.settle(cause, cause.error());
            self.tell(Message::Poison(cause));
        }
    }

    fn cause(&self) -> Option<Cause> {
        self.verdict.get().map(|(cause, _)| *cause)
    }

    fn left(&self, rank: usize) -> bool {
        self.left[rank].load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::DType;
    use crate::error::Op;

    #[test]
    fn control_messages_survive_the_wire() {
        let call = |bytes| Signature { op: Op::Broadcast, dtype: DType::F16, reduce: None, peer: 3, bytes };
        let clash = Clash { seq: 9, left: (0, call(2)), right: (7, call(4)) };
        for message in [Message::Goodbye, Message::Poison(Cause::Lost { rank: 2 }), Message::Mismatch(clash)]
        {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[0; MESSAGE_BYTES]), None);
    }
}
