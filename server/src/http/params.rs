//! The query of a request: only keys that the path knows, each at most once.

use crate::status;
use std::str::FromStr;
use tonic::Status;

/// Longest query, in bytes: hundreds of topics fit.
const QUERY_BYTES: usize = 8 << 10;

/// A query, read.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads a query; an unknown key and one that is there twice are errors.
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Result<Params, Status> {
        let query = query.unwrap_or("");
        if query.len() > QUERY_BYTES {
            return Err(status::bad_field("query", &format!("a query has at most {QUERY_BYTES} bytes")));
        }
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&key.as_ref()) {
                let there = match known {
                    [] => "this path takes none".to_owned(),
                    known => format!("this path knows {}", known.join(", ")),
                };
                return Err(status::bad_field(&key, &format!("unknown parameter `{key}`; {there}")));
            }
            if pairs.iter().any(|(there, _)| *there == key) {
                return Err(status::bad_field(&key, &format!("`{key}` is there twice")));
            }
            pairs.push((key.into_owned(), value.into_owned()));
        }
        Ok(Params(pairs))
    }

    /// The text of a key.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(there, _)| there == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key, such as a number or `true`.
    pub(super) fn get<T: FromStr>(&self, key: &str, wanted: &str) -> Result<Option<T>, Status> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let refused = || status::bad_field(key, &format!("`{key}` is `{text}`; it must be {wanted}"));
        text.parse().map(Some).map_err(|_| refused())
    }

    /// Whether a key is `true`.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Status> {
        Ok(self.get(key, "true or false")?.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_and_its_mistakes_are_named() {
        let params =
            Params::parse(Some("follow=true&rank=3&name=a%20b"), &["follow", "rank", "name"]).unwrap();
        assert!(params.flag("follow").unwrap());
        assert_eq!(params.get::<i32>("rank", "a number").unwrap(), Some(3));
        assert_eq!((params.text("name"), params.text("none")), (Some("a b"), None));
        for (query, part) in [
            ("folow=true", "this path knows follow"),
            ("follow=true&follow=true", "twice"),
            ("follow=yes", "true or false"),
            ("follow", "true or false"),
            (&"x".repeat(QUERY_BYTES + 1), "at most"),
        ] {
            let flag = Params::parse(Some(query), &["follow"]).and_then(|params| params.flag("follow"));
            assert!(flag.unwrap_err().message().contains(part), "{query}");
        }
    }
}
