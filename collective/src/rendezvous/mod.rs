//! How ranks meet: rank 0 listens at the master address, the others come to it, and it says how to go on.

mod desk;
mod guest;
mod held;
pub(crate) mod host;
pub(crate) mod wire;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Transport;
use crate::arena::Arena;
use crate::backend::{Backend, Call, Deadline};
use crate::communicator::Group;
use crate::config::{Config, TransportChoice};
use crate::error::{AbortReason, Error, Result};
use crate::fault::{Cause, Fault};
use crate::hosts::Hosts;
use crate::nccl::{Nccl, Prepared, UniqueId};
use crate::recorder::{LogRef, now_ns};
use crate::shm::{Layout, Offer, Segment, Shm, ShmFault, fetch};
use crate::tcp::{Tcp, mesh};
pub(crate) use desk::is_gone;
pub use held::HeldPort;
use wire::{Hello, Welcome};

/// How long the whole may take.
#[derive(Clone, Copy)]
pub(crate) struct Timer {
    start: Instant,
    timeout: Duration,
}

impl Timer {
    pub(crate) fn left(&self) -> Option<Duration> {
        self.timeout.checked_sub(self.start.elapsed()).filter(|left| !left.is_zero())
    }

    pub(crate) fn timed_out(&self, missing: Vec<usize>) -> Error {
        Error::RendezvousTimeout { missing, waited_ms: self.start.elapsed().as_millis() as u64 }
    }
}

/// A group, and the id with which its GPUs meet.
type Met = (Group, Option<UniqueId>);

/// Meets the other ranks of a world of two or more.
pub(crate) fn meet(config: &Config) -> Result<Group> {
    let timer = Timer { start: Instant::now(), timeout: config.rendezvous_timeout };
    let wants_nccl = config.transport == TransportChoice::Nccl;
    let prepared = wants_nccl.then(|| Prepared::new(config.device)).transpose();
    let lacks = prepared.as_ref().err().map(ToString::to_string);
    let met = match config.rank {
        0 => desk::receive(config, timer, &prepared),
        _ => guest::visit(config, timer, lacks),
    };
    // What this rank lacks is the better word for it than that rank 0 refused it.
    let prepared = prepared?;
    let (mut group, nccl_id) = met?;
    // Nobody goes on before all have what they need.
    let call = Call::barrier();
    let deadline = Deadline::new(now_ns(), timer.left().unwrap_or(Duration::ZERO));
    // SAFETY: a barrier has no data.
    match unsafe { group.backend.run(&call, 0, deadline) } {
        Ok(()) => {
            group.backend.settle();
            if let (Some(prepared), Some(id)) = (prepared, nccl_id) {
                let (fault, deadline) = (group.backend.fault(), Deadline::new(now_ns(), config.op_timeout));
                group.nccl = Some(Nccl::join(prepared, (config.rank, config.world), id, fault, deadline)?);
                group.transport = Transport::Nccl;
                // SAFETY: a barrier has no data.
                unsafe { group.backend.run(&call, 0, deadline)? };
            }
            Ok(group)
        }
        Err(Error::Timeout { missing, .. }) => Err(timer.timed_out(missing)),
        Err(error) => Err(error),
    }
}

fn addresses(config: &Config) -> Result<Vec<SocketAddr>> {
    let what = || format!("resolving the master address {}", config.master_addr);
    let found = (config.master_addr.as_str(), config.master_port).to_socket_addrs();
    let found: Vec<SocketAddr> = found.map_err(|e| Error::system(what(), e))?.collect();
    if found.is_empty() { Err(Error::system(what(), "no address found")) } else { Ok(found) }
}

/// Where a rank waits for its peers should they meet over TCP.
fn mesh_listener(ip: IpAddr) -> Result<TcpListener> {
    TcpListener::bind((ip, 0)).map_err(|e| Error::system(format!("listening for other ranks at {ip}"), e))
}

fn port(listener: &TcpListener) -> Result<u16> {
    listener.local_addr().map(|a| a.port()).map_err(|e| Error::system("asking for a port's number", e))
}

fn hello(config: &Config, mesh_port: u16, no_nccl: Option<String>) -> Hello {
    Hello {
        rank: config.rank,
        world: config.world,
        epoch: config.epoch,
        fingerprint: config.fingerprint.clone(),
        host: config.host.clone().map_or_else(host::identity, |name| format!("named {name}")),
        cpus: host::cpus().into_iter().collect(),
        transport: config.transport,
        no_nccl,
        arena_bytes: config.arena_bytes,
        wire: config.wire,
        tcp_streams: config.tcp_streams,
        host_free_bytes: crate::memory::free_on_host(),
        free_bytes: crate::memory::free(),
        mesh_port,
    }
}

