//! Rank 0's part: it receives the others, turns strangers away, and decides.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{self, Answer, Failure, Hello, Inbox, Read1, Way, Welcome};
use super::{Timer, hello, host, mesh_listener, port, shm_group, tcp_group};
use crate::communicator::Group;
use crate::config::{Config, TransportChoice};
use crate::error::{Error, Result};
use crate::shm::{Layout, Offer, Segment};
use crate::tcp::mesh;

/// How long a connection may take to say who it is.
const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not said who they are; beyond it the oldest goes.
const MAX_STRANGERS: usize = 256;
/// The port may still be held by the group before.
const BIND_RETRY: Duration = Duration::from_secs(2);
/// Missing ranks about which everybody is told; more would be a message for every two ranks.
const MAX_NAMED: usize = 16;
/// Bound on writing one answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A rank that has come.
pub(super) struct Guest {
    pub(super) stream: TcpStream,
    hello: Hello,
}

struct Stranger {
    stream: TcpStream,
    inbox: Inbox,
    since: Instant,
}

pub(super) fn receive(config: &Config, timer: Timer) -> Result<Group> {
    let listener = listen(config)?;
    let local = listener.local_addr().map_err(|e| Error::system("asking for the master's address", e))?;
    let mesh = mesh_listener(local.ip())?;
    let ours = hello(config, port(&mesh)?);
    let mut desk = Desk { config, timer, listener, guests: (1..config.world).map(|_| None).collect() };
    let gathered = desk.gather();
    let guests: Vec<Guest> = desk.guests.into_iter().flatten().collect();
    let told = |result: Result<Group>| {
        if let Err(error) = &result {
            for guest in &guests {
                let _ = wire::write(&guest.stream, &Answer::Failed(Failure::of(error))); // it may be gone
            }
        }
        result
    };
    if let Err(error) = gathered {
        return told(Err(error));
    }
    told(decide(&ours, &guests).and_then(|shared| match shared {
        true => share_memory(config, timer, &ours, &guests),
        false => connect_all(config, timer, &ours, &guests, mesh),
    }))
}

