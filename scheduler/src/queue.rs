//! The gangs that wait, in their order.

use crate::lanes::{Discipline, QueueConfig};
use crate::plan::Policy;
use crate::reason::ReasonCode;
use phalanx_core::spec::GangSpec;
use phalanx_core::{JobId, Time};
use std::cmp::Reverse;
// unordered: the map of classes is looked up by key and never walked, so its order reaches no decision.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A gang that waits.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Pending {
    /// The job it is the gang of.
    pub job: JobId,
    /// What reasons call it; the job's id unless changed.
    pub label: String,
    /// Its queue.
    pub queue: String,
    /// Higher goes first.
    pub priority: i32,
    /// When it was submitted.
    pub submitted: Time,
    /// Its place in the order of submission; one that is requeued keeps it.
    pub sequence: u64,
    /// Whether it may later be asked to give way.
    pub preemptible: bool,
    /// It will end at the latest so long after it starts.
    pub time_limit: Option<Duration>,
    /// Service it has had: GPU-seconds, or CPU-seconds where it asks for no GPU.
    pub attained: f64,
    /// How often it was preempted.
    pub preemptions: u32,
    /// Others were asked to end for it: what they free is its own.
    pub promised: bool,
    /// It goes ahead of everything that waits, as what a standing group has lost does.
    pub first: bool,
    /// What it asks.
    pub gang: Arc<GangSpec>,
}

impl Pending {
    /// A gang in the queue `default` with priority 0 and no time limit; set the fields that differ.
    pub fn new(job: JobId, submitted: Time, sequence: u64, gang: GangSpec) -> Self {
        Pending {
            job,
            label: job.to_string(),
            queue: "default".to_owned(),
            priority: 0,
            submitted,
            sequence,
            preemptible: true,
            time_limit: None,
            attained: 0.0,
            preemptions: 0,
            promised: false,
            first: false,
            gang: Arc::new(gang),
        }
    }
}

/// The order within one queue: priority, level of attained service, submission.
pub(crate) type Key = (Reverse<i32>, u8, u64, JobId);

/// The number of a class of gangs.
pub(crate) type ClassId = u32;

/// Gangs of one queue that ask the same: where one cannot start, the next one cannot either.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) queue: String,
    pub(crate) gang: Arc<GangSpec>,
    pub(crate) members: BTreeSet<Key>,
    /// Those with a time limit, the shortest first: they may start where a reservation keeps the rest waiting.
    by_limit: BTreeSet<(Duration, Key)>,
    pub(crate) blocked: Option<Blocked>,
    /// Whether it could run on empty nodes, at a version of these.
    pub(crate) feasible: Option<(u64, bool)>,
}

/// Why the first of a class could not start when it was last tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) code: ReasonCode,
    pub(crate) priority: i32,
    /// For whom what it asks is kept.
    pub(crate) kept_for: Option<JobId>,
    /// Whether more than freed resources may change it: others that it may preempt, a share, a level.
    pub(crate) sensitive: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    pending: Pending,
    class: ClassId,
    key: Key,
    told: Option<ReasonCode>,
}

type ClassKey = (String, Arc<GangSpec>);

/// All gangs that wait, and the queues they wait in.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    policy: Policy,
    configs: BTreeMap<String, QueueConfig>,
    entries: BTreeMap<JobId, Entry>,
    /// All, over all queues: for places only.
    order: BTreeSet<Key>,
    /// How many of these there are of each priority and level.
    lengths: BTreeMap<(Reverse<i32>, u8), usize>,
    classes: BTreeMap<ClassId, Class>,
    class_ids: HashMap<ClassKey, ClassId>,
    next_class: ClassId,
    /// By queue: every class by its first gang.
    lanes: BTreeMap<String, BTreeSet<(Key, ClassId)>>,
    /// Classes to look at in the next plan, whatever happened.
    pub(crate) open: BTreeSet<ClassId>,
    /// Gangs that have not been told anything.
    pub(crate) fresh: BTreeSet<JobId>,
    sequences: BTreeSet<(u64, JobId)>,
    /// Sequences of gangs that started while one submitted before them waits.
    started: BTreeSet<u64>,
    pub(crate) promised: BTreeSet<JobId>,
    pub(crate) memory: Memory,
}

/// What a plan remembers for the next one, to save work and never to change a decision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) freed: u64,
    pub(crate) taken: u64,
    pub(crate) nodes: u64,
    /// Whether a whole plan has been made.
    pub(crate) primed: bool,
    /// When time alone changes what a plan would say.
    pub(crate) wake: Option<Time>,
    /// The first gang that waited, and what was kept for it.
    pub(crate) kept: Option<(JobId, u64)>,
    /// By queue: the first gang that waited for the queue's quota, and its place.
    pub(crate) quota_heads: BTreeMap<String, (JobId, Key)>,
    pub(crate) shadow: Option<crate::reserve::Shadow>,
    pub(crate) shadow_at: (u64, u64),
}

