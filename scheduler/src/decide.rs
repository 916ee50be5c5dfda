//! The walk over the waiting gangs, first first.
//!
//! Gangs that ask the same in one queue form a class; where one of them cannot start the rest need not be tried, and a
//! class that could not start is not tried again before something has changed for it. So a decision costs what changed,
//! not what waits or runs.

mod order;
mod quota;

use crate::bundle::{Bundle, Holder};
use crate::check::{check, feasible, over_quota};
use crate::cluster::{Cluster, Lifted};
use crate::explain::why;
use crate::grow;
use crate::place::{Keeper, Search};
use crate::plan::{Eviction, Plan, Policy, Resize};
use crate::preempt::{self, RoomMade};
use crate::queue::{Blocked, Class, ClassId, Key, Memory, Pending, Queue};
use crate::reason::ReasonCode;
use crate::reserve::{Keepers, Shadow, promises, reservation};
use order::Rank;
use phalanx_core::spec::GangSpec;
use phalanx_core::{AttemptId, JobId, Time};
use quota::QuotaHead;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// The attempt number under which a plan tries placements out; no real attempt gets so far.
pub(crate) const TENTATIVE: u32 = u32::MAX;
/// Starts of one plan that are undone to see whether a gang lost to them.
const LOST_TO: usize = 64;

/// What a plan has done to the cluster and must undo.
enum Undo {
    Release(AttemptId),
    PutBack(Lifted),
}

/// The first gang that waits for resources.
struct Head {
    job: JobId,
    gang: Arc<GangSpec>,
    sequence: u64,
    passed: usize,
    /// Its reservation, where time limits give one.
    shadow: Option<Shadow>,
}

pub(crate) struct Decision<'a> {
    pub(crate) now: Time,
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) queue: &'a mut Queue,
    pub(crate) policy: Policy,
    pub(crate) plan: Plan,
    undo: Vec<Undo>,
    /// What is kept for gangs that others end for.
    pub(crate) promised: Vec<Shadow>,
    /// What starts in this plan.
    placed: BTreeSet<JobId>,
    /// Classes of which a gang waits for a reservation that shorter ones may pass.
    passed_over: BTreeSet<ClassId>,
    head: Option<Head>,
    /// By queue: the first gang that waits for the queue's quota.
    quota_heads: BTreeMap<String, QuotaHead>,
    /// How many had started when it was last asked who overtakes the head.
    started_before: usize,
    /// First of every class that is to be tried, by queue.
    open: BTreeMap<String, BTreeSet<(Key, ClassId)>>,
    /// What to tell, once all is decided: the classes tried and found blocked.
    blocked: BTreeSet<ClassId>,
}

impl<'a> Decision<'a> {
    pub(crate) fn new(now: Time, cluster: &'a mut Cluster, queue: &'a mut Queue) -> Self {
        let policy = queue.policy();
        cluster.settle(now, policy.share_half_life);
        Decision {
            now,
            cluster,
            queue,
            policy,
            plan: Plan::default(),
            undo: Vec::new(),
            promised: Vec::new(),
            placed: BTreeSet::new(),
            passed_over: BTreeSet::new(),
            head: None,
            quota_heads: BTreeMap::new(),
            started_before: 0,
            open: BTreeMap::new(),
            blocked: BTreeSet::new(),
        }
    }