fn listen(config: &Config) -> Result<TcpListener> {
    let start = Instant::now();
    let addresses = super::addresses(config)?;
    loop {
        let mut failure = None;
        for &address in &addresses {
            let bound = match TcpListener::bind(address) {
                // The name is another's view of this host, e.g. behind a bridge.
                Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => TcpListener::bind(any(address)),
                other => other,
            };
            match bound.and_then(|l| l.set_nonblocking(true).map(|()| l)) {
                Ok(listener) => return Ok(listener),
                Err(e) => failure = Some((address, e)),
            }
        }
        let Some((address, error)) = failure else {
            return Err(Error::invalid("the master address is empty"));
        };
        let patient = start.elapsed() < BIND_RETRY.min(config.rendezvous_timeout);
        if error.kind() != io::ErrorKind::AddrInUse || !patient {
            let what = format!(
                "listening at the master address {address} (choose another MASTER_PORT if it is taken)"
            );
            return Err(Error::system(what, error));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn any(address: SocketAddr) -> SocketAddr {
    let ip =
        if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::new(ip, address.port())
}

struct Desk<'a> {
    config: &'a Config,
    timer: Timer,
    listener: TcpListener,
    /// By rank, from 1.
    guests: Vec<Option<Guest>>,
}

impl Desk<'_> {
    fn missing(&self) -> Vec<usize> {
        (1..self.config.world).filter(|&rank| self.guests[rank - 1].is_none()).collect()
    }

    /// Until all have come.
    fn gather(&mut self) -> Result<()> {
        let mut strangers: Vec<Stranger> = Vec::new();
        loop {
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            let Some(left) = self.timer.left() else { return Err(self.timer.timed_out(missing)) };
            self.wait(&strangers, left);
            self.look_after_guests()?;
            self.let_in(&mut strangers);
            let mut still = Vec::new();
            for mut stranger in strangers {
                match stranger.inbox.read::<Hello>(&stranger.stream) {
                    Read1::Message(hello) => self.admit(hello, stranger.stream),
                    Read1::NotYet if stranger.since.elapsed() < STRANGER_TIMEOUT => still.push(stranger),
                    Read1::NotYet | Read1::Closed => {}
                }
            }
            strangers = still;
        }
    }

    /// Until something happens, or for a moment.
    fn wait(&self, strangers: &[Stranger], left: Duration) {
        let mut polls = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        polls.extend(strangers.iter().map(|s| PollFd::new(s.stream.as_fd(), PollFlags::POLLIN)));
        let guests = self.guests.iter().flatten();
        polls.extend(guests.map(|g| PollFd::new(g.stream.as_fd(), PollFlags::POLLIN)));
        let moment = left.min(Duration::from_millis(500));
        let timeout = PollTimeout::try_from(moment).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut polls, timeout); // whatever it says, everything is looked at next
    }

    /// A rank that came and went is lost: it would not come again in this epoch. One that says something before all have
    /// come has lost its patience, and names the same ranks as we do.
    fn look_after_guests(&self) -> Result<()> {
        for (rank, guest) in (1..).zip(&self.guests) {
            let Some(guest) = guest else { continue };
            if is_gone(&guest.stream) {
                return Err(Error::PeerLost { rank });
            }
            if guest.stream.peek(&mut [0]).is_ok() {
                return Err(self.timer.timed_out(self.missing()));
            }
        }
        Ok(())
    }

    fn let_in(&self, strangers: &mut Vec<Stranger>) {
        while let Ok((stream, _)) = self.listener.accept() {
            let ready =
                stream.set_nonblocking(true).is_ok() && stream.set_write_timeout(Some(WRITE_TIMEOUT)).is_ok();
            if !ready {
                continue;
            }
            if strangers.len() >= MAX_STRANGERS {
                strangers.remove(0);
            }
            let _ = stream.set_nodelay(true); // only slower without
            strangers.push(Stranger { stream, inbox: Inbox::default(), since: Instant::now() });
        }
    }

    fn admit(&mut self, hello: Hello, stream: TcpStream) {
        let answer = match self.refusal(&hello) {
            Some(failure) => Answer::Failed(failure),
            None => {
                let rank = hello.rank;
                self.guests[rank - 1] = Some(Guest { stream, hello });
                let missing = self.missing();
                // Everybody knows whom to name should the time run out; in a large world, only towards the end.
                let news = missing.len() <= MAX_NAMED;
                let answer = Answer::Waiting { missing };
                for guest in self.guests.iter().flatten().filter(|g| news || g.hello.rank == rank) {
                    let _ = wire::write(&guest.stream, &answer); // if it is gone, that is seen next
                }
                return;
            }
        };
        let _ = wire::write(&stream, &answer); // a stranger's loss
    }

    fn refusal(&self, hello: &Hello) -> Option<Failure> {
        let rejected = |reason: String| Some(Failure::Rejected { reason });
        if hello.epoch != self.config.epoch {
            return Some(Failure::WrongEpoch { group: self.config.epoch });
        }
        if hello.world != self.config.world {
            let (theirs, ours) = (hello.world, self.config.world);
            return rejected(format!(
                "its world size is {theirs}, that of rank 0 is {ours}; start all with the same"
            ));
        }
        if hello.rank == 0 || hello.rank >= hello.world {
            return rejected(format!(
                "there is no place for rank {} in a world of {}",
                hello.rank, hello.world
            ));
        }
        if self.guests[hello.rank - 1].is_some() {
            return rejected(format!("another process is rank {} already; give each its own", hello.rank));
        }
        None
    }
}

/// Whether the other end has closed; whatever else it sends is none of our business yet.
pub(crate) fn is_gone(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != io::ErrorKind::WouldBlock && e.kind() != io::ErrorKind::Interrupted,
    }
}

/// Whether to share memory. All ranks must agree on their configuration, and their wishes must go together.
fn decide(ours: &Hello, guests: &[Guest]) -> Result<bool> {
    let all = || std::iter::once(ours).chain(guests.iter().map(|g| &g.hello));
    let ranks_that =
        |test: &dyn Fn(&Hello) -> bool| -> Vec<usize> { all().filter(|h| test(h)).map(|h| h.rank).collect() };
    let differ = ranks_that(&|h| h.fingerprint != ours.fingerprint);
    if !differ.is_empty() {
        return Err(Error::ConfigMismatch { ranks: differ });
    }
    let shm = ranks_that(&|h| h.transport == TransportChoice::Shm);
    let tcp = ranks_that(&|h| h.transport == TransportChoice::Tcp);
    let away = ranks_that(&|h| h.host != ours.host);
    let names = |ranks: &[usize]| crate::error::rank_list(ranks);
    if !shm.is_empty() && !tcp.is_empty() {
        let reason = format!("{} asked for shm, {} for tcp; ask for one", names(&shm), names(&tcp));
        return Err(Error::Rejected { reason });
    }
    if !shm.is_empty() && !away.is_empty() {
        let reason = format!(
            "shm was asked for, but {} cannot share memory with rank 0: another host or container; \
             use tcp",
            names(&away)
        );
        return Err(Error::Rejected { reason });
    }
    Ok(tcp.is_empty() && away.is_empty())
}

