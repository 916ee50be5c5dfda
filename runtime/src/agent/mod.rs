//! The agent of a node: it dials the service, keeps places, starts and watches ranks, and tells what happened.
//!
//! Decisions are made by the pure [`AgentMachine`]; around it are the [outbox](outbox::Outbox) that keeps what the
//! service has not committed, one supervisor per attempt with its guard process, and the session with the service. The
//! agent's end is its ranks' end: their guards see to that, whatever kills the agent.

mod checkpoint;
mod containment;
mod environment;
mod guard;
mod logs;
pub mod machine;
mod node;
mod outbox;
mod places;
mod redact;
mod session;
mod socket;
mod supervisor;
mod sweep;

pub use checkpoint::{CheckpointError, MANIFEST, Manifest, ManifestFile};
pub use containment::{Containment, containment};
pub use guard::{WorkerMain, guard_main};
pub use machine::AgentMachine;

use crate::store::{DataLock, StoreError};
use checkpoint::Checkpoints;
use containment::MemoryGroups;
use futures_util::future::BoxFuture;
use machine::Output as Out;
use node::Node;
use outbox::Outbox;
use phalanx_core::NodeName;
use phalanx_core::resources::Capacity;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use supervisor::{Ground, Guards};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// The file that this process runs, also where another one has taken its name since: an agent or a guard of another version
/// might not understand who started it.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// A way to the service, and what to say there.
#[derive(Clone, Debug)]
pub struct Connection {
    /// To its gRPC.
    pub channel: Channel,
    /// Sent as `authorization: Bearer TOKEN`.
    pub token: Option<String>,
}

/// Why a connection could not be made, for people.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;
/// Finds the service anew for each try, so that one that moved is found again.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Connection, ConnectError>> + Send + Sync>;
/// Live use of the node's devices, in bytes and percent, in the order of the capacity's devices. Called off the loop.
pub type DeviceUse = Arc<dyn Fn() -> Vec<(u64, f64)> + Send + Sync>;

/// What an agent is started with.
#[derive(Clone)]
pub struct AgentConfig {
    /// The node's name.
    pub node: NodeName,
    /// The agent's own folder, absolute; it holds the lock of it while it lives.
    pub data_dir: PathBuf,
    /// What the node has.
    pub capacity: Capacity,
    /// Where other ranks reach it; `None` for the address of the connection.
    pub address: Option<String>,
    /// After so long without the service the ranks are ended.
    pub node_timeout: Duration,
    /// The binary that has the hidden subcommands `guard` and `worker`.
    pub program: PathBuf,
    /// Overrides what the machine allows.
    pub containment: Option<Containment>,
    /// Ends the agent after `node_timeout` without the service, as the agent of a service on this machine does.
    pub exit_when_alone: bool,
    /// Where the service is.
    pub connect: Connect,
    /// Reads live use of devices; `None` where there is nothing to read.
    pub device_use: Option<DeviceUse>,
}

impl AgentConfig {
    /// A config with the common choices: [`THIS_PROGRAM`], the default node timeout, the best containment.
    pub fn new(node: NodeName, data_dir: PathBuf, capacity: Capacity, connect: Connect) -> AgentConfig {
        AgentConfig {
            node,
            data_dir,
            capacity,
            address: None,
            node_timeout: Duration::from_secs(15),
            program: THIS_PROGRAM.into(),
            containment: None,
            exit_when_alone: false,
            connect,
            device_use: None,
        }
    }
}

impl fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConfig")
            .field("node", &self.node)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

/// Why an agent could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent has the folder, or it cannot be used.
    #[error(transparent)]
    Lock(#[from] StoreError),
    /// The folder cannot be used.
    #[error("cannot {what} `{}`: {error}; check the folder's owner and the disk", .path.display())]
    Folder {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The system refused.
    #[error("cannot become the keeper of orphaned processes: {0}; this needs Linux 3.4 or newer")]
    Subreaper(io::Error),
}

/// The agent of a node.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
}

impl Agent {
    /// An agent that has not started yet.
    pub fn new(config: AgentConfig) -> Agent {
        Agent { config }
    }

    /// Sweeps up after an earlier agent of the folder, then serves until `shutdown`; ends what runs before it returns.
    ///
    /// Makes this process the keeper of its orphaned descendants. Cancel: `shutdown`, then every attempt's grace time.
    /// Error: the folder cannot be used, or another agent has it.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AgentError> {
        let config = Arc::new(self.config);
        let _lock = DataLock::acquire(&config.data_dir, "agent")?;
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| AgentError::Subreaper(error.into()))?;
        let (ground, machine, outputs) = open(&config).await?;
        Node::new(config, ground, machine).run(outputs, shutdown).await;
        Ok(())
    }
}

/// Opens the folder and sweeps it; what is to be said first.
async fn open(config: &AgentConfig) -> Result<(Arc<Ground>, AgentMachine, Vec<Out>), AgentError> {
    let at = |what, path: PathBuf| move |error| AgentError::Folder { what, path, error };
    let outbox_dir = config.data_dir.join("outbox");
    let (outbox, left) = Outbox::open(&outbox_dir).map_err(at("open", outbox_dir))?;
    let root = config.data_dir.join("checkpoints");
    let checkpoints = Checkpoints::open(root.clone()).map_err(at("open", root))?;
    let containment = config.containment.clone().unwrap_or_else(containment);
    let ground = Arc::new(Ground {
        data_dir: config.data_dir.clone(),
        program: config.program.clone(),
        memory_groups: MemoryGroups::detect(&containment),
        containment,
        outbox: Arc::new(outbox),
        checkpoints,
        guards: Guards::default(),
    });
    let swept = ground.clone();
    let swept = tokio::task::spawn_blocking(move || sweep::sweep(&swept))
        .await
        .unwrap_or_else(|error| Err(error.into()));
    let mut cut: BTreeSet<_> = swept.map_err(at("sweep", places::attempts_folder(&config.data_dir)))?;
    if let Containment::Cgroup(parent) = &ground.containment {
        places::note_groups(&config.data_dir, parent).map_err(at("write in", config.data_dir.clone()))?;
    }
    cut.extend(left.open);
    let (machine, outputs) = AgentMachine::restore(left.said.into_iter().collect(), cut);
    Ok((ground, machine, outputs))
}
