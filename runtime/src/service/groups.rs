//! Placement groups as the handle offers them: made, looked at, waited for, removed.

use super::control::{GroupAsk, Input};
use super::{Handle, Shared};
use crate::error::Error;
use phalanx_core::limits::REQUEST_ID_BYTES;
use phalanx_core::{Group, GroupName, GroupSpec, GroupState, JobId, Reason};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// The longest that anybody waits for a group in one call.
pub const GROUP_WAIT: Duration = Duration::from_secs(600);

/// A placement group as somebody hands it in.
#[derive(Clone, Debug, Default)]
pub struct GroupRequest {
    /// The group's file.
    pub toml: String,
    /// Makes a repeated request answer the first result.
    pub request_id: Option<String>,
    /// Checks and changes nothing.
    pub validate_only: bool,
    /// Answers when the group is ready, and after so long as it is then.
    pub wait: Option<Duration>,
}

/// Groups that are not removed, as they were last committed.
#[derive(Debug, Default)]
pub(super) struct GroupTable {
    by_id: BTreeMap<JobId, Arc<Group>>,
    by_name: BTreeMap<GroupName, JobId>,
}

impl GroupTable {
    pub(super) fn new(groups: impl IntoIterator<Item = Group>) -> Self {
        let mut table = GroupTable::default();
        groups.into_iter().for_each(|group| table.put(group));
        table
    }

    /// Takes a group in as it is now. One that is being removed has no name any more: another may take it.
    pub(super) fn put(&mut self, group: Group) {
        let (id, name) = (group.id, &group.spec.name);
        if matches!(group.state, GroupState::Removing | GroupState::Removed) {
            if self.by_name.get(name) == Some(&id) {
                self.by_name.remove(name);
            }
        } else if self.by_name.get(name) != Some(&id) {
            self.by_name.insert(name.clone(), id);
        }
        match group.state {
            GroupState::Removed => drop(self.by_id.remove(&id)),
            _ => drop(self.by_id.insert(id, Arc::new(group))),
        }
    }
}

impl Shared {
    fn group_of(&self, id: JobId) -> Option<Group> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.by_id.get(&id).map(|group| self.with_group_reason((**group).clone()))
    }

    /// The group with the reason of the last decision where it waits.
    fn with_group_reason(&self, mut group: Group) -> Group {
        if matches!(group.state, GroupState::Pending | GroupState::Repairing)
            && let Some(reason) = self.reasons.read().unwrap_or_else(PoisonError::into_inner).get(&group.id)
        {
            group.reason = reason.clone();
        }
        group
    }
}

impl Handle {
    /// Makes a placement group and answers once it is durable; with `validate_only` nothing is changed.
    pub async fn create_group(&self, request: GroupRequest) -> Result<Group, Error> {
        let bytes = request.request_id.as_ref().map_or(0, String::len);
        if bytes > REQUEST_ID_BYTES {
            return Err(Error::RequestIdTooLong { bytes, limit: REQUEST_ID_BYTES });
        }
        let spec = GroupSpec::parse(&request.toml)
            .map_err(|problems| Error::InvalidFile { problems, text: request.toml.clone() })?;
        let ask = if request.validate_only {
            GroupAsk::Validate(Box::new(spec))
        } else {
            let mut hasher = blake3::Hasher::new_derive_key("phalanx placement group");
            hasher.update(request.toml.as_bytes());
            let fingerprint = *hasher.finalize().as_bytes();
            GroupAsk::Create {
                spec: Box::new(spec),
                request_id: request.request_id.map(|id| (id, fingerprint)),
            }
        };
        let group = self.ask_group(ask).await?;
        match request.wait.filter(|_| !request.validate_only) {
            Some(wait) => Ok(self.await_group(group, wait).await),
            None => Ok(group),
        }
    }

    /// One placement group; with `wait` once it is ready, and after so long as it is then.
    pub async fn group(&self, name: &GroupName, wait: Option<Duration>) -> Result<Group, Error> {
        let find = || {
            let groups = self.shared.groups.read().unwrap_or_else(PoisonError::into_inner);
            groups.by_name.get(name).and_then(|id| groups.by_id.get(id)).cloned()
        };
        let group = find().ok_or_else(|| Error::UnknownGroup(name.clone()))?;
        let group = self.shared.with_group_reason((*group).clone());
        match wait {
            Some(wait) => Ok(self.await_group(group, wait).await),
            None => Ok(group),
        }
    }

    /// Groups with numbers below `before`, the newest first; of one namespace, or of all.
    pub fn groups(&self, before: Option<JobId>, limit: u32, namespace: Option<&str>) -> Vec<Group> {
        let before = before.unwrap_or(JobId(u64::MAX));
        let groups = self.shared.groups.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = |group: &&Arc<Group>| namespace.is_none_or(|name| group.spec.name.namespace == name);
        let found = groups.by_id.range(..before).rev().map(|(_, group)| group).filter(wanted);
        found.take(limit as usize).map(|group| self.shared.with_group_reason((**group).clone())).collect()
    }

    /// Removes a placement group and ends what runs in it; one that is not there is answered as removed.
    pub async fn remove_group(&self, name: GroupName) -> Result<Group, Error> {
        self.ask_group(GroupAsk::Remove(name)).await
    }

    async fn await_group(&self, mut group: Group, wait: Duration) -> Group {
        let deadline = Instant::now() + wait.min(GROUP_WAIT);
        loop {
            let mut news = self.shared.notifier.subscribe(group.id);
            match self.shared.group_of(group.id) {
                Some(now) => group = now,
                None => {
                    group.state = GroupState::Removed;
                    group.reason = Reason::new("removed", "it was removed meanwhile");
                }
            }
            let settled =
                matches!(group.state, GroupState::Ready | GroupState::Removing | GroupState::Removed);
            if settled || !matches!(timeout_at(deadline, news.changed()).await, Ok(Ok(()))) {
                return group;
            }
        }
    }

    async fn ask_group(&self, ask: GroupAsk) -> Result<Group, Error> {
        let (answer, answered) = oneshot::channel();
        self.inbox()?.send(Input::Group(ask, answer)).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }
}
