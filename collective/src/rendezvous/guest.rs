//! The part of every rank but 0: it comes to rank 0, waits, and does as it is told.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{self, Answer, Failure, Inbox, Read1, Way, Welcome};
use super::{Met, Shared, Timer, hello, mesh_listener, one_host, port, several_hosts, tcp_group};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::nccl::{UNIQUE_ID_BYTES, UniqueId};
use crate::shm::{Layout, Segment, fetch};
use crate::tcp::mesh;

/// Between two tries to reach rank 0: at first it is probably about to listen.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_millis(50);
/// Bound on one try to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to look for rank 0's word on why it closed the door.
const LAST_WORD: Duration = Duration::from_millis(500);

/// What one visit came to.
enum Visit {
    /// Rank 0 is not there, or not yet of this epoch.
    Again,
    Welcome(Box<Connected>),
}

struct Connected {
    stream: TcpStream,
    inbox: Inbox,
    listener: TcpListener,
    welcome: Welcome,
}

pub(super) fn visit(config: &Config, timer: Timer, no_nccl: Option<String>) -> Result<Met> {
    let addresses = super::addresses(config)?;
    let mut retry = FIRST_RETRY;
    loop {
        for &address in &addresses {
            if let Some(stream) = connect(address, timer)
                && let Visit::Welcome(connected) = wait(config, stream, timer, no_nccl.clone())?
            {
                return go_on(config, *connected, timer);
            }
        }
        let left = timer.left().filter(|_| !config.is_given_up());
        let Some(left) = left else { return Err(timer.timed_out(vec![0])) };
        std::thread::sleep(retry.min(left));
        retry = (retry * 2).min(LAST_RETRY);
    }
}

fn connect(address: SocketAddr, timer: Timer) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timer.left()?.min(CONNECT_TIMEOUT)).ok()?;
    // A port of the range for outgoing connections can connect to itself while nobody listens.
    if stream.local_addr().ok()? == stream.peer_addr().ok()? {
        return None;
    }
    stream.set_nodelay(true).ok()?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT)).ok()?;
    Some(stream)
}

fn wait(config: &Config, stream: TcpStream, timer: Timer, no_nccl: Option<String>) -> Result<Visit> {
    let local = stream.local_addr().map_err(|e| Error::system("asking for this rank's address", e))?;
    let listener = mesh_listener(local.ip())?;
    if wire::write(&stream, &hello(config, port(&listener)?, no_nccl)).is_err()
        || stream.set_nonblocking(true).is_err()
    {
        return Ok(Visit::Again);
    }
    let mut inbox = Inbox::default();
    let mut missing = None;
    loop {
        match inbox.read::<Answer>(&stream) {
            Read1::Message(Answer::Waiting { missing: now }) => missing = Some(now),
            Read1::Message(Answer::Welcome(welcome)) => {
                return Ok(Visit::Welcome(Box::new(Connected { stream, inbox, listener, welcome })));
            }
            // The group before has not closed its door yet.
            Read1::Message(Answer::Failed(Failure::WrongEpoch { group })) if group < config.epoch => {
                return Ok(Visit::Again);
            }
            Read1::Message(Answer::Failed(failure)) => return Err(failure.error(config.epoch)),
            Read1::Closed if missing.is_some() => return Err(Error::PeerLost { rank: 0 }),
            Read1::Closed => return Ok(Visit::Again),
            Read1::NotYet => {
                let Some(left) = timer.left() else {
                    let _ = wire::write(&stream, &"out of patience"); // so that it is not taken for dead
                    return Err(timer.timed_out(missing.unwrap_or(vec![0])));
                };
                readable(&stream, left);
            }
        }
    }
}

/// Until there is something to read, or for a while.
fn readable(stream: &TcpStream, left: Duration) {
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout); // whatever it says, we look
}

fn go_on(config: &Config, connected: Connected, timer: Timer) -> Result<Met> {
    let Connected { stream, mut inbox, listener, welcome } = connected;
    // Rank 0 is where it was met, whatever it calls itself.
    let reach = |mesh: &[SocketAddr]| {
        let mut mesh = mesh.to_vec();
        if let (Some(first), Ok(master)) = (mesh.first_mut(), stream.peer_addr()) {
            first.set_ip(master.ip());
        }
        mesh
    };
    let result = match &welcome.way {
        Way::Shm { door, arena_bytes } => Layout::new(config.world, *arena_bytes).and_then(|layout| {
            let (memory, pidfds) = fetch((door, 0), welcome.nonce, (config.rank, config.world - 1), timer)?;
            let (ranks, segment) = ((0..config.world).collect(), Segment::map(&memory, layout)?);
            one_host(config, &welcome, Shared { ranks, segment, memory, pidfds })
        }),
        Way::Tcp { mesh } => {
            mesh::join(config, &welcome, &reach(mesh), listener, timer).map(|tcp| tcp_group(config, tcp))
        }
        Way::Hosts { mesh, blocks, arena_bytes } => {
            several_hosts(config, &welcome, (&reach(mesh), blocks, *arena_bytes), listener, timer)
        }
    };
    let id = welcome.nccl_id.as_deref().and_then(|id| <[u8; UNIQUE_ID_BYTES]>::try_from(id).ok());
    let result = result.map(|group| (group, id.map(UniqueId)));
    // Rank 0 may know better why it did not come off.
    result.map_err(|error| match last_word(&stream, &mut inbox) {
        Some(failure) => failure.error(config.epoch),
        None => error,
    })
}

fn last_word(stream: &TcpStream, inbox: &mut Inbox) -> Option<Failure> {
    let until = std::time::Instant::now() + LAST_WORD;
    loop {
        match inbox.read::<Answer>(stream) {
            Read1::Message(Answer::Failed(failure)) => return Some(failure),
            Read1::Message(_) => {}
            Read1::Closed => return None,
            Read1::NotYet => {
                let left = until.checked_duration_since(std::time::Instant::now())?;
                readable(stream, left);
            }
        }
    }
}
