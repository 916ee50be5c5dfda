//! One session of an agent: its stream in, commands and acknowledgements out.
//!
//! What an agent says is written to the records first and then told to the controller, so that a job is only over when
//! its last line is stored. Cancel: the end of the stream, or silence for the node timeout. Error: a message that means
//! nothing ends the session; the agent comes back and says again what is not acknowledged.

use super::Shared;
use super::control::{Input, Outgoing};
use crate::protocol::{AgentEvent, Happening, Hello, wire};
use crate::store::{NewLine, NewPoint, RecordBatch, StoreError};
use futures_util::StreamExt;
use phalanx_api::v1 as pb;
use phalanx_core::JobId;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;

/// Messages that wait for an agent; one that lets so many wait is taken for lost.
const OUTGOING: usize = 4096;
/// Messages that one write to the records takes together.
const BATCH: usize = 512;
/// Between two tries to write records.
const RETRY: Duration = Duration::from_millis(500);
/// How often an agent hears from the service, in parts of the node timeout.
const HEARTBEATS: u32 = 5;

static SESSIONS: AtomicU64 = AtomicU64::new(1);

type Inbound = Result<pb::AgentMessage, tonic::Status>;

/// Starts a session; the receiver is what the agent is to be sent.
pub(super) fn start<S>(
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Input>,
    node_timeout: Duration,
    inbound: S,
    peer: Option<IpAddr>,
) -> mpsc::Receiver<pb::ServiceMessage>
where
    S: Stream<Item = Inbound> + Send + Unpin + 'static,
{
    let (to_agent, outbound) = mpsc::channel(OUTGOING);
    tokio::spawn(async move {
        let mut inbound = inbound.ready_chunks(BATCH);
        let Ok(Some(mut first)) = timeout(node_timeout, inbound.next()).await else { return };
        if first.is_empty() {
            return;
        }
        let Some(mut hello) = first.remove(0).ok().and_then(|message| wire::hello(message).ok()) else {
            tracing::debug!(?peer, "a session ended before it said whose it is");
            return;
        };
        if hello.address.is_empty() {
            hello.address = peer.map_or_else(|| "127.0.0.1".to_owned(), |ip| ip.to_string());
        }
        let session =
            Session { id: SESSIONS.fetch_add(1, Ordering::Relaxed), shared, inbox, hello, node_timeout };
        session.run(first, inbound, to_agent).await;
    });
    outbound
}

struct Session {
    id: u64,
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Input>,
    hello: Hello,
    node_timeout: Duration,
}

impl Session {
    async fn run(
        self,
        first: Vec<Inbound>,
        mut inbound: impl Stream<Item = Vec<Inbound>> + Unpin,
        to_agent: mpsc::Sender<pb::ServiceMessage>,
    ) {
        if to_agent.send(wire::welcome(self.node_timeout)).await.is_err() {
            return;
        }
        let (to_session, outgoing) = mpsc::channel(OUTGOING);
        let joined = Input::Joined { hello: self.hello.clone(), session: self.id, to: to_session };
        if self.inbox.send(joined).await.is_err() {
            return;
        }
        let writer = tokio::spawn(write(outgoing, to_agent, self.node_timeout / HEARTBEATS));
        let mut messages = first;
        while self.take_in(messages).await {
            match timeout(self.node_timeout, inbound.next()).await {
                Ok(Some(next)) => messages = next,
                Ok(None) | Err(_) => break,
            }
            if writer.is_finished() {
                break;
            }
        }
        writer.abort();
        // A service that is going down no longer asks who has left.
        let _ = self.inbox.send(Input::Left { node: self.hello.node.clone(), session: self.id }).await;
    }

    /// False when the session is over.
    async fn take_in(&self, messages: Vec<Inbound>) -> bool {
        let mut events = Vec::new();
        for message in messages {
            let Ok(message) = message else { return false };
            match wire::from_agent(message) {
                Ok(wire::FromAgent::Event(event)) => events.push(event),
                Ok(wire::FromAgent::Heartbeat(devices)) => {
                    let node = self.hello.node.clone();
                    if self.inbox.send(Input::DeviceUse { node, devices }).await.is_err() {
                        return false;
                    }
                }
                Err(error) => {
                    tracing::warn!(node = %self.hello.node, %error, "an agent said something that means nothing");
                    return false;
                }
            }
        }
        let Some(through) = events.last().map(|event| event.seq) else { return true };
        self.record(&events).await;
        events.retain(|event| !matches!(event.what, Happening::Log(_)));
        let node = self.hello.node.clone();
        self.inbox.send(Input::Happened { node, session: self.id, events, through }).await.is_ok()
    }

    /// Writes lines and points, however long that takes: the agent keeps what is not acknowledged, and waits.
    async fn record(&self, events: &[AgentEvent]) {
        let batch = self.batch(events);
        if batch.lines.is_empty() && batch.points.is_empty() {
            return;
        }
        let touched: BTreeSet<JobId> = events.iter().map(|event| event.attempt.job).collect();
        let mut told = false;
        loop {
            match self.shared.records.append(&batch).await {
                Ok(()) => break,
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        let full = matches!(error, StoreError::Full { .. });
                        tracing::error!(%error, full, "cannot write records; trying again until it succeeds");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        touched.into_iter().for_each(|job| self.shared.notifier.notify(job));
    }

    fn batch(&self, events: &[AgentEvent]) -> RecordBatch {
        let mut batch = RecordBatch::new(self.hello.node.clone(), self.hello.outbox.clone());
        for event in events {
            match &event.what {
                Happening::Log(chunk) => batch.lines.push(NewLine {
                    event: event.seq,
                    attempt: event.attempt,
                    time: event.time,
                    chunk: chunk.clone(),
                }),
                Happening::Report { rank, step, metrics } => batch.points.push(NewPoint {
                    event: event.seq,
                    attempt: event.attempt,
                    time: event.time,
                    rank: *rank,
                    step: *step,
                    metrics: metrics.clone(),
                }),
                _ => {}
            }
        }
        batch
    }
}

/// Passes on what the loop says, and says something itself when that is nothing. Cancel: the session aborts it. Error:
/// an agent that is gone ends it.
async fn write(
    mut outgoing: mpsc::Receiver<Outgoing>,
    to_agent: mpsc::Sender<pb::ServiceMessage>,
    beat: Duration,
) {
    loop {
        let message = match timeout(beat, outgoing.recv()).await {
            Ok(Some(Outgoing::Command(command))) => wire::command(&command),
            Ok(Some(Outgoing::Ack(seq))) => wire::ack(seq),
            Ok(None) => return,
            Err(_) => wire::heartbeat(),
        };
        if to_agent.send(message).await.is_err() {
            return;
        }
    }
}
