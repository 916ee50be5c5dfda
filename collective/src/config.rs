//! Who meets whom, where and for how long.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bound on the ranks of one group.
pub const MAX_WORLD: usize = 1024;
/// Bound on the connections for data between two ranks.
pub const MAX_STREAMS: usize = 8;
/// Connections for data between two ranks over a wire, unless said otherwise.
pub const WIRE_STREAMS: usize = 4;
/// How long ranks wait for one another to start, unless said otherwise.
pub const DEFAULT_RENDEZVOUS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an operation waits for a peer, unless said otherwise: rank 0 may be writing a large checkpoint meanwhile.
pub const DEFAULT_OP_TIMEOUT: Duration = Duration::from_secs(600);

/// Which transport to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// Shared memory where all ranks are on one host. With several hosts of as many ranks each, a power of two, shared memory
    /// on the hosts and TCP between them; else TCP.
    #[default]
    Auto,
    /// Shared memory, or an error.
    Shm,
    /// TCP.
    Tcp,
    /// NCCL between the ranks' GPUs for [device memory](crate::Communicator::on_device), or an error; for host memory as
    /// `Auto`.
    Nccl,
}

/// In how many bits f32 go over a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// All of them.
    #[default]
    Exact,
    /// As bf16, in large reductions: half the bytes, and a relative error of up to 2^-8 of each contribution and of the
    /// result. They are folded in f32, and every rank has the same bits.
    Bf16,
}

/// How a group meets. `rank`, `world`, `epoch`, the master's address and `fingerprint` describe the group and must agree.
#[derive(Clone, Debug)]
pub struct Config {
    /// This process's place in the group, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Generation of the group: ranks of another epoch are turned away.
    pub epoch: u64,
    /// Host name or address at which rank 0 listens.
    pub master_addr: String,
    /// Port at which rank 0 listens.
    pub master_port: u16,
    /// How long [`connect`](crate::Communicator::connect) may take.
    pub rendezvous_timeout: Duration,
    /// Raised where it is known meanwhile that a rank will not come: the rendezvous ends as at its deadline.
    pub give_up: Option<Arc<AtomicBool>>,
    /// How long an operation may wait for its peers.
    pub op_timeout: Duration,
    /// Which transport to take; every rank's wish counts, and contrary ones are an error.
    pub transport: TransportChoice,
    /// In how many bits f32 go between hosts; all ranks must agree.
    pub wire: Wire,
    /// TCP connections for data between every two ranks, up to [`MAX_STREAMS`]; 0 for one on a host and
    /// [`WIRE_STREAMS`] over a wire, where one alone may not fill it. The largest that any rank asks for is taken.
    pub tcp_streams: usize,
    /// Name of this rank's host. Ranks of one name share memory, so they must be able to; `None` finds out. Giving names
    /// splits a host, say by NUMA node.
    pub host: Option<String>,
    /// Which of the GPUs that this process sees is this rank's, for [`TransportChoice::Nccl`].
    pub device: usize,
    /// Hash (or text) of whatever all ranks must have in common; a difference is [`Error::ConfigMismatch`] on every rank.
    pub fingerprint: String,
    /// Folder for this rank's flight recorder, whose page there outlives the process; `None` keeps it in memory only.
    pub flight_dir: Option<PathBuf>,
    /// Room for [`ArenaBuffer`](crate::ArenaBuffer)s of each rank in bytes; the largest that any rank asks for is taken.
    pub arena_bytes: usize,
}

impl Config {
    /// Rank `rank` of `world` at `127.0.0.1:29500` with the default timeouts and no arena.
    pub fn new(rank: usize, world: usize) -> Self {
        Config {
            rank,
            world,
            epoch: 0,
            master_addr: "127.0.0.1".into(),
            master_port: 29500,
            rendezvous_timeout: DEFAULT_RENDEZVOUS_TIMEOUT,
            give_up: None,
            op_timeout: DEFAULT_OP_TIMEOUT,
            transport: TransportChoice::Auto,
            wire: Wire::Exact,
            tcp_streams: 0,
            host: None,
            device: 0,
            fingerprint: String::new(),
            flight_dir: None,
            arena_bytes: 0,
        }
    }

