//! The loop of every operation over TCP: send and receive on all connections until the operation has what it wants.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::collectives::Tcp;
use super::fault::{Clash, REASON_TIMEOUT};
use super::frame::Frame;
use super::link::{Outgoing, Reading, Trouble};
use crate::backend::{Call, Deadline};
use crate::error::{AbortReason, Error, Result, Signature};
use crate::fault::{Cause, Fault};

/// Rounds without progress before it sleeps, while there is a CPU for every rank of this host.
pub(super) const SPINS: u32 = 200;

/// What a running operation needs to wait.
#[derive(Clone, Copy)]
pub(crate) struct Running<'a> {
    pub(crate) call: &'a Call,
    pub(crate) seq: u64,
    pub(crate) deadline: Deadline,
    /// The operation that the caller knows, of which `call` may be a part.
    pub(crate) told: Signature,
    /// What a fitting frame says.
    pub(crate) code: u64,
}

impl Running<'_> {
    pub(super) fn frame(&self, phase: u32, offset: usize, length: usize) -> Frame {
        Frame {
            seq: self.seq,
            code: self.code,
            bytes: self.told.bytes,
            offset: offset as u64,
            phase,
            length: length as u32,
        }
    }
}

/// A frame that an operation wants sent.
pub(super) struct Post {
    pub(super) to: usize,
    pub(super) out: Outgoing,
    /// Others wait for it: it goes before what is queued.
    pub(super) urgent: bool,
}

/// What an operation does with what comes in.
pub(super) trait Sink {
    /// Whether more is to come from a peer.
    fn expects(&self, peer: usize) -> bool;
    /// Where the payload of a frame goes; `None` while there is no room. An `Err` says what is wrong with it.
    fn place(&mut self, peer: usize, frame: &Frame) -> Result<Option<*mut u8>, String>;
    /// The payload is there.
    fn arrived(&mut self, peer: usize, frame: &Frame, posts: &mut Vec<Post>);
}

impl Tcp {
    /// Sends `self.posts` and receives until the sink expects nothing more.
    ///
    /// # Safety
    /// Payloads of posts and places given by the sink are valid until this returns.
    pub(super) unsafe fn drive(&mut self, running: &Running<'_>, sink: &mut impl Sink) -> Result<()> {
        let mut idle = 0;
        loop {
            // SAFETY: passed on.
            let (progress, done) = unsafe { self.round(running, sink)? };
            if done {
                return Ok(());
            }
            if progress {
                idle = 0;
                continue;
            }
            // Only now: what a peer sent before it died or left still counts.
            if let Some(error) = self.fault.verdict() {
                return Err(self.fail(error));
            }
            idle += 1;
            if idle > self.spins {
                self.sleep(running, sink)?;
                idle = 0;
            }
        }
    }

    /// Tries every connection once; whether anything moved, and whether all is done.
    unsafe fn round(&mut self, running: &Running<'_>, sink: &mut impl Sink) -> Result<(bool, bool)> {
        let (mut progress, mut done) = (false, true);
        for step in 1..self.world {
            let peer = (self.rank + step) % self.world;
            self.hand_out();
            let Some(link) = &mut self.links[peer] else { continue };
            // SAFETY: passed on.
            match unsafe { link.flush() } {
                Ok(moved) => progress |= moved,
                Err(trouble) => return Err(self.trouble(peer, trouble)),
            }
            if sink.expects(peer) {
                // SAFETY: passed on.
                progress |= unsafe { self.receive(running, sink, peer)? };
            }
            done &= !sink.expects(peer);
        }
        self.hand_out();
        let flushed = self.links.iter().flatten().all(|link| link.is_flushed());
        Ok((progress, done && flushed))
    }

    /// Puts new posts into their queues.
    fn hand_out(&mut self) {
        for post in self.posts.drain(..) {
            if let Some(link) = &mut self.links[post.to] {
                link.push(post.out, post.urgent);
            }
        }
    }

