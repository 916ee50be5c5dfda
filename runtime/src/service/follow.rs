//! Streams over what the store holds of a job: what is there is read, then the next is waited for.
//!
//! A follower keeps nothing but its place, so a slow one holds nobody up; the last thing it reads is what was written
//! before the job's terminal state, because that is committed after the records of its last process.

use super::Shared;
use crate::error::Error;
use crate::store::{LogRow, PointRow};
use phalanx_core::{Job, JobId};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// Batches on their way to a reader.
const BATCHES: usize = 4;
/// Rows in a batch.
const ROWS: u32 = 1000;
/// Bytes of lines in a batch; one line more than this still goes.
const BYTES: usize = 1 << 20;

/// Which rows to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query {
    /// Only later ones; 0 is from the start.
    pub after_seq: u64,
    /// Waits for more until the job has ended.
    pub follow: bool,
    /// Only this rank.
    pub rank: Option<u32>,
    /// Only this attempt.
    pub attempt: Option<u32>,
}

/// Some lines of a job's log, in order.
pub type LogBatch = Result<Vec<LogRow>, Error>;
/// Some points of a job's metrics, in order.
pub type PointBatch = Result<Vec<PointRow>, Error>;

/// Some states of a job with their change numbers, in order.
pub type ChangeBatch = Result<Vec<(u64, Job)>, Error>;

/// A kind of row that can be followed.
trait Row: Sized + Send + 'static {
    fn seq(&self) -> u64;
    fn read(
        shared: &Shared,
        id: JobId,
        query: &Query,
    ) -> impl Future<Output = Result<Vec<Self>, Error>> + Send;
}

impl Row for LogRow {
    fn seq(&self) -> u64 {
        self.seq
    }

    async fn read(shared: &Shared, id: JobId, query: &Query) -> Result<Vec<Self>, Error> {
        Ok(shared.records.lines(id, query.after_seq, ROWS, BYTES, query.rank, query.attempt).await?)
    }
}

impl Row for PointRow {
    fn seq(&self) -> u64 {
        self.seq
    }

    async fn read(shared: &Shared, id: JobId, query: &Query) -> Result<Vec<Self>, Error> {
        Ok(shared.records.points(id, query.after_seq, ROWS, query.rank, query.attempt).await?)
    }
}

impl Row for (u64, Job) {
    fn seq(&self) -> u64 {
        self.0
    }

    async fn read(shared: &Shared, id: JobId, query: &Query) -> Result<Vec<Self>, Error> {
        Ok(shared.state.changes(id, query.after_seq, ROWS).await?)
    }
}

pub(super) fn logs(shared: Arc<Shared>, id: JobId, query: Query) -> impl Stream<Item = LogBatch> {
    rows::<LogRow>(shared, id, query)
}

pub(super) fn metrics(shared: Arc<Shared>, id: JobId, query: Query) -> impl Stream<Item = PointBatch> {
    rows::<PointRow>(shared, id, query)
}

pub(super) fn changes(shared: Arc<Shared>, id: JobId, after_seq: u64) -> impl Stream<Item = ChangeBatch> {
    rows::<(u64, Job)>(shared, id, Query { after_seq, follow: true, ..Query::default() })
}

/// Cancel: dropping the stream ends the task. Error: it is the stream's last item.
fn rows<R: Row>(shared: Arc<Shared>, id: JobId, query: Query) -> impl Stream<Item = Result<Vec<R>, Error>> {
    let (sender, receiver) = mpsc::channel(BATCHES);
    tokio::spawn(async move {
        if let Err(error) = send_rows(&shared, id, query, &sender).await {
            // A reader that has gone needs no error.
            let _ = sender.send(Err(error)).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn send_rows<R: Row>(
    shared: &Shared,
    id: JobId,
    mut query: Query,
    sender: &mpsc::Sender<Result<Vec<R>, Error>>,
) -> Result<(), Error> {
    let mut news = shared.notifier.subscribe(id);
    loop {
        news.borrow_and_update();
        // Asked before reading: whatever was written before the job was over is read below.
        let over = shared.job(id).await?.state.is_terminal();
        loop {
            let batch = R::read(shared, id, &query).await?;
            let Some(last) = batch.last() else { break };
            query.after_seq = last.seq();
            if sender.send(Ok(batch)).await.is_err() {
                return Ok(());
            }
        }
        if over || !query.follow {
            return Ok(());
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok(()) },
            () = sender.closed() => return Ok(()),
        }
    }
}
