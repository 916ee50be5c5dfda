//! The `Jobs` service.

use crate::{convert, page, status};
use futures_util::{Stream, StreamExt, future, stream};
use phalanx_api::v1 as pb;
use phalanx_core::{JobId, TrialId};
use phalanx_runtime::Error;
use phalanx_runtime::service::{Handle, JobRequest, Query};
use prost::Message;
use std::path::PathBuf;
use std::pin::Pin;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// A page ends before it grows past this, so that it fits into one message however large the gangs are.
const PAGE_BYTES: usize = 2 << 20;

type Answer<T> = Result<Response<T>, Status>;
pub(crate) type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Jobs over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Jobs {
    pub(crate) handle: Handle,
    /// Cuts streams that would otherwise outlive the face.
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl pb::jobs_server::Jobs for Jobs {
    type WatchStream = Outbound<pb::WatchJobResponse>;
    type LogsStream = Outbound<pb::JobLogsResponse>;
    type MetricsStream = Outbound<pb::JobMetricsResponse>;

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Answer<pb::Job> {
        let request = request.into_inner();
        let base_dir = filled(request.base_dir).map(PathBuf::from);
        if base_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return Err(status::bad_field(
                "base_dir",
                "`base_dir` must be an absolute path of the service's machine",
            ));
        }
        let submission = JobRequest {
            toml: request.toml,
            request_id: filled(request.request_id),
            validate_only: request.validate_only,
            base_dir,
            default_name: filled(request.default_name),
        };
        answer(self.handle.submit(submission).await)
    }

    async fn get(&self, request: Request<pb::GetJobRequest>) -> Answer<pb::Job> {
        answer(self.handle.job(self.named(&request.get_ref().id).await?).await)
    }

    async fn list(&self, request: Request<pb::ListJobsRequest>) -> Answer<pb::ListJobsResponse> {
        let size = page::size(request.get_ref().page_size)?;
        let before = page::start(&request.get_ref().page_token)?;
        // One more than the page shows whether another one follows.
        let found = self
            .handle
            .jobs(before, size + 1, request.get_ref().unfinished)
            .await
            .map_err(|error| status::of(&error))?;
        let mut bytes = 0;
        let fitting = found.iter().map(pb::Job::from).take(size as usize).take_while(|job| {
            bytes += job.encoded_len();
            bytes <= PAGE_BYTES
        });
        let mut jobs: Vec<pb::Job> = fitting.collect();
        if let (true, Some(first)) = (jobs.is_empty(), found.first()) {
            jobs.push(first.into());
        }
        let more = found.len() > jobs.len();
        let last = jobs.len().checked_sub(1).and_then(|last| found.get(last)).filter(|_| more);
        let next_page_token = last.map(|job| page::token_after(job.id)).unwrap_or_default();
        Ok(Response::new(pb::ListJobsResponse { jobs, next_page_token }))
    }

    async fn cancel(&self, request: Request<pb::CancelJobRequest>) -> Answer<pb::Job> {
        answer(self.handle.cancel(self.named(&request.get_ref().id).await?).await)
    }

    async fn pause(&self, request: Request<pb::PauseJobRequest>) -> Answer<pb::Job> {
        answer(self.handle.pause(self.named(&request.get_ref().id).await?).await)
    }

    async fn resume(&self, request: Request<pb::ResumeJobRequest>) -> Answer<pb::Job> {
        answer(self.handle.resume(self.named(&request.get_ref().id).await?).await)
    }

    async fn watch(&self, request: Request<pb::WatchJobRequest>) -> Answer<Self::WatchStream> {
        let request = request.get_ref();
        let id = self.existing(&request.id).await?;
        let changes = self.handle.changes(id, request.after_seq);
        let rows = rows(changes, |(seq, job)| pb::WatchJobResponse { seq, job: Some((&job).into()) });
        Ok(Response::new(until_shutdown(rows, self.shutdown.clone())))
    }

    async fn logs(&self, request: Request<pb::JobLogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.get_ref();
        let id = self.existing(&request.id).await?;
        let query = query(request.follow, request.after_seq, request.rank, request.attempt)?;
        let lines = rows(self.handle.logs(id, query), move |row| convert::line(id, row));
        let last = self.terminal(id, |job| pb::JobLogsResponse { line: None, job: Some(job) });
        Ok(Response::new(until_shutdown(lines.chain(last), self.shutdown.clone())))
    }

    async fn metrics(&self, request: Request<pb::JobMetricsRequest>) -> Answer<Self::MetricsStream> {
        let request = request.get_ref();
        let id = self.existing(&request.id).await?;
        let query = query(request.follow, request.after_seq, request.rank, request.attempt)?;
        let points = rows(self.handle.metrics(id, query), move |row| convert::point(id, row));
        let last = self.terminal(id, |job| pb::JobMetricsResponse { point: None, job: Some(job) });
        Ok(Response::new(until_shutdown(points.chain(last), self.shutdown.clone())))
    }
}

