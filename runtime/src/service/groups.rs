//! Placement groups as the handle offers them: made, looked at, waited for, removed.

use super::control::{Control, GroupAsk, Input};
use super::{Handle, Shared};
use crate::controller::Controller;
use crate::error::Error;
use crate::store::Write;
use phalanx_core::limits::REQUEST_ID_BYTES;
use phalanx_core::{Group, GroupName, GroupSpec, GroupState, JobId, Reason, Time};
use std::collections::{BTreeMap, BTreeSet};
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
        let mut group = self.shared.with_group_reason((*group).clone());
        match wait {
            Some(wait) => return Ok(self.await_group(group, wait).await),
            None if matches!(group.state, GroupState::Pending | GroupState::Repairing) => {
                let mut explained = self.explain(vec![group.id]).await;
                group.reason = explained.remove(&group.id).unwrap_or(group.reason);
            }
            None => {}
        }
        Ok(group)
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
        self.inbox()?
            .send(Input::Group(ask, self.actor.clone(), answer))
            .await
            .map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)?
    }
}

impl Control {
    pub(super) async fn apply_group(
        &mut self,
        ask: GroupAsk,
        writes: &mut Vec<Write>,
        seen: &mut BTreeMap<String, ([u8; 32], JobId)>,
    ) -> Result<Group, Error> {
        let now = self.clock.now();
        match ask {
            GroupAsk::Validate(spec) => match self.controller.validate_group(&spec)? {
                Some(same) => Ok(same),
                None => Ok(Controller::preview_group(now, *spec)),
            },
            GroupAsk::Create { spec, request_id: None } => Ok(self.controller.create_group(now, *spec)?),
            GroupAsk::Create { spec, request_id: Some((request_id, fingerprint)) } => {
                let earlier = match seen.get(&request_id) {
                    Some(&earlier) => Some(earlier),
                    None => self.shared.state.request(&request_id).await?,
                };
                match earlier {
                    Some((same, id)) if same == fingerprint => {
                        let group = self.controller.groups().find(|group| group.id == id).cloned();
                        Ok(group.unwrap_or_else(|| removed(now, id, *spec)))
                    }
                    Some(_) => Err(Error::Conflict { request_id }),
                    None => {
                        let group = self.controller.create_group(now, *spec)?;
                        seen.insert(request_id.clone(), (fingerprint, group.id));
                        writes.push(Write::Request { request_id, fingerprint, job: group.id });
                        Ok(group)
                    }
                }
            }
            GroupAsk::Remove(name) => {
                let found = self.controller.remove_group(now, &name)?;
                let gang = Default::default;
                let absent = || GroupSpec { name, queue: String::new(), priority: 0, gang: gang() };
                Ok(found.unwrap_or_else(|| removed(now, JobId(0), absent())))
            }
        }
    }

    pub(super) fn publish_groups(&self, groups: Vec<Group>) {
        if groups.is_empty() {
            return;
        }
        let ids: BTreeSet<JobId> = groups.iter().map(|group| group.id).collect();
        let mut reasons = self.shared.reasons.write().unwrap_or_else(PoisonError::into_inner);
        let waits = |group: &&Group| matches!(group.state, GroupState::Pending | GroupState::Repairing);
        for group in groups.iter().filter(|group| !waits(group)) {
            reasons.remove(&group.id);
        }
        drop(reasons);
        let mut table = self.shared.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.into_iter().for_each(|group| table.put(group));
        drop(table);
        ids.into_iter().for_each(|id| self.shared.notifier.notify(id));
    }
}

/// What a request for a group that is no more is told.
fn removed(now: Time, id: JobId, spec: GroupSpec) -> Group {
    let reason = Reason::new("removed", "nothing of it is left");
    Group { id, state: GroupState::Removed, reason, ..Controller::preview_group(now, spec) }
}
