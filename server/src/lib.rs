//! The faces of the service: gRPC for programs and agents, HTTP for probes and Prometheus.
//!
//! Architecture invariant: a face decides nothing. It checks who asks, translates, and passes on; what can go wrong is
//! said in one vocabulary (`phalanx_runtime::Error`) and raised to the wire in one file (`status`).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agents;
mod auth;
mod cluster;
mod convert;
mod downsample;
mod groups;
mod grpc;
mod http;
mod jobs;
mod local;
mod metrics;
mod page;
mod status;
mod sweeps;
mod tls;

pub use auth::{TokenError, Tokens};
pub use grpc::in_memory;
pub use local::LocalDoor;
pub use metrics::Metrics;
pub use tls::{CA_FILE, CERT_FILE, Identity, KEY_FILE, TlsError};

use phalanx_runtime::service::Handle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long open requests may take to end once the faces are being shut down.
pub const DRAIN_BOUND: Duration = Duration::from_secs(2);

/// Where the faces listen.
#[derive(Debug)]
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For HTTP.
    pub http: TcpListener,
    /// For gRPC of this machine's own command line.
    pub local: Option<LocalDoor>,
}

/// What the faces are told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// What opens them.
    pub tokens: Tokens,
    /// What Prometheus reads.
    pub metrics: Metrics,
    /// They speak TLS with this.
    pub tls: Option<Identity>,
    /// Names that HTTP answers for besides the loopback's and the address it is bound to.
    pub names: Vec<String>,
}

/// Who does what is done over the network with the token that may do everything.
const USER: &str = "user";

/// Why the faces had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The gRPC face.
    #[error("the gRPC listener failed: {0}; is the address still there?")]
    Grpc(#[from] tonic::transport::Error),
    /// A listener without an address.
    #[error("a listener has no address: {0}")]
    Address(#[from] std::io::Error),
}

/// Reads a text as every parser of this crate that strangers reach would, for fuzzing: it must neither panic nor hang.
#[doc(hidden)]
pub fn read_outside(text: &str) {
    http::read_outside(text);
    // Refused or not, it is the reading that counts.
    let _ = page::start(text);
}

/// Serves both faces until `shutdown`, then lets open requests end within [`DRAIN_BOUND`].
///
/// Streams that follow a job are cut with `UNAVAILABLE`: their readers resume where they were.
pub async fn serve(
    handle: Handle,
    listeners: Listeners,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let bound = listeners.http.local_addr()?;
    let handle = handle.by(USER);
    let upkeep = config.metrics.clone().upkeep(shutdown.clone());
    let http = http::Face::new(handle.clone(), &config, bound, shutdown.clone()).serve(listeners.http);
    let local = grpc::serve_local(handle.clone(), listeners.local, config.tokens.clone(), shutdown.clone());
    let grpc = grpc::serve(handle, listeners.grpc, config.tokens, config.tls.as_ref(), shutdown.clone());
    let others = async { Ok::<_, Error>(tokio::join!(http, upkeep)) };
    let faces = async { tokio::try_join!(grpc, local, others).map(drop) };
    tokio::pin!(faces);
    tokio::select! {
        ended = &mut faces => return ended,
        () = shutdown.cancelled() => {}
    }
    match tokio::time::timeout(DRAIN_BOUND, &mut faces).await {
        Ok(ended) => ended,
        Err(_) => {
            tracing::warn!("requests were still open after {DRAIN_BOUND:?}; they are cut");
            Ok(())
        }
    }
}
