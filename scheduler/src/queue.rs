//! The gangs that wait, in their order.

use crate::plan::Policy;
use phalanx_core::spec::GangSpec;
use phalanx_core::{JobId, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A gang that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            gang: Arc::new(gang),
        }
    }

    fn key(&self) -> Key {
        (Reverse(self.priority), self.sequence, self.job)
    }
}

type Key = (Reverse<i32>, u64, JobId);

/// All gangs that wait.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    policy: Policy,
    pending: BTreeMap<JobId, Pending>,
    order: BTreeSet<Key>,
    sequences: BTreeSet<(u64, JobId)>,
    /// Sequences of gangs that started while one submitted before them waits.
    started: BTreeSet<u64>,
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

    /// What the site has set.
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// Puts a gang in its place; replaces what waited for the same job.
    pub fn insert(&mut self, pending: Pending) {
        self.remove(pending.job);
        self.order.insert(pending.key());
        self.sequences.insert((pending.sequence, pending.job));
        self.pending.insert(pending.job, pending);
    }

    /// Takes a gang out that no longer wants to start; `None` when it does not wait.
    pub fn remove(&mut self, job: JobId) -> Option<Pending> {
        let pending = self.pending.remove(&job)?;
        self.order.remove(&pending.key());
        self.sequences.remove(&(pending.sequence, job));
        Some(pending)
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

    /// The gang of a job.
    pub fn get(&self, job: JobId) -> Option<&Pending> {
        self.pending.get(&job)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// All that wait, first first.
    pub fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.order.iter().filter_map(|(_, _, job)| self.pending.get(job))
    }

    /// How many gangs submitted after this one have started while it waits, counted up to `limit`.
    pub(crate) fn passed(&self, pending: &Pending, limit: usize) -> usize {
        self.started.range(pending.sequence + 1..).take(limit).count()
    }
}
