//! Who may ask: tokens made at the first start, compared in constant time, required by every method of every face.

use axum::body::Bytes;
use http_body::{Frame, SizeHint};
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use subtle::ConstantTimeEq;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codegen::http::header::{AUTHORIZATION, COOKIE};
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;
/// The only service that an agent's token opens.
const AGENTS: &str = "/phalanx.v1.Agents/";
/// The call that makes a token anew, which lives to tell it.
const ROTATE: &str = "/phalanx.v1.Cluster/RotateToken";
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
pub struct Tokens(Arc<Inner>);

struct Inner {
    data_dir: PathBuf,
    user: RwLock<User>,
    agent: RwLock<Arc<str>>,
}

/// The token that may do everything, and what ends with it.
struct User {
    token: Arc<str>,
    /// Cancelled when another token takes its place.
    session: CancellationToken,
}

impl User {
    fn new(token: String) -> User {
        User { token: token.into(), session: CancellationToken::new() }
    }
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
        Ok(Tokens::of(data_dir, user, agent))
    }

    fn of(data_dir: &Path, user: String, agent: String) -> Tokens {
        let (user, agent) = (RwLock::new(User::new(user)), RwLock::new(agent.into()));
        Tokens(Arc::new(Inner { data_dir: data_dir.to_owned(), user, agent }))
    }

    /// Makes a new token, on the disk before it opens anything. The old one opens nothing from then on, and what it has
    /// opened and still goes on is ended.
    pub fn rotate(&self, agent: bool) -> Result<String, TokenError> {
        let file = if agent { Tokens::agent_file } else { Tokens::user_file };
        let token = make(&file(&self.0.data_dir))?;
        if agent {
            *self.0.agent.write().unwrap_or_else(PoisonError::into_inner) = token.as_str().into();
        } else {
            let mut user = self.0.user.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *user, User::new(token.clone())).session.cancel();
        }
        Ok(token)
    }

    fn user(&self) -> Arc<str> {
        self.0.user.read().unwrap_or_else(PoisonError::into_inner).token.clone()
    }

    fn agent(&self) -> Arc<str> {
        self.0.agent.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cancelled when the token that may do everything is made anew.
    pub(crate) fn session(&self) -> CancellationToken {
        self.0.user.read().unwrap_or_else(PoisonError::into_inner).session.clone()
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
        same(token, &self.user())
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
        let session = blake3::derive_key(SESSION, self.user().as_bytes());
        format!("phalanx-{port}={}", hexadecimal(&session))
    }

    /// As whom the request's header may call this gRPC method, if at all.
    fn allow(&self, path: &str, headers: &HeaderMap) -> Option<Caller> {
        let token = bearer(headers)?;
        // Both are compared every time, so that the answer's delay tells nothing.
        let (user, agent) = (same(token, &self.user()), same(token, &self.agent()));
        match (user, agent & path.starts_with(AGENTS)) {
            (true, _) => Some(Caller::User),
            (false, true) => Some(Caller::Agent),
            (false, false) => None,
        }
    }
}

/// Whose token a call was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    User,
    Agent,
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
    make(path)
}

/// Makes a token and puts it into its file.
fn make(path: &Path) -> Result<String, TokenError> {
    let failed = |error| TokenError::File { path: path.to_owned(), error };
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

/// Lets only requests with a token through; stands before the routing, so that unknown methods tell nothing either. Without
/// tokens everybody is let through: whoever gets here has been looked at.
#[derive(Clone, Debug)]
pub(crate) struct AuthLayer(pub(crate) Option<Tokens>);

impl<S> tower::Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { tokens: self.0.clone(), inner }
    }
}

/// A service behind [`AuthLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    tokens: Option<Tokens>,
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
        let path = request.uri().path();
        // Taken before the token is looked at: one that is made anew meanwhile ends this call too.
        let (caller, session) = match &self.tokens {
            Some(tokens) => {
                let session = tokens.session();
                let caller = tokens.allow(path, request.headers());
                (caller, Some(session).filter(|_| caller == Some(Caller::User) && path != ROTATE))
            }
            None => (Some(Caller::User), None),
        };
        if caller.is_none() {
            let refused = crate::status::unauthenticated().into_http();
            return Box::pin(async move { Ok(refused) });
        }
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = with_details(answered.await?);
            Ok(match session {
                Some(session) => answer.map(|body| UntilRotated::of(body, session)),
                None => answer,
            })
        })
    }
}

/// The answer; where the wire refused the request before any method saw it, that is said as a method says it.
fn with_details(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok && status.details().is_empty() => {
            crate::status::of_wire(&status).into_http()
        }
        _ => response,
    }
}

/// The body of an answer, which ends with `UNAUTHENTICATED` when its token does.
struct UntilRotated {
    body: Body,
    rotated: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

impl UntilRotated {
    fn of(body: Body, session: CancellationToken) -> Body {
        Body::new(UntilRotated { body, rotated: Box::pin(session.cancelled_owned()), over: false })
    }
}

impl http_body::Body for UntilRotated {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.rotated.as_mut().poll(context).is_ready() {
            self.over = true;
            let mut trailers = HeaderMap::new();
            let status = crate::status::unauthenticated();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::of(Path::new("/nowhere"), "user".into(), "agent".into())
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
        assert_eq!(tokens().allow(jobs, &headers(&["Bearer user"])), Some(Caller::User));
        assert_eq!(tokens().allow(connect, &headers(&["bearer user"])), Some(Caller::User));
        assert_eq!(tokens().allow(connect, &headers(&["Bearer agent"])), Some(Caller::Agent));
        assert_eq!(tokens().allow(jobs, &headers(&["Bearer agent"])), None);
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
        let other = Tokens::of(Path::new("/nowhere"), "other".into(), "agent".into());
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
            assert_eq!(tokens().allow("/phalanx.v1.Jobs/List", &headers(values)), None, "{values:?}");
        }
    }

    #[test]
    fn a_new_token_ends_what_the_old_one_opened() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::load_or_make(folder.path()).unwrap();
        let (old, session) = (tokens.user(), tokens.session());
        let new = tokens.rotate(false).unwrap();
        assert!(session.is_cancelled() && !tokens.session().is_cancelled());
        assert!(tokens.is_user(new.as_bytes()) && !tokens.is_user(old.as_bytes()));
        assert_eq!(Tokens::read(&Tokens::user_file(folder.path())).unwrap(), new);
        let before = tokens.agent();
        tokens.rotate(true).unwrap();
        assert!(tokens.agent() != before && !tokens.session().is_cancelled());
    }

    #[test]
    fn tokens_are_made_once_and_are_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Tokens::load_or_make(folder.path()).unwrap();
        let second = Tokens::load_or_make(folder.path()).unwrap();
        assert_eq!(first.user(), second.user());
        assert_ne!(first.user(), first.agent());
        assert_eq!(first.user().len(), 2 * TOKEN_BYTES);
        for path in [Tokens::user_file(folder.path()), Tokens::agent_file(folder.path())] {
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        }
        std::fs::write(Tokens::user_file(folder.path()), " \n").unwrap();
        assert!(matches!(Tokens::load_or_make(folder.path()), Err(TokenError::Empty(_))));
    }
}