impl Queue {
    /// Nothing waits.
    pub fn new() -> Self {
        Queue::default()
    }

    /// Nothing waits, under a site's own policy.
    pub fn with_policy(policy: Policy) -> Self {
        Queue { policy, ..Queue::default() }
    }

    /// An empty queue with the same settings that remembers who started.
    #[cfg(test)]
    pub(crate) fn forgetful(&self) -> Self {
        let (policy, configs, started) = (self.policy.clone(), self.configs.clone(), self.started.clone());
        Queue { policy, configs, started, ..Queue::default() }
    }

    /// What the site has set.
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// Sets the policy and all named queues anew; gangs that wait stay in their places.
    pub fn set_up(&mut self, policy: Policy, configs: BTreeMap<String, QueueConfig>) {
        self.policy = policy;
        self.configs = configs;
        self.refile();
    }

    /// Sets a named queue up; one that is not set up has weight 1, no guarantee and no quota.
    pub fn configure(&mut self, name: impl Into<String>, config: QueueConfig) {
        self.configs.insert(name.into(), config);
        self.refile();
    }

    /// Puts every gang in its place again, to be looked at by the next plan.
    fn refile(&mut self) {
        self.memory = Memory::default();
        let waiting: Vec<Pending> = self.iter().cloned().collect();
        for pending in waiting {
            self.insert(pending);
        }
    }

    /// How a queue is set up.
    pub fn config(&self, name: &str) -> QueueConfig {
        self.configs.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn config_ref(&self, name: &str) -> Option<&QueueConfig> {
        self.configs.get(name)
    }

    /// Puts a gang in its place; replaces what waited for the same job.
    pub fn insert(&mut self, pending: Pending) {
        self.remove(pending.job);
        let key = (Reverse(pending.priority), self.level(&pending), pending.sequence, pending.job);
        let class_key = (pending.queue.clone(), Arc::clone(&pending.gang));
        let class = match self.class_ids.get(&class_key) {
            Some(&class) => class,
            None => self.new_class(class_key),
        };
        if let Some(class_of) = self.classes.get_mut(&class) {
            let before = class_of.members.first().copied();
            class_of.members.insert(key);
            class_of.by_limit.extend(pending.time_limit.map(|limit| (limit, key)));
            refile(&mut self.lanes, class_of, class, before);
            // A class that is known to be blocked need not be tried again for one that is no better off.
            let blocks = class_of.blocked.is_some_and(|b| {
                let may_end_before = b.code == ReasonCode::HeldForReservation && pending.time_limit.is_some();
                b.priority >= pending.priority && !b.sensitive && !may_end_before
            });
            if !blocks {
                self.open.insert(class);
            }
        }
        if pending.promised || pending.first {
            self.promised.insert(pending.job);
        }
        self.order.insert(key);
        *self.lengths.entry((key.0, key.1)).or_insert(0) += 1;
        self.sequences.insert((pending.sequence, pending.job));
        self.fresh.insert(pending.job);
        self.entries.insert(pending.job, Entry { pending, class, key, told: None });
    }

    fn new_class(&mut self, key: ClassKey) -> ClassId {
        let id = self.next_class;
        self.next_class += 1;
        let (queue, gang) = key.clone();
        let (members, by_limit) = (BTreeSet::new(), BTreeSet::new());
        let class = Class { queue, gang, members, by_limit, blocked: None, feasible: None };
        self.classes.insert(id, class);
        self.class_ids.insert(key, id);
        id
    }

    /// The level of least attained service: the fewer GPU-seconds it has had, the lower.
    pub(crate) fn level(&self, pending: &Pending) -> u8 {
        match self.config_ref(&pending.queue).map(|config| config.discipline) {
            Some(Discipline::Las) => self.policy.las_level(pending.attained),
            _ => 0,
        }
    }

    /// Takes a gang out that no longer wants to start; `None` when it does not wait.
    pub fn remove(&mut self, job: JobId) -> Option<Pending> {
        let entry = self.entries.remove(&job)?;
        self.order.remove(&entry.key);
        let level = (entry.key.0, entry.key.1);
        if let Some(length) = self.lengths.get_mut(&level) {
            *length -= 1;
            if *length == 0 {
                self.lengths.remove(&level);
            }
        }
        self.sequences.remove(&(entry.pending.sequence, job));
        self.fresh.remove(&job);
        self.promised.remove(&job);
        if let Some(class) = self.classes.get_mut(&entry.class) {
            let before = class.members.first().copied();
            class.members.remove(&entry.key);
            if let Some(limit) = entry.pending.time_limit {
                class.by_limit.remove(&(limit, entry.key));
            }
            refile(&mut self.lanes, class, entry.class, before);
            if class.members.is_empty() {
                let key = (class.queue.clone(), Arc::clone(&class.gang));
                self.classes.remove(&entry.class);
                self.class_ids.remove(&key);
                self.open.remove(&entry.class);
            }
        }
        Some(entry.pending)
    }

    /// Takes a gang out that starts now, and counts it for those it passed.
    pub fn start(&mut self, job: JobId) -> Option<Pending> {
        let pending = self.remove(job)?;
        self.note_started(pending.sequence);
        Some(pending)
    }

    /// Counts a gang that had started, for those submitted before it which still wait: after a restart, tell of every
    /// started gang whose sequence is above the lowest that waits.
    pub fn note_started(&mut self, sequence: u64) {
        let Some(&(oldest, _)) = self.sequences.first() else {
            self.started.clear();
            return;
        };
        self.started.insert(sequence);
        while self.started.first().is_some_and(|&first| first < oldest) {
            self.started.pop_first();
        }
    }

    /// Notes that others were asked to end for this gang, so that what they free is its own.
    pub fn promise(&mut self, job: JobId) {
        if let Some(entry) = self.entries.get_mut(&job) {
            entry.pending.promised = true;
            self.promised.insert(job);
            self.open.insert(entry.class);
        }
    }

    /// The gang of a job.
    pub fn get(&self, job: JobId) -> Option<&Pending> {
        self.entries.get(&job).map(|entry| &entry.pending)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All that wait, by priority and submission.
    pub fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.order.iter().filter_map(|(_, _, _, job)| self.get(*job))
    }

    /// How many wait before this one, by priority and submission: counted from the nearer end of its equals.
    pub(crate) fn place(&self, job: JobId) -> usize {
        let Some(entry) = self.entries.get(&job) else { return 0 };
        let key = entry.key;
        let ahead: usize = self.lengths.range(..(key.0, key.1)).map(|(_, length)| length).sum();
        let equals = self.lengths.get(&(key.0, key.1)).copied().unwrap_or(0);
        let first = (key.0, key.1, 0, JobId(0));
        let last = (key.0, key.1, u64::MAX, JobId(u64::MAX));
        let (mut before, mut after) = (self.order.range(first..key), self.order.range(key..=last).skip(1));
        let mut count = 0;
        loop {
            match (before.next_back(), after.next()) {
                (None, _) => return ahead + count,
                (_, None) => return ahead + equals - 1 - count,
                _ => count += 1,
            }
        }
    }

    /// How many gangs submitted after this one have started while it waits, counted up to `limit`.
    pub(crate) fn passed(&self, pending: &Pending, limit: usize) -> usize {
        self.started.range(pending.sequence + 1..).take(limit).count()
    }

    pub(crate) fn class(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(&id)
    }

    pub(crate) fn class_mut(&mut self, id: ClassId) -> Option<&mut Class> {
        self.classes.get_mut(&id)
    }

    pub(crate) fn class_of(&self, job: JobId) -> Option<ClassId> {
        self.entries.get(&job).map(|entry| entry.class)
    }

    pub(crate) fn key_of(&self, job: JobId) -> Option<Key> {
        self.entries.get(&job).map(|entry| entry.key)
    }

    /// The key of the first gang by priority and submission.
    pub(crate) fn first_key(&self) -> Option<Key> {
        self.order.first().copied()
    }

    /// Whether gangs of a queue may take from others whatever the priority.
    pub(crate) fn is_shared(&self) -> bool {
        self.configs.values().any(QueueConfig::is_shared)
    }

    /// Whether gangs wait in several queues, whose order moves with their shares.
    pub(crate) fn is_divided(&self) -> bool {
        self.lanes.values().filter(|lane| !lane.is_empty()).take(2).count() > 1
    }

    /// By queue: every class by its first gang.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = (&str, &BTreeSet<(Key, ClassId)>)> {
        self.lanes.iter().map(|(name, lane)| (name.as_str(), lane))
    }