/// What to tell each rank, by its host.
fn welcome(nonce: u64, to: &Hello, ours: &Hello, guests: &[Guest], way: Way) -> Welcome {
    let all = std::iter::once(ours).chain(guests.iter().map(|g| &g.hello));
    let near: Vec<&Hello> = all.filter(|h| h.host == to.host).collect();
    let cpus: BTreeSet<usize> = near.iter().flat_map(|h| h.cpus.iter().copied()).collect();
    Welcome { nonce, host_ranks: near.len(), host_cpus: cpus.len(), way }
}

fn tell(guest: &Guest, answer: &Answer) -> Result<()> {
    wire::write(&guest.stream, answer).map_err(|_| Error::PeerLost { rank: guest.hello.rank })
}

fn share_memory(config: &Config, timer: Timer, ours: &Hello, guests: &[Guest]) -> Result<Group> {
    let arena_bytes = guests.iter().map(|g| g.hello.arena_bytes).fold(ours.arena_bytes, usize::max);
    let layout = Layout::new(config.world, arena_bytes)?;
    check_memory(&layout, std::iter::once(ours).chain(guests.iter().map(|g| &g.hello)))?;
    let (segment, memory) = Segment::create(layout)?;
    let nonce = host::nonce();
    let offer = Offer::open(nonce)?;
    let way = || Way::Shm { door: offer.door.clone(), arena_bytes: layout.arena_bytes };
    for guest in guests {
        tell(guest, &Answer::Welcome(welcome(nonce, &guest.hello, ours, guests, way())))?;
    }
    let streams: Vec<(usize, &TcpStream)> = guests.iter().map(|g| (g.hello.rank, &g.stream)).collect();
    let pidfds = offer.serve(&memory, &streams, timer)?;
    shm_group(config, &welcome(nonce, ours, ours, guests, way()), (segment, memory), pidfds)
}

/// Whether the host has room for all ranks' parts, and each rank for its own.
fn check_memory<'a>(layout: &Layout, all: impl Iterator<Item = &'a Hello>) -> Result<()> {
    let (whole, part) = (layout.total_bytes(), layout.total_bytes() / layout.world as u64);
    let lacking = |ranks: usize, wanted_bytes: u64, free: Option<u64>| match free {
        Some(free_bytes) if wanted_bytes > free_bytes => {
            Err(Error::NoMemory { arena_bytes: layout.arena_bytes as u64, ranks, wanted_bytes, free_bytes })
        }
        _ => Ok(()),
    };
    for hello in all {
        lacking(layout.world, whole, hello.host_free_bytes)?;
        lacking(1, part, hello.free_bytes)?;
    }
    Ok(())
}

fn connect_all(
    config: &Config,
    timer: Timer,
    ours: &Hello,
    guests: &[Guest],
    listener: TcpListener,
) -> Result<Group> {
    let nonce = host::nonce();
    let mut mesh = vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), ours.mesh_port)];
    let mut by_rank: Vec<&Guest> = guests.iter().collect();
    by_rank.sort_by_key(|g| g.hello.rank);
    for guest in by_rank {
        let seen = guest.stream.peer_addr().map_err(|_| Error::PeerLost { rank: guest.hello.rank })?;
        mesh.push(SocketAddr::new(seen.ip(), guest.hello.mesh_port));
    }
    for guest in guests {
        let way = Way::Tcp { mesh: mesh.clone() };
        tell(guest, &Answer::Welcome(welcome(nonce, &guest.hello, ours, guests, way)))?;
    }
    let welcome = welcome(nonce, ours, ours, guests, Way::Tcp { mesh: mesh.clone() });
    let tcp = mesh::join(config, &welcome, &mesh, listener, timer)?;
    Ok(tcp_group(config, tcp))
}
