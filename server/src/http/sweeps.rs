//! `/api/v1/sweeps`: the `Sweeps` service as JSON.

use super::jobs::{Nothing, message_or_nothing, unknown_action};
use super::params::Params;
use super::{Answer, Face, document, message};
use crate::status;
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use phalanx_api::v1::sweeps_server::Sweeps as _;
use phalanx_api::{json, v1 as pb};
use phalanx_core::SweepId;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tonic::Status;

/// What can be done to a sweep.
const ACTIONS: &str = "cancel, pause, resume, ask, tell and report";

pub(super) async fn list(State(face): State<Face>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["page_size", "page_token"])?;
    let request = pb::ListSweepsRequest {
        page_size: params.get("page_size", "a number")?.unwrap_or(0),
        page_token: params.text("page_token").unwrap_or("").to_owned(),
    };
    let page = face.sweeps().list(tonic::Request::new(request)).await?.into_inner();
    let sweeps: Vec<_> = page.sweeps.iter().map(json::sweep).collect();
    Ok(document(&json!({ "sweeps": sweeps, "next_page_token": page.next_page_token })))
}

/// A `CreateSweepRequest` as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    toml: String,
    #[serde(default, alias = "requestId")]
    request_id: String,
    #[serde(default, alias = "validateOnly")]
    validate_only: bool,
    #[serde(default, alias = "baseDir")]
    base_dir: String,
    #[serde(default, alias = "defaultName")]
    default_name: String,
    #[serde(default)]
    external: bool,
}

pub(super) async fn create(State(face): State<Face>, request: Request) -> Result<Answer, Response> {
    let create: Create = message(request).await?;
    let request = pb::CreateSweepRequest {
        toml: create.toml,
        request_id: create.request_id,
        validate_only: create.validate_only,
        base_dir: create.base_dir,
        default_name: create.default_name,
        external: create.external,
    };
    Ok(one(face.sweeps().create(tonic::Request::new(request)).await))
}

/// The sweep with its file.
pub(super) async fn get(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let sweep = face.sweeps().get(tonic::Request::new(pb::GetSweepRequest { id })).await?.into_inner();
    let mut found = json::sweep(&sweep);
    found["toml"] = sweep.toml.into();
    found["base_dir"] = sweep.base_dir.into();
    Ok(document(&found))
}

pub(super) async fn trials(State(face): State<Face>, Path(id): Path<String>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["page_size", "page_token"])?;
    let request = pb::ListTrialsRequest {
        id,
        page_size: params.get("page_size", "a number")?.unwrap_or(0),
        page_token: params.text("page_token").unwrap_or("").to_owned(),
    };
    let page = face.sweeps().trials(tonic::Request::new(request)).await?.into_inner();
    let trials: Vec<_> = page.trials.iter().map(json::trial).collect();
    Ok(document(&json!({ "trials": trials, "next_page_token": page.next_page_token })))
}

/// `POST /api/v1/sweeps/{id}:cancel` and its kin, and those of external sweeps.
pub(super) async fn change(
    State(face): State<Face>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Answer, Response> {
    let (id, action) = name.rsplit_once(':').unwrap_or((&name, ""));
    let id = id.to_owned();
    match action {
        "ask" => return ask(&face, id, request).await,
        "tell" => return tell(&face, id, request).await,
        "report" => return report(&face, id, request).await,
        _ => {}
    }
    let _: Nothing = message_or_nothing(request).await?;
    let sweeps = face.sweeps();
    Ok(one(match action {
        "cancel" => sweeps.cancel(tonic::Request::new(pb::CancelSweepRequest { id })).await,
        "pause" => sweeps.pause(tonic::Request::new(pb::PauseSweepRequest { id })).await,
        "resume" => sweeps.resume(tonic::Request::new(pb::ResumeSweepRequest { id })).await,
        _ => Err(unknown_action(action, ACTIONS)),
    }))
}

/// An `AskRequest` as JSON, without the sweep's id.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    #[serde(default, alias = "requestId")]
    request_id: String,
}

async fn ask(face: &Face, id: String, request: Request) -> Result<Answer, Response> {
    let Ask { request_id } = message_or_nothing(request).await?;
    let answered = face.sweeps().ask(tonic::Request::new(pb::AskRequest { id, request_id })).await;
    Ok(answered.map_err(Into::into).map(|answered| {
        let pb::AskResponse { trial, done, resumed } = answered.into_inner();
        document(&json!({ "trial": trial.as_ref().map(json::trial), "done": done, "resumed": resumed }))
    }))
}

/// A number of a report or an outcome; what JSON has no number for is a text.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Value")]
struct Real(f64);

impl TryFrom<Value> for Real {
    type Error = String;

    fn try_from(value: Value) -> Result<Real, String> {
        let text = value.as_str().and_then(|text| match text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        });
        text.or(value.as_f64()).map(Real).ok_or_else(|| format!("{value} is not a number"))
    }
}

/// A `TellRequest` as JSON, without the sweep's id.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tell {
    number: u64,
    #[serde(default)]
    values: Vec<Real>,
    #[serde(default)]
    state: String,
    #[serde(default)]
    constraints: BTreeMap<String, Real>,
}

async fn tell(face: &Face, id: String, request: Request) -> Result<Answer, Response> {
    let Tell { number, values, state, constraints } = message(request).await?;
    let values = values.into_iter().map(|Real(value)| value).collect();
    let constraints = constraints.into_iter().map(|(metric, Real(value))| (metric, value)).collect();
    // A name that is none is refused where the states are known.
    let state = match state.as_str() {
        "" => 0,
        name => pb::trial::State::from_str_name(name).map_or(-1, |state| state as i32),
    };
    let request = pb::TellRequest { id, number, values, state, constraints };
    let answered = face.sweeps().tell(tonic::Request::new(request)).await;
    Ok(answered.map_err(Into::into).map(|answered| {
        let pb::TellResponse { trial, best } = answered.into_inner();
        let best = best.as_ref().map(json::best_trial);
        document(&json!({ "trial": trial.as_ref().map(json::trial), "best": best }))
    }))
}

/// A `ReportRequest` as JSON, without the sweep's id.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    number: u64,
    step: u64,
    value: Real,
}

async fn report(face: &Face, id: String, request: Request) -> Result<Answer, Response> {
    let Report { number, step, value: Real(value) } = message(request).await?;
    let answered =
        face.sweeps().report(tonic::Request::new(pb::ReportRequest { id, number, step, value })).await;
    Ok(answered
        .map_err(Into::into)
        .map(|answered| document(&json!({ "decision": answered.get_ref().decision().as_str_name() }))))
}

fn one(sweep: Result<tonic::Response<pb::Sweep>, Status>) -> Answer {
    Ok(document(&json::sweep(sweep?.get_ref())))
}

/// A message of a stream that watches a sweep.
pub(super) fn change_of(seq: u64, sweep: &pb::Sweep, trials: &[pb::Trial]) -> Value {
    let trials: Vec<_> = trials.iter().map(json::trial).collect();
    json!({ "seq": seq, "sweep": json::sweep(sweep), "trials": trials })
}

/// The id of a sweep that is there.
pub(super) async fn existing(face: &Face, id: SweepId) -> Result<(), Status> {
    face.handle.sweep(id).await.map(drop).map_err(|error| status::of(&error))
}
