//! The HTTP face: the same services as gRPC as JSON under `/api/v1`, a live stream for pages, probes and Prometheus.

mod artifacts;
mod board;
mod cluster;
mod connections;
mod dashboard;
mod events;
mod guard;
mod jobs;
mod lines;
mod login;
mod openapi;
mod params;
mod problem;
mod sweeps;

use crate::Config;
use crate::auth::Tokens;
use crate::cluster::Cluster;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::sweeps::Sweeps;
use crate::tls::Identity;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use board::Board;
use connections::{Connections, Peer, Place};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use phalanx_core::limits::WIRE_MESSAGE_BYTES;
use phalanx_runtime::service::Handle;
use problem::{Problem, refuse};
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A client that has not sent its headers by then is cut; so is an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest block of headers, in bytes.
const HEADER_BYTES: usize = 16 << 10;
/// Between two tries where a connection could not be taken (no descriptor left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// An answer, or what went wrong.
type Answer = Result<Response, Problem>;

/// What the HTTP face needs.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub(crate) handle: Handle,
    pub(crate) tokens: Tokens,
    pub(crate) metrics: Metrics,
    /// The address it is bound to: with the loopback's names the only hosts it answers for.
    pub(crate) bound: IpAddr,
    /// Its port: in the name of the cookie, because a browser sends cookies to every port of a host.
    pub(crate) port: u16,
    /// More names it answers for: those of its certificate.
    pub(crate) names: Arc<[String]>,
    /// It speaks TLS.
    pub(crate) tls: Option<Identity>,
    /// Ends streams that would otherwise outlive the face.
    pub(crate) shutdown: CancellationToken,
    board: Board,
}

impl Face {
    pub(crate) fn new(
        handle: Handle,
        config: &Config,
        bound: std::net::SocketAddr,
        shutdown: CancellationToken,
    ) -> Face {
        Face {
            board: Board::new(handle.clone()),
            handle,
            tokens: config.tokens.clone(),
            metrics: config.metrics.clone(),
            bound: bound.ip(),
            port: bound.port(),
            names: config.names.as_slice().into(),
            tls: config.tls.clone(),
            shutdown,
        }
    }

    /// Serves until `shutdown`, then until open requests have ended.
    ///
    /// Cancel: open connections are cut. Error: one of a single connection ends that connection only.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let shutdown = self.shutdown.clone();
        let board = tokio::spawn(self.board.clone().run(shutdown.clone()));
        let routes = self.clone().routes();
        let graceful = GracefulShutdown::new();
        let connections = Connections::default();
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &connections) => accepted,
                () = shutdown.cancelled() => break,
            };
            let Some((stream, peer, place)) = accepted else { continue };
            let (watcher, tls) = (graceful.watcher(), self.tls.as_ref().map(Identity::acceptor));
            let service = TowerToHyperService::new(of_peer(routes.clone(), peer.clone()));
            tokio::spawn(async move {
                let connection = async {
                    let stream = with_tls(stream, tls).await?;
                    let mut builder = hyper::server::conn::http1::Builder::new();
                    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                    builder.max_buf_size(HEADER_BYTES);
                    let served = watcher.watch(builder.serve_connection(TokioIo::new(stream), service));
                    served.await.map_err(std::io::Error::other)
                };
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "an HTTP connection ended early");
                    },
                    () = peer.is_cut() => {}
                }
                drop(place);
            });
        }
        graceful.shutdown().await;
        // It holds nothing that outlives it.
        board.abort();
    }

    fn routes(self) -> Router {
        let api = Router::new()
            .route("/jobs", get(jobs::list).post(jobs::submit))
            .route("/jobs/{id}", get(jobs::get).post(jobs::change))
            .route("/jobs/{id}/logs", get(jobs::logs))
            .route("/jobs/{id}/spec", get(jobs::spec))
            .route("/jobs/{id}/metrics", get(jobs::metrics))
            .route("/jobs/{id}/artifacts", get(artifacts::list))
            .route("/jobs/{id}/artifacts/{artifact}", get(artifacts::get))
            .route("/sweeps", get(sweeps::list).post(sweeps::create))
            .route("/sweeps/{id}", get(sweeps::get).post(sweeps::change))
            .route("/sweeps/{id}/trials", get(sweeps::trials))
            .route("/nodes", get(cluster::nodes))
            .route("/queues", get(cluster::queues))
            .route("/status", get(cluster::status))
            .route("/placement-groups", get(cluster::groups).post(cluster::create_group))
            .route("/placement-groups/{name}", get(cluster::group).post(cluster::change_group))
            .route("/audit", get(cluster::audit))
            .route("/nodes/{name}", axum::routing::post(cluster::change_node))
            .route("/events", get(events::stream))
            .route("/openapi.json", get(openapi::document));
        Router::new()
            .nest("/api/v1", api)
            .merge(dashboard::routes())
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(prometheus))
            .fallback(async || refuse(StatusCode::NOT_FOUND, "NOT_FOUND", "nothing is here"))
            .method_not_allowed_fallback(async || {
                refuse(StatusCode::METHOD_NOT_ALLOWED, "UNIMPLEMENTED", "this path does not take that method")
            })
            .layer(from_fn_with_state(self.clone(), guard::check))
            .with_state(self)
    }

    /// What an origin of ours begins with.
    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https://" } else { "http://" }
    }

    /// The services of gRPC, called without a network.
    fn jobs(&self) -> Jobs {
        Jobs { handle: self.handle.clone(), shutdown: self.shutdown.clone() }
    }

    fn sweeps(&self) -> Sweeps {
        Sweeps { handle: self.handle.clone(), shutdown: self.shutdown.clone() }
    }

    fn cluster(&self) -> Cluster {
        let (handle, shutdown) = (self.handle.clone(), self.shutdown.clone());
        Cluster { handle, shutdown, tokens: Some(self.tokens.clone()) }
    }
}

