//! The `Agents` service: the door through which nodes come in. What is said behind it is the runtime's.

use crate::status;
use futures_util::{Stream, StreamExt, stream};
use phalanx_api::v1 as pb;
use phalanx_runtime::service::Handle;
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Sessions of agents over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    pub(crate) handle: Handle,
    /// Ends sessions that would otherwise outlive the face; their agents come back.
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl pb::agents_server::Agents for Agents {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<pb::ServiceMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let peer = request.remote_addr().map(|address| address.ip());
        let session = self.handle.agent_session(request.into_inner(), peer).await;
        let session = session.map_err(|error| status::of(&error))?;
        let messages =
            stream::unfold(session, |mut session| async move { Some((session.recv().await?, session)) });
        let messages = messages.map(Ok).take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(messages)))
    }
}
