//! `up`: the service, with this machine as its node.

use crate::args::Global;
use crate::client::data_dir;
use crate::failure::{FAILED, Failure};
use crate::machine::{NodeArgs, node_name, own_names};
use crate::output::Output;
use crate::run::Interrupts;
use clap::{Args, ValueEnum};
use phalanx_core::NodeState;
use phalanx_runtime::agent::THIS_PROGRAM;
use phalanx_runtime::service::{Handle, LocalAgent, Service, ServiceConfig};
use phalanx_runtime::store::{Endpoint, RecordLimits};
use phalanx_server::{Identity, Listeners, LocalDoor, Metrics, Tokens};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long the ready line waits for the local node; without it the service is there all the same.
const NODE_BOUND: Duration = Duration::from_secs(5);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx up                                   this machine's CPUs and GPUs
  phalanx up --cpus 4 --gpus 2                 so many of them; GPUs are declared where there are none
  phalanx up --grpc 127.0.0.1:0 --http 127.0.0.1:0 --json
                                               free ports, told in the ready line
  phalanx up --cpus 0                          no local node: agents join from elsewhere
  phalanx up --grpc 0.0.0.0:7421 --http 0.0.0.0:7422 --tls auto
                                               for other machines too; ca_file in the ready line is what they trust
  phalanx up --config site.toml                with queues and settings; SIGHUP reads it again")]
pub(crate) struct UpArgs {
    /// Where gRPC listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7421")]
    grpc: SocketAddr,
    /// Where HTTP listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7422")]
    http: SocketAddr,
    /// Speak TLS with a certificate made for the bound address, under an authority of the service's own
    #[arg(long, value_name = "auto", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls: Option<Auto>,
    /// Speak TLS with this certificate (and those above it), in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A name that others know this machine by: in the certificate, and HTTP answers for it
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Queues and settings; without it config.toml in $XDG_CONFIG_HOME/phalanx or ~/.config/phalanx, if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

/// The certificate is made by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Auto {
    Auto,
}

impl UpArgs {
    fn has_tls(&self) -> bool {
        self.tls.is_some() || self.tls_cert.is_some()
    }

    /// What the service shows to prove who it is, and the file that its clients trust.
    fn identity(&self, global: &Global, data_dir: &Path) -> Result<Option<(Identity, PathBuf)>, Failure> {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            let trusted = global.ca_file.clone().unwrap_or_else(|| cert.clone());
            return Ok(Some((Identity::load(cert, key)?, std::path::absolute(trusted)?)));
        }
        if self.tls.is_none() {
            return Ok(None);
        }
        let addresses = [self.grpc.ip(), self.http.ip()];
        let mut names = own_names();
        names.extend(addresses.iter().filter(|ip| !ip.is_unspecified()).map(ToString::to_string));
        names.extend(self.hosts.iter().cloned());
        names.sort();
        names.dedup();
        Ok(Some(Identity::make(&data_dir.join("tls"), &names)?))
    }

    /// Names that HTTP answers for.
    fn names(&self) -> Vec<String> {
        let named = self.hosts.iter().cloned();
        named.chain(own_names().into_iter().filter(|_| self.has_tls())).collect()
    }
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &UpArgs, output: &Output) -> Result<(), Failure> {
    for address in [args.grpc, args.http] {
        if !address.ip().is_loopback() && !args.has_tls() {
            return Err(Failure::usage(format!(
                "{address} can be reached from other machines, and without TLS whoever listens in between has the token: \
                 add `--tls auto`, or use a loopback address such as 127.0.0.1:{}",
                address.port()
            )));
        }
    }
    let site = crate::config::read(args.config.as_deref(), global)?;
    let data_dir = data_dir(global)?;
    let mut interrupts = Interrupts::listen()?;
    let metrics = Metrics::install().map_err(|error| Failure::failed(error.to_string()))?;
    let config =
        ServiceConfig { data_dir: data_dir.clone(), embedded: false, records: RecordLimits::default(), site };
    // First: who has the folder matters more than who has the port.
    let (service, handle) = Service::open(config).await?;
    let listeners = Listeners {
        grpc: bind(args.grpc, "--grpc").await?,
        http: bind(args.http, "--http").await?,
        local: local_door(&data_dir),
    };
    let tokens = Tokens::load_or_make(&data_dir)?;
    let (tls, ca_file) = args.identity(global, &data_dir)?.unzip();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint {
        grpc: listeners.grpc.local_addr()?.to_string(),
        http: format!("{scheme}://{}", listeners.http.local_addr()?),
        token_file: Tokens::user_file(&data_dir),
        ca_file,
        tls_name: args.hosts.first().filter(|_| args.tls_cert.is_some()).cloned(),
        data: data_dir.clone(),
        pid: std::process::id(),
    };
    service.announce(&endpoint)?;
    tokio::spawn(read_again(handle.clone(), args.config.clone(), global.clone(), interrupts.hangups()));
    let faces = phalanx_server::Config { tokens, metrics, tls, names: args.names() };
    let running = Running::start(service, handle, listeners, faces, local_agent(args, &data_dir));
    running.wait_for_node().await;
    say_ready(&endpoint, output)?;
    running.until(&mut interrupts, output).await
}

