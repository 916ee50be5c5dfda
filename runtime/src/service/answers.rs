//! Requests that one commit takes together, and their answers, which are given once what they say is committed.

use super::control::{Actor, GroupAsk, Request};
use super::sweeps::SweepAsk;
use crate::error::Error;
use crate::store::StoreError;
use phalanx_core::{Group, Job, Sweep};
use tokio::sync::oneshot;

/// A request, who asks, and whom to answer.
pub(super) enum Asked {
    Job(Request, Actor, oneshot::Sender<Result<Job, Error>>),
    Group(GroupAsk, Actor, oneshot::Sender<Result<Group, Error>>),
    Sweep(SweepAsk, Actor, oneshot::Sender<Result<Sweep, Error>>),
}

/// An answer that is given once what it says is committed.
pub(super) enum Answer {
    Job(Box<Result<Job, Error>>, oneshot::Sender<Result<Job, Error>>),
    Group(Box<Result<Group, Error>>, oneshot::Sender<Result<Group, Error>>),
    Sweep(Box<Result<Sweep, Error>>, oneshot::Sender<Result<Sweep, Error>>),
}

impl Answer {
    /// Gives it; nobody may listen any more.
    pub(super) fn give(self) {
        match self {
            Answer::Job(answer, to) => drop(to.send(*answer)),
            Answer::Group(answer, to) => drop(to.send(*answer)),
            Answer::Sweep(answer, to) => drop(to.send(*answer)),
        }
    }

    /// Says that nothing of it has happened.
    pub(super) fn refuse(self, error: &StoreError) {
        let refused = || Error::Store(StoreError::clone(error));
        match self {
            Answer::Job(answer, to) => drop(to.send(answer.and_then(|_| Err(refused())))),
            Answer::Group(answer, to) => drop(to.send(answer.and_then(|_| Err(refused())))),
            Answer::Sweep(answer, to) => drop(to.send(answer.and_then(|_| Err(refused())))),
        }
    }
}

impl Request {
    /// What is noted where it is done.
    pub(super) fn action(&self) -> Option<&'static str> {
        match self {
            Request::Validate(_) => None,
            Request::Submit { .. } => Some("job.submit"),
            Request::Cancel(_) => Some("job.cancel"),
            Request::Pause(_) => Some("job.pause"),
            Request::Resume(_) => Some("job.resume"),
        }
    }
}

impl GroupAsk {
    /// What is noted where it is done.
    pub(super) fn action(&self) -> Option<&'static str> {
        match self {
            GroupAsk::Validate(_) => None,
            GroupAsk::Create { .. } => Some("group.create"),
            GroupAsk::Remove(_) => Some("group.remove"),
        }
    }
}

impl SweepAsk {
    /// What is noted where it is done.
    pub(super) fn action(&self) -> Option<&'static str> {
        match self {
            SweepAsk::Validate(_) => None,
            SweepAsk::Create { .. } => Some("sweep.create"),
            SweepAsk::Cancel(_) => Some("sweep.cancel"),
            SweepAsk::Pause(_) => Some("sweep.pause"),
            SweepAsk::Resume(_) => Some("sweep.resume"),
        }
    }
}
