//! The HTTP face: probes and Prometheus. Who asks is checked before what is asked, so that a page in somebody's browser
//! learns nothing (DNS rebinding, cross-site requests) and a stranger learns only that something is here.

use crate::auth::Tokens;
use crate::metrics::Metrics;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use phalanx_core::limits::WIRE_MESSAGE_BYTES;
use phalanx_runtime::service::Handle;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// A client that has not sent its headers by then is cut; so is an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that is still busy with one request by then is cut.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest block of headers, in bytes.
const HEADER_BYTES: usize = 16 << 10;
/// Connections at a time; more wait to be taken.
const CONNECTIONS: usize = 256;
/// Between two tries where a connection could not be taken (no descriptor left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What the HTTP face needs.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub(crate) handle: Handle,
    pub(crate) tokens: Tokens,
    pub(crate) metrics: Metrics,
    /// The address it is bound to: with the loopback's names the only hosts it answers for.
    pub(crate) bound: IpAddr,
}

impl Face {
    /// Serves until `shutdown`, then until open requests have ended.
    ///
    /// Cancel: open connections are cut. Error: one of a single connection ends that connection only.
    pub(crate) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let service = TowerToHyperService::new(self.routes());
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                () = shutdown.cancelled() => break,
            };
            let Some((stream, place)) = accepted else { continue };
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES);
            let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service.clone()));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an HTTP connection ended early");
                }
                drop(place);
            });
        }
        graceful.shutdown().await;
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(prometheus))
            .fallback(async || (StatusCode::NOT_FOUND, "nothing is here\n"))
            .layer(from_fn_with_state(self.clone(), check))
            .with_state(self)
    }

    /// Whether the service answers for this host: against pages that name us as theirs.
    fn answers_for(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        if name.eq_ignore_ascii_case("localhost") {
            return !host.contains('@');
        }
        name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == self.bound) && !host.contains('@')
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot take an HTTP connection");
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}

async fn ready(State(face): State<Face>) -> Response {
    match face.handle.status().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn prometheus(State(face): State<Face>) -> Response {
    match face.metrics.render(&face.handle).await {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// The checks that stand before every path.
async fn check(State(face): State<Face>, request: Request, next: Next) -> Response {
    let mut response = match refusal(&face, &request) {
        Some((code, why)) => refuse(code, why),
        None => match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the request took too long\n"),
        },
    };
    for (name, value) in ALWAYS {
        response.headers_mut().insert(name, value);
    }
    response
}

/// Headers of every answer.
const ALWAYS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

fn refuse(code: StatusCode, why: &'static str) -> Response {
    let mut response = (code, why).into_response();
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn refusal(face: &Face, request: &Request) -> Option<(StatusCode, &'static str)> {
    let headers = request.headers();
    let Some(host) = single(headers, header::HOST) else {
        return Some((StatusCode::BAD_REQUEST, "one Host header is required\n"));
    };
    if !face.answers_for(host) {
        return Some((StatusCode::MISDIRECTED_REQUEST, "this service does not answer for that host\n"));
    }
    if request.uri().path() == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    if !face.tokens.allow_user(headers) {
        return Some((StatusCode::UNAUTHORIZED, "a valid token is required: Authorization: Bearer TOKEN\n"));
    }
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return None;
    }
    refuse_change(headers, host)
}

/// What holds for requests that change something.
fn refuse_change(headers: &HeaderMap, host: &str) -> Option<(StatusCode, &'static str)> {
    let foreign = headers.get_all(header::ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        origin.is_none_or(|origin| !origin.eq_ignore_ascii_case(host))
    });
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if foreign || site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return Some((StatusCode::FORBIDDEN, "requests from other sites are refused\n"));
    }
    let kind = single(headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or("");
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        return Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json\n"));
    }
    let length = single(headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if length.is_some_and(|length| length > WIRE_MESSAGE_BYTES) {
        return Some((StatusCode::PAYLOAD_TOO_LARGE, "a body has at most 4 MiB\n"));
    }
    None
}

/// The header's value, where there is exactly one and it is text.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