    pub(crate) fn classes(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.classes.iter().map(|(&id, class)| (id, class))
    }

    /// Notes what a gang is told; whether it is news.
    pub(crate) fn tell(&mut self, job: JobId, code: ReasonCode) -> bool {
        self.fresh.remove(&job);
        self.entries.get_mut(&job).is_some_and(|entry| entry.told.replace(code) != Some(code))
    }
}

impl Class {
    /// The first gang after `after` whose time limit is no longer than `longest`.
    pub(crate) fn first_short(&self, after: Key, longest: Duration) -> Option<Key> {
        let short = self.by_limit.iter().take_while(|(limit, _)| *limit <= longest);
        short.map(|&(_, key)| key).filter(|&key| key > after).min()
    }
}

/// Keeps a class under its first gang.
fn refile(
    lanes: &mut BTreeMap<String, BTreeSet<(Key, ClassId)>>,
    class: &Class,
    id: ClassId,
    before: Option<Key>,
) {
    let after = class.members.first().copied();
    if before == after {
        return;
    }
    let lane = match lanes.get_mut(&class.queue) {
        Some(lane) => lane,
        None => lanes.entry(class.queue.clone()).or_default(),
    };
    if let Some(before) = before {
        lane.remove(&(before, id));
    }
    if let Some(after) = after {
        lane.insert((after, id));
    }
}
