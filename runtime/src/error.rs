//! The one vocabulary of errors that the faces raise to gRPC and HTTP.

use crate::controller::Refusal;
use crate::store::StoreError;
use phalanx_core::limits::SECRETS;
use phalanx_core::{GroupName, JobId, JobState, Problems, Reason, SecretError, SweepId, SweepState, TrialId};
use std::path::PathBuf;

/// Why the service could not do what it was asked; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No job has this id.
    #[error("there is no job {0}; `phalanx ps -a` lists all jobs")]
    UnknownJob(JobId),
    /// A file with problems, and its text for showing them.
    #[error("{problems}")]
    InvalidFile {
        /// All that is wrong.
        problems: Problems,
        /// The file.
        text: String,
    },
    /// The cluster could not run it even if it were empty.
    #[error("{}", .0.text)]
    Infeasible(Reason),
    /// A request id that has been used for something else.
    #[error("request id `{request_id}` was used for another submission; use a fresh one for new content")]
    Conflict {
        /// The id.
        request_id: String,
    },
    /// A text that is too long for a request id.
    #[error("a request id has at most {limit} bytes, this one {bytes}")]
    RequestIdTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The job's state does not allow it.
    #[error("{job} is {state} and cannot be {asked}")]
    WrongState {
        /// The job.
        job: JobId,
        /// Its state.
        state: JobState,
        /// What was asked.
        asked: &'static str,
    },
    /// No sweep has this id.
    #[error("there is no sweep {0}; `phalanx ps -a` lists all sweeps")]
    UnknownSweep(SweepId),
    /// No trial of the sweep has this number.
    #[error("there is no trial {0}; `phalanx trials {sweep}` lists those there are", sweep = .0.sweep)]
    UnknownTrial(TrialId),
    /// A trial that is run by somebody else, or was never run.
    #[error("no job of this service has run trial {0}")]
    TrialWithoutJob(TrialId),
    /// The sweep's state does not allow it.
    #[error("{sweep} is {state} and cannot be {asked}")]
    SweepState {
        /// The sweep.
        sweep: SweepId,
        /// Its state.
        state: SweepState,
        /// What was asked.
        asked: &'static str,
    },
    /// A new sweep cannot learn from an older one.
    #[error("cannot learn from {sweep}: {why}")]
    LearnFrom {
        /// The older one.
        sweep: SweepId,
        /// Why not.
        why: String,
    },
    /// The service runs the sweep's trials itself.
    #[error("{0} runs its trials itself; trials are handed out of a sweep that was created as external")]
    NotExternal(SweepId),
    /// A report has one value, and the sweep several objectives.
    #[error("{0} has several objectives, which are told at a trial's end and not reported")]
    ManyObjectives(SweepId),
    /// The study does not take it.
    #[error(transparent)]
    Study(#[from] phalanx_tuner::Error),
    /// A queue that the service does not have.
    #[error("there is no queue `{queue}`; this service has {}", .there.join(", "))]
    UnknownQueue {
        /// Its name.
        queue: String,
        /// Those there are.
        there: Vec<String>,
    },
    /// A change of queues with problems, and its text for showing them.
    #[error("{problems}")]
    InvalidQueues {
        /// All that is wrong.
        problems: Problems,
        /// The change.
        text: String,
    },
    /// A configuration that does not fit what the service has to do.
    #[error("{0}")]
    Misfit(Problems),
    /// A secret that the service does not have.
    #[error(
        "there is no secret `{0}` in the service's secret store; set it with `phalanx secret set {0}` first"
    )]
    UnknownSecret(String),
    /// No file of the job's checkpoints has this id.
    #[error("{job} has no artifact `{artifact}` on this machine's disks")]
    UnknownArtifact {
        /// The job.
        job: JobId,
        /// What was asked for.
        artifact: String,
    },
    /// A name or a value that cannot be a secret's.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// No secret has this name.
    #[error("there is no secret `{0}`; `phalanx secret list` lists them")]
    NoSecret(String),
    /// A secret that is still needed.
    #[error("{job} names the secret `{secret}` and is not over; cancel it or wait for its end first")]
    SecretInUse {
        /// Its name.
        secret: String,
        /// The job.
        job: JobId,
    },
    /// More secrets than a service keeps.
    #[error("a service keeps at most {SECRETS} secrets; remove some first")]
    TooManySecrets,
    /// No node has this name.
    #[error("there is no node `{0}`; `phalanx nodes` lists them")]
    UnknownNode(String),
    /// No placement group has this name.
    #[error("there is no placement group `{0}`; `phalanx groups` lists all of them")]
    UnknownGroup(GroupName),
    /// A placement group of this name has other content.
    #[error("the placement group `{0}` is there with other content; remove it first, or take another name")]
    GroupExists(GroupName),
    /// Records at rest can only be read.
    #[error("no service runs on {}; start one with `phalanx up`", .data_dir.display())]
    ReadOnly {
        /// The data folder.
        data_dir: PathBuf,
    },
    /// The service is being shut down or has stopped.
    #[error("the service is being shut down; try again when it is back")]
    Unavailable,
    /// The store could not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLive(job) => Error::UnknownJob(job),
            Refusal::Infeasible(reason) => Error::Infeasible(reason),
            Refusal::UnknownQueue { queue, there } => Error::UnknownQueue { queue, there },
            Refusal::Queues { problems, text } => Error::InvalidQueues { problems, text },
            Refusal::UnknownSecret(secret) => Error::UnknownSecret(secret),
            Refusal::SecretInUse { secret, job } => Error::SecretInUse { secret, job },
            Refusal::UnknownNode(node) => Error::UnknownNode(node),
            Refusal::WrongState { job, state, asked } => Error::WrongState { job, state, asked },
            Refusal::UnknownGroup(name) => Error::UnknownGroup(name),
            Refusal::GroupExists(name) => Error::GroupExists(name),
            Refusal::SweepNotLive(sweep) => Error::UnknownSweep(sweep),
            Refusal::SweepState { sweep, state, asked } => Error::SweepState { sweep, state, asked },
            Refusal::NotExternal(sweep) => Error::NotExternal(sweep),
            Refusal::ManyObjectives(sweep) => Error::ManyObjectives(sweep),
            Refusal::Study(error) => Error::Study(error),
            Refusal::ShuttingDown => Error::Unavailable,
        }
    }
}
