//! Following a job or a sweep over streams that may be cut: resumed by sequence number, without gap or repeat, for as long as the
//! service can be expected back.

use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::output::Output;
use phalanx_api::v1 as pb;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

/// A service that is away for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first pause between two tries; each is twice the one before, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// What a message of a stream is to its follower.
pub(crate) enum Step<End = pb::Job> {
    /// A row: the stream resumes after it.
    Row(u64),
    /// The job or the sweep: the last message.
    Over(Box<End>),
}

/// A stream that can be opened again after any of its rows.
pub(crate) trait Feed {
    /// What it is made of.
    type Message;
    /// What it ends with.
    type End;

    /// Opens it after a row.
    async fn open(&self, client: &mut Client, after_seq: u64) -> Result<Streaming<Self::Message>, Status>;

    /// Takes a message in.
    async fn take(&mut self, message: Self::Message) -> Result<Step<Self::End>, Failure>;
}

/// Follows a feed until its job or sweep is over (then that is the answer) or it ends without one.
///
/// Cancel: safe at any point. Error: one that trying again cannot mend, or a service that stays away.
pub(crate) async fn follow<F: Feed>(
    route: &Route,
    output: &Output,
    feed: &mut F,
) -> Result<Option<F::End>, Failure> {
    let mut after_seq = 0;
    let mut patience = Patience::default();
    loop {
        match follow_once(route, feed, &mut after_seq, &mut patience).await {
            Ok(job) => return Ok(job),
            Err(Cut::Final(failure)) => return Err(failure),
            Err(Cut::Passing(failure)) if !route.may_come_back() => return Err(failure),
            Err(Cut::Passing(failure)) => patience.wait(failure, output).await?,
        }
    }
}

/// Why a stream ended early.
enum Cut {
    /// Trying again may help.
    Passing(Failure),
    /// It will not.
    Final(Failure),
}

impl From<Status> for Cut {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded => {
                Cut::Passing(status.into())
            }
            _ => Cut::Final(status.into()),
        }
    }
}

async fn follow_once<F: Feed>(
    route: &Route,
    feed: &mut F,
    after_seq: &mut u64,
    patience: &mut Patience,
) -> Result<Option<F::End>, Cut> {
    let mut client = route.connect().await.map_err(|failure| match failure.code {
        crate::failure::USAGE => Cut::Final(failure),
        _ => Cut::Passing(failure),
    })?;
    let mut messages = feed.open(&mut client, *after_seq).await?;
    while let Some(message) = messages.message().await? {
        patience.renew();
        match feed.take(message).await.map_err(Cut::Final)? {
            Step::Row(seq) => *after_seq = seq,
            Step::Over(job) => return Ok(Some(*job)),
        }
    }
    Ok(None)
}

/// How long a service that is away is still waited for.
#[derive(Default)]
struct Patience {
    away_since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    fn renew(&mut self) {
        *self = Patience::default();
    }

    async fn wait(&mut self, failure: Failure, output: &Output) -> Result<(), Failure> {
        let now = Instant::now();
        let since = *self.away_since.get_or_insert_with(|| {
            let seconds = PATIENCE.as_secs();
            output.say(&format!("phalanx: lost the service; trying to get back to it for {seconds} s"));
            now
        });
        if now.duration_since(since) >= PATIENCE {
            return Err(Failure::trouble(format!("{failure}; gave up after {} s", PATIENCE.as_secs())));
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        tokio::time::sleep(self.pause).await;
        Ok(())
    }
}

/// Every change of a job.
pub(crate) struct Changes<T: AsyncFnMut(&pb::Job) -> Result<(), Failure>> {
    /// The job.
    pub(crate) id: String,
    /// Hears of each state.
    pub(crate) hear: T,
}

impl<T: AsyncFnMut(&pb::Job) -> Result<(), Failure>> Feed for Changes<T> {
    type Message = pb::WatchJobResponse;
    type End = pb::Job;

    async fn open(&self, client: &mut Client, after_seq: u64) -> Result<Streaming<Self::Message>, Status> {
        let request = pb::WatchJobRequest { id: self.id.clone(), after_seq };
        Ok(client.jobs.watch(request).await?.into_inner())
    }

    async fn take(&mut self, message: Self::Message) -> Result<Step, Failure> {
        let job = message.job.unwrap_or_default();
        (self.hear)(&job).await?;
        Ok(if job.is_terminal() { Step::Over(Box::new(job)) } else { Step::Row(message.seq) })
    }
}

/// Which rows of a job are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    /// The job.
    pub(crate) id: String,
    /// Until the job is over.
    pub(crate) follow: bool,
    /// Only this rank.
    pub(crate) rank: Option<i32>,
    /// Only this attempt.
    pub(crate) attempt: Option<i32>,
}

/// What a job's ranks wrote.
pub(crate) struct Lines<T: AsyncFnMut(pb::LogLine) -> Result<(), Failure>> {
    /// Which lines.
    pub(crate) rows: Rows,
    /// Hears each line.
    pub(crate) hear: T,
}

impl<T: AsyncFnMut(pb::LogLine) -> Result<(), Failure>> Feed for Lines<T> {
    type Message = pb::JobLogsResponse;
    type End = pb::Job;

    async fn open(&self, client: &mut Client, after_seq: u64) -> Result<Streaming<Self::Message>, Status> {
        let Rows { id, follow, rank, attempt } = self.rows.clone();
        let request = pb::JobLogsRequest { id, follow, after_seq, rank, attempt };
        Ok(client.jobs.logs(request).await?.into_inner())
    }

    async fn take(&mut self, message: Self::Message) -> Result<Step, Failure> {
        match (message.line, message.job) {
            (Some(line), _) => {
                let seq = line.seq;
                (self.hear)(line).await?;
                Ok(Step::Row(seq))
            }
            (None, job) => Ok(Step::Over(Box::new(job.unwrap_or_default()))),
        }
    }
}

/// What a job's ranks reported.
pub(crate) struct Points<T: AsyncFnMut(pb::MetricPoint) -> Result<(), Failure>> {
    /// Which points.
    pub(crate) rows: Rows,
    /// Hears each point.
    pub(crate) hear: T,
}

impl<T: AsyncFnMut(pb::MetricPoint) -> Result<(), Failure>> Feed for Points<T> {
    type Message = pb::JobMetricsResponse;
    type End = pb::Job;

    async fn open(&self, client: &mut Client, after_seq: u64) -> Result<Streaming<Self::Message>, Status> {
        let Rows { id, follow, rank, attempt } = self.rows.clone();
        let request = pb::JobMetricsRequest { id, follow, after_seq, rank, attempt };
        Ok(client.jobs.metrics(request).await?.into_inner())
    }

    async fn take(&mut self, message: Self::Message) -> Result<Step, Failure> {
        match (message.point, message.job) {
            (Some(point), _) => {
                let seq = point.seq;
                (self.hear)(point).await?;
                Ok(Step::Row(seq))
            }
            (None, job) => Ok(Step::Over(Box::new(job.unwrap_or_default()))),
        }
    }
}
