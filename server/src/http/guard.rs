//! What stands before every path: who asks is checked before what is asked, so that a page in somebody's browser learns
//! nothing (DNS rebinding, cross-site requests) and a stranger learns only that something is here.

use super::connections::Peer;
use super::problem::refuse;
use super::{Face, login};
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use phalanx_core::limits::WIRE_MESSAGE_BYTES;
use std::net::IpAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A request that has not been answered by then is given up; a body that follows the answer may take as long as it likes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers of every answer.
const ALWAYS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// The checks, and then the path.
pub(super) async fn check(State(face): State<Face>, request: Request, next: Next) -> Response {
    // Taken before the token is looked at: one that is made anew meanwhile ends this answer too.
    let session = face.tokens.session();
    let mut response = match refusal(&face, &request) {
        Some(response) => response,
        None => match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => until_rotated(response, session),
            Err(_) => {
                refuse(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the request took too long; try again")
            }
        },
    };
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        // The login page has a policy of its own, which allows still less.
        headers.entry(name).or_insert(value);
    }
    // What is not an asset of the page is nobody's to keep.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A body without a known end is cut when the token that opened it is made anew.
fn until_rotated(response: Response, session: CancellationToken) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(session.cancelled_owned())))
}

/// The answer to a request that does not get through.
fn refusal(face: &Face, request: &Request) -> Option<Response> {
    let headers = request.headers();
    let peer = request.extensions().get::<Peer>();
    let Some(host) = single(headers, header::HOST) else {
        return Some(refuse(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", "one Host header is required"));
    };
    if !answers_for(face, peer, host) {
        let message = "this service does not answer for that host; use its address";
        return Some(refuse(StatusCode::MISDIRECTED_REQUEST, "INVALID_ARGUMENT", message));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if request.uri().path() == "/healthz" && reads {
        return None;
    }
    if reads && let Some(login) = login::attempt(face, request.uri()) {
        return Some(login);
    }
    let by_token = face.tokens.allow_user(headers);
    let by_cookie = !by_token && face.tokens.allow_session(headers, face.port);
    if !by_token && !by_cookie {
        return Some(login::required(request));
    }
    if let Some(peer) = peer {
        peer.is_known();
    }
    // A page of another port of this machine is the same site: its cookie comes along, and it is refused here.
    if by_cookie && is_foreign(headers) {
        return Some(foreign());
    }
    if reads || *request.method() == Method::OPTIONS { None } else { refuse_change(face, headers, host) }
}

/// The name or address in a Host header; none where it is not one alone.
pub(super) fn named(host: &str) -> Option<String> {
    let authority = host.parse::<Authority>().ok().filter(|_| !host.contains('@'))?;
    Some(authority.host().trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// Whether the service answers for this host: against pages that name us as theirs.
fn answers_for(face: &Face, peer: Option<&Peer>, host: &str) -> bool {
    let Some(name) = named(host) else { return false };
    match name.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip == face.bound || peer.is_some_and(|peer| peer.local == Some(ip)),
        Err(_) => {
            let ours = face.names.iter().map(String::as_str);
            std::iter::once("localhost").chain(ours).any(|ours| name.eq_ignore_ascii_case(ours))
        }
    }
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"))
}

fn foreign() -> Response {
    refuse(StatusCode::FORBIDDEN, "PERMISSION_DENIED", "requests from other sites are refused")
}

/// What holds for requests that change something.
fn refuse_change(face: &Face, headers: &HeaderMap, host: &str) -> Option<Response> {
    let origins = headers.get_all(header::ORIGIN).iter();
    let foreign_origin = origins.into_iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix(face.scheme()));
        origin.is_none_or(|origin| !origin.eq_ignore_ascii_case(host))
    });
    if foreign_origin || is_foreign(headers) {
        return Some(foreign());
    }
    let kind = single(headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or("");
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        let message = "send `content-type: application/json`";
        return Some(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "INVALID_ARGUMENT", message));
    }
    let length = single(headers, header::CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    length.is_some_and(|length| length > WIRE_MESSAGE_BYTES).then(too_large)
}

/// A body that is larger than a message may be.
pub(super) fn too_large() -> Response {
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "INVALID_ARGUMENT", "a body has at most 4 MiB")
}

/// The header's value, where there is exactly one and it is text.
fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
