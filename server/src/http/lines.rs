//! A stream of messages as lines of JSON (`application/x-ndjson`).
//!
//! As over gRPC the last line is the terminal object; one that says `error` tells why there is no more, and a body that
//! just ends was cut: its reader comes back with `after_seq`.

use super::problem;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde_json::Value;
use std::convert::Infallible;
use tonic::Status;

/// Messages that go out together where they are there already.
const TOGETHER: usize = 256;

/// The messages, each as a line.
pub(super) fn lines<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    document: impl Fn(&T) -> Value + Send + 'static,
) -> Response {
    let chunks = messages.ready_chunks(TOGETHER).map(move |messages| {
        let mut chunk = String::new();
        for message in messages {
            let line = match message {
                Ok(message) => document(&message),
                Err(status) => problem::described(&status),
            };
            chunk.push_str(&line.to_string());
            chunk.push('\n');
        }
        Ok::<_, Infallible>(Bytes::from(chunk))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
}
