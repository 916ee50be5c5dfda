//! How every two ranks connect: the higher comes to the lower, with one connection for data and one for control.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::collectives::Tcp;
use super::fault::TcpFault;
use super::link::Link;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::rendezvous::Timer;
use crate::rendezvous::wire::Welcome;

/// What a rank says first: magic, nonce, rank, kind.
const TICKET_BYTES: usize = 24;
const MAGIC: [u8; 8] = *b"phlxmesh";
const DATA: u32 = 0;
const CONTROL: u32 = 1;
/// How long a connection may take to show its ticket.
const TICKET_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections without a ticket; beyond it the oldest goes.
const MAX_STRANGERS: usize = 2048;

fn ticket(nonce: u64, rank: usize, kind: u32) -> [u8; TICKET_BYTES] {
    let mut bytes = [0; TICKET_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&nonce.to_le_bytes());
    bytes[16..20].copy_from_slice(&(rank as u32).to_le_bytes());
    bytes[20..].copy_from_slice(&kind.to_le_bytes());
    bytes
}

/// Both connections to one rank.
#[derive(Default)]
struct Pair {
    data: Option<TcpStream>,
    control: Option<TcpStream>,
}

impl Pair {
    fn is_whole(&self) -> bool {
        self.data.is_some() && self.control.is_some()
    }
}

/// Connects this rank with all others. `mesh` is where each listens, `listener` where we do.
pub(crate) fn join(
    config: &Config,
    welcome: &Welcome,
    mesh: &[SocketAddr],
    listener: TcpListener,
    timer: Timer,
) -> Result<Tcp> {
    if mesh.len() != config.world {
        let what = format!("{} addresses for {} ranks", mesh.len(), config.world);
        return Err(Error::Corrupt { rank: 0, what });
    }
    let mut pairs: Vec<Pair> = (0..config.world).map(|_| Pair::default()).collect();
    for (rank, pair) in pairs.iter_mut().enumerate().take(config.rank) {
        pair.data = Some(connect(mesh[rank], rank, ticket(welcome.nonce, config.rank, DATA), timer)?);
        pair.control = Some(connect(mesh[rank], rank, ticket(welcome.nonce, config.rank, CONTROL), timer)?);
    }
    accept(config, welcome.nonce, &listener, &mut pairs, timer)?;
    let ready = |stream: &TcpStream| stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
    for stream in pairs.iter().flat_map(|pair| [&pair.data, &pair.control]).flatten() {
        ready(stream).map_err(|e| Error::system("setting up a connection", e))?;
    }
    let (data, control): (Vec<_>, Vec<_>) = pairs.into_iter().map(|pair| (pair.data, pair.control)).unzip();
    let links = data.into_iter().map(|stream| stream.map(|s| Link::new(s, config.epoch))).collect();
    let spin = welcome.host_ranks <= welcome.host_cpus;
    Tcp::new(config.rank, links, TcpFault::new(control)?, spin)
}

/// The ranks below listen since before they came to the rendezvous: one that refuses is gone.
fn connect(address: SocketAddr, rank: usize, ticket: [u8; TICKET_BYTES], timer: Timer) -> Result<TcpStream> {
    loop {
        let Some(left) = timer.left() else { return Err(timer.timed_out(vec![rank])) };
        let connected =
            TcpStream::connect_timeout(&address, left.min(TICKET_TIMEOUT)).and_then(|mut stream| {
                stream.set_write_timeout(Some(TICKET_TIMEOUT))?;
                stream.write_all(&ticket)?;
                Ok(stream)
            });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Err(Error::PeerLost { rank }),
            Err(error) => {
                tracing::debug!(%error, rank, %address, "connecting to a rank failed, trying again");
                std::thread::sleep(left.min(Duration::from_millis(20)));
            }
        }
    }
}

struct Stranger {
    stream: TcpStream,
    said: Vec<u8>,
    since: Instant,
}

/// Waits for both connections of every higher rank; strangers neither stop nor slow it.
fn accept(
    config: &Config,
    nonce: u64,
    listener: &TcpListener,
    pairs: &mut [Pair],
    timer: Timer,
) -> Result<()> {
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::system("setting up the listener for other ranks", e))?;
    let mut strangers: Vec<Stranger> = Vec::new();
    loop {
        let missing: Vec<usize> =
            (config.rank + 1..config.world).filter(|&rank| !pairs[rank].is_whole()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let Some(left) = timer.left() else { return Err(timer.timed_out(missing)) };
        let mut polls = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        polls.extend(strangers.iter().map(|s| PollFd::new(s.stream.as_fd(), PollFlags::POLLIN)));
        let timeout =
            PollTimeout::try_from(left.min(Duration::from_millis(500))).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut polls, timeout); // whatever it says, everything is looked at next
        while let Ok((stream, _)) = listener.accept() {
            if strangers.len() >= MAX_STRANGERS {
                strangers.remove(0);
            }
            if stream.set_nonblocking(true).is_ok() {
                strangers.push(Stranger { stream, said: Vec::new(), since: Instant::now() });
            }
        }
        let mut still = Vec::new();
        for mut stranger in strangers {
            match look(&mut stranger) {
                Some(true) => {
                    let known = missing.iter().flat_map(|&rank| [(rank, DATA), (rank, CONTROL)]);
                    let mut known =
                        known.filter(|&(rank, kind)| ticket(nonce, rank, kind)[..] == stranger.said[..]);
                    match known.next() {
                        Some((rank, DATA)) => pairs[rank].data = Some(stranger.stream),
                        Some((rank, _)) => pairs[rank].control = Some(stranger.stream),
                        None => {}
                    }
                }
                Some(false) if stranger.since.elapsed() < TICKET_TIMEOUT => still.push(stranger),
                Some(false) | None => {}
            }
        }
        strangers = still;
    }
}

/// Whether a ticket is there; `None` if there will be none. Reads no byte more: frames may follow.
fn look(stranger: &mut Stranger) -> Option<bool> {
    while stranger.said.len() < TICKET_BYTES {
        let mut part = [0; TICKET_BYTES];
        match stranger.stream.read(&mut part[..TICKET_BYTES - stranger.said.len()]) {
            Ok(0) => return None,
            Ok(n) => stranger.said.extend(&part[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(true)
}
