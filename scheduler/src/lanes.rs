//! The named queues: what each is worth, guaranteed and allowed, and what it has had.

use crate::amounts::{Amounts, Kind};
use phalanx_core::Time;
use phalanx_core::spec::GangSpec;
use std::collections::BTreeMap;
use std::time::Duration;

/// In which order the gangs of one queue go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discipline {
    /// By priority, then by submission.
    #[default]
    Fifo,
    /// By priority, then least attained service first, with preemption to checkpoint (Tiresias, NSDI'19).
    Las,
}

/// How a queue is set up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// Its part of what is free, relative to other queues.
    pub weight: f64,
    /// What is its own: others may borrow it while it is idle and give it back when asked.
    pub guaranteed: Amounts,
    /// What it may hold at most.
    pub quota: Amounts,
    /// In which order its gangs go.
    pub discipline: Discipline,
}

impl Default for QueueConfig {
    fn default() -> Self {
        let (guaranteed, quota) = (Amounts::default(), Amounts::default());
        QueueConfig { weight: 1.0, guaranteed, quota, discipline: Discipline::Fifo }
    }
}

impl QueueConfig {
    /// Whether gangs of this queue may take from others, or from one another, whatever the priority.
    pub(crate) fn is_shared(&self) -> bool {
        !self.guaranteed.is_empty() || self.discipline == Discipline::Las
    }

    /// Whether a queue that holds `held` stays within its guarantee with so many more workers.
    pub(crate) fn within_guarantee(&self, held: &Amounts, gang: &GangSpec, workers: u32) -> bool {
        let mut asks = false;
        let all = self.guaranteed.iter().all(|(kind, guaranteed)| {
            let asked = kind.of(&gang.each).saturating_mul(u64::from(workers));
            asks |= asked > 0;
            asked == 0 || held.get(kind).saturating_add(asked) <= guaranteed
        });
        asks && all
    }

    /// Whether a queue that holds `held` still has its guarantee when `lost` is taken from it.
    pub(crate) fn keeps_guarantee(&self, held: &Amounts, lost: &Amounts) -> bool {
        self.guaranteed.iter().all(|(kind, guaranteed)| {
            let lost = lost.get(kind);
            lost == 0 || held.get(kind).saturating_sub(lost) >= guaranteed
        })
    }

    /// How many workers the quota leaves room for, and the kind that binds.
    pub(crate) fn quota_room(&self, held: &Amounts, gang: &GangSpec) -> (u32, Option<&Kind>) {
        let rooms = self.quota.iter().filter_map(|(kind, quota)| {
            let room = quota.saturating_sub(held.get(kind)).checked_div(kind.of(&gang.each))?;
            Some((room.min(u64::from(u32::MAX)) as u32, Some(kind)))
        });
        rooms.min_by_key(|&(room, _)| room).unwrap_or((u32::MAX, None))
    }
}

/// What a queue holds and has held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) held: Amounts,
    /// Exponentially decayed average of what was held, by kind.
    average: BTreeMap<Kind, f64>,
    settled: Time,
}

impl Usage {
    /// Lets the average run up to `now` over what is held.
    pub(crate) fn settle(&mut self, now: Time, half_life: Duration) {
        let passed = now.since(self.settled);
        if passed.is_zero() {
            return;
        }
        self.settled = now;
        let kept = 0.5f64.powf(passed.as_secs_f64() / half_life.as_secs_f64().max(1e-6));
        for (kind, _) in self.held.iter() {
            if !self.average.contains_key(kind) {
                self.average.insert(kind.clone(), 0.0);
            }
        }
        for (kind, average) in &mut self.average {
            *average = *average * kept + self.held.get(kind) as f64 * (1.0 - kept);
        }
    }

    /// The share of its dominant resource, of what it holds now and has held: 0 to 2.
    pub(crate) fn share(&self, total: &Amounts) -> f64 {
        let part = |kind: &Kind, amount: f64| match total.get(kind) {
            0 => 0.0,
            all => amount / all as f64,
        };
        let parts = self
            .held
            .iter()
            .map(|(kind, held)| part(kind, held as f64 + self.average.get(kind).copied().unwrap_or(0.0)));
        let past = self.average.iter().map(|(kind, &average)| part(kind, average));
        parts.chain(past).fold(0.0, f64::max)
    }
}
