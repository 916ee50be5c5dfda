//! The stream to the service: dialled again and again, with what happened going out and commands coming in.

use super::machine::Input;
use super::node::{Contact, incarnation};
use super::outbox::Outbox;
use super::{AgentConfig, Connection, DeviceUse};
use crate::protocol::Hello;
use crate::protocol::wire::{self, FromService, WireError};
use pb::agents_client::AgentsClient;
use phalanx_api::v1 as pb;
use phalanx_core::id::AttemptId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// Messages that wait for the stream.
const OUTGOING: usize = 256;
/// Events taken from the outbox at once.
const BATCH_BYTES: usize = 1 << 20;
/// Largest message from the service: the launch of a large gang.
const MESSAGE_BYTES: usize = 64 << 20;
/// The first wait before dialling again; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(25);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
/// How often an agent is heard of, in parts of the node timeout.
const HEARTBEATS: u32 = 5;

/// What a session tells the agent's loop.
#[derive(Debug)]
pub(super) enum FromSession {
    /// For the machine.
    Input(Input),
    /// Which attempts does the machine know?
    Attempts(oneshot::Sender<Vec<AttemptId>>),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("cannot reach the service: {0}")]
    Connect(super::ConnectError),
    #[error("the service refused: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    #[error(transparent)]
    Meaningless(#[from] WireError),
    #[error("the service has been silent for {0:?}")]
    Silent(Duration),
    #[error("the service ended the stream")]
    Ended,
    #[error("the token has characters that no header takes")]
    Token,
}

pub(super) struct Session {
    config: Arc<AgentConfig>,
    outbox: Arc<Outbox>,
    to_loop: mpsc::Sender<FromSession>,
    contact: Arc<Contact>,
    incarnation: String,
}

impl Session {
    pub(super) fn new(
        config: Arc<AgentConfig>,
        outbox: Arc<Outbox>,
        to_loop: mpsc::Sender<FromSession>,
        contact: Arc<Contact>,
    ) -> Session {
        Session { config, outbox, to_loop, contact, incarnation: incarnation() }
    }

    /// Cancel: `ended`. Error: said in the log, and tried again.
    pub(super) async fn run(self, ended: CancellationToken) {
        let mut wait = RETRY_FIRST;
        loop {
            let mut welcomed = false;
            let cut = tokio::select! {
                cut = self.once(&mut welcomed) => cut,
                () = ended.cancelled() => return,
            };
            if welcomed {
                wait = RETRY_FIRST;
                tracing::info!(%cut, "the session with the service has ended; dialling again");
            } else {
                tracing::debug!(%cut, "no session with the service");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_LONGEST),
                () = ended.cancelled() => return,
            }
        }
    }

    /// One session, from dialling to its end.
    async fn once(&self, welcomed: &mut bool) -> Cut {
        match Box::pin(self.talk(welcomed)).await {
            Ok(never) => match never {},
            Err(cut) => cut,
        }
    }

    async fn talk(&self, welcomed: &mut bool) -> Result<std::convert::Infallible, Cut> {
        let silent = |_| Cut::Silent(self.config.node_timeout);
        let connection = timeout(self.config.node_timeout, (self.config.connect)()).await.map_err(silent)?;
        let connection = connection.map_err(Cut::Connect)?;
        let (attempts, answer) = oneshot::channel();
        self.tell(FromSession::Attempts(attempts)).await?;
        let hello = Hello {
            node: self.config.node.clone(),
            incarnation: self.incarnation.clone(),
            outbox: self.outbox.id().to_owned(),
            capacity: self.config.capacity.clone(),
            attempts: answer.await.map_err(|_| Cut::Ended)?,
            address: self.config.address.clone().unwrap_or_default(),
        };
        let (sender, outgoing) = mpsc::channel(OUTGOING);
        sender.send(wire::agent_hello(&hello)?).await.map_err(|_| Cut::Ended)?;
        let inbound =
            timeout(self.config.node_timeout, dial(connection, outgoing)).await.map_err(silent)??;
        tokio::select! {
            cut = self.listen(inbound, welcomed) => cut,
            () = self.speak(&sender) => Err(Cut::Ended),
            () = beat(&sender, self.config.node_timeout / HEARTBEATS, self.config.device_use.clone()) => Err(Cut::Ended),
        }
    }

    async fn tell(&self, message: FromSession) -> Result<(), Cut> {
        self.to_loop.send(message).await.map_err(|_| Cut::Ended)
    }

    async fn listen(
        &self,
        mut inbound: Streaming<pb::ServiceMessage>,
        welcomed: &mut bool,
    ) -> Result<std::convert::Infallible, Cut> {
        loop {
            let message = timeout(self.config.node_timeout, inbound.message()).await;
            let message = message.map_err(|_| Cut::Silent(self.config.node_timeout))?;
            let message = message.map_err(Box::new)?.ok_or(Cut::Ended)?;
            self.contact.note();
            match wire::from_service(message)? {
                FromService::Welcome { .. } => *welcomed = true,
                FromService::Heartbeat => {}
                FromService::Ack(seq) => {
                    for attempt in self.outbox.ack(seq) {
                        self.tell(FromSession::Input(Input::GoneAcked(attempt))).await?;
                    }
                }
                FromService::Command(command) => {
                    self.tell(FromSession::Input(Input::Command(command))).await?
                }
            }
        }
    }

    /// Sends what is in the outbox from its beginning: what the service has taken in already it knows by its number.
    async fn speak(&self, sender: &mpsc::Sender<pb::AgentMessage>) {
        let mut sent = 0;
        loop {
            for event in self.outbox.after(sent, BATCH_BYTES).await {
                sent = event.seq;
                if sender.send(wire::event_message(event)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn dial(
    connection: Connection,
    outgoing: mpsc::Receiver<pb::AgentMessage>,
) -> Result<Streaming<pb::ServiceMessage>, Cut> {
    let mut client = AgentsClient::new(connection.channel).max_decoding_message_size(MESSAGE_BYTES);
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = connection.token {
        let value = format!("Bearer {token}").parse().map_err(|_| Cut::Token)?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(client.connect(request).await.map_err(Box::new)?.into_inner())
}

/// Sends signs of life; returns when nobody takes them.
async fn beat(sender: &mpsc::Sender<pb::AgentMessage>, every: Duration, read: Option<DeviceUse>) {
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        let devices = match read.clone() {
            // A driver may take its time.
            Some(read) => tokio::task::spawn_blocking(move || read()).await.unwrap_or_default(),
            None => Vec::new(),
        };
        if sender.send(wire::agent_heartbeat(&devices)).await.is_err() {
            return;
        }
    }
}
