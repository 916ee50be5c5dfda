//! The dashboard: one page and its few assets, built from `dashboard/` and embedded, so that the binary is all there is.

use super::Face;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::sync::LazyLock;

/// The page finds out by its address what it is to show.
const VIEWS: [&str; 7] = ["/", "/jobs", "/jobs/{id}", "/sweeps", "/sweeps/{id}", "/nodes", "/curves"];

static PAGE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("text/html; charset=utf-8", include_bytes!("../../../dashboard/dist/index.html"))
});
static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("text/javascript; charset=utf-8", include_bytes!("../../../dashboard/dist/assets/app.js"))
});
static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("text/css; charset=utf-8", include_bytes!("../../../dashboard/dist/assets/app.css"))
});
static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("image/svg+xml", include_bytes!("../../../dashboard/dist/favicon.svg")));

/// What a person without a token sees: no data, no script, nothing from elsewhere.
const LOGIN: &str = include_str!("../../../dashboard/dist/login.html");
/// The style of the login page, by its hash: everything else is refused before login, so it stands in the page itself.
const LOGIN_STYLE: &str = include_str!("../../../dashboard/dist/login.style-hash");

/// A file of the page.
struct Asset {
    kind: &'static str,
    bytes: &'static [u8],
    /// The same after gzip.
    packed: Vec<u8>,
    /// Names the content, so that a browser that has it is not sent it again.
    tag: HeaderValue,
}

impl Asset {
    fn new(kind: &'static str, bytes: &'static [u8]) -> Asset {
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        // Memory takes everything; a part of it would be worse than none.
        let packed = packer.write_all(bytes).and_then(|()| packer.finish()).unwrap_or_default();
        let tag = format!("\"{}\"", &blake3::hash(bytes).to_hex()[..16]);
        let tag = HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""));
        Asset { kind, bytes, packed, tag }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let fresh = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let tag = (header::ETAG, self.tag.clone());
        if asked.get(header::IF_NONE_MATCH) == Some(&self.tag) {
            return (StatusCode::NOT_MODIFIED, [fresh, tag]).into_response();
        }
        let kind = (header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        let vary = (header::VARY, HeaderValue::from_static("accept-encoding"));
        let headers = [fresh, tag, kind, vary];
        if takes_gzip(asked) && !self.packed.is_empty() {
            return (headers, [(header::CONTENT_ENCODING, "gzip")], self.packed.clone()).into_response();
        }
        (headers, self.bytes).into_response()
    }
}

fn takes_gzip(asked: &HeaderMap) -> bool {
    let accepted = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("gzip"))
}

/// The paths of the page and of its assets.
pub(super) fn routes() -> Router<Face> {
    let routes = VIEWS.iter().fold(Router::new(), |routes, view| routes.route(view, asset(&PAGE)));
    routes
        .route("/assets/app.js", asset(&SCRIPT))
        .route("/assets/app.css", asset(&STYLE))
        .route("/favicon.svg", asset(&ICON))
}

fn asset(asset: &'static LazyLock<Asset>) -> axum::routing::MethodRouter<Face> {
    get(async |request: Request| asset.answer(request.headers()))
}

/// The page that asks for a token.
pub(super) fn login() -> Response {
    let policy = format!(
        "default-src 'none'; style-src '{}'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
        LOGIN_STYLE.trim()
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::WWW_AUTHENTICATE, "Bearer"),
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
    ];
    (StatusCode::UNAUTHORIZED, headers, LOGIN).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: header::HeaderName, value: HeaderValue) -> HeaderMap {
        HeaderMap::from_iter([(name, value)])
    }

    #[test]
    fn an_asset_is_sent_packed_once_and_then_only_named() {
        let plain = SCRIPT.answer(&HeaderMap::new());
        assert_eq!(plain.headers().get(header::CONTENT_ENCODING), None);
        let packed = SCRIPT.answer(&asked(header::ACCEPT_ENCODING, HeaderValue::from_static("br, gzip")));
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        let mut unpacked = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&SCRIPT.packed[..]), &mut unpacked)
            .unwrap();
        assert!(unpacked == SCRIPT.bytes);
        let again = SCRIPT.answer(&asked(header::IF_NONE_MATCH, packed.headers()[header::ETAG].clone()));
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_ne!(SCRIPT.tag, STYLE.tag);
    }

    #[test]
    fn a_first_visit_is_small() {
        /// What the page promises, in bytes.
        const BUDGET: usize = 80 << 10;
        let all: usize = [&PAGE, &SCRIPT, &STYLE, &ICON].iter().map(|asset| asset.packed.len()).sum();
        assert!(all <= BUDGET, "{all}");
    }

    #[test]
    fn the_login_page_may_show_its_own_style_and_load_nothing() {
        let login = login();
        assert_eq!(login.status(), StatusCode::UNAUTHORIZED);
        let policy = login.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
        assert!(!LOGIN.contains("<script") && !LOGIN.contains("http"));
    }
}
