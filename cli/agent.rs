//! `agent`: this machine as a node of a service.

use crate::args::Global;
use crate::client::{Trust, channel, data_dir, given_token_file, reach};
use crate::failure::{FAILED, Failure};
use crate::machine::{NodeArgs, node_name};
use crate::output::Output;
use crate::run::Interrupts;
use clap::Args;
use phalanx_api::v1::agents_client::AgentsClient;
use phalanx_core::NodeName;
use phalanx_runtime::agent::{Agent, AgentConfig, Connect, ConnectError, Connection, DeviceUse};
use phalanx_runtime::store::Endpoint;
use phalanx_server::Tokens;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx token --agent > join.token           on the service's machine
  phalanx agent --server HOST:7421 --token-file join.token --name gpu1
  phalanx agent --server HOST:7421 --token-file join.token --cpus 8 --label rack=r1
  phalanx agent --server HOST:7421 --token-file join.token --ca-file ca.pem
                                               a service that speaks TLS, as one on another machine does")]
pub(crate) struct AgentArgs {
    /// The node's name [default: this machine's]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<NodeName>,
    #[command(flatten)]
    node: NodeArgs,
    /// A label that selectors match
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Where the other nodes reach this one [default: the address of its connection]
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// The data folder of a service on this machine, instead of its address
    #[arg(long, value_name = "DIR", hide = true)]
    service_data: Option<PathBuf>,
}

fn parse_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: phalanx_core::id::IdError| error.to_string())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let label = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let label = label.ok_or_else(|| format!("`{text}` is not of the form KEY=VALUE"))?;
    Ok((label.0.to_owned(), label.1.to_owned()))
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &AgentArgs, output: &Output) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen()?;
    let folder = data_dir(global)?;
    // The local agent is given a folder of its own; one that a person starts keeps apart from a service's records.
    let agent_dir = if args.service_data.is_some() { folder.clone() } else { folder.join("agent") };
    let name = args.name.clone().unwrap_or_else(node_name);
    let token_file = given_token_file(global).unwrap_or_else(|| Tokens::agent_file(&folder));
    let server = global.server.clone().filter(|server| !server.is_empty());
    let (connect, on_this_machine) = match (server, args.service_data.clone()) {
        (_, Some(service_data)) => (to_folder(service_data, token_file), true),
        (Some(server), None) => {
            let trust = Trust::given(global);
            try_to_join(&server, &token_file, &trust).await?;
            (to_address(server, token_file, trust), false)
        }
        (None, None) => return Err(Failure::usage("which service? name it with --server HOST:PORT")),
    };
    let labels: BTreeMap<String, String> = args.labels.iter().cloned().collect();
    let mut config = AgentConfig::new(name.clone(), agent_dir, args.node.capacity(labels), connect);
    config.address = args.address.clone();
    config.exit_when_alone = on_this_machine;
    config.device_use = device_use(&config);
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn(Agent::new(config).run(shutdown.clone()));
    tokio::pin!(agent);
    if !on_this_machine {
        match output.json {
            true => output.document(&json!({ "node": name.as_str() }))?,
            false => output.line(&format!("phalanx agent is ready: node {name}"))?,
        }
    }
    let ended = tokio::select! {
        ended = &mut agent => ended,
        () = interrupts.next() => {
            shutdown.cancel();
            tokio::select! {
                ended = &mut agent => ended,
                () = interrupts.next() => return Err(Failure::failed("stopped at once; what still ran is ended by its guards")),
            }
        }
    };
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(FAILED, error.to_string())),
        Err(error) => Err(Failure::new(FAILED, error.to_string())),
    }
}

/// A wrong address or token is told at once instead of being tried for ever.
async fn try_to_join(server: &str, token_file: &std::path::Path, trust: &Trust) -> Result<(), Failure> {
    let token = Tokens::read(token_file)?;
    let bearer =
        format!("Bearer {token}").parse().map_err(|_| Failure::failed("the token is not plain text"))?;
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.metadata_mut().insert("authorization", bearer);
    match AgentsClient::new(channel(server, trust).await?).connect(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::Unauthenticated => Err(Failure::failed(format!(
            "the service at {server} refused the token in {}; `phalanx token --agent` prints the right one there",
            token_file.display()
        ))),
        Err(status) => Err(status.into()),
    }
}

fn to_address(server: String, token_file: PathBuf, trust: Trust) -> Connect {
    Arc::new(move || {
        let (server, token_file, trust) = (server.clone(), token_file.clone(), trust.clone());
        Box::pin(async move { connect(&server, &token_file, &trust).await })
    })
}

/// To whichever service runs on the folder by then.
fn to_folder(service_data: PathBuf, token_file: PathBuf) -> Connect {
    Arc::new(move || {
        let (service_data, token_file) = (service_data.clone(), token_file.clone());
        Box::pin(async move {
            let gone = || format!("no service runs on {}", service_data.display());
            let endpoint = Endpoint::read(&service_data).ok_or_else(gone)?;
            let (server, trust) = reach(&endpoint);
            connect(&server, &token_file, &trust).await
        })
    })
}

async fn connect(
    server: &str,
    token_file: &std::path::Path,
    trust: &Trust,
) -> Result<Connection, ConnectError> {
    let token = Tokens::read(token_file)?;
    let channel = channel(server, trust).await.map_err(|failure| failure.to_string())?;
    Ok(Connection { channel, token: Some(token) })
}

/// Live use of the node's devices; nothing to read where they are declared only.
pub(crate) fn device_use(config: &AgentConfig) -> Option<DeviceUse> {
    let indices: Vec<u32> = config.capacity.devices.iter().map(|device| device.index).collect();
    phalanx_gpu::usage(*indices.first()?)?;
    Some(Arc::new(move || {
        let used = indices.iter().map(|&index| phalanx_gpu::usage(index).unwrap_or_default());
        let figures = used.map(|usage| {
            (usage.memory_used_bytes.unwrap_or(0), f64::from(usage.utilization_percent.unwrap_or(0)))
        });
        figures.collect()
    }))
}
