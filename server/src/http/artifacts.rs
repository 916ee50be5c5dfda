//! `/api/v1/jobs/{id}/artifacts`: the files of a job's checkpoints.

use super::params::Params;
use super::{Answer, Face, document};
use crate::status;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Uri, header};
use axum::response::IntoResponse;
use futures_util::stream;
use phalanx_runtime::service::Artifact;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;

/// Bytes that one read takes.
const CHUNK_BYTES: usize = 256 << 10;

pub(super) async fn list(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let artifacts = face.handle.artifacts(status::job_id(&id)?).await?;
    Ok(document(&json!({ "artifacts": artifacts.iter().map(as_json).collect::<Vec<_>>() })))
}

pub(super) async fn get(
    State(face): State<Face>,
    Path((id, artifact)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    Params::parse(uri.query(), &[])?;
    let (artifact, file) = face.handle.open_artifact(status::job_id(&id)?, &artifact).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, artifact.bytes.to_string()),
        // Never shown by a browser as a page of ours, whatever is in it.
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
    ];
    Ok((headers, chunks(file, artifact.bytes)).into_response())
}

/// The file, read as its reader takes it; no more than its size, though somebody may still write to it.
fn chunks(file: File, bytes: u64) -> Body {
    let chunks = stream::try_unfold(file.take(bytes), |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk).map(|_| (chunk, file))
        });
        let (chunk, file) = read.await.map_err(std::io::Error::other)??;
        Ok::<_, std::io::Error>((!chunk.is_empty()).then(|| (Bytes::from(chunk), file)))
    });
    Body::from_stream(chunks)
}

fn as_json(artifact: &Artifact) -> Value {
    json!({
        "id": artifact.id,
        "attempt": artifact.attempt,
        "step": artifact.step,
        "name": artifact.name,
        "bytes": artifact.bytes,
        "blake3": artifact.blake3,
    })
}
