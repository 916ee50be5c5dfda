//! What of a queue's quota is kept for the first gang that waits for it.
//!
//! Otherwise those that ask for less could take a quota for ever before one that asks for more, and take what others have
//! just given up for it.

use super::Decision;
use crate::amounts::Amounts;
use crate::queue::{Blocked, ClassId, Key, Pending};
use crate::reason::ReasonCode;
use phalanx_core::JobId;
use phalanx_core::spec::GangSpec;

/// The first gang of a queue that waits for the queue's quota.
pub(super) struct QuotaHead {
    pub(super) job: JobId,
    pub(super) key: Key,
    sequence: u64,
    passed: usize,
    asks: Amounts,
}

impl Decision<'_> {
    /// Takes over from the last plan who waits for a quota; where one of them is gone or has another place, those behind
    /// it are looked at again.
    pub(super) fn recall_quota_heads(&mut self) {
        for (queue, (job, key)) in std::mem::take(&mut self.queue.memory.quota_heads) {
            match self.queue.get(job).cloned().filter(|_| self.queue.key_of(job) == Some(key)) {
                Some(pending) => self.set_quota_head(&pending, key),
                None => self.open_behind(&queue, job),
            }
        }
    }

    pub(super) fn remember_quota_heads(&self) -> std::collections::BTreeMap<String, (JobId, Key)> {
        self.quota_heads.iter().map(|(queue, head)| (queue.clone(), (head.job, head.key))).collect()
    }

    /// A gang waits for its queue's quota: it is the queue's head unless one waits that comes before it.
    pub(super) fn wait_for_quota(&mut self, pending: &Pending, key: Key) {
        let before = self.quota_heads.get(&pending.queue).map(|head| (head.key, head.job));
        if before.is_some_and(|(before, _)| before <= key) {
            return;
        }
        self.set_quota_head(pending, key);
        if let Some((_, job)) = before {
            self.open_held_for(job);
        }
    }

    fn set_quota_head(&mut self, pending: &Pending, key: Key) {
        let later = self.plan.placements.iter().filter(|(job, _)| self.is_later(*job, pending)).count();
        let passed = self.queue.passed(pending, self.policy.max_bypass) + later;
        let asks = Amounts::of_workers(&pending.gang.each, pending.gang.workers.min);
        let head = QuotaHead { job: pending.job, key, sequence: pending.sequence, passed, asks };
        self.quota_heads.insert(pending.queue.clone(), head);
    }

    /// A gang starts: it waits for no quota any more, and has passed those submitted before it.
    pub(super) fn pass_quota_heads(&mut self, pending: &Pending) {
        if self.quota_heads.get(&pending.queue).is_some_and(|head| head.job == pending.job) {
            self.quota_heads.remove(&pending.queue);
            self.open_behind(&pending.queue, pending.job);
        }
        let passed = self.quota_heads.values_mut().filter(|head| head.sequence < pending.sequence);
        passed.for_each(|head| head.passed += 1);
    }

    /// Looks again at those of a queue that waited for the quota behind a gang.
    fn open_behind(&mut self, queue: &str, head: JobId) {
        let waits =
            |blocked: Blocked| blocked.code == ReasonCode::WaitingQuota || blocked.kept_for == Some(head);
        let classes = self.queue.classes();
        let behind = classes.filter(|(_, class)| class.queue == queue && class.blocked.is_some_and(waits));
        let ids: Vec<ClassId> = behind.map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.open_class(id));
    }

    /// For whom the quota is kept from a gang: for one before it that enough have passed or others give way to.
    pub(super) fn quota_kept_from(&self, pending: &Pending) -> Option<&QuotaHead> {
        let head = self.quota_heads.get(&pending.queue).filter(|head| head.job != pending.job)?;
        let given_way = || {
            self.promised.iter().any(|shadow| shadow.job == head.job)
                || self.queue.get(head.job).is_some_and(|pending| pending.promised)
        };
        let before = self.queue.key_of(pending.job).is_none_or(|key| head.key < key);
        (before && (head.passed >= self.policy.max_bypass || given_way())).then_some(head)
    }

    /// How many workers of a waiting gang its queue's quota leaves room for.
    pub(crate) fn quota_room(&self, pending: &Pending) -> u32 {
        let room = self.whole_quota_room(&pending.queue, &pending.gang);
        match self.quota_kept_from(pending) {
            Some(head) => room.min(self.quota_beside(head, &pending.queue, &pending.gang)),
            None => room,
        }
    }

    /// By how many workers a running gang may grow: what the first that waits for the quota asks for is left to it.
    pub(crate) fn quota_to_grow(&self, queue: &str, gang: &GangSpec) -> u32 {
        let room = self.whole_quota_room(queue, gang);
        match self.quota_heads.get(queue) {
            Some(head) => room.min(self.quota_beside(head, queue, gang)),
            None => room,
        }
    }

    /// The room in a quota, whoever waits for it.
    pub(super) fn whole_quota_room(&self, queue: &str, gang: &GangSpec) -> u32 {
        let Some(config) = self.queue.config_ref(queue) else { return u32::MAX };
        match self.cluster.usage(queue) {
            Some(usage) => config.quota_room(&usage.held, gang).0,
            None => config.quota_room(&Amounts::default(), gang).0,
        }
    }

    /// The room in a quota once those that end are gone and the head has what it asks for.
    fn quota_beside(&self, head: &QuotaHead, queue: &str, gang: &GangSpec) -> u32 {
        let Some(config) = self.queue.config_ref(queue) else { return u32::MAX };
        let mut held = self.cluster.held_by(queue);
        let evicted = self.plan.evictions.iter().map(|eviction| eviction.attempt);
        for attempt in self.cluster.ending().chain(evicted) {
            if let Some(holding) =
                self.cluster.holding(attempt).filter(|holding| holding.holder.queue == queue)
            {
                held.subtract(&holding.amounts);
            }
        }
        held.add(&head.asks);
        config.quota_room(&held, gang).0
    }
}