    unsafe fn receive(&mut self, running: &Running<'_>, sink: &mut impl Sink, peer: usize) -> Result<bool> {
        let mut progress = false;
        while sink.expects(peer) {
            let Some(link) = &mut self.links[peer] else { break };
            // SAFETY: passed on.
            match unsafe { link.read() } {
                Ok(Reading::NotYet) => break,
                Ok(Reading::Whole(frame)) => {
                    sink.arrived(peer, &frame, &mut self.posts);
                    progress = true;
                }
                Ok(Reading::Header(frame)) => {
                    if frame.seq != running.seq
                        || frame.code != running.code
                        || frame.bytes != running.told.bytes
                    {
                        return Err(self.clash(running, peer, &frame));
                    }
                    match sink.place(peer, &frame) {
                        Ok(Some(place)) => link.place(place),
                        Ok(None) => break,
                        Err(what) => return Err(self.trouble(peer, Trouble::Bad(what))),
                    }
                }
                Err(trouble) => return Err(self.trouble(peer, trouble)),
            }
        }
        Ok(progress)
    }

    /// Sleeps until a connection has something, the group is poisoned or the deadline has passed.
    fn sleep(&mut self, running: &Running<'_>, sink: &impl Sink) -> Result<()> {
        let Some(left) = running.deadline.left() else { return Err(self.timed_out(running, sink)) };
        let mut polls = vec![PollFd::new(self.fault.wake.as_fd(), PollFlags::POLLIN)];
        for (peer, link) in self.links.iter().enumerate() {
            if let Some(link) = link {
                link.polls(sink.expects(peer), &mut polls);
            }
        }
        // Rounded up: half a millisecond left must not become a busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut polls, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(self.fail(Error::system("waiting for other ranks", e))),
        }
    }

    fn timed_out(&mut self, running: &Running<'_>, sink: &impl Sink) -> Error {
        let waits = |&peer: &usize| {
            sink.expects(peer) || self.links[peer].as_ref().is_some_and(|link| !link.is_flushed())
        };
        let missing = (0..self.world).filter(|&p| p != self.rank).filter(waits).collect();
        self.fault.poison(Cause::Aborted { rank: self.rank, reason: AbortReason::TimedOut });
        self.fail(running.deadline.error(running.call, running.seq, missing))
    }

    /// A frame is of another operation than ours.
    #[cold]
    fn clash(&mut self, running: &Running<'_>, peer: usize, frame: &Frame) -> Error {
        let Some(theirs) = frame.signature() else {
            return self.trouble(peer, Trouble::Bad("an operation that does not exist".into()));
        };
        let (ours, theirs) = ((self.rank, running.told), (peer, theirs));
        let (left, right) = if self.rank < peer { (ours, theirs) } else { (theirs, ours) };
        self.fault.clash(self.rank, Clash { seq: running.seq, left, right });
        let verdict = self.fault.verdict().unwrap_or(Error::PeerLost { rank: peer });
        self.fail(verdict)
    }

    /// A connection cannot go on.
    #[cold]
    fn trouble(&mut self, peer: usize, trouble: Trouble) -> Error {
        let error = match trouble {
            Trouble::Closed => {
                let start = Instant::now();
                while self.fault.verdict().is_none()
                    && start.elapsed() < REASON_TIMEOUT
                    && !self.fault.left(peer)
                {
                    std::thread::sleep(Duration::from_micros(200));
                }
                self.fault.poison(Cause::Lost { rank: peer });
                self.fault.verdict().unwrap_or(Error::PeerLost { rank: peer })
            }
            Trouble::Bad(what) => {
                self.fault.poison(Cause::Aborted { rank: self.rank, reason: AbortReason::Broken });
                Error::Corrupt { rank: peer, what }
            }
        };
        self.fail(error)
    }

    fn fail(&mut self, error: Error) -> Error {
        self.posts.clear();
        self.links.iter_mut().flatten().for_each(|link| link.clear());
        error
    }
}
