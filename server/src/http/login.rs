//! The way in for a browser: the token in an address is exchanged for a cookie that no script can read and no other site
//! can send. `EventSource` sends no headers of ours, so the page needs one.

use super::Face;
use super::problem::refuse;
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};

/// The parameter that holds the token.
const TOKEN: &str = "token";
/// What a person without a token sees: no data, no script, nothing from elsewhere.
const PAGE: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Phalanx: sign in</title>
<h1>Phalanx</h1>
<p>This service asks for its token. <code>phalanx token</code> prints it on the service's machine.</p>
<form action=\"/\" method=\"get\">
<label>Token <input type=\"password\" name=\"token\" autocomplete=\"current-password\" required autofocus></label>
<button>Sign in</button>
</form>
";

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
    let secure = if face.tls { "; Secure" } else { "" };
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
    let mut response = (StatusCode::UNAUTHORIZED, Html(PAGE)).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn unauthorized() -> Response {
    let message = "a valid token is required: Authorization: Bearer TOKEN, with what `phalanx token` prints";
    refuse(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", message)
}
