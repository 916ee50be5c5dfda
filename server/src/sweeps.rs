//! The `Sweeps` service.

use crate::jobs::{Outbound, filled, until_shutdown};
use crate::{page, status};
use futures_util::StreamExt;
use phalanx_api::v1 as pb;
use phalanx_core::{JobId, SweepId, TrialId};
use phalanx_runtime::Error;
use phalanx_runtime::service::{Answered, Decision, Handle, Outcome, SweepRequest};
use prost::Message;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// A page ends before it grows past this, so that it fits into one message however many parameters there are.
const PAGE_BYTES: usize = 2 << 20;

type Answer<T> = Result<Response<T>, Status>;

/// Sweeps over gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Sweeps {
    pub(crate) handle: Handle,
    /// Cuts streams that would otherwise outlive the face.
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl pb::sweeps_server::Sweeps for Sweeps {
    type WatchStream = Outbound<pb::WatchSweepResponse>;

    async fn create(&self, request: Request<pb::CreateSweepRequest>) -> Answer<pb::Sweep> {
        let request = request.into_inner();
        let base_dir = filled(request.base_dir).map(PathBuf::from);
        if base_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return Err(status::bad_field(
                "base_dir",
                "`base_dir` must be an absolute path of the service's machine",
            ));
        }
        let request = SweepRequest {
            toml: request.toml,
            request_id: filled(request.request_id),
            validate_only: request.validate_only,
            base_dir,
            default_name: filled(request.default_name),
            external: request.external,
        };
        answer(self.handle.create_sweep(request).await)
    }

    async fn get(&self, request: Request<pb::GetSweepRequest>) -> Answer<pb::Sweep> {
        let id = status::sweep_id(&request.get_ref().id)?;
        let sweep = self.handle.sweep(id).await.map_err(|error| status::of(&error))?;
        Ok(Response::new(pb::Sweep::from(&sweep).with_file(&sweep)))
    }

    async fn list(&self, request: Request<pb::ListSweepsRequest>) -> Answer<pb::ListSweepsResponse> {
        let size = page::size(request.get_ref().page_size)?;
        let before = page::start(&request.get_ref().page_token)?.map(|id| SweepId(id.0));
        // One more than the page shows whether another one follows.
        let found = self.handle.sweeps(before, size + 1).await.map_err(|error| status::of(&error))?;
        let sweeps = fitting(found.iter().map(pb::Sweep::from), size);
        let last = found.get(sweeps.len().wrapping_sub(1)).filter(|_| found.len() > sweeps.len());
        let next_page_token = last.map(|sweep| page::token_after(JobId(sweep.id.0))).unwrap_or_default();
        Ok(Response::new(pb::ListSweepsResponse { sweeps, next_page_token }))
    }

    async fn cancel(&self, request: Request<pb::CancelSweepRequest>) -> Answer<pb::Sweep> {
        answer(self.handle.cancel_sweep(status::sweep_id(&request.get_ref().id)?).await)
    }

    async fn pause(&self, request: Request<pb::PauseSweepRequest>) -> Answer<pb::Sweep> {
        answer(self.handle.pause_sweep(status::sweep_id(&request.get_ref().id)?).await)
    }

    async fn resume(&self, request: Request<pb::ResumeSweepRequest>) -> Answer<pb::Sweep> {
        answer(self.handle.resume_sweep(status::sweep_id(&request.get_ref().id)?).await)
    }

    async fn trials(&self, request: Request<pb::ListTrialsRequest>) -> Answer<pb::ListTrialsResponse> {
        let request = request.get_ref();
        let size = page::size(request.page_size)?;
        let from = page::start(&request.page_token)?.map_or(0, |last| last.0.saturating_add(1));
        let id = self.existing(&request.id).await?;
        let found = self.handle.trials(id, from, size + 1).await.map_err(|error| status::of(&error))?;
        let trials = fitting(found.iter().map(pb::Trial::from), size);
        let last = found.get(trials.len().wrapping_sub(1)).filter(|_| found.len() > trials.len());
        let next_page_token = last.map(|trial| page::token_after(JobId(trial.number))).unwrap_or_default();
        Ok(Response::new(pb::ListTrialsResponse { trials, next_page_token }))
    }

    async fn watch(&self, request: Request<pb::WatchSweepRequest>) -> Answer<Self::WatchStream> {
        let request = request.get_ref();
        let id = self.existing(&request.id).await?;
        let changes = self.handle.sweep_changes(id, request.after_seq).map(|change| match change {
            Ok(change) => Ok(pb::WatchSweepResponse {
                seq: change.seq,
                sweep: Some((&change.sweep).into()),
                trials: change.trials.iter().map(Into::into).collect(),
            }),
            Err(error) => Err(status::of(&error)),
        });
        Ok(Response::new(until_shutdown(changes, self.shutdown.clone())))
    }

    async fn ask(&self, request: Request<pb::AskRequest>) -> Answer<pb::AskResponse> {
        let request = request.into_inner();
        let id = status::sweep_id(&request.id)?;
        let answered = self.handle.ask_trial(id, filled(request.request_id)).await;
        Ok(Response::new(match answered.map_err(|error| status::of(&error))? {
            Answered::Trial(trial, resumed) => {
                pb::AskResponse { trial: Some((&*trial).into()), done: false, resumed }
            }
            Answered::Done => pb::AskResponse { done: true, ..Default::default() },
            Answered::Wait | Answered::Decision(_) | Answered::Told(..) => pb::AskResponse::default(),
        }))
    }

    async fn tell(&self, request: Request<pb::TellRequest>) -> Answer<pb::TellResponse> {
        let request = request.into_inner();
        let outcome = outcome(request.state, request.values)?;
        let id = TrialId { sweep: status::sweep_id(&request.id)?, number: request.number };
        let answered = self.handle.tell_trial(id, outcome, request.constraints).await;
        let answered = answered.map_err(|error| status::of(&error))?;
        Ok(Response::new(match answered {
            Answered::Told(trial, best) => {
                pb::TellResponse { trial: Some((&*trial).into()), best: best.as_deref().map(Into::into) }
            }
            _ => pb::TellResponse::default(),
        }))
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Answer<pb::ReportResponse> {
        use pb::report_response::Decision as Wire;
        let pb::ReportRequest { id, number, step, value } = request.into_inner();
        let id = TrialId { sweep: status::sweep_id(&id)?, number };
        let answered = self.handle.report_trial(id, step, value).await.map_err(|error| status::of(&error))?;
        let decision = match answered {
            Answered::Decision(Decision::Stop) => Wire::Stop,
            Answered::Decision(Decision::Pause) => Wire::Pause,
            _ => Wire::Continue,
        };
        Ok(Response::new(pb::ReportResponse { decision: decision as i32 }))
    }
}

