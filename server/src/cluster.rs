//! The `Cluster` service.

use crate::{convert, groups, status};
use phalanx_api::v1 as pb;
use phalanx_runtime::controller::QueueChange;
use phalanx_runtime::service::Handle;
use tonic::{Request, Response, Status};

/// Nodes and the service itself over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Cluster(pub(crate) Handle);

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Cluster {
    async fn nodes(&self, _: Request<pb::NodesRequest>) -> Result<Response<pb::NodesResponse>, Status> {
        let nodes = self.0.nodes().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::NodesResponse { nodes: nodes.iter().map(convert::node).collect() }))
    }

    async fn queues(&self, _: Request<pb::QueuesRequest>) -> Result<Response<pb::QueuesResponse>, Status> {
        let queues = self.0.queues().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::QueuesResponse { queues: queues.into_iter().map(convert::queue).collect() }))
    }

    async fn set_queues(
        &self,
        request: Request<pb::SetQueuesRequest>,
    ) -> Result<Response<pb::QueuesResponse>, Status> {
        let pb::SetQueuesRequest { toml, reset, validate_only } = request.into_inner();
        let change = QueueChange { toml, reset, validate_only };
        self.0.change_queues(change).await.map_err(|error| status::of(&error))?;
        self.queues(Request::new(pb::QueuesRequest {})).await
    }

    async fn settings(
        &self,
        _: Request<pb::SettingsRequest>,
    ) -> Result<Response<pb::SettingsResponse>, Status> {
        let settings = self.0.settings().await.map_err(|error| status::of(&error))?.into_iter();
        let settings = settings.map(|set| pb::Setting { key: set.key, value: set.value, origin: set.origin });
        Ok(Response::new(pb::SettingsResponse { settings: settings.collect() }))
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.0.status().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(convert::service(status)))
    }

    async fn create_placement_group(
        &self,
        request: Request<pb::CreatePlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::create(&self.0, request.into_inner()).await
    }

    async fn get_placement_group(
        &self,
        request: Request<pb::GetPlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::get(&self.0, request.into_inner()).await
    }

    async fn list_placement_groups(
        &self,
        request: Request<pb::ListPlacementGroupsRequest>,
    ) -> Result<Response<pb::ListPlacementGroupsResponse>, Status> {
        groups::list(&self.0, request.get_ref())
    }

    async fn remove_placement_group(
        &self,
        request: Request<pb::RemovePlacementGroupRequest>,
    ) -> Result<Response<pb::PlacementGroup>, Status> {
        groups::remove(&self.0, request.into_inner()).await
    }
}
