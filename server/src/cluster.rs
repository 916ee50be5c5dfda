//! The `Cluster` service.

use crate::jobs::{Outbound, rows, until_shutdown};
use crate::{Tokens, convert, groups, status};
use phalanx_api::v1 as pb;
use phalanx_runtime::controller::QueueChange;
use phalanx_runtime::service::{EVENTS_TAIL, EventQuery, Handle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Nodes and the service itself over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) handle: Handle,
    /// Cuts streams that would otherwise outlive the face.
    pub(crate) shutdown: CancellationToken,
    /// Of a service that others reach.
    pub(crate) tokens: Option<Tokens>,
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Cluster {
    type EventsStream = Outbound<pb::EventsResponse>;

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::Node>, Status> {
        let pb::DrainRequest { node, undo } = request.into_inner();
        let drained = self.handle.drain(&node, !undo).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(convert::node(&drained)))
    }

    async fn events(
        &self,
        request: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let tail = u32::try_from(request.tail).ok().filter(|&tail| tail <= EVENTS_TAIL);
        let refused = || status::bad_field("tail", &format!("`tail` must be 0 to {EVENTS_TAIL}"));
        let tail = Some(tail.ok_or_else(refused)?).filter(|&tail| tail > 0);
        let target = Some(request.target).filter(|target| !target.is_empty());
        let (after_seq, follow) = (request.after_seq, request.follow);
        let events = rows(self.handle.events(EventQuery { target, after_seq, follow, tail }), convert::event);
        Ok(Response::new(until_shutdown(events, self.shutdown.clone())))
    }

    async fn set_secret(
        &self,
        request: Request<pb::SetSecretRequest>,
    ) -> Result<Response<pb::Secret>, Status> {
        let pb::SetSecretRequest { name, value } = request.into_inner();
        self.handle.set_secret(&name, value).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::Secret { name }))
    }

    async fn list_secrets(
        &self,
        _: Request<pb::ListSecretsRequest>,
    ) -> Result<Response<pb::ListSecretsResponse>, Status> {
        let secrets = self.handle.secrets().into_iter().map(|name| pb::Secret { name }).collect();
        Ok(Response::new(pb::ListSecretsResponse { secrets }))
    }

    async fn remove_secret(
        &self,
        request: Request<pb::RemoveSecretRequest>,
    ) -> Result<Response<pb::RemoveSecretResponse>, Status> {
        self.handle.remove_secret(&request.get_ref().name).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::RemoveSecretResponse {}))
    }

    async fn rotate_token(
        &self,
        request: Request<pb::RotateTokenRequest>,
    ) -> Result<Response<pb::RotateTokenResponse>, Status> {
        let tokens = self.tokens.as_ref().ok_or_else(status::no_service)?;
        let agent = request.get_ref().agent;
        let target = if agent { "agent" } else { "user" };
        self.handle.note("token.rotate", target, "").await.map_err(|error| status::of(&error))?;
        let token = tokens.rotate(agent).map_err(|error| status::token(&error))?;
        Ok(Response::new(pb::RotateTokenResponse { token }))
    }

    async fn nodes(&self, _: Request<pb::NodesRequest>) -> Result<Response<pb::NodesResponse>, Status> {
        let nodes = self.handle.nodes().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::NodesResponse { nodes: nodes.iter().map(convert::node).collect() }))
    }

    async fn queues(&self, _: Request<pb::QueuesRequest>) -> Result<Response<pb::QueuesResponse>, Status> {
        let queues = self.handle.queues().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::QueuesResponse { queues: queues.into_iter().map(convert::queue).collect() }))
    }

    async fn set_queues(
        &self,
        request: Request<pb::SetQueuesRequest>,
    ) -> Result<Response<pb::QueuesResponse>, Status> {
        let pb::SetQueuesRequest { toml, reset, validate_only } = request.into_inner();
        let change = QueueChange { toml, reset, validate_only };
        self.handle.change_queues(change).await.map_err(|error| status::of(&error))?;
        self.queues(Request::new(pb::QueuesRequest {})).await
    }

    async fn settings(
        &self,
        _: Request<pb::SettingsRequest>,
    ) -> Result<Response<pb::SettingsResponse>, Status> {
        let settings = self.handle.settings().await.map_err(|error| status::of(&error))?.into_iter();
        let settings = settings.map(|set| pb::Setting { key: set.key, value: set.value, origin: set.origin });
        Ok(Response::new(pb::SettingsResponse { settings: settings.collect() }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.handle.status().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(convert::service(status)))
    }

    async fn create_placement_group(
        &self,
        request: Request<pb::CreatePlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::create(&self.handle, request.into_inner()).await
    }

    async fn get_placement_group(
        &self,
        request: Request<pb::GetPlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::get(&self.handle, request.into_inner()).await
    }

    async fn list_placement_groups(
        &self,
        request: Request<pb::ListPlacementGroupsRequest>,
    ) -> Result<Response<pb::ListPlacementGroupsResponse>, Status> {
        groups::list(&self.handle, request.get_ref())
    }

    async fn remove_placement_group(
        &self,
        request: Request<pb::RemovePlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::remove(&self.handle, request.into_inner()).await
    }
}
