//! How every two ranks connect: the higher comes to the lower, with a connection for control and one or several for data.

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
/// Kinds of a connection: control, else the number of a stream for data, from 1.
const CONTROL: u32 = 0;
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

/// The connections to one rank, by kind.
struct Bundle(Vec<Option<TcpStream>>);

impl Bundle {
    fn new(streams: usize) -> Self {
        Bundle((0..=streams).map(|_| None).collect())
    }

    fn is_whole(&self) -> bool {
        self.0.iter().all(Option::is_some)
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
    let mut bundles: Vec<Bundle> = (0..config.world).map(|_| Bundle::new(welcome.streams)).collect();
    for (rank, bundle) in bundles.iter_mut().enumerate().take(config.rank) {
        for (kind, place) in (CONTROL..).zip(&mut bundle.0) {
            *place = Some(connect(mesh[rank], rank, ticket(welcome.nonce, config.rank, kind), timer)?);
        }
    }
    accept(config, welcome.nonce, &listener, &mut bundles, timer)?;
    let ready = |stream: &TcpStream| stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
    for stream in bundles.iter().flat_map(|bundle| &bundle.0).flatten() {
        ready(stream).map_err(|e| Error::system("setting up a connection", e))?;
    }
    let (mut controls, mut links) = (Vec::new(), Vec::new());
    for bundle in bundles {
        let mut sockets = bundle.0.into_iter().flatten();
        let control = sockets.next();
        links.push(control.is_some().then(|| Link::new(sockets.collect(), config.epoch)));
        controls.push(control);
    }
    let spin = welcome.host_ranks <= welcome.host_cpus;
    Tcp::new(config.rank, links, TcpFault::new(controls)?, (spin, config.wire))
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

/// Waits for all connections of every higher rank; strangers neither stop nor slow it.
fn accept(
    config: &Config,
    nonce: u64,
    listener: &TcpListener,
    bundles: &mut [Bundle],
    timer: Timer,
) -> Result<()> {
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::system("setting up the listener for other ranks", e))?;
    let mut strangers: Vec<Stranger> = Vec::new();
    loop {
        let missing: Vec<usize> =
            (config.rank + 1..config.world).filter(|&rank| !bundles[rank].is_whole()).collect();
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
                    let kinds = bundles.first().map_or(0, |bundle| bundle.0.len());
                    let known = missing.iter().flat_map(|&rank| (0..kinds).map(move |kind| (rank, kind)));
                    let mut known = known
                        .filter(|&(rank, kind)| ticket(nonce, rank, kind as u32)[..] == stranger.said[..]);
                    if let Some((rank, kind)) = known.next() {
                        bundles[rank].0[kind] = Some(stranger.stream);
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
