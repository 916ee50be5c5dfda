//! One topic of a stream: what is there is read, then the next is waited for. A reader keeps nothing here but its place.

use super::super::board::{Board, Shown};
use super::super::{problem, sweeps};
use super::cursor::Topic;
use super::curves;
use crate::{convert, status};
use futures_util::StreamExt;
use phalanx_api::json;
use phalanx_api::v1 as pb;
use phalanx_core::{JobId, SweepId};
use phalanx_runtime::Error;
use phalanx_runtime::service::{EventQuery, Handle, Query, SweepChange};
use phalanx_runtime::store::LogRow;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Changes of jobs in one look; of several of one job only the latest is told.
const CHANGES: u32 = 500;
/// Between two looks at changes: what comes meanwhile is told together.
const GAP: Duration = Duration::from_millis(50);
/// Lines that a log begins with.
const TAIL_LINES: u32 = 1_000;
/// Events that a stream of them begins with.
const EVENTS: u32 = 200;
/// Bytes of lines in one event; one line more than this still goes.
const LINES_BYTES: usize = 128 << 10;

/// An event on its way.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) topic: Topic,
    pub(super) event: &'static str,
    pub(super) data: String,
    /// How far the topic is with it, where it counts.
    pub(super) at: Option<u64>,
}

/// The reader has gone.
struct Gone;

/// Why a topic has no more to tell.
enum End {
    Gone,
    Error(Error),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        End::Gone
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        End::Error(error)
    }
}

/// What a topic needs.
pub(super) struct Watch {
    pub(super) handle: Handle,
    pub(super) board: Board,
    pub(super) points: usize,
    pub(super) to: mpsc::Sender<Frame>,
}

impl Watch {
    /// Until the topic ends or its reader has gone. Cancel: nothing is lost, the reader resumes. Error: told as an event.
    pub(super) async fn run(self, topic: Topic, from: Option<u64>) {
        // Where the reader has gone too, nobody hears it.
        let _ = match self.follow(&topic, from).await {
            Ok(()) => self.tell(&topic, "end", &json!({ "topic": topic.to_string() }), None).await,
            Err(End::Error(error)) => {
                let mut told = problem::described(&status::of(&error));
                told["topic"] = topic.to_string().into();
                self.tell(&topic, "error", &told, None).await
            }
            Err(End::Gone) => Ok(()),
        };
    }

    async fn follow(&self, topic: &Topic, from: Option<u64>) -> Result<(), End> {
        let from = self.within(topic, from).await?;
        match topic {
            Topic::Jobs => self.changes(topic, None, from).await,
            Topic::Job(id) => self.changes(topic, Some(*id), from).await,
            Topic::Nodes => self.board(topic, "nodes", self.board.nodes().await?).await,
            Topic::Queues => self.board(topic, "queues", self.board.queues().await?).await,
            Topic::Sweeps => self.board(topic, "sweeps", self.board.sweeps().await?).await,
            Topic::Sweep(id) => self.sweep(topic, *id, from).await,
            Topic::Events => self.happenings(topic, from).await,
            Topic::Logs(id) => self.lines(topic, *id, from).await,
            Topic::Metrics(id) => self.curves(topic, *id, from).await,
        }
    }

    /// Where the reader was. None where the topic has not got that far: the place is one in other records, such as those
    /// of a data folder that was replaced, and whoever waited for its number would miss all that happens until then.
    async fn within(&self, topic: &Topic, from: Option<u64>) -> Result<Option<u64>, Error> {
        let Some(from) = from else { return Ok(None) };
        let last = match topic {
            Topic::Nodes | Topic::Queues | Topic::Sweeps => return Ok(None),
            Topic::Jobs | Topic::Job(_) => self.handle.last_change().await?,
            Topic::Events => self.handle.last_event().await?,
            Topic::Sweep(id) => self.handle.sweep(*id).await?.now.seq,
            Topic::Logs(id) => self.handle.last_seq(*id).await?.0,
            Topic::Metrics(id) => self.handle.last_seq(*id).await?.1,
        };
        Ok((from <= last).then_some(from))
    }

    async fn tell(
        &self,
        topic: &Topic,
        event: &'static str,
        data: &Value,
        at: Option<u64>,
    ) -> Result<(), Gone> {
        self.say(topic, event, data.to_string(), at).await
    }

    async fn say(
        &self,
        topic: &Topic,
        event: &'static str,
        data: String,
        at: Option<u64>,
    ) -> Result<(), Gone> {
        self.to.send(Frame { topic: topic.clone(), event, data, at }).await.map_err(|_| Gone)
    }

