//! The named queues: what each is worth, guaranteed and allowed, and what it has had.

use crate::amounts::{Amounts, Kind};
use phalanx_core::Time;
use phalanx_core::spec::{GangSpec, QueueSpec};
use serde::{Deserialize, Serialize};
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

impl From<&QueueSpec> for QueueConfig {
    fn from(spec: &QueueSpec) -> Self {
        QueueConfig {
            weight: spec.weight,
            guaranteed: Amounts::from(&spec.guaranteed),
            quota: Amounts::from(&spec.quota),
            discipline: if spec.las { Discipline::Las } else { Discipline::Fifo },
        }
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

    /// Whether the quota leaves a queue that holds `held` room for so many workers.
    pub fn has_room(&self, held: &Amounts, gang: &GangSpec, workers: u32) -> bool {
        self.quota_room(held, gang).0 >= workers
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

/// What a queue has had: changes only when what it holds changes, so that a caller who stores it then has it exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Exponentially decayed average of what was held, by kind.
    average: Vec<(Kind, f64)>,
    /// Until when it is reckoned.
    settled: Time,
}

/// The clock that shares run by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ShareClock {
    pub(crate) now: Time,
    pub(crate) half_life: Duration,
}

/// What a queue holds and has held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// With what a plan tries out.
    pub(crate) held: Amounts,
    /// Without: what the past is reckoned by.
    pub(crate) really: Amounts,
    pub(crate) had: Share,
    /// How much of the average is lost by now: asked for often, reckoned once a decision.
    faded: f64,
}

impl Usage {
    /// Lets the average run up to now over what was held since; to be called before that changes.
    pub(crate) fn settle(&mut self, clock: ShareClock) {
        if clock.now <= self.had.settled {
            return;
        }
        let kept = self.kept(clock);
        self.faded = 0.0;
        for (kind, _) in self.really.iter() {
            if !self.had.average.iter().any(|(known, _)| known == kind) {
                self.had.average.push((kind.clone(), 0.0));
            }
        }
        for (kind, average) in &mut self.had.average {
            *average = *average * kept + self.really.get(kind) as f64 * (1.0 - kept);
        }
        self.had.settled = clock.now;
    }

    /// Notes that it is later.
    pub(crate) fn note(&mut self, clock: ShareClock) {
        self.faded = 1.0 - self.kept(clock);
    }

    /// How much of the average is left by now.
    fn kept(&self, clock: ShareClock) -> f64 {
        let passed = clock.now.since(self.had.settled);
        if passed.is_zero() {
            return 1.0;
        }
        0.5f64.powf(passed.as_secs_f64() / clock.half_life.as_secs_f64().max(1e-6))
    }

    /// The share of its dominant resource, of what it holds now and has held: 0 to 2.
    pub(crate) fn share(&self, total: &Amounts) -> f64 {
        let part = |kind: &Kind, amount: f64| match total.get(kind) {
            0 => 0.0,
            all => amount / all as f64,
        };
        let kept = 1.0 - self.faded;
        let past = |kind: &Kind| {
            let known = self.had.average.iter().find(|(known, _)| known == kind);
            let average = known.map_or(0.0, |&(_, average)| average);
            average * kept + self.really.get(kind) as f64 * (1.0 - kept)
        };
        let parts = self.held.iter().map(|(kind, held)| part(kind, held as f64 + past(kind)));
        let gone = self.had.average.iter().map(|(kind, _)| part(kind, past(kind)));
        parts.chain(gone).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(100);

    fn at(seconds: u64) -> ShareClock {
        ShareClock { now: Time::ZERO + Duration::from_secs(seconds), half_life: HALF_LIFE }
    }

    fn amounts(cpus: u64) -> Amounts {
        let mut amounts = Amounts::default();
        amounts.set(Kind::Cpu, cpus);
        amounts
    }

    #[test]
    fn a_share_that_was_stored_and_read_back_is_the_same_to_the_bit() {
        let total = amounts(8000);
        let mut usage = Usage::default();
        usage.settle(at(3));
        usage.held = amounts(4000);
        usage.really = amounts(4000);
        // Looked at again and again, and not at all: the same.
        let share = |usage: &mut Usage, now: u64| {
            usage.note(at(now));
            usage.share(&total)
        };
        let looked: Vec<f64> = (4..50).map(|now| share(&mut usage, now)).collect();
        assert!(looked.is_sorted() && looked[0] > 0.5, "{looked:?}");
        let stored = serde_json::to_string(&usage.had).unwrap();
        let mut restored = Usage { had: serde_json::from_str(&stored).unwrap(), ..usage.clone() };
        assert_eq!(share(&mut restored, 70).to_bits(), share(&mut usage, 70).to_bits());
        // What a plan tries out has no past.
        let past = share(&mut usage, 103) - 0.5;
        usage.held = amounts(8000);
        assert_eq!(share(&mut usage, 103), 1.0 + past);
        // After a half-life without anything half of it is left.
        usage.held = amounts(4000);
        usage.settle(at(103));
        usage.held = Amounts::default();
        usage.really = Amounts::default();
        assert!((share(&mut usage, 203) - past / 2.0).abs() < 1e-12);
    }
}