impl Sweeps {
    /// The id of a sweep that is there.
    async fn existing(&self, id: &str) -> Result<SweepId, Status> {
        let id = status::sweep_id(id)?;
        self.handle.sweep(id).await.map_err(|error| status::of(&error))?;
        Ok(id)
    }
}

fn answer(sweep: Result<phalanx_core::Sweep, Error>) -> Answer<pb::Sweep> {
    sweep.map(|sweep| Response::new((&sweep).into())).map_err(|error| status::of(&error))
}

/// As many as a page has and a message holds, and one at least.
fn fitting<T: Message>(rows: impl Iterator<Item = T>, size: u32) -> Vec<T> {
    let mut bytes = 0;
    let fits = |row: &T| {
        let first = bytes == 0;
        bytes += row.encoded_len();
        first || bytes <= PAGE_BYTES
    };
    rows.take(size as usize).take_while(fits).collect()
}

fn outcome(state: i32, values: Vec<f64>) -> Result<Outcome, Status> {
    use pb::trial::State;
    match State::try_from(state) {
        Ok(State::Unspecified | State::Complete) if values.is_empty() => Ok(Outcome::LastReport),
        Ok(State::Unspecified | State::Complete) => Ok(Outcome::Values(values)),
        Ok(State::Stopped) => Ok(Outcome::Stopped),
        Ok(State::Failed) => Ok(Outcome::Failed),
        Ok(State::Cancelled) => Ok(Outcome::Cancelled),
        Ok(State::Queued | State::Running | State::Paused) | Err(_) => {
            Err(status::bad_field("state", "`state` must be COMPLETE, STOPPED, FAILED or CANCELLED"))
        }
    }
}
