//! The `Agents` service: the door through which nodes come in. What is said behind it is the runtime's.

use crate::status;
use futures_util::{Stream, StreamExt, stream};
use phalanx_api::v1 as pb;
use phalanx_runtime::service::Handle;
use std::pin::Pin;
use tokio_stream::wrappers::ReceiverStream;
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
        // The first message welcomes the agent; a session that ends without it was none.
        let first = stream::once(async move {
            let mut session = session;
            match session.recv().await {
                Some(welcome) => Ok((welcome, session)),
                None => Err(status::bad_field("hello", "the first message must be an agent's hello")),
            }
        });
        let messages = first.flat_map(|first| match first {
            Ok((welcome, session)) => {
                stream::iter([Ok(welcome)]).chain(ReceiverStream::new(session).map(Ok)).left_stream()
            }
            Err(refused) => stream::iter([Err(refused)]).right_stream(),
        });
        let messages = messages.take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(messages)))
    }
}
