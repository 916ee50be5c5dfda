//! How the memory and everybody's pidfd come to every rank: rank 0 passes them over an abstract Unix socket, which leaves
//! no file behind.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};

use crate::error::{Error, Result};
use crate::rendezvous::{Timer, host};

/// What a rank says at the door: nonce and rank.
const TICKET_BYTES: usize = 16;
/// Said with the descriptor of the memory; with a pidfd it is the rank.
const MEMORY: u32 = u32::MAX;
/// Bound on reading a ticket: it is sent with the connection.
const TICKET_TIMEOUT: Duration = Duration::from_secs(1);

fn ticket(nonce: u64, rank: usize) -> [u8; TICKET_BYTES] {
    let mut bytes = [0; TICKET_BYTES];
    bytes[..8].copy_from_slice(&nonce.to_le_bytes());
    bytes[8..].copy_from_slice(&(rank as u64).to_le_bytes());
    bytes
}

/// Rank 0's door.
pub(crate) struct Offer {
    pub(crate) door: String,
    nonce: u64,
    listener: UnixListener,
}

impl Offer {
    /// At a name of its own choice.
    pub(crate) fn open(nonce: u64) -> Result<Self> {
        let door = format!("phalanx-collective-{}-{:016x}", std::process::id(), host::nonce());
        Self::open_at(door, nonce)
    }

    /// At a name that the others know.
    pub(crate) fn open_at(door: String, nonce: u64) -> Result<Self> {
        let open = || {
            let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&door)?)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener =
            open().map_err(|e: std::io::Error| Error::system("opening an abstract Unix socket", e))?;
        Ok(Offer { door, nonce, listener })
    }

    /// Waits for all ranks, some of them with a connection whose end tells of theirs, and gives each the memory and the
    /// pidfds of all others. Returns those for this rank, which is `me`.
    pub(crate) fn serve(
        &self,
        (me, memory): (usize, &OwnedFd),
        guests: &[(usize, Option<&TcpStream>)],
        timer: Timer,
    ) -> Result<Vec<(usize, OwnedFd)>> {
        let own =
            pidfd(std::process::id() as i32).map_err(|e| Error::system("opening this process's pidfd", e))?;
        let mut here: Vec<(usize, UnixStream, OwnedFd)> = Vec::new();
        loop {
            let came = |rank: usize| here.iter().any(|(r, ..)| *r == rank);
            let missing: Vec<usize> = guests.iter().map(|(rank, _)| *rank).filter(|&r| !came(r)).collect();
            if missing.is_empty() {
                break;
            }
            let is_gone = |stream: &&TcpStream| crate::rendezvous::is_gone(stream);
            if let Some((rank, _)) = guests.iter().find(|(_, stream)| stream.as_ref().is_some_and(is_gone)) {
                return Err(Error::PeerLost { rank: *rank });
            }
            let Some(left) = timer.left() else { return Err(timer.timed_out(missing)) };
            let mut polls = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let streams = guests.iter().filter_map(|(_, stream)| *stream);
            polls.extend(streams.map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut polls, timeout); // whatever it says, everything is looked at next
            while let Ok((stream, _)) = self.listener.accept() {
                if let Some(guest) = self.check(stream, &missing) {
                    here.retain(|(rank, ..)| *rank != guest.0);
                    here.push(guest);
                }
            }
        }
        for (rank, stream, _) in &here {
            let lost = |_| Error::PeerLost { rank: *rank };
            send_fd(stream, MEMORY, memory.as_fd(), timer).map_err(lost)?;
            send_fd(stream, me as u32, own.as_fd(), timer).map_err(lost)?;
            for (other, _, fd) in here.iter().filter(|(other, ..)| other != rank) {
                send_fd(stream, *other as u32, fd.as_fd(), timer).map_err(lost)?;
            }
        }
        Ok(here.into_iter().map(|(rank, _, fd)| (rank, fd)).collect())
    }

    /// A process of this user with a ticket of this group.
    fn check(&self, mut stream: UnixStream, missing: &[usize]) -> Option<(usize, UnixStream, OwnedFd)> {
        let credentials = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        if credentials.uid() != nix::unistd::geteuid().as_raw() {
            return None;
        }
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(TICKET_TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(TICKET_TIMEOUT)).ok()?;
        let mut said = [0; TICKET_BYTES];
        stream.read_exact(&mut said).ok()?;
        let rank = *missing.iter().find(|&&rank| ticket(self.nonce, rank) == said)?;
        let fd = pidfd(credentials.pid()).ok()?;
        // The number could be another's by now, were the process gone: then it would have hung up.
        stream.set_nonblocking(true).ok()?;
        let still_there =
            matches!(stream.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        stream.set_nonblocking(false).ok()?;
        still_there.then_some((rank, stream, fd))
    }
}

/// The memory, and the pidfds of the `others` that share it, from the door of rank `host`.
pub(crate) fn fetch(
    (door, host): (&str, usize),
    nonce: u64,
    (rank, others): (usize, usize),
    timer: Timer,
) -> Result<(OwnedFd, Vec<(usize, OwnedFd)>)> {
    let what = |doing: &str| format!("{doing} shared memory from rank {host}");
    let connect = || -> std::io::Result<UnixStream> {
        let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(door)?)?;
        stream.set_write_timeout(Some(TICKET_TIMEOUT))?;
        stream.set_read_timeout(Some(timer.left().unwrap_or(Duration::from_millis(1))))?;
        stream.write_all(&ticket(nonce, rank))?;
        Ok(stream)
    };
    let stream = loop {
        match connect() {
            Ok(stream) => break stream,
            // The door is not open yet.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused && timer.left().is_some() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(Error::system(what("fetching"), e)),
        }
    };
    let mut memory = None;
    let mut pidfds = Vec::new();
    while memory.is_none() || pidfds.len() < others {
        match recv_fd(&stream) {
            Ok(Some((MEMORY, fd))) => memory = Some(fd),
            Ok(Some((rank, fd))) => pidfds.push((rank as usize, fd)),
            Ok(None) => return Err(Error::PeerLost { rank: host }),
            Err(Errno::EAGAIN) => return Err(timer.timed_out(vec![])),
            Err(e) => return Err(Error::system(what("receiving"), e)),
        }
    }
    memory.map(|memory| (memory, pidfds)).ok_or(Error::PeerLost { rank: host })
}

fn pidfd(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: the descriptor is new and ours.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn send_fd(stream: &UnixStream, label: u32, fd: BorrowedFd<'_>, timer: Timer) -> nix::Result<()> {
    let bytes = label.to_le_bytes();
    let fds = [fd.as_raw_fd()];
    loop {
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent =
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Ok(_) => return Ok(()),
            // Too many descriptors are under way; the receivers are taking them.
            Err(Errno::ETOOMANYREFS) if timer.left().is_some() => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// One label with its descriptor; `None` at the end of the stream.
fn recv_fd(stream: &UnixStream) -> nix::Result<Option<(u32, OwnedFd)>> {
    let mut bytes = [0; 4];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let read = message.bytes;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made it for us.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    match received {
        Some(fd) if read == 4 => Ok(Some((u32::from_le_bytes(bytes), fd))),
        _ => Ok(None),
    }
}
