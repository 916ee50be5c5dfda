//! Who may ask: tokens made at the first start, compared in constant time, required by every method of every face.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use subtle::ConstantTimeEq;
use tonic::body::Body;
use tonic::codegen::http::header::{AUTHORIZATION, COOKIE};
use tonic::codegen::http::{HeaderMap, Request, Response};

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;
/// The only service that an agent's token opens.
const AGENTS: &str = "/phalanx.v1.Agents/";
/// What a browser's cookie is derived for.
const SESSION: &str = "phalanx 2026 session cookie";
/// Only the owner may read or write a token.
const OWNER_ONLY: u32 = 0o600;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A token's file cannot be used.
    #[error("cannot use the token file {}: {error}; check its owner and its mode (0600)", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A token's file without a token.
    #[error("the token file {} holds no token; remove it and start again to make a new one", .0.display())]
    Empty(PathBuf),
    /// The system gives no randomness.
    #[error("cannot draw a token from /dev/urandom: {0}")]
    Random(io::Error),
}

/// The secrets that open the faces.
#[derive(Clone)]
pub struct Tokens {
    user: Arc<str>,
    agent: Arc<str>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

impl Tokens {
    /// Where the token that may do everything is kept.
    pub fn user_file(data_dir: &Path) -> PathBuf {
        data_dir.join("token")
    }

    /// Where the token that may only join as a node is kept.
    pub fn agent_file(data_dir: &Path) -> PathBuf {
        data_dir.join("agent-token")
    }

    /// The tokens of a data folder; made where there are none.
    pub fn load_or_make(data_dir: &Path) -> Result<Tokens, TokenError> {
        let user = load_or_make(&Tokens::user_file(data_dir))?;
        let agent = load_or_make(&Tokens::agent_file(data_dir))?;
        Ok(Tokens { user: user.into(), agent: agent.into() })
    }

    /// Reads a token from a file.
    pub fn read(path: &Path) -> Result<String, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| TokenError::File { path: path.to_owned(), error })?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Empty(path.to_owned()));
        }
        Ok(token.to_owned())
    }

    /// Whether the request's header holds the token that may do everything.
    pub(crate) fn allow_user(&self, headers: &HeaderMap) -> bool {
        bearer(headers).is_some_and(|token| self.is_user(token))
    }

    /// Whether this is the token that may do everything.
    pub(crate) fn is_user(&self, token: &[u8]) -> bool {
        same(token, &self.user)
    }

    /// Whether the request has the cookie that a browser was given for the token.
    pub(crate) fn allow_session(&self, headers: &HeaderMap, port: u16) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut cookies = cookies.flat_map(|cookies| cookies.split(';')).map(str::trim);
        let wanted = self.session_cookie(port);
        cookies.any(|cookie| same(cookie.as_bytes(), &wanted))
    }

    /// What a browser keeps instead of the token: good as long as the token is, and of no use but as this cookie.
    pub(crate) fn session_cookie(&self, port: u16) -> String {
        let session = blake3::derive_key(SESSION, self.user.as_bytes());
        format!("phalanx-{port}={}", hexadecimal(&session))
    }

    /// Whether the request's header holds a token that may call this gRPC method.
    fn allow(&self, path: &str, headers: &HeaderMap) -> bool {
        // Both are compared every time, so that the answer's delay tells nothing.
        bearer(headers).is_some_and(|token| {
            same(token, &self.user) | (same(token, &self.agent) & path.starts_with(AGENTS))
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

fn same(given: &[u8], wanted: &str) -> bool {
    bool::from(given.ct_eq(wanted.as_bytes()))
}

fn load_or_make(path: &Path) -> Result<String, TokenError> {
    let failed = |error| TokenError::File { path: path.to_owned(), error };
    if path.exists() {
        // A copy or an editor may have opened it to others.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(OWNER_ONLY)).map_err(failed)?;
        return Tokens::read(path);
    }
    let token = random_token().map_err(TokenError::Random)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    // Renamed into place, so that nobody ever reads half of one.
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let written =
        options.write(true).create(true).truncate(true).mode(OWNER_ONLY).open(&fresh).and_then(|mut file| {
            writeln!(file, "{token}")?;
            file.sync_all()
        });
    written.and_then(|()| std::fs::rename(&fresh, path)).map_err(failed)?;
    Ok(token)
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; TOKEN_BYTES];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(hexadecimal(&bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lets only requests with a token through; stands before the routing, so that unknown methods tell nothing either.
#[derive(Clone, Debug)]
pub(crate) struct AuthLayer(pub(crate) Tokens);

impl<S> tower::Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { tokens: self.0.clone(), inner }
    }
}

/// A service behind [`AuthLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    tokens: Tokens,
    inner: S,
}

impl<S, B> tower::Service<Request<B>> for Guarded<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.tokens.allow(request.uri().path(), request.headers()) {
            return Box::pin(self.inner.call(request));
        }
        let refused = crate::status::unauthenticated().into_http();
        Box::pin(async move { Ok(refused) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens { user: "user".into(), agent: "agent".into() }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn an_agent_may_only_join() {
        let jobs = "/phalanx.v1.Jobs/List";
        let connect = "/phalanx.v1.Agents/Connect";
        assert!(tokens().allow(jobs, &headers(&["Bearer user"])));
        assert!(tokens().allow(connect, &headers(&["bearer user"])));
        assert!(tokens().allow(connect, &headers(&["Bearer agent"])));
        assert!(!tokens().allow(jobs, &headers(&["Bearer agent"])));
        assert!(!tokens().allow_user(&headers(&["Bearer agent"])));
    }

    #[test]
    fn a_browser_keeps_a_cookie_that_is_not_the_token() {
        let cookie = tokens().session_cookie(7422);
        assert!(!cookie.contains("user"));
        let with = |cookies: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, cookies.parse().unwrap());
            headers
        };
        assert!(tokens().allow_session(&with(&cookie), 7422));
        assert!(tokens().allow_session(&with(&format!("a=b; {cookie}; c=d")), 7422));
        assert!(!tokens().allow_session(&with(&cookie), 7423), "another service on this machine");
        let other = Tokens { user: "other".into(), agent: "agent".into() };
        assert!(!other.allow_session(&with(&cookie), 7422), "the token was changed");
        for cookies in ["", "phalanx-7422=", "phalanx-7422=user", &cookie[..cookie.len() - 1]] {
            assert!(!tokens().allow_session(&with(cookies), 7422), "{cookies}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let refused: [&[&str]; 8] = [
            &[],
            &[""],
            &["user"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer users"],
            &["Basic user"],
            &["Bearer user", "Bearer user"],
        ];
        for values in refused {
            assert!(!tokens().allow("/phalanx.v1.Jobs/List", &headers(values)), "{values:?}");
        }
    }

    #[test]
    fn tokens_are_made_once_and_are_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Tokens::load_or_make(folder.path()).unwrap();
        let second = Tokens::load_or_make(folder.path()).unwrap();
        assert_eq!(first.user, second.user);
        assert_ne!(first.user, first.agent);
        assert_eq!(first.user.len(), 2 * TOKEN_BYTES);
        for path in [Tokens::user_file(folder.path()), Tokens::agent_file(folder.path())] {
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        }
        std::fs::write(Tokens::user_file(folder.path()), " \n").unwrap();
        assert!(matches!(Tokens::load_or_make(folder.path()), Err(TokenError::Empty(_))));
    }
}
