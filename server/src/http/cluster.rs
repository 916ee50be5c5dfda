//! `/api/v1/nodes`, `/queues`, `/status` and `/placement-groups`: the `Cluster` service as JSON.

use super::jobs::{Nothing, message_or_nothing, unknown_action};
use super::lines::lines;
use super::params::Params;
use super::problem::Problem;
use super::{Answer, Face, document, message};
use axum::extract::{Path, Request, State};
use axum::http::Uri;
use axum::response::Response;
use phalanx_api::v1::cluster_server::Cluster as _;
use phalanx_api::{json, v1 as pb};
use serde::Deserialize;
use serde_json::json;
use tonic::Status;

pub(super) async fn nodes(State(face): State<Face>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let nodes = face.cluster().nodes(tonic::Request::new(pb::NodesRequest {})).await?.into_inner().nodes;
    Ok(document(&json!({ "nodes": nodes.iter().map(json::node).collect::<Vec<_>>() })))
}

/// `POST /api/v1/nodes/{name}:drain` and `:undrain`.
pub(super) async fn change_node(
    State(face): State<Face>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Answer, Response> {
    let _: Nothing = message_or_nothing(request).await?;
    let (node, action) = name.rsplit_once(':').unwrap_or((&name, ""));
    let drained = match action {
        "drain" | "undrain" => {
            let request = pb::DrainRequest { node: node.to_owned(), undo: action == "undrain" };
            face.cluster().drain(tonic::Request::new(request)).await
        }
        _ => Err(unknown_action(action, "drain or undrain")),
    };
    Ok(drained.map(|node| document(&json::node(node.get_ref()))).map_err(Problem::from))
}

/// What happened, one `EventsResponse` a line.
pub(super) async fn audit(State(face): State<Face>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["target", "after_seq", "follow", "tail"])?;
    let request = pb::EventsRequest {
        target: params.text("target").unwrap_or("").to_owned(),
        after_seq: params.get("after_seq", "a number")?.unwrap_or(0),
        follow: params.flag("follow")?,
        tail: params.get("tail", "a number")?.unwrap_or(0),
    };
    let stream = face.cluster().events(tonic::Request::new(request)).await?.into_inner();
    Ok(lines(stream, |message| json!({ "event": message.event.as_ref().map(json::event) })))
}

pub(super) async fn queues(State(face): State<Face>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let queues = face.cluster().queues(tonic::Request::new(pb::QueuesRequest {})).await?.into_inner().queues;
    Ok(document(&json!({ "queues": queues.iter().map(json::queue).collect::<Vec<_>>() })))
}

pub(super) async fn status(State(face): State<Face>, uri: Uri) -> Answer {
    Params::parse(uri.query(), &[])?;
    let status = face.cluster().status(tonic::Request::new(pb::StatusRequest {})).await?;
    Ok(document(&json::status(status.get_ref())))
}

pub(super) async fn groups(State(face): State<Face>, uri: Uri) -> Answer {
    let params = Params::parse(uri.query(), &["page_size", "page_token", "namespace"])?;
    let text = |key: &str| params.text(key).unwrap_or("").to_owned();
    let request = pb::ListPlacementGroupsRequest {
        page_size: params.get("page_size", "a number")?.unwrap_or(0),
        page_token: text("page_token"),
        namespace: text("namespace"),
    };
    let page = face.cluster().list_placement_groups(tonic::Request::new(request)).await?.into_inner();
    let groups: Vec<_> = page.groups.iter().map(json::group).collect();
    Ok(document(&json!({ "groups": groups, "next_page_token": page.next_page_token })))
}

/// A `CreatePlacementGroupRequest` as JSON, but for `wait`: a page and a script watch instead.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    toml: String,
    #[serde(default, alias = "requestId")]
    request_id: String,
    #[serde(default, alias = "validateOnly")]
    validate_only: bool,
}

pub(super) async fn create_group(State(face): State<Face>, request: Request) -> Result<Answer, Response> {
    let Create { toml, request_id, validate_only } = message(request).await?;
    let request = pb::CreatePlacementGroupRequest { toml, request_id, validate_only, wait: None };
    Ok(one(face.cluster().create_placement_group(tonic::Request::new(request)).await))
}

pub(super) async fn group(State(face): State<Face>, Path(name): Path<String>, uri: Uri) -> Answer {
    let namespace = namespace(&uri)?;
    let request = pb::GetPlacementGroupRequest { namespace, name, wait: None };
    one(face.cluster().get_placement_group(tonic::Request::new(request)).await)
}

/// `POST /api/v1/placement-groups/{name}:remove`.
pub(super) async fn change_group(
    State(face): State<Face>,
    Path(name): Path<String>,
    uri: Uri,
    request: Request,
) -> Result<Answer, Response> {
    let _: Nothing = message_or_nothing(request).await?;
    let Some(name) = name.strip_suffix(":remove").map(str::to_owned) else {
        let action = name.rsplit_once(':').map_or("", |(_, action)| action);
        return Ok(Err(unknown_action(action, "remove").into()));
    };
    let namespace = match namespace(&uri) {
        Ok(namespace) => namespace,
        Err(status) => return Ok(Err(status.into())),
    };
    let request = pb::RemovePlacementGroupRequest { namespace, name };
    Ok(one(face.cluster().remove_placement_group(tonic::Request::new(request)).await))
}

fn namespace(uri: &Uri) -> Result<String, Status> {
    Ok(Params::parse(uri.query(), &["namespace"])?.text("namespace").unwrap_or("").to_owned())
}

fn one(group: Result<tonic::Response<pb::PlacementGroup>, Status>) -> Answer {
    Ok(document(&json::group(group?.get_ref())))
}
