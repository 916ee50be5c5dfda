//! The way to a service: which one is meant, and one client for all of them.
//!
//! `--server` (or `PHALANX_SERVER`) names one; else one that runs on the data folder now is taken; else there is none,
//! and commands that only read open the records at rest, through the same client.

use crate::args::Global;
use crate::failure::Failure;
use phalanx_api::v1 as pb;
use phalanx_api::v1::cluster_client::ClusterClient;
use phalanx_api::v1::jobs_client::JobsClient;
use phalanx_api::v1::sweeps_client::SweepsClient;
use phalanx_core::limits::WIRE_MESSAGE_BYTES;
use phalanx_runtime::service::Handle;
use phalanx_runtime::store::Endpoint;
use phalanx_server::{LocalDoor, Tokens};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

/// A service that cannot be reached by then is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A service that answers no ping by then is away.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Transport = InterceptedService<Channel, Bearer>;

/// A connection to a service, or to records at rest.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) jobs: JobsClient<Transport>,
    pub(crate) sweeps: SweepsClient<Transport>,
    pub(crate) cluster: ClusterClient<Transport>,
}

impl Client {
    fn new(channel: Channel, token: Option<MetadataValue<Ascii>>) -> Self {
        let transport = InterceptedService::new(channel, Bearer(token));
        Client {
            jobs: JobsClient::new(transport.clone()).max_decoding_message_size(2 * WIRE_MESSAGE_BYTES),
            sweeps: SweepsClient::new(transport.clone()).max_decoding_message_size(2 * WIRE_MESSAGE_BYTES),
            cluster: ClusterClient::new(transport).max_decoding_message_size(2 * WIRE_MESSAGE_BYTES),
        }
    }

    /// One job as it is now.
    pub(crate) async fn job(&self, id: &str) -> Result<pb::Job, Status> {
        let request = pb::GetJobRequest { id: id.to_owned() };
        Ok(self.jobs.clone().get(request).await?.into_inner())
    }
}

/// How a service is found, again after it was away.
#[derive(Clone)]
pub(crate) enum Route {
    /// A service by its address.
    Address {
        /// HOST:PORT.
        server: String,
        /// The file with its token.
        token_file: PathBuf,
        /// Whom to trust to vouch for it.
        trust: Trust,
    },
    /// Whichever service runs on the data folder; its address may change with every start.
    Folder {
        /// The data folder.
        data_dir: PathBuf,
    },
    /// Within this process.
    Here {
        /// The way in.
        channel: Channel,
        /// No service runs: these are records at rest.
        at_rest: bool,
    },
}

impl Route {
    /// The service that the flags mean, if there is one.
    pub(crate) fn to_service(global: &Global) -> Result<Option<Route>, Failure> {
        let data_dir = data_dir(global)?;
        if let Some(server) = global.server.as_deref().filter(|server| !server.is_empty()) {
            let token_file = given_token_file(global).unwrap_or_else(|| Tokens::user_file(&data_dir));
            let trust = Trust::given(global);
            return Ok(Some(Route::Address { server: server.to_owned(), token_file, trust }));
        }
        Ok(Endpoint::read(&data_dir).map(|_| Route::Folder { data_dir }))
    }

    /// The service that the flags mean, which must be there: the command changes something.
    pub(crate) fn to_live_service(global: &Global) -> Result<Route, Failure> {
        let none = || {
            let data_dir = data_dir(global).unwrap_or_default();
            Failure::trouble(format!(
                "no service runs on {}; start one with `phalanx up`, or name one with --server",
                data_dir.display()
            ))
        };
        Route::to_service(global)?.ok_or_else(none)
    }

    /// The service that the flags mean, or the records in the data folder.
    pub(crate) async fn to_records(global: &Global) -> Result<Route, Failure> {
        if let Some(route) = Route::to_service(global)? {
            return Ok(route);
        }
        let handle = Handle::read_only(&data_dir(global)?).await?;
        Ok(Route::Here { channel: phalanx_server::in_memory(handle), at_rest: true })
    }

    /// Whether there is a service that changes anything.
    pub(crate) fn is_live(&self) -> bool {
        !matches!(self, Route::Here { at_rest: true, .. })
    }

    /// Whether the service may come back after it was away.
    pub(crate) fn may_come_back(&self) -> bool {
        !matches!(self, Route::Here { .. })
    }

    /// What to add to a command line to get to the same service.
    pub(crate) fn flags(&self) -> String {
        match self {
            Route::Address { server, trust, .. } => {
                let ca = trust.ca_file.as_ref().map(|file| format!(" --ca-file {}", file.display()));
                format!(" --server {server}{}", ca.unwrap_or_default())
            }
            Route::Folder { .. } | Route::Here { .. } => String::new(),
        }
    }