impl Jobs {
    /// The id of a job that is there: a stream's first answer says at once when it is not.
    async fn existing(&self, id: &str) -> Result<JobId, Status> {
        let id = self.named(id).await?;
        self.handle.job(id).await.map_err(|error| status::of(&error))?;
        Ok(id)
    }

    /// The job of an id, or of a trial: `s3/12` is the job that runs it.
    async fn named(&self, id: &str) -> Result<JobId, Status> {
        let Ok(trial) = id.parse::<TrialId>() else { return status::job_id(id) };
        let found = self.handle.trial(trial).await.map_err(|error| status::of(&error))?;
        found.job.ok_or_else(|| status::of(&Error::TrialWithoutJob(trial)))
    }

    /// One message with the job if it is terminal, nothing if it is not.
    fn terminal<T: Send>(
        &self,
        id: JobId,
        message: fn(pb::Job) -> T,
    ) -> impl Stream<Item = Result<T, Status>> + Send + use<T> {
        let handle = self.handle.clone();
        let job = async move {
            match handle.job(id).await {
                Ok(job) if job.state.is_terminal() => Some(Ok(message((&job).into()))),
                Ok(_) => None,
                Err(error) => Some(Err(status::of(&error))),
            }
        };
        stream::once(job).filter_map(future::ready)
    }
}

/// The stream, cut with `UNAVAILABLE` when the face is shut down, so that its reader knows to come back.
pub(crate) fn until_shutdown<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    shutdown: CancellationToken,
) -> Outbound<T> {
    let state = Some((Box::pin(messages), shutdown));
    Box::pin(stream::unfold(state, |state| async move {
        let (mut messages, shutdown) = state?;
        tokio::select! {
            biased;
            next = messages.next() => next.map(|message| (message, Some((messages, shutdown)))),
            () = shutdown.cancelled() => Some((Err(status::unavailable()), None)),
        }
    }))
}

fn answer(job: Result<phalanx_core::Job, Error>) -> Answer<pb::Job> {
    job.map(|job| Response::new((&job).into())).map_err(|error| status::of(&error))
}

/// Batches of rows as one message a row.
pub(crate) fn rows<R: Send + 'static, T: Send + 'static>(
    batches: impl Stream<Item = Result<Vec<R>, Error>> + Send + 'static,
    mut message: impl FnMut(R) -> T + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    batches.flat_map(move |batch| {
        let messages: Vec<Result<T, Status>> = match batch {
            Ok(rows) => rows.into_iter().map(|row| Ok(message(row))).collect(),
            Err(error) => vec![Err(status::of(&error))],
        };
        stream::iter(messages)
    })
}

fn query(follow: bool, after_seq: u64, rank: Option<i32>, attempt: Option<i32>) -> Result<Query, Status> {
    let natural = |field: &str, value: Option<i32>| match value.map(u32::try_from) {
        Some(Err(_)) => Err(status::bad_field(field, &format!("`{field}` must not be negative"))),
        Some(Ok(value)) => Ok(Some(value)),
        None => Ok(None),
    };
    Ok(Query { after_seq, follow, rank: natural("rank", rank)?, attempt: natural("attempt", attempt)? })
}

/// proto3 has no absent text: an empty one is none.
pub(crate) fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