/// A connection, with or without TLS.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn with_tls(stream: TcpStream, tls: Option<TlsAcceptor>) -> std::io::Result<Box<dyn Connection>> {
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let shaken = tokio::time::timeout(HEADER_TIMEOUT, tls.accept(stream)).await;
    Ok(Box::new(shaken.map_err(std::io::Error::other)??))
}

/// The routes, for the requests of one connection.
fn of_peer(
    routes: Router,
    peer: Peer,
) -> impl tower::Service<
    hyper::Request<hyper::body::Incoming>,
    Response = Response,
    Error = std::convert::Infallible,
    Future: Send + 'static,
> + Clone {
    tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        routes.clone().oneshot(request)
    })
}

async fn accept(listener: &TcpListener, connections: &Connections) -> Option<(TcpStream, Peer, Place)> {
    let permit = connections.next().await?;
    match listener.accept().await {
        Ok((stream, _)) => {
            let local = stream.local_addr().ok().map(|address| address.ip());
            // Events are small and somebody waits for them; where it cannot be set they come a little later.
            let _ = stream.set_nodelay(true);
            let (peer, place) = connections.take(permit, local);
            Some((stream, peer, place))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot take an HTTP connection");
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}

/// What comes in addresses and headers.
pub(crate) fn read_outside(text: &str) {
    let known = ["watch", "points", "last_event_id", "page_size", "page_token"];
    if let Ok(params) = params::Params::parse(Some(text), &known) {
        let _ = (params.get::<i32>("page_size", "a number"), events::points(&params));
    }
    events::read_outside(text);
    let _ = guard::named(text);
}

async fn ready(State(face): State<Face>) -> Answer {
    face.handle.status().await?;
    Ok("ready\n".into_response())
}

async fn prometheus(State(face): State<Face>) -> Answer {
    let text = face.metrics.render(&face.handle).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// A document.
fn document(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// The body of a request, within the bound of a message.
async fn body(request: Request) -> Result<Bytes, Response> {
    axum::body::to_bytes(request.into_body(), WIRE_MESSAGE_BYTES).await.map_err(|_| guard::too_large())
}

/// A message in a body, as proto3 JSON with the original field names or in lowerCamelCase.
async fn message<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, Response> {
    let body = body(request).await?;
    serde_json::from_slice(&body).map_err(|error| {
        let text = format!("the body is not the JSON that this path takes: {error}");
        Problem::from(crate::status::bad_field("body", &text)).into_response()
    })
}