/// Reads the configuration again at every SIGHUP; what is wrong with it is said, and then nothing has changed.
///
/// Cancel: with the runtime; a change that was not answered yet is taken over or not, as a whole. Error: none.
async fn read_again(handle: Handle, path: Option<PathBuf>, global: Global, mut hangups: mpsc::Receiver<()>) {
    while hangups.recv().await.is_some() {
        let taken = match crate::config::read(path.as_deref(), &global) {
            Ok(site) => handle.configure(site).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        match taken {
            Ok(()) => tracing::warn!("the configuration was read again"),
            Err(failure) => tracing::error!("the configuration stays as it was: {failure}"),
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("another program has it; choose another with {flag}, or port 0 for a free one")
            }
            _ => format!("choose another with {flag}"),
        };
        Failure::new(FAILED, format!("cannot listen on {address}: {error}; {advice}"))
    })
}

/// Without it the command line comes over TCP and shows the token.
fn local_door(data_dir: &Path) -> Option<LocalDoor> {
    let opened = LocalDoor::open(data_dir);
    opened.inspect_err(|error| tracing::warn!(%error, "no local socket in {}", data_dir.display())).ok()
}

fn say_ready(endpoint: &Endpoint, output: &Output) -> Result<(), Failure> {
    if output.json {
        let mut ready = json!({
            "grpc": endpoint.grpc,
            "http": endpoint.http,
            "token_file": endpoint.token_file,
            "data": endpoint.data,
        });
        if let Some(ca_file) = &endpoint.ca_file {
            ready["ca_file"] = json!(ca_file);
        }
        return output.document(&ready);
    }
    output.line(&format!("phalanx is ready: gRPC {}, dashboard {}/", endpoint.grpc, endpoint.http))
}

fn local_agent(args: &UpArgs, data_dir: &Path) -> Option<LocalAgent> {
    if args.node.cpus == Some(0) {
        return None;
    }
    let agent_dir = data_dir.join("agent");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut agent_args = vec!["agent".to_owned()];
    // The address of the service may change with its next start; its folder does not.
    agent_args.extend(["--service-data".to_owned(), text(data_dir), "--data".to_owned(), text(&agent_dir)]);
    agent_args.extend(["--token-file".to_owned(), text(&Tokens::agent_file(data_dir))]);
    agent_args.extend(["--name".to_owned(), node_name().to_string()]);
    agent_args.extend(args.node.as_flags());
    Some(LocalAgent { program: THIS_PROGRAM.into(), args: agent_args, agent_dir })
}

/// Everything that is under way.
struct Running {
    handle: Handle,
    service: JoinHandle<Result<(), phalanx_runtime::Error>>,
    faces: JoinHandle<Result<(), phalanx_server::Error>>,
    agent: Option<JoinHandle<()>>,
    stop_service: CancellationToken,
    stop_agent: CancellationToken,
    stop_faces: CancellationToken,
}

impl Running {
    fn start(
        service: Service,
        handle: Handle,
        listeners: Listeners,
        config: phalanx_server::Config,
        agent: Option<LocalAgent>,
    ) -> Running {
        let (stop_service, stop_agent, stop_faces) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let faces = phalanx_server::serve(handle.clone(), listeners, config, stop_faces.clone());
        Running {
            handle,
            service: tokio::spawn(service.run(stop_service.clone())),
            faces: tokio::spawn(faces),
            agent: agent.map(|agent| tokio::spawn(agent.run(stop_agent.clone()))),
            stop_service,
            stop_agent,
            stop_faces,
        }
    }

    /// Bounded: an agent that does not come up is no reason to keep the service's address back.
    async fn wait_for_node(&self) {
        if self.agent.is_some() {
            let ready = wait_for_node(&self.handle);
            if tokio::time::timeout(NODE_BOUND, ready).await.is_err() {
                tracing::warn!(
                    "the local node has not joined within {NODE_BOUND:?}; see agent/agent.log in the data folder"
                );
            }
        }
    }

    /// Until it is told to stop or a part of it fails; then one part after the other, each when nobody needs it any more.
    async fn until(mut self, interrupts: &mut Interrupts, output: &Output) -> Result<(), Failure> {
        let failed = tokio::select! {
            () = interrupts.next() => None,
            ended = &mut self.service => Some(ended_early("service", ended)),
            ended = &mut self.faces => Some(ended_early("face", ended)),
        };
        output.say("phalanx: stopping; running jobs get their grace time");
        let stopping = async {
            self.stop_service.cancel();
            if !self.service.is_finished() {
                ended(&mut self.service).await?;
            }
            self.stop_agent.cancel();
            if let Some(agent) = &mut self.agent {
                let _ = agent.await;
            }
            self.stop_faces.cancel();
            if !self.faces.is_finished() {
                ended(&mut self.faces).await?;
            }
            Ok::<_, Failure>(())
        };
        tokio::select! {
            stopped = stopping => failed.map_or(stopped, Err),
            () = interrupts.next() => Err(Failure::failed("stopped at once; what still ran is ended by its guards")),
        }
    }
}

async fn ended<E: std::fmt::Display>(task: &mut JoinHandle<Result<(), E>>) -> Result<(), Failure> {
    match task.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::failed(error.to_string())),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

fn ended_early<E: std::fmt::Display>(
    what: &str,
    ended: Result<Result<(), E>, tokio::task::JoinError>,
) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::failed(format!("the {what} ended by itself")),
        Ok(Err(error)) => Failure::failed(format!("the {what} failed: {error}")),
        Err(error) => Failure::failed(format!("the {what} failed: {error}")),
    }
}

/// Until a node is there.
pub(crate) async fn wait_for_node(handle: &Handle) {
    loop {
        if let Ok(nodes) = handle.nodes().await
            && nodes.iter().any(|node| node.state != NodeState::Lost)
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
