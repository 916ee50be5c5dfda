//! A service within this process: the same parts as of `up`, for as long as one `run`, reached without a network.

use crate::agent::device_use;
use crate::client::Route;
use crate::failure::Failure;
use crate::machine::{NodeArgs, node_name};
use crate::output::Output;
use crate::up::wait_for_node;
use phalanx_runtime::agent::{Agent, AgentConfig, AgentError, Connect, Connection};
use phalanx_runtime::service::{Handle, Service, ServiceConfig, Site};
use phalanx_runtime::store::{DataLock, Holder, RecordLimits, StoreError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A local agent joins within milliseconds.
const NODE_BOUND: Duration = Duration::from_secs(10);
/// Between two looks at a folder that another `run` has.
const LOOK: Duration = Duration::from_millis(50);
/// How long the parts may take to end once the job is over.
const STOP_BOUND: Duration = Duration::from_secs(30);
/// What the holder of the folder calls itself when it is another `run`.
const RUN: &str = "run";

/// The parts, running.
pub(crate) struct Embedded {
    channel: Channel,
    service: JoinHandle<Result<(), phalanx_runtime::Error>>,
    agent: JoinHandle<Result<(), AgentError>>,
    stop_service: CancellationToken,
    stop_agent: CancellationToken,
}

impl Embedded {
    /// Starts them on a data folder; one that another `run` has is waited for.
    pub(crate) async fn start(data_dir: &Path, output: &Output) -> Result<Embedded, Failure> {
        let (service, handle) = open(data_dir, output).await?;
        let channel = phalanx_server::in_memory(handle.clone());
        let agent = agent(data_dir, channel.clone());
        let (stop_service, stop_agent) = (CancellationToken::new(), CancellationToken::new());
        let service = tokio::spawn(service.run(stop_service.clone()));
        let mut agent = tokio::spawn(agent.run(stop_agent.clone()));
        tokio::select! {
            () = wait_for_node(&handle) => {}
            ended = &mut agent => {
                let why = match ended {
                    Ok(Err(error)) => error.to_string(),
                    Ok(Ok(())) => "it ended by itself".to_owned(),
                    Err(error) => error.to_string(),
                };
                return Err(Failure::trouble(format!("the agent of this machine failed: {why}")));
            }
            () = tokio::time::sleep(NODE_BOUND) => {
                return Err(Failure::trouble("the agent of this machine did not come up; RUST_LOG=debug says more"));
            }
        }
        Ok(Embedded { channel, service, agent, stop_service, stop_agent })
    }

    /// The way in.
    pub(crate) fn route(&self) -> Route {
        Route::Here { channel: self.channel.clone(), at_rest: false }
    }

    /// Ends them, the service first: it still tells the agent what to end.
    pub(crate) async fn stop(mut self) {
        let stopping = async {
            self.stop_service.cancel();
            let service = (&mut self.service).await;
            self.stop_agent.cancel();
            let agent = (&mut self.agent).await;
            if let Ok(Err(error)) = service {
                tracing::error!(%error, "the embedded service failed");
            }
            if let Ok(Err(error)) = agent {
                tracing::error!(%error, "the agent failed");
            }
        };
        if tokio::time::timeout(STOP_BOUND, stopping).await.is_err() {
            tracing::warn!("something still runs after {STOP_BOUND:?}; its guard ends it");
        }
    }
}

async fn open(data_dir: &Path, output: &Output) -> Result<(Service, Handle), Failure> {
    let config = ServiceConfig {
        data_dir: data_dir.to_owned(),
        embedded: true,
        records: RecordLimits::default(),
        site: Site::default(),
    };
    let mut told = false;
    loop {
        match Service::open(config.clone()).await {
            Err(phalanx_runtime::Error::Store(StoreError::Locked { holder, .. }))
                if holder.purpose == RUN =>
            {
                wait_for(data_dir, &holder, &mut told, output).await?;
            }
            opened => return Ok(opened?),
        }
    }
}

async fn wait_for(data_dir: &Path, holder: &Holder, told: &mut bool, output: &Output) -> Result<(), Failure> {
    // A job that waits for the `run` it is a part of would wait for ever.
    if std::env::var_os("PHALANX_JOB").is_some() {
        return Err(Failure::trouble(format!(
            "{} is in use by process {}, and a job cannot wait for it; give this one a folder with --data",
            data_dir.display(),
            holder.pid
        )));
    }
    if !std::mem::replace(told, true) {
        output.say(&format!(
            "phalanx: waiting for another `phalanx run` (process {}) on {}; --data gives this one a folder of its own",
            holder.pid,
            data_dir.display()
        ));
    }
    while DataLock::holder(data_dir).is_some() {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn agent(data_dir: &Path, channel: Channel) -> Agent {
    let connect: Connect = Arc::new(move || {
        let connection = Connection { channel: channel.clone(), token: None };
        Box::pin(async move { Ok(connection) })
    });
    let capacity = NodeArgs::default().capacity(BTreeMap::new());
    // Apart from the folder of a service's agent, which may outlive its service for a while.
    let mut config = AgentConfig::new(node_name(), data_dir.join("run-agent"), capacity, connect);
    config.device_use = device_use(&config);
    Agent::new(config)
}
