//! Events as the handle offers them.

use super::Handle;
use super::control::Input;
use crate::error::Error;
use phalanx_core::{Event, NewEvent};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Events in a batch.
const BATCH: u32 = 1_000;
/// Batches on their way to a reader.
const BATCHES: usize = 2;
/// Most events that `tail` gives.
pub const EVENTS_TAIL: u32 = 10_000;

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only those of this target.
    pub target: Option<String>,
    /// Only later ones; 0 is from the start.
    pub after_seq: u64,
    /// Waits for more.
    pub follow: bool,
    /// Begins so many before the end, at most [`EVENTS_TAIL`].
    pub tail: Option<u32>,
}

impl Handle {
    /// The same way in, for somebody: what is done through it is noted as theirs.
    pub fn by(&self, actor: &str) -> Handle {
        Handle { actor: Arc::from(actor), ..self.clone() }
    }

    /// Events in batches, the oldest first. Cancel: dropping the stream ends it. Error: it is the stream's last item.
    pub fn events(&self, query: EventQuery) -> impl Stream<Item = Result<Vec<Event>, Error>> + use<> {
        let (sender, receiver) = mpsc::channel(BATCHES);
        let handle = self.clone();
        tokio::spawn(async move {
            if let Err(error) = handle.send_events(query, &sender).await {
                // A reader that has gone needs no error.
                let _ = sender.send(Err(error)).await;
            }
        });
        ReceiverStream::new(receiver)
    }

    /// The number of the latest event; 0 before the first.
    pub async fn last_event(&self) -> Result<u64, Error> {
        Ok(self.shared.state.before_last_events(None, 0).await?)
    }

    async fn send_events(
        &self,
        mut query: EventQuery,
        sender: &mpsc::Sender<Result<Vec<Event>, Error>>,
    ) -> Result<(), Error> {
        let state = &self.shared.state;
        let mut news = self.shared.notifier.subscribe_states();
        if let Some(tail) = query.tail {
            let before = state.before_last_events(query.target.as_deref(), tail.min(EVENTS_TAIL)).await?;
            query.after_seq = query.after_seq.max(before);
        }
        loop {
            news.borrow_and_update();
            loop {
                let batch = state.events(query.target.as_deref(), query.after_seq, BATCH).await?;
                let Some(last) = batch.last() else { break };
                query.after_seq = last.seq;
                if sender.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
            if !query.follow {
                return Ok(());
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return Ok(()) },
                () = sender.closed() => return Ok(()),
            }
        }
    }

    /// Notes what somebody did that the controller has no part in.
    pub async fn note(&self, action: &str, target: &str, text: &str) -> Result<(), Error> {
        let event = NewEvent::new(&self.actor, action, target, text);
        self.inbox()?.send(Input::Note(event)).await.map_err(|_| Error::Unavailable)
    }
}
