//! Rank 0's part: it receives the others, turns strangers away, and decides.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{self, Answer, Failure, Hello, Inbox, Read1, Way, Welcome};
use super::{Met, Shared, Timer, hello, host, mesh_listener, one_host, port, several_hosts, tcp_group};
use crate::communicator::Group;
use crate::config::{Config, TransportChoice, WIRE_STREAMS};
use crate::error::{Error, Result};
use crate::nccl::{Prepared, UniqueId};
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
/// Between two looks at what no socket tells.
const MOMENT: Duration = Duration::from_millis(50);
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

pub(super) fn receive(config: &Config, timer: Timer, prepared: &Result<Option<Prepared>>) -> Result<Met> {
    let listener = listen(config)?;
    let local = listener.local_addr().map_err(|e| Error::system("asking for the master's address", e))?;
    let mesh = mesh_listener(local.ip())?;
    let ours = hello(config, port(&mesh)?, prepared.as_ref().err().map(ToString::to_string));
    let mut desk = Desk { config, timer, listener, guests: (1..config.world).map(|_| None).collect() };
    let gathered = desk.gather();
    let guests: Vec<Guest> = desk.guests.into_iter().flatten().collect();
    let told = |result: Result<Met>| {
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
    told(decide(&ours, &guests).and_then(|together| {
        let nccl_id = match prepared {
            Ok(Some(prepared)) => Some(prepared.unique_id()?),
            _ => None,
        };
        let party = Party { config, timer, ours: &ours, guests: &guests, nccl_id };
        let group = match together {
            Together::OneHost => party.share_memory(),
            Together::Hosts(blocks) => party.connect_all(mesh, Some(blocks)),
            Together::Apart => party.connect_all(mesh, None),
        };
        group.map(|group| (group, nccl_id))
    }))
}

/// All who have come, and what they were told.
struct Party<'a> {
    config: &'a Config,
    timer: Timer,
    ours: &'a Hello,
    guests: &'a [Guest],
    nccl_id: Option<UniqueId>,
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
            let left = self.timer.left().filter(|_| !self.config.is_given_up());
            let Some(left) = left else { return Err(self.timer.timed_out(missing)) };
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
        let moment = left.min(MOMENT);
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

/// How the ranks go together.
enum Together {
    /// All share memory.
    OneHost,
    /// The ranks of each host share memory.
    Hosts(Vec<Vec<usize>>),
    /// Over TCP alone.
    Apart,
}

/// How to go together. All ranks must agree on their configuration, and their wishes must fit.
fn decide(ours: &Hello, guests: &[Guest]) -> Result<Together> {
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
    let nccl = ranks_that(&|h| h.transport == TransportChoice::Nccl);
    if !nccl.is_empty() && nccl.len() < ours.world {
        let others = ranks_that(&|h| h.transport != TransportChoice::Nccl);
        let reason =
            format!("{} asked for nccl, {} did not; ask for it on all", names(&nccl), names(&others));
        return Err(Error::Rejected { reason });
    }
    if let Some(lacking) = all().find(|h| h.no_nccl.is_some()) {
        let why = lacking.no_nccl.as_deref().unwrap_or_default();
        return Err(Error::Rejected { reason: format!("rank {} cannot use NCCL: {why}", lacking.rank) });
    }
    let wire = ranks_that(&|h| h.wire != ours.wire);
    if !wire.is_empty() {
        let reason = format!("{} and rank 0 asked for different bits on the wire; ask for one", names(&wire));
        return Err(Error::Rejected { reason });
    }
    let mut by_rank: Vec<&Hello> = all().collect();
    by_rank.sort_by_key(|h| h.rank);
    let hosts: Vec<&str> = by_rank.iter().map(|h| h.host.as_str()).collect();
    Ok(match crate::hosts::blocks(&hosts) {
        _ if !tcp.is_empty() => Together::Apart,
        _ if away.is_empty() => Together::OneHost,
        Some(blocks) => Together::Hosts(blocks),
        None => Together::Apart,
    })
}

fn tell(guest: &Guest, answer: &Answer) -> Result<()> {
    wire::write(&guest.stream, answer).map_err(|_| Error::PeerLost { rank: guest.hello.rank })
}

impl Party<'_> {
    fn all(&self) -> impl Iterator<Item = &Hello> {
        std::iter::once(self.ours).chain(self.guests.iter().map(|g| &g.hello))
    }

    /// What to tell each rank, by its host.
    fn welcome(&self, nonce: u64, to: &Hello, way: Way) -> Welcome {
        let near: Vec<&Hello> = self.all().filter(|h| h.host == to.host).collect();
        let cpus: BTreeSet<usize> = near.iter().flat_map(|h| h.cpus.iter().copied()).collect();
        let nccl_id = self.nccl_id.map(|id| id.0.to_vec());
        let asked = self.all().map(|h| h.tcp_streams).max().unwrap_or(0);
        let one_host = self.all().all(|h| h.host == self.ours.host);
        let streams = match asked {
            0 if one_host => 1,
            0 => WIRE_STREAMS,
            asked => asked,
        };
        Welcome { nonce, host_ranks: near.len(), host_cpus: cpus.len(), streams, nccl_id, way }
    }

    fn share_memory(&self) -> Result<Group> {
        let (config, timer) = (self.config, self.timer);
        let arena_bytes = self.all().map(|h| h.arena_bytes).max().unwrap_or(0);
        let layout = Layout::new(config.world, arena_bytes)?;
        check_memory(&layout, self.all())?;
        let (segment, memory) = Segment::create(layout)?;
        let nonce = host::nonce();
        let offer = Offer::open(nonce)?;
        let way = || Way::Shm { door: offer.door.clone(), arena_bytes: layout.arena_bytes };
        for guest in self.guests {
            tell(guest, &Answer::Welcome(self.welcome(nonce, &guest.hello, way())))?;
        }
        let streams: Vec<(usize, Option<&TcpStream>)> =
            self.guests.iter().map(|g| (g.hello.rank, Some(&g.stream))).collect();
        let pidfds = offer.serve((config.rank, &memory), &streams, timer)?;
        let ranks = (0..config.world).collect();
        let shared = Shared { ranks, segment, memory, pidfds };
        one_host(config, &self.welcome(nonce, self.ours, way()), shared)
    }

    /// Everybody connects to everybody; with blocks, the ranks of each share memory besides.
    fn connect_all(&self, listener: TcpListener, blocks: Option<Vec<Vec<usize>>>) -> Result<Group> {
        let nonce = host::nonce();
        let mut mesh = vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.ours.mesh_port)];
        let mut by_rank: Vec<&Guest> = self.guests.iter().collect();
        by_rank.sort_by_key(|g| g.hello.rank);
        for guest in by_rank {
            let seen = guest.stream.peer_addr().map_err(|_| Error::PeerLost { rank: guest.hello.rank })?;
            mesh.push(SocketAddr::new(seen.ip(), guest.hello.mesh_port));
        }
        let arena_bytes = self.all().map(|h| h.arena_bytes).max().unwrap_or(0);
        for block in blocks.iter().flatten() {
            let layout = Layout::new(block.len(), arena_bytes)?;
            check_memory(&layout, self.all().filter(|h| block.contains(&h.rank)))?;
        }
        let way = || match &blocks {
            Some(blocks) => Way::Hosts { mesh: mesh.clone(), blocks: blocks.clone(), arena_bytes },
            None => Way::Tcp { mesh: mesh.clone() },
        };
        for guest in self.guests {
            tell(guest, &Answer::Welcome(self.welcome(nonce, &guest.hello, way())))?;
        }
        let welcome = self.welcome(nonce, self.ours, way());
        if let Some(blocks) = &blocks {
            let at = (&mesh[..], &blocks[..], arena_bytes);
            return several_hosts(self.config, &welcome, at, listener, self.timer);
        }
        let tcp = mesh::join(self.config, &welcome, &mesh, listener, self.timer)?;
        Ok(tcp_group(self.config, tcp))
    }
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