    pub(crate) fn run(mut self) -> Plan {
        self.cluster.set_quiet(true);
        self.reopen();
        self.keep_promises();
        loop {
            while let Some((job, class)) = self.next() {
                self.consider(job, class);
            }
            if !self.is_overtaken() {
                break;
            }
        }
        grow::grow(&mut self);
        self.tell();
        self.remember();
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Release(attempt) => self.cluster.release(attempt),
                Undo::PutBack(lifted) => self.cluster.put_back(&lifted),
            }
        }
        self.cluster.set_quiet(false);
        self.plan
    }

    /// Opens the classes for which something has changed since the last plan.
    fn reopen(&mut self) {
        let memory = &self.queue.memory;
        let (freed, taken) = (self.cluster.freed_version, self.cluster.taken_version);
        let all = !memory.primed
            || memory.nodes != self.cluster.nodes_version
            || taken < memory.taken
            || freed < memory.freed;
        if all {
            self.queue.memory = Memory::default();
        }
        self.recall_quota_heads();
        let mut open = std::mem::take(&mut self.queue.open);
        match all {
            true => open.extend(self.queue.classes().map(|(id, _)| id)),
            false if self.is_quiet() => {}
            false => open.extend(self.changed()),
        }
        for id in open {
            self.open_class(id);
        }
    }

    /// Whether nothing has happened that could change what was decided of those that wait.
    fn is_quiet(&self) -> bool {
        let memory = &self.queue.memory;
        let first = self.queue.first_key();
        let some_may = first.is_some_and(|first| self.may_preempt(&first)) || self.queue.is_shared();
        self.cluster.freed_version == memory.freed
            && memory.kept.is_none_or(|(job, _)| self.queue.get(job).is_some() && !self.queue.is_divided())
            && (self.cluster.taken_version == memory.taken || !some_may)
            // Time alone has put a running gang behind those that wait.
            && memory.wake.is_none_or(|at| at > self.now)
    }

    /// Whether somebody runs whose priority is below.
    fn may_preempt(&self, first: &Key) -> bool {
        self.cluster.lowest_priority().is_some_and(|lowest| lowest < first.0.0)
    }

    /// The classes for which it may be otherwise now.
    fn changed(&self) -> Vec<ClassId> {
        let memory = &self.queue.memory;
        let is_freed = self.cluster.freed_version != memory.freed;
        let slots: Option<BTreeSet<u32>> = self.cluster.freed_since(memory.freed).map(Iterator::collect);
        let helps = |gang: &GangSpec| match &slots {
            Some(slots) => slots.iter().any(|&slot| Search::new(self.cluster, gang).room(slot) > 0),
            None => true,
        };
        let head = memory.kept.and_then(|(job, _)| self.queue.get(job));
        let before_head = head.map(|head| self.rank_of(head.job));
        let kept_for_nobody = memory.kept.is_some() && head.is_none();
        // Where all that the head could use is kept for it, what it could not use is all that others can hope for.
        let claim = head.filter(|_| memory.shadow.is_none());
        let claim = claim.map(|head| Keepers { shadows: Vec::new(), head: Some(Arc::clone(&head.gang)) });
        let is_left = |gang: &GangSpec, kept_for: Option<JobId>| match (&claim, &slots) {
            (Some(claim), Some(slots)) if kept_for == head.map(|head| head.job) => {
                let search = Search { keeper: Some(claim), ..Search::new(self.cluster, gang) };
                slots.iter().any(|&slot| search.room(slot) > 0)
            }
            _ => true,
        };
        let is_changed = |&(_, class): &(ClassId, &Class)| {
            let Some(blocked) = class.blocked else { return true };
            let first = class.members.first();
            let changed = match blocked.code {
                code if code.is_infeasible() => return false,
                ReasonCode::WaitingQuota => is_freed,
                ReasonCode::HeldForReservation => {
                    // Shares move: it may have come before the one for whom it was kept.
                    let overtakes = || first.map(|key| self.rank_of(key.3)) < before_head;
                    kept_for_nobody || (is_freed && is_left(&class.gang, blocked.kept_for)) || overtakes()
                }
                _ => is_freed && helps(&class.gang),
            };
            changed || blocked.sensitive || first.is_some_and(|first| self.may_preempt(first))
        };
        self.queue.classes().filter(is_changed).map(|(id, _)| id).collect()
    }

    /// Whether what started has moved shares so that gangs of other queues come before the head now, for which something
    /// was kept from them; they are looked at again, and the head is found anew.
    fn is_overtaken(&mut self) -> bool {
        let started = self.plan.placements.len();
        if std::mem::replace(&mut self.started_before, started) == started || !self.queue.is_divided() {
            return false;
        }
        let Some(head) = self.head.as_ref().map(|head| head.job) else { return false };
        let before_head = self.rank_of(head);
        let overtakes = |(_, class): &(ClassId, &Class)| {
            let held = class.blocked.is_some_and(|blocked| blocked.kept_for == Some(head));
            let first = class.members.iter().find(|key| !self.is_placed(key.3));
            held && first.is_some_and(|key| self.rank_of(key.3) < before_head)
        };
        let ids: Vec<ClassId> = self.queue.classes().filter(overtakes).map(|(id, _)| id).collect();
        for &id in &ids {
            self.open_class(id);
        }
        if !ids.is_empty() {
            self.head = None;
        }
        !ids.is_empty()
    }

    /// The place of a gang that waits in the order between queues.
    fn rank_of(&self, job: JobId) -> Option<Rank> {
        let (key, class) = self.queue.key_of(job).zip(self.queue.class_of(job))?;
        let queue = &self.queue.class(class)?.queue;
        Some(self.rank(queue, key, class))
    }

    fn open_class(&mut self, id: ClassId) {
        let Some(class) = self.queue.class(id) else { return };
        if let Some(&first) = class.members.first() {
            self.open.entry(class.queue.clone()).or_default().insert((first, id));
        }
    }

    /// Gangs that others were asked to end for come first, and what these free is kept for them.
    fn keep_promises(&mut self) {
        let jobs: Vec<JobId> = self.queue.promised.iter().copied().collect();
        let mut waiting = Vec::new();
        for job in jobs {
            let Some(pending) = self.queue.get(job).cloned() else { continue };
            // Those that end for it may still hold what its quota lacks; others of its queue may have started.
            let most = self.quota_room(&pending);
            let room = most >= pending.gang.workers.min;
            let found = Search::new(self.cluster, &pending.gang);
            if let Some(bundles) = found.place_at_most(most).filter(|_| room) {
                self.place(&pending, bundles);
            } else {
                waiting.push(pending);
            }
        }
        let ending: Vec<AttemptId> = self.cluster.ending().collect();
        if !waiting.is_empty() && !ending.is_empty() {
            self.promised.extend(promises(self.cluster, &waiting, &ending));
        }
        // What goes ahead of everything has whatever it could use kept for it from the start.
        let kept = |pending: &&Pending| self.promised.iter().any(|shadow| shadow.job == pending.job);
        let first = waiting.iter().find(|pending| pending.first && !kept(pending));
        if let Some(first) = first.filter(|first| feasible(self.cluster, &first.gang)) {
            self.become_head(first.job);
        }
    }

    fn consider(&mut self, job: JobId, id: ClassId) {
        let Some(pending) = self.queue.get(job).cloned() else { return };
        let Some((key, class)) = self.queue.key_of(job).zip(self.queue.class(id)) else { return };
        let feasible = self.is_feasible(id, &class.gang.clone());
        let blocked =
            |code, kept_for, sensitive| Blocked { code, priority: pending.priority, kept_for, sensitive };
        if !feasible {
            return self.block(id, blocked(ReasonCode::Infeasible, None, false));
        }
        let most = self.quota_room(&pending);
        if most < pending.gang.workers.min {
            let kept_for = self.quota_kept_from(&pending).map(|head| head.job);
            let room = self.whole_quota_room(&pending.queue, &pending.gang);
            if let Some(kept_for) = kept_for.filter(|_| room >= pending.gang.workers.min) {
                return self.block(id, blocked(ReasonCode::HeldForReservation, Some(kept_for), false));
            }
            self.wait_for_quota(&pending, key);
            // Others of its own queue may give way to it.
            self.block(id, blocked(ReasonCode::WaitingQuota, None, true));
            match preempt::make_room(self, &pending) {
                RoomMade::None => {}
                RoomMade::Now => self.consider(job, id),
                RoomMade::Later => self.advance(id, key),
            }
            return;
        }
        let keepers = self.keepers_against(&pending);
        let keeper = (!keepers.keep_nothing()).then_some(&keepers as &dyn Keeper);
        let found = Search { keeper, ..Search::new(self.cluster, &pending.gang) }.place_at_most(most);
        if let Some(bundles) = found {
            self.place(&pending, bundles);
            return self.advance(id, key);
        }
        let kept_for = keepers.shadows.first().map(|shadow| shadow.job);
        let kept_for = kept_for.or(keepers.head.as_ref().and(self.head.as_ref()).map(|head| head.job));
        match preempt::make_room(self, &pending) {
            RoomMade::None => {}
            RoomMade::Now => return self.consider(job, id),
            RoomMade::Later => {
                // It starts once they are gone.
                self.block(id, blocked(ReasonCode::WaitingResources, None, true));
                return self.advance(id, key);
            }
        }
        let config = self.queue.config_ref(&pending.queue);
        let sensitive = config.is_some_and(|config| config.is_shared());
        if let Some(kept_for) = kept_for.filter(|_| Search::new(self.cluster, &pending.gang).fits()) {
            self.block(id, blocked(ReasonCode::HeldForReservation, Some(kept_for), sensitive));
            return self.try_shorter(id, key);
        }
        let code = if self.lost_to_others(&pending.gang) {
            ReasonCode::WaitingPriority
        } else {
            ReasonCode::WaitingResources
        };
        self.block(id, blocked(code, None, sensitive));
        if self.head.is_none() {
            self.become_head(job);
        }
    }

    fn is_feasible(&mut self, id: ClassId, gang: &GangSpec) -> bool {
        let version = self.cluster.nodes_version;
        let Some(class) = self.queue.class(id) else { return false };
        if let Some((_, known)) = class.feasible.filter(|(at, _)| *at == version) {
            return known;
        }
        let config = self.queue.config_ref(&class.queue);
        let found =
            config.is_none_or(|config| over_quota(config, gang).is_none()) && feasible(self.cluster, gang);
        if let Some(class) = self.queue.class_mut(id) {
            class.feasible = Some((version, found));
        }
        found
    }

    fn block(&mut self, id: ClassId, blocked: Blocked) {
        self.blocked.insert(id);
        if let Some(class) = self.queue.class_mut(id) {
            class.blocked = Some(blocked);
        }
    }

    /// Goes on to the class's next gang.
    fn advance(&mut self, id: ClassId, after: Key) {
        let Some(class) = self.queue.class_mut(id) else { return };
        let next = class.members.range((Bound::Excluded(after), Bound::Unbounded)).next().copied();
        if let Some(next) = next {
            let queue = class.queue.clone();
            self.open.entry(queue).or_default().insert((next, id));
        }
    }

    /// Goes on to the class's next gang that will have ended when the reservation begins.
    fn try_shorter(&mut self, id: ClassId, after: Key) {
        let at = self.head.as_ref().and_then(|head| head.shadow.as_ref()?.at);
        let Some((at, class)) = at.zip(self.queue.class(id)) else { return };
        if let Some(next) = class.first_short(after, at.since(self.now)) {
            let queue = class.queue.clone();
            self.open.entry(queue).or_default().insert((next, id));
            self.passed_over.insert(id);
        }
    }

    fn place(&mut self, pending: &Pending, bundles: Vec<Bundle>) {
        let attempt = AttemptId { job: pending.job, number: TENTATIVE };
        match self.cluster.hold(attempt, Holder::new(pending, self.now), &bundles) {
            Ok(()) => self.undo.push(Undo::Release(attempt)),
            Err(problem) => unreachable!("a placement over what is free: {problem}"),
        }
        if let Some(head) = self.head.as_mut().filter(|head| head.sequence < pending.sequence) {
            head.passed += 1;
        }
        self.placed.insert(pending.job);
        self.pass_quota_heads(pending);
        if self.queue.memory.kept.is_some_and(|(head, _)| head == pending.job) {
            self.open_held_for(pending.job);
        }
        let class = self.queue.class_of(pending.job).filter(|id| !self.passed_over.contains(id));
        if let Some(class) = class.and_then(|id| self.queue.class_mut(id)) {
            class.blocked = None;
        }
        self.plan.placements.push((pending.job, bundles));
    }

    /// A gang that goes on elsewhere or with fewer or more: its old bundles are off their nodes, the new ones taken.
    pub(crate) fn replace(&mut self, lifted: Lifted, bundles: &[Bundle]) {
        let attempt = AttemptId { job: lifted.attempt.job, number: TENTATIVE };
        let Some(holder) = self.cluster.holder(lifted.attempt).cloned() else { return };
        self.undo.push(Undo::PutBack(lifted));
        match self.cluster.hold(attempt, holder, bundles) {
            Ok(()) => self.undo.push(Undo::Release(attempt)),
            Err(problem) => unreachable!("a resize over what is free: {problem}"),
        }
    }

    /// A gang that starts in this plan does so with fewer bundles.
    pub(crate) fn start_smaller(&mut self, attempt: AttemptId, bundles: Vec<Bundle>) {
        let Some(holder) = self.cluster.holder(attempt).cloned() else { return };
        self.cluster.release(attempt);
        if let Err(problem) = self.cluster.hold(attempt, holder, &bundles) {
            unreachable!("a part of what it held: {problem}");
        }
        if let Some((_, placed)) = self.plan.placements.iter_mut().find(|(job, _)| *job == attempt.job) {
            *placed = bundles;
        }
    }

    pub(crate) fn evict(&mut self, attempt: AttemptId, by: JobId) {
        self.plan.evictions.push(Eviction { attempt, by });
    }

    pub(crate) fn resize(&mut self, attempt: AttemptId, bundles: Vec<Bundle>, by: Option<JobId>) {
        self.plan.resizes.push(Resize { attempt, bundles, by });
    }

    /// Whether an attempt has been asked to give way in this very plan.
    pub(crate) fn gives_way(&self, attempt: AttemptId) -> bool {
        self.plan.evictions.iter().any(|eviction| eviction.attempt == attempt)
            || self.plan.resizes.iter().any(|resize| resize.attempt == attempt)
    }

    fn become_head(&mut self, job: JobId) {
        let Some(pending) = self.queue.get(job).cloned() else { return };
        let versions = (self.cluster.freed_version, self.plan.placements.len() as u64);
        let memory = &self.queue.memory;
        let known = memory.kept.is_some_and(|(known, _)| known == job) && memory.shadow_at == versions;
        let shadow = match &memory.shadow {
            None if known => None,
            Some(shadow) if known && shadow.at.is_some_and(|at| at > self.now) => Some(shadow.clone()),
            _ => reservation(self.now, self.cluster, job, &pending.gang),
        };
        let passed = self.queue.passed(&pending, self.policy.max_bypass);
        let passed =
            passed + self.plan.placements.iter().filter(|(other, _)| self.is_later(*other, &pending)).count();
        let passed = if pending.first { passed.max(self.policy.max_bypass) } else { passed };
        self.head =
            Some(Head { job, gang: Arc::clone(&pending.gang), sequence: pending.sequence, passed, shadow });
        // What was kept for another head may be used now, and so may what this one had reserved and has no more.
        if let Some((before, _)) = self.queue.memory.kept {
            let reserved = self.head.as_ref().map(|head| &head.shadow);
            if before != job || reserved != Some(&self.queue.memory.shadow) {
                self.open_held_for(before);
            }
        }
    }

    fn open_held_for(&mut self, head: JobId) {
        let held = |(_, class): &(ClassId, &Class)| {
            class.blocked.is_some_and(|blocked| blocked.kept_for == Some(head))
        };
        let ids: Vec<ClassId> = self.queue.classes().filter(held).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.open_class(id));
    }

    fn is_later(&self, job: JobId, than: &Pending) -> bool {
        self.queue.get(job).is_some_and(|pending| pending.sequence > than.sequence)
    }

    /// What a gang must leave to those before it.
    pub(crate) fn keepers_against(&self, pending: &Pending) -> Keepers<'_> {
        let mut keepers = Keepers { shadows: self.promised.iter().collect(), head: None };
        let Some(head) = self.head.as_ref().filter(|head| head.job != pending.job) else { return keepers };
        match &head.shadow {
            Some(shadow) => {
                let ends = pending.time_limit.map(|limit| self.now + limit);
                if ends.zip(shadow.at).is_none_or(|(ends, at)| ends > at) {
                    keepers.shadows.insert(0, shadow);
                }
            }
            None if head.passed >= self.policy.max_bypass => keepers.head = Some(Arc::clone(&head.gang)),
            None => {}
        }
        keepers
    }

    /// Whether a gang would fit had others not started in this very plan.
    fn lost_to_others(&mut self, gang: &GangSpec) -> bool {
        let started = self.undo.iter().filter_map(|undo| match undo {
            Undo::Release(attempt) => Some(*attempt),
            Undo::PutBack(_) => None,
        });
        let started: Vec<AttemptId> = started.collect();
        if started.is_empty() || started.len() > LOST_TO {
            return false;
        }
        let lifted: Vec<Lifted> = started.into_iter().map(|attempt| self.cluster.lift(attempt)).collect();
        let fits = Search::new(self.cluster, gang).fits();
        lifted.iter().rev().for_each(|lifted| self.cluster.put_back(lifted));
        fits
    }

    /// Tells those who have not been told, and the first of every class whose reason is another now.
    fn tell(&mut self) {
        let mut jobs: BTreeSet<JobId> = self.queue.fresh.iter().copied().collect();
        for &id in &self.blocked {
            jobs.extend(self.queue.class(id).and_then(|class| class.members.first()).map(|key| key.3));
        }
        let shadow = self.head.as_ref().and_then(|head| head.shadow.clone());
        for job in jobs {
            if self.is_placed(job) {
                continue;
            }
            let class = self.queue.class_of(job).and_then(|id| self.queue.class(id));
            let Some(mut blocked) = class.and_then(|class| class.blocked) else { continue };
            let Some(pending) = self.queue.get(job) else { continue };
            let reason = match blocked.code {
                ReasonCode::Infeasible => {
                    let config = self.queue.config_ref(&pending.queue);
                    let quota = config.and_then(|config| over_quota(config, &pending.gang));
                    let found = quota.or_else(|| check(self.cluster, &pending.gang).err());
                    blocked.code = found.as_ref().map_or(blocked.code, |reason| reason.code);
                    if !self.queue.tell(job, blocked.code) {
                        continue;
                    }
                    found
                }
                code => {
                    if !self.queue.tell(job, code) {
                        continue;
                    }
                    let pending = self.queue.get(job);
                    pending.map(|pending| why(self.cluster, self.queue, pending, blocked, shadow.as_ref()))
                }
            };
            self.plan.reasons.extend(reason.map(|reason| (job, reason)));
        }
    }

    fn remember(&mut self) {
        let placed = self.plan.placements.len() as u64;
        let kept = self.head.as_ref().map(|head| (head.job, 0));
        let shadow = self.head.take().and_then(|head| head.shadow);
        // A class whose gangs were placed in part is looked at again, in case the plan is not carried out.
        for (job, _) in &self.plan.placements {
            let class = self.queue.class_of(*job);
            self.queue.open.extend(class);
        }
        self.queue.memory = Memory {
            freed: self.cluster.freed_version,
            taken: self.cluster.taken_version + placed,
            nodes: self.cluster.nodes_version,
            primed: true,
            wake: self.plan.wake,
            kept,
            quota_heads: self.remember_quota_heads(),
            shadow_at: (self.cluster.freed_version, 0),
            shadow,
        };
    }
}
