//! The `Cluster` service.

use crate::{convert, status};
use phalanx_api::v1 as pb;
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

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.0.status().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(convert::service(status)))
    }
}