    /// A client for it.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        match self {
            Route::Address { server, token_file, trust } => {
                dial(server, token_file, trust, "--token-file or PHALANX_TOKEN_FILE").await
            }
            Route::Folder { data_dir } => {
                let gone =
                    || Failure::trouble(format!("the service on {} is not running", data_dir.display()));
                let endpoint = Endpoint::read(data_dir).ok_or_else(gone)?;
                if let Some(channel) = by_local_door(data_dir).await {
                    return Ok(Client::new(channel, None));
                }
                let (server, trust) = reach(&endpoint);
                dial(&server, &endpoint.token_file, &trust, "the data folder").await
            }
            Route::Here { channel, .. } => Ok(Client::new(channel.clone(), None)),
        }
    }
}

async fn dial(server: &str, token_file: &Path, trust: &Trust, source: &str) -> Result<Client, Failure> {
    let token = Tokens::read(token_file)
        .map_err(|error| Failure::trouble(format!("no token for {server}: {error} (named by {source})")))?;
    let token =
        format!("Bearer {token}").parse().map_err(|_| Failure::trouble("the token is not plain text"))?;
    Ok(Client::new(channel(server, trust).await?, Some(token)))
}

/// Whom a client trusts to vouch for a service; without a file it speaks no TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    ca_file: Option<PathBuf>,
    /// The name in the service's certificate, where that is not its address.
    name: Option<String>,
}

impl Trust {
    /// As the flags say.
    pub(crate) fn given(global: &Global) -> Trust {
        let ca_file = global.ca_file.clone().filter(|path| !path.as_os_str().is_empty());
        Trust { ca_file, name: None }
    }
}

/// How a program on the service's own machine reaches it: one that listens on all addresses does so on the loopback too.
pub(crate) fn reach(endpoint: &Endpoint) -> (String, Trust) {
    let server = match endpoint.grpc.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => match address {
            SocketAddr::V4(_) => format!("127.0.0.1:{}", address.port()),
            SocketAddr::V6(_) => format!("[::1]:{}", address.port()),
        },
        _ => endpoint.grpc.clone(),
    };
    (server, Trust { ca_file: endpoint.ca_file.clone(), name: endpoint.tls_name.clone() })
}

/// A connection by the socket in the data folder; none where there is no socket, or where it is another user's.
async fn by_local_door(data_dir: &Path) -> Option<Channel> {
    let address = format!("unix:{}", LocalDoor::path(data_dir).to_str()?);
    kept_alive(tonic::transport::Endpoint::from_shared(address).ok()?).connect().await.ok()
}

fn kept_alive(endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
}

/// A connection to an address, made now, so that a service that is away is told at once.
pub(crate) async fn channel(server: &str, trust: &Trust) -> Result<Channel, Failure> {
    let wrong =
        || Failure::usage(format!("`{server}` is not the address of a service; write it as HOST:PORT"));
    if !server.contains(':') || server.contains('/') {
        return Err(wrong());
    }
    let scheme = if trust.ca_file.is_some() { "https" } else { "http" };
    let mut endpoint =
        tonic::transport::Endpoint::from_shared(format!("{scheme}://{server}")).map_err(|_| wrong())?;
    if let Some(ca_file) = &trust.ca_file {
        endpoint = with_tls(endpoint, ca_file, trust.name.as_deref())?;
    }
    kept_alive(endpoint).tcp_nodelay(true).connect().await.map_err(|error| {
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        let causes: String = causes.map(|cause| format!(": {cause}")).collect();
        let advice = match &trust.ca_file {
            Some(ca_file) => format!("is it up, and does {} vouch for it?", ca_file.display()),
            None => "is it up? One that speaks TLS needs --ca-file".to_owned(),
        };
        Failure::trouble(format!("cannot reach the service at {server}{causes}; {advice}"))
    })
}

fn with_tls(
    endpoint: tonic::transport::Endpoint,
    ca_file: &Path,
    name: Option<&str>,
) -> Result<tonic::transport::Endpoint, Failure> {
    let unusable =
        |error: String| Failure::failed(format!("cannot use the CA file {}: {error}", ca_file.display()));
    let pem = std::fs::read(ca_file).map_err(|error| unusable(error.to_string()))?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    if let Some(name) = name {
        tls = tls.domain_name(name);
    }
    endpoint.tls_config(tls).map_err(|error| unusable(error.to_string()))
}

/// The token file that the flags name.
pub(crate) fn given_token_file(global: &Global) -> Option<PathBuf> {
    global.token_file.clone().filter(|path| !path.as_os_str().is_empty())
}

/// The data folder that the flags mean, as an absolute path.
pub(crate) fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    let given = global.data.clone().filter(|path| !path.as_os_str().is_empty());
    let found = given.or_else(|| {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder =
            variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
        folder.map(|folder| folder.join("phalanx"))
    });
    let found =
        found.ok_or_else(|| Failure::usage("there is no data folder: set HOME, or name one with --data"))?;
    Ok(std::path::absolute(found)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_address_is_wrong_usage() {
        for server in ["", "host", "http://host:1", "host:port:1/x", "a b:1"] {
            assert_eq!(
                channel(server, &Trust::default()).await.unwrap_err().code,
                crate::failure::USAGE,
                "{server}"
            );
        }
    }
}
