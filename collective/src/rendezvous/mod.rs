//! How ranks meet: rank 0 listens at the master address, the others come to it, and it says how to go on.

mod desk;
mod guest;
pub(crate) mod host;
pub(crate) mod wire;

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Transport;
use crate::arena::Arena;
use crate::backend::{Call, Deadline};
use crate::communicator::Group;
use crate::config::Config;
use crate::error::{AbortReason, Error, Result};
use crate::fault::{Cause, Fault};
use crate::recorder::{LogRef, now_ns};
use crate::shm::{Segment, Shm, ShmFault};
use crate::tcp::Tcp;
pub(crate) use desk::is_gone;
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

/// Meets the other ranks of a world of two or more.
pub(crate) fn meet(config: &Config) -> Result<Group> {
    let timer = Timer { start: Instant::now(), timeout: config.rendezvous_timeout };
    let mut group = match config.rank {
        0 => desk::receive(config, timer)?,
        _ => guest::visit(config, timer)?,
    };
    // Nobody goes on before all have what they need.
    let call = Call::barrier();
    let deadline = Deadline::new(now_ns(), timer.left().unwrap_or(Duration::ZERO));
    // SAFETY: a barrier has no data.
    match unsafe { group.backend.run(&call, 0, deadline) } {
        Ok(()) => {
            group.backend.settle();
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

fn hello(config: &Config, mesh_port: u16) -> Hello {
    Hello {
        rank: config.rank,
        world: config.world,
        epoch: config.epoch,
        fingerprint: config.fingerprint.clone(),
        host: host::identity(),
        cpus: host::cpus().into_iter().collect(),
        transport: config.transport,
        arena_bytes: config.arena_bytes,
        host_free_bytes: crate::memory::free_on_host(),
        free_bytes: crate::memory::free(),
        mesh_port,
    }
}

/// This rank's end of shared memory that all have now.
fn shm_group(
    config: &Config,
    welcome: &Welcome,
    (segment, memory): (Segment, OwnedFd),
    pidfds: Vec<(usize, OwnedFd)>,
) -> Result<Group> {
    let segment = Arc::new(segment);
    segment.claim(config.rank, &memory).inspect_err(|_| {
        // The others wait for this rank.
        let cause = Cause::Aborted { rank: config.rank, reason: AbortReason::Broken };
        ShmFault { segment: segment.clone() }.poison(cause);
    })?;
    // SAFETY: the logs lie in the segment, zeroed or in use, and it is kept alive.
    let log = |rank| unsafe { LogRef::new(segment.log(rank), segment.clone()) };
    let bytes = segment.layout.arena_bytes;
    // SAFETY: this rank's arena is zeroed, page-aligned, and cut up here only.
    let arena = unsafe { Arena::new(segment.arena(config.rank), bytes, segment.clone()) };
    Ok(Group {
        transport: Transport::Shm,
        own_log: log(config.rank),
        logs: (0..config.world).map(|rank| (rank, log(rank))).collect(),
        arena: Some(Arc::new(arena)),
        backend: Box::new(Shm::new(segment.clone(), config.rank, welcome.host_cpus, pidfds)?),
    })
}

fn tcp_group(config: &Config, tcp: Tcp) -> Group {
    let log = LogRef::local();
    Group {
        transport: Transport::Tcp,
        own_log: log.clone(),
        logs: vec![(config.rank, log)],
        arena: None,
        backend: Box::new(tcp),
    }
}
