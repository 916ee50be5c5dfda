//! The way in for a browser: the token in an address is exchanged for a cookie that no script can read and no other site
//! can send. `EventSource` sends no headers of ours, so the page needs one.

use super::problem::refuse;
use super::{Face, dashboard};
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

/// The parameter that holds the token.
const TOKEN: &str = "token";
/// Answers an address with a token in it: in with a cookie and on to the address without it, or refused.
pub(super) fn attempt(face: &Face, uri: &Uri) -> Option<Response> {
    let query = uri.query()?;
    let pairs = || form_urlencoded::parse(query.as_bytes());
    let given = pairs().find(|(key, _)| key == TOKEN)?.1;
    if !face.tokens.is_user(given.as_bytes()) {
        return Some(unauthorized());
    }
    let mut rest = form_urlencoded::Serializer::new(String::new());
    rest.extend_pairs(pairs().filter(|(key, _)| key != TOKEN));
    let rest = rest.finish();
    // A path of ours begins with one slash: `//host` would lead elsewhere.
    let path = format!("/{}", uri.path().trim_start_matches(['/', '\\']));
    let target = if rest.is_empty() { path } else { format!("{path}?{rest}") };
    let secure = if face.tls.is_some() { "; Secure" } else { "" };
    let cookie =
        format!("{}; Path=/; HttpOnly; SameSite=Strict{secure}", face.tokens.session_cookie(face.port));
    Some((StatusCode::SEE_OTHER, [(header::LOCATION, target), (header::SET_COOKIE, cookie)]).into_response())
}

/// The answer to a request without a token: a page for a person, an error for a program.
pub(super) fn required(request: &Request) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let person = accept.is_some_and(|accept| accept.contains("text/html"));
    if *request.method() != Method::GET || !person {
        return unauthorized();
    }
    dashboard::login()
}

fn unauthorized() -> Response {
    let message = "a valid token is required: Authorization: Bearer TOKEN, with what `phalanx token` prints";
    refuse(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
}
