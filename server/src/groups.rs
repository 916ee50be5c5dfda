//! The placement groups of the `Cluster` service.

use crate::{page, status};
use phalanx_api::v1 as pb;
use phalanx_core::{Group, GroupName};
use phalanx_runtime::Error;
use phalanx_runtime::service::{GROUP_WAIT, GroupRequest, Handle};
use prost::Message;
use std::time::Duration;
use tonic::{Response, Status};

/// A page ends before it grows past this, so that it fits into one message however large the groups are.
const PAGE_BYTES: usize = 2 << 20;

type Answer<T> = Result<Response<T>, Status>;

pub(crate) async fn create(
    handle: &Handle,
    request: pb::CreatePlacementGroupRequest,
) -> Answer<pb::PlacementGroup> {
    let wait = wait(request.wait)?;
    let request = GroupRequest {
        toml: request.toml,
        request_id: Some(request.request_id).filter(|id| !id.is_empty()),
        validate_only: request.validate_only,
        wait,
    };
    answer(handle.create_group(request).await)
}

pub(crate) async fn get(
    handle: &Handle,
    request: pb::GetPlacementGroupRequest,
) -> Answer<pb::PlacementGroup> {
    let wait = wait(request.wait)?;
    answer(handle.group(&name(&request.namespace, &request.name)?, wait).await)
}

pub(crate) async fn remove(
    handle: &Handle,
    request: pb::RemovePlacementGroupRequest,
) -> Answer<pb::PlacementGroup> {
    answer(handle.remove_group(name(&request.namespace, &request.name)?).await)
}

pub(crate) fn list(
    handle: &Handle,
    request: &pb::ListPlacementGroupsRequest,
) -> Answer<pb::ListPlacementGroupsResponse> {
    let size = page::size(request.page_size)?;
    let before = page::start(&request.page_token)?;
    let namespace = Some(request.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    // One more than the page shows whether another one follows.
    let found = handle.groups(before, size + 1, namespace);
    let mut bytes = 0;
    let fitting = found.iter().map(pb::PlacementGroup::from).take(size as usize).take_while(|group| {
        let first = bytes == 0;
        bytes += group.encoded_len();
        first || bytes <= PAGE_BYTES
    });
    let groups: Vec<pb::PlacementGroup> = fitting.collect();
    let more = found.len() > groups.len();
    let last = groups.len().checked_sub(1).and_then(|last| found.get(last)).filter(|_| more);
    let next_page_token = last.map(|group| page::token_after(group.id)).unwrap_or_default();
    Ok(Response::new(pb::ListPlacementGroupsResponse { groups, next_page_token }))
}

fn answer(group: Result<Group, Error>) -> Answer<pb::PlacementGroup> {
    group.map(|group| Response::new((&group).into())).map_err(|error| status::of(&error))
}

fn name(namespace: &str, name: &str) -> Result<GroupName, Status> {
    let field = if name.is_empty() { "name" } else { "namespace" };
    GroupName::new(namespace, name).map_err(|message| status::bad_field(field, &message))
}

fn wait(asked: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    let Some(asked) = asked else { return Ok(None) };
    let wait = Duration::try_from(asked).ok().filter(|wait| *wait <= GROUP_WAIT);
    let wanted = format!("`wait` must be 0 to {} s", GROUP_WAIT.as_secs());
    wait.map(Some).ok_or_else(|| status::bad_field("wait", &wanted))
}