    /// The changes of one job or of all. One job is told as it is first; all of them are what a page asks for itself.
    async fn changes(&self, topic: &Topic, job: Option<JobId>, from: Option<u64>) -> Result<(), End> {
        let mut news = self.handle.job_changes();
        let mut after = match from {
            Some(from) => from,
            // The number first: a change in between is told twice rather than not at all.
            None => {
                let last = self.handle.last_change().await?;
                if let Some(id) = job {
                    let job = self.handle.job(id).await?;
                    self.tell(topic, "job", &json::job(&(&job).into()), Some(last)).await?;
                }
                last
            }
        };
        loop {
            news.borrow_and_update();
            // Asked before reading: the change to a terminal state is read below.
            let over = match job {
                Some(id) => self.handle.job(id).await?.state.is_terminal(),
                None => false,
            };
            loop {
                let changes = self.handle.job_feed(after, job, CHANGES).await?;
                let Some(&(last, _)) = changes.last() else { break };
                let latest: BTreeMap<JobId, usize> =
                    changes.iter().enumerate().map(|(at, (_, job))| (job.id, at)).collect();
                for (at, (number, job)) in changes.iter().enumerate() {
                    if latest.get(&job.id) == Some(&at) {
                        self.tell(topic, "job", &json::job(&job.into()), Some(*number)).await?;
                    }
                }
                after = last;
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return Ok(()) },
                () = self.to.closed() => return Err(End::Gone),
            }
            tokio::time::sleep(GAP).await;
        }
    }

    async fn board(
        &self,
        topic: &Topic,
        event: &'static str,
        mut shown: watch::Receiver<Shown>,
    ) -> Result<(), End> {
        loop {
            let now = shown.borrow_and_update().to_string();
            self.say(topic, event, now, None).await?;
            tokio::select! {
                changed = shown.changed() => if changed.is_err() { return Ok(()) },
                () = self.to.closed() => return Err(End::Gone),
            }
        }
    }

    /// A sweep with its trials from the first one on, and then whatever changes.
    async fn sweep(&self, topic: &Topic, id: SweepId, from: Option<u64>) -> Result<(), End> {
        let mut changes = self.handle.sweep_changes(id, from.unwrap_or(0));
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = self.to.closed() => return Err(End::Gone),
            };
            let Some(change) = change else { return Ok(()) };
            let SweepChange { seq, sweep, trials } = change?;
            let trials: Vec<pb::Trial> = trials.iter().map(Into::into).collect();
            let data = sweeps::change_of(seq, &(&sweep).into(), &trials);
            self.tell(topic, "sweep", &data, Some(seq)).await?;
        }
    }

    /// The last events, and then all that follow.
    async fn happenings(&self, topic: &Topic, from: Option<u64>) -> Result<(), End> {
        let tail = from.is_none().then_some(EVENTS);
        let query = EventQuery { after_seq: from.unwrap_or(0), follow: true, tail, target: None };
        let mut batches = pin!(self.handle.events(query));
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                () = self.to.closed() => return Err(End::Gone),
            };
            let Some(batch) = batch else { return Ok(()) };
            let batch = batch?;
            let Some(last) = batch.last().map(|event| event.seq) else { continue };
            let events = batch.into_iter().filter_map(|event| convert::event(event).event);
            let events: Vec<Value> = events.map(|event| json::event(&event)).collect();
            self.tell(topic, "events", &json!({ "events": events }), Some(last)).await?;
        }
    }

    /// The last lines, and then all that follow.
    async fn lines(&self, topic: &Topic, id: JobId, from: Option<u64>) -> Result<(), End> {
        let after_seq = match from {
            Some(from) => from,
            None => {
                let (last, _) = self.handle.last_seq(id).await?;
                let tail = self.handle.log_tail(id, TAIL_LINES, None, None).await?;
                tail.first().map_or(last, |first| first.seq - 1)
            }
        };
        let mut batches = self.handle.logs(id, Query { after_seq, follow: true, ..Query::default() });
        loop {
            let batch = tokio::select! {
                batch = batches.next() => batch,
                () = self.to.closed() => return Err(End::Gone),
            };
            let Some(batch) = batch else { return Ok(()) };
            let mut rows = batch?.into_iter().peekable();
            while let Some(last) = rows.peek().map(|row| row.seq) {
                let (mut bytes, mut lines, mut last) = (0, Vec::new(), last);
                while let Some(row) = rows.next_if(|row| bytes == 0 || bytes + row.line.len() <= LINES_BYTES)
                {
                    (bytes, last) = (bytes + row.line.len().max(1), row.seq);
                    lines.push(line(id, row));
                }
                let data = json!({ "job": id.to_string(), "lines": lines });
                self.tell(topic, "log", &data, Some(last)).await?;
            }
        }
    }

    /// The curves so far, and then what is added to them.
    async fn curves(&self, topic: &Topic, id: JobId, from: Option<u64>) -> Result<(), End> {
        let (_, known) = self.handle.last_seq(id).await?;
        let after_seq = from.unwrap_or(0);
        let mut gathered = curves::Gather::new(
            self.handle.metrics(id, Query { after_seq, follow: true, ..Query::default() }),
        );
        // What was there before this moment is one event, however long it is.
        let mut through = known;
        let mut reset = from.is_none();
        loop {
            let batch = tokio::select! {
                batch = gathered.next(self.points, through) => batch,
                () = self.to.closed() => return Err(End::Gone),
            };
            let Some(batch) = batch else { return Ok(()) };
            let batch = batch?;
            through = 0;
            let at = batch.last_seq;
            self.tell(topic, "metrics", &batch.document(id, reset), Some(at)).await?;
            reset = false;
        }
    }
}

fn line(job: JobId, row: LogRow) -> Value {
    let pb::JobLogsResponse { line, .. } = convert::line(job, row);
    line.as_ref().map_or(Value::Null, json::log_line)
}
