//! The gRPC face: the services, health and reflection, over TCP behind the tokens or within this process.

use crate::agents::Agents;
use crate::auth::{AuthLayer, Tokens};
use crate::cluster::Cluster;
use crate::jobs::Jobs;
use crate::local::LocalDoor;
use crate::sweeps::Sweeps;
use crate::tls::Identity;
use hyper_util::rt::TokioIo;
use phalanx_api::DESCRIPTORS;
use phalanx_api::v1::agents_server::AgentsServer;
use phalanx_api::v1::cluster_server::ClusterServer;
use phalanx_api::v1::jobs_server::JobsServer;
use phalanx_api::v1::sweeps_server::SweepsServer;
use phalanx_core::limits::WIRE_MESSAGE_BYTES;
use phalanx_runtime::service::Handle;
use std::io;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server, Uri};

/// A peer that answers no ping for this long is gone, and its streams with it.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How much may be under way on a stream, on a connection, and in one frame: an agent that passes on a flood of lines of
/// up to 1 MiB is not to wait for a round trip a line.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// Calls that one connection may have open.
const STREAMS_PER_CONNECTION: u32 = 1024;
/// Largest block of headers, in bytes.
const HEADER_BYTES: u32 = 16 << 10;
/// Bytes on their way within this process.
const PIPE_BYTES: usize = 1 << 20;
/// Connections within this process that wait to be taken.
const PIPES: usize = 16;

/// Serves until `shutdown`, then until open calls have ended.
pub(crate) async fn serve(
    handle: Handle,
    listener: TcpListener,
    tokens: Tokens,
    tls: Option<&Identity>,
    shutdown: CancellationToken,
) -> Result<(), crate::Error> {
    let routes = routes(handle, Some(tokens.clone()), shutdown.clone());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let mut builder = builder();
    if let Some(tls) = tls {
        builder = builder.tls_config(tls.for_grpc())?;
    }
    let mut server = builder.layer(AuthLayer(Some(tokens)));
    server.add_routes(routes).serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned()).await?;
    Ok(())
}

/// Serves whoever comes by the door of this machine, without a token: the kernel has said who that is.
pub(crate) async fn serve_local(
    handle: Handle,
    door: Option<LocalDoor>,
    tokens: Tokens,
    shutdown: CancellationToken,
) -> Result<(), crate::Error> {
    let Some(door) = door else { return Ok(()) };
    let routes = routes(handle, Some(tokens), shutdown.clone());
    let mut server = builder().layer(AuthLayer(None));
    let callers = door.callers(shutdown.clone());
    server.add_routes(routes).serve_with_incoming_shutdown(callers, shutdown.cancelled_owned()).await?;
    Ok(())
}

/// The service without a network: the same methods, for the process it runs in. Nobody else can reach it, so it asks
/// for no token. It ends with the last clone of the channel.
pub fn in_memory(handle: Handle) -> Channel {
    let (connections, incoming) = mpsc::channel::<io::Result<DuplexStream>>(PIPES);
    let shutdown = CancellationToken::new();
    let routes = routes(handle, None, shutdown);
    tokio::spawn(async move {
        let served = builder().add_routes(routes).serve_with_incoming(ReceiverStream::new(incoming)).await;
        if let Err(error) = served {
            tracing::error!(%error, "the in-process service failed");
        }
    });
    let connect = tower::service_fn(move |_: Uri| {
        let connections = connections.clone();
        async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let gone =
                |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the in-process service has ended");
            connections.send(Ok(theirs)).await.map_err(gone)?;
            Ok::<_, io::Error>(TokioIo::new(ours))
        }
    });
    Endpoint::from_static("http://in-process").connect_with_connector_lazy(connect)
}

fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE / 2))
        .http2_keepalive_timeout(Some(KEEPALIVE / 2))
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
}

fn routes(handle: Handle, tokens: Option<Tokens>, shutdown: CancellationToken) -> Routes {
    let jobs = Jobs { handle: handle.clone(), shutdown: shutdown.clone() };
    let sweeps = Sweeps { handle: handle.clone(), shutdown: shutdown.clone() };
    let cluster = Cluster { handle: handle.clone(), tokens, shutdown: shutdown.clone() };
    let agents = Agents { handle, shutdown };
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(JobsServer::new(jobs).max_decoding_message_size(WIRE_MESSAGE_BYTES))
        .add_service(SweepsServer::new(sweeps).max_decoding_message_size(WIRE_MESSAGE_BYTES))
        .add_service(ClusterServer::new(cluster).max_decoding_message_size(WIRE_MESSAGE_BYTES))
        .add_service(AgentsServer::new(agents).max_decoding_message_size(WIRE_MESSAGE_BYTES))
        .add_service(health);
    // The set of descriptors is a part of this program: that it reads is checked by a test.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    if let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(v1alpha);
    }
    // `""` is SERVING from the start; the services' own names are answered too.
    tokio::spawn(async move {
        reporter.set_serving::<JobsServer<Jobs>>().await;
        reporter.set_serving::<SweepsServer<Sweeps>>().await;
        reporter.set_serving::<ClusterServer<Cluster>>().await;
        reporter.set_serving::<AgentsServer<Agents>>().await;
    });
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_read() {
        let builder = || {
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS)
        };
        assert!(builder().build_v1().is_ok());
        assert!(builder().build_v1alpha().is_ok());
    }
}