/// Memory that the ranks of a host share: all of the group, or a part of it.
struct Shared {
    /// Who shares it, in order.
    ranks: Vec<usize>,
    segment: Segment,
    memory: OwnedFd,
    /// Of the others.
    pidfds: Vec<(usize, OwnedFd)>,
}

/// This rank's end of shared memory that all of them have now.
fn shm_backend(config: &Config, welcome: &Welcome, shared: Shared) -> Result<(Arc<Segment>, Shm)> {
    let Shared { ranks, segment, memory, pidfds } = shared;
    let segment = Arc::new(segment);
    let place = ranks.iter().position(|&rank| rank == config.rank).unwrap_or(0);
    segment.claim(place, &memory).inspect_err(|_| {
        // The others wait for this rank.
        let cause = Cause::Aborted { rank: config.rank, reason: AbortReason::Broken };
        ShmFault { segment: segment.clone(), ranks: ranks.clone() }.poison(cause);
    })?;
    let shm = Shm::new(segment.clone(), (config.rank, ranks), welcome.host_cpus, pidfds)?;
    Ok((segment, shm))
}

/// A group whose memory is shared by `ranks`.
fn shm_group(
    config: &Config,
    transport: Transport,
    (segment, ranks): (Arc<Segment>, &[usize]),
    backend: Box<dyn Backend>,
) -> Group {
    // SAFETY: the logs lie in the segment, zeroed or in use, and it is kept alive.
    let log = |place| unsafe { LogRef::new(segment.log(place), segment.clone()) };
    let place = ranks.iter().position(|&rank| rank == config.rank).unwrap_or(0);
    let bytes = segment.layout.arena_bytes;
    // SAFETY: this rank's arena is zeroed, page-aligned, and cut up here only.
    let arena = unsafe { Arena::new(segment.arena(place), bytes, segment.clone()) };
    Group {
        transport,
        nccl: None,
        own_log: log(place),
        logs: ranks.iter().enumerate().map(|(place, &rank)| (rank, log(place))).collect(),
        arena: Some(Arc::new(arena)),
        backend,
    }
}

/// All ranks are on one host.
fn one_host(config: &Config, welcome: &Welcome, shared: Shared) -> Result<Group> {
    let ranks = shared.ranks.clone();
    let (segment, shm) = shm_backend(config, welcome, shared)?;
    Ok(shm_group(config, Transport::Shm, (segment, &ranks), Box::new(shm)))
}

/// Several hosts, each with a block of ranks: the first of a block makes the memory that it shares.
fn several_hosts(
    config: &Config,
    welcome: &Welcome,
    (mesh, blocks, arena_bytes): (&[SocketAddr], &[Vec<usize>], usize),
    listener: TcpListener,
    timer: Timer,
) -> Result<Group> {
    let host = blocks.iter().position(|block| block.contains(&config.rank));
    let Some((host, block)) = host.map(|host| (host, &blocks[host])) else {
        return Err(Error::Corrupt { rank: 0, what: "a host for every rank but this one".into() });
    };
    let door = format!("phalanx-collective-{:016x}-{host}", welcome.nonce);
    let layout = Layout::new(block.len(), arena_bytes)?;
    let shared = if block[0] == config.rank {
        let (segment, memory) = Segment::create(layout)?;
        let offer = Offer::open_at(door, welcome.nonce)?;
        let others: Vec<(usize, Option<&TcpStream>)> = block[1..].iter().map(|&rank| (rank, None)).collect();
        let pidfds = offer.serve((config.rank, &memory), &others, timer)?;
        Shared { ranks: block.clone(), segment, memory, pidfds }
    } else {
        let (memory, pidfds) =
            fetch((&door, block[0]), welcome.nonce, (config.rank, block.len() - 1), timer)?;
        Shared { ranks: block.clone(), segment: Segment::map(&memory, layout)?, memory, pidfds }
    };
    let (segment, shm) = shm_backend(config, welcome, shared)?;
    let tcp = mesh::join(config, welcome, mesh, listener, timer)?;
    let hosts = Hosts::new(shm, tcp, config.rank, blocks);
    Ok(shm_group(config, Transport::Hosts, (segment, block), Box::new(hosts)))
}

fn tcp_group(config: &Config, tcp: Tcp) -> Group {
    let log = LogRef::local();
    Group {
        transport: Transport::Tcp,
        nccl: None,
        own_log: log.clone(),
        logs: vec![(config.rank, log)],
        arena: None,
        backend: Box::new(tcp),
    }
}
