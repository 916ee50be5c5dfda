//! `/api/v1/jobs`: the `Jobs` service as JSON.

use super::lines::lines;
use super::params::Params;
use super::problem::Problem;
use super::{Answer, Face, document, events, message};
use crate::status;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use phalanx_api::v1::jobs_server::Jobs as _;
use phalanx_api::{json, v1 as pb};
use phalanx_core::JobId;
use serde::Deserialize;
use serde_json::json;
use tonic::Status;

/// Most lines that `tail` gives.
const TAIL_LINES: u32 = 10_000;

pub(super) async fn list(State(face): State<Face>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["page_size", "page_token", "unfinished"])?;
    let request = pb::ListJobsRequest {
        page_size: params.get("page_size", "a number")?.unwrap_or(0),
        page_token: params.text("page_token").unwrap_or("").to_owned(),
        unfinished: params.flag("unfinished")?,
    };
    let page = face.jobs().list(tonic::Request::new(request)).await?.into_inner();
    let jobs: Vec<_> = page.jobs.iter().map(json::job).collect();
    Ok(document(&json!({ "jobs": jobs, "next_page_token": page.next_page_token })))
}

/// A `SubmitRequest` as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Submit {
    toml: String,
    #[serde(default, alias = "requestId")]
    request_id: String,
    #[serde(default, alias = "validateOnly")]
    validate_only: bool,
    #[serde(default, alias = "baseDir")]
    base_dir: String,
    #[serde(default, alias = "defaultName")]
    default_name: String,
}

pub(super) async fn submit(State(face): State<Face>, request: Request) -> Result<Answer, Response> {
    let submit: Submit = message(request).await?;
    let request = pb::SubmitRequest {
        toml: submit.toml,
        request_id: submit.request_id,
        validate_only: submit.validate_only,
        base_dir: submit.base_dir,
        default_name: submit.default_name,
    };
    Ok(one(face.jobs().submit(tonic::Request::new(request)).await))
}

pub(super) async fn get(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    one(face.jobs().get(tonic::Request::new(pb::GetJobRequest { id })).await)
}

/// What was asked of a job, as the model has it: with every default, amounts in thousandths, secrets by their names.
pub(super) async fn spec(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let job = face.handle.job(existing(&face, &id).await?).await?;
    // Every map of the model has texts for keys, so that it always has a form in JSON.
    Ok(document(&serde_json::to_value(&job.spec).unwrap_or_default()))
}

/// `POST /api/v1/jobs/{id}:cancel` and its kin.
pub(super) async fn change(
    State(face): State<Face>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Answer, Response> {
    let _: Nothing = message_or_nothing(request).await?;
    let jobs = face.jobs();
    let (id, action) = name.rsplit_once(':').unwrap_or((&name, ""));
    let id = id.to_owned();
    let changed = match action {
        "cancel" => jobs.cancel(tonic::Request::new(pb::CancelJobRequest { id })).await,
        "pause" => jobs.pause(tonic::Request::new(pb::PauseJobRequest { id })).await,
        "resume" => jobs.resume(tonic::Request::new(pb::ResumeJobRequest { id })).await,
        _ => Err(unknown_action(action, "cancel, pause or resume")),
    };
    Ok(one(changed))
}

/// `{}`: what an action takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A message, or a default one where the body is empty.
pub(super) async fn message_or_nothing<T>(request: Request) -> Result<T, Response>
where
    T: serde::de::DeserializeOwned + Default,
{
    use axum::body::HttpBody;
    if request.body().is_end_stream() { Ok(T::default()) } else { message(request).await }
}

/// A method that a resource does not have.
pub(super) fn unknown_action(action: &str, there: &str) -> Status {
    let text = format!("`:{action}` is nothing that can be done here; there is {there}");
    status::bad_field("action", &text)
}

fn one(job: Result<tonic::Response<pb::Job>, Status>) -> Answer {
    Ok(document(&json::job(job?.get_ref())))
}

/// What both streams of rows take.
struct Rows {
    id: String,
    follow: bool,
    after_seq: u64,
    rank: Option<i32>,
    attempt: Option<i32>,
}

impl Rows {
    fn of(id: String, params: &Params) -> Result<Rows, Status> {
        Ok(Rows {
            id,
            follow: params.flag("follow")?,
            after_seq: params.get("after_seq", "a number")?.unwrap_or(0),
            rank: params.get("rank", "a number")?,
            attempt: params.get("attempt", "a number")?,
        })
    }
}

/// One `JobLogsResponse` a line.
pub(super) async fn logs(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["follow", "after_seq", "rank", "attempt", "tail"])?;
    let mut rows = Rows::of(id, &params)?;
    if let Some(tail) = params.get::<u32>("tail", "a number")? {
        rows.after_seq = rows.after_seq.max(before_tail(&face, &rows, tail).await?);
    }
    let Rows { id, follow, after_seq, rank, attempt } = rows;
    let request = pb::JobLogsRequest { id, follow, after_seq, rank, attempt };
    let stream = face.jobs().logs(tonic::Request::new(request)).await?.into_inner();
    Ok(lines(stream, |message| match (&message.line, &message.job) {
        (Some(line), _) => json!({ "line": json::log_line(line) }),
        (None, job) => json!({ "job": job.as_ref().map(json::job) }),
    }))
}

/// The number of the line before the last `tail` ones.
async fn before_tail(face: &Face, rows: &Rows, tail: u32) -> Result<u64, Problem> {
    let id = status::job_id(&rows.id)?;
    let natural = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    let (last, _) = face.handle.last_seq(id).await?;
    if tail == 0 {
        return Ok(last);
    }
    let found =
        face.handle.log_tail(id, tail.min(TAIL_LINES), natural(rows.rank), natural(rows.attempt)).await?;
    Ok(found.first().map_or(last, |first| first.seq - 1))
}

/// One `JobMetricsResponse` a line; with `points=N` one document with at most N points a series instead.
pub(super) async fn metrics(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["follow", "after_seq", "rank", "attempt", "points"])?;
    let rows = Rows::of(id, &params)?;
    if let Some(points) = events::points(&params)? {
        let id = existing(&face, &rows.id).await?;
        return Ok(document(&events::curves(&face.handle, id, rows.after_seq, points).await?));
    }
    let Rows { id, follow, after_seq, rank, attempt } = rows;
    let request = pb::JobMetricsRequest { id, follow, after_seq, rank, attempt };
    let stream = face.jobs().metrics(tonic::Request::new(request)).await?.into_inner();
    Ok(lines(stream, |message| match (&message.point, &message.job) {
        (Some(point), _) => json!({ "point": json::metric_point(point) }),
        (None, job) => json!({ "job": job.as_ref().map(json::job) }),
    }))
}

/// The id of a job that is there.
pub(super) async fn existing(face: &Face, id: &str) -> Result<JobId, Problem> {
    let id = status::job_id(id)?;
    face.handle.job(id).await?;
    Ok(id)
}