    /// From the torchrun contract: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, and as the epoch
    /// `PHALANX_ATTEMPT`, else `TORCHELASTIC_RESTART_COUNT`, else 0. The flight recorder goes to `PHALANX_SCRATCH`, where
    /// the agent reads it after a death. Without `WORLD_SIZE` it is a world of one.
    ///
    /// `var` looks a variable up: `|name| std::env::var(name).ok()`.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the variable that is missing or not a number.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let Some(text) = var(name) else { return Ok(None) };
            let parsed = text.trim().parse();
            parsed
                .map(Some)
                .map_err(|_| Error::invalid(format!("{name} is `{text}`; set it to a whole number")))
        };
        let Some(world) = number("WORLD_SIZE")? else { return Ok(Config::new(0, 1)) };
        let missing = |name: &str| Error::invalid(format!("{name} is not set though WORLD_SIZE is; set it"));
        let mut config =
            Config::new(number("RANK")?.ok_or_else(|| missing("RANK"))? as usize, world as usize);
        if world > 1 {
            config.master_addr = var("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?;
            let port = number("MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT"))?;
            config.master_port = u16::try_from(port).map_err(|_| {
                Error::invalid(format!("MASTER_PORT is {port}; set it to a port below 65536"))
            })?;
        }
        config.epoch = match number("PHALANX_ATTEMPT")? {
            Some(attempt) => attempt,
            None => number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0),
        };
        // A rank that sees one GPU has it; where all see all, each takes the one of its place.
        let sees_one =
            var("CUDA_VISIBLE_DEVICES").is_some_and(|list| !list.is_empty() && !list.contains(','));
        if !sees_one {
            config.device = number("LOCAL_RANK")?.unwrap_or(0) as usize;
        }
        config.flight_dir = var("PHALANX_SCRATCH").filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(config)
    }

    /// Whether to wait for nobody any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.give_up.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Checks what this rank can check alone.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.world == 0 || self.world > MAX_WORLD {
            return Err(Error::invalid(format!(
                "the world size is {}; set it to 1 to {MAX_WORLD}",
                self.world
            )));
        }
        if self.rank >= self.world {
            let text =
                format!("rank {} is not below the world size {}; count ranks from 0", self.rank, self.world);
            return Err(Error::invalid(text));
        }
        if self.tcp_streams > MAX_STREAMS {
            let text = format!("{} TCP streams are too many; ask for up to {MAX_STREAMS}", self.tcp_streams);
            return Err(Error::invalid(text));
        }
        if self.world > 1 && self.master_port == 0 {
            return Err(Error::invalid(
                "the master port is 0; set MASTER_PORT to the port on which rank 0 listens",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_string())
    }

    #[test]
    fn the_torchrun_contract_is_read() {
        let all = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "h"),
            ("MASTER_PORT", "81"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
        ];
        let c = Config::from_env(env(&all)).unwrap();
        assert_eq!((c.rank, c.world, c.epoch, c.master_addr.as_str(), c.master_port), (1, 2, 3, "h", 81));
        assert_eq!(Config::from_env(env(&[])).unwrap().world, 1);
        let e = Config::from_env(env(&all[1..])).unwrap_err();
        assert!(e.to_string().contains("RANK is not set"), "{e}");
        let e = Config::from_env(env(&[("WORLD_SIZE", "two")])).unwrap_err();
        assert!(e.to_string().contains("WORLD_SIZE is `two`"), "{e}");
    }

    #[test]
    fn impossible_groups_are_refused() {
        assert!(Config::new(2, 2).validate().is_err());
        assert!(Config::new(0, 0).validate().is_err());
        assert!(Config::new(0, MAX_WORLD + 1).validate().is_err());
        assert!(Config { master_port: 0, ..Config::new(0, 2) }.validate().is_err());
        assert!(Config::new(0, 1).validate().is_ok());
    }
}
