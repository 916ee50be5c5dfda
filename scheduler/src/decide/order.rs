//! Who is considered next: the order between gangs, within a queue and over all of them.

use super::Decision;
use crate::queue::{ClassId, Key};
use crate::reason::ReasonCode;
use phalanx_core::JobId;

/// The order between gangs of different queues.
pub(super) type Rank = (bool, std::cmp::Reverse<i32>, u64, u8, u64, JobId);

/// Classes of a queue among which one is looked for that stays within the queue's guarantee.
const GUARDED_CLASSES: usize = 256;

impl Decision<'_> {
    /// The next gang to be considered, of those that are to be tried; the first that is known to be blocked becomes the
    /// head on the way.
    pub(super) fn next(&mut self) -> Option<(JobId, ClassId)> {
        loop {
            let open = self.open.iter().filter_map(|(queue, firsts)| {
                let (rank, class) = self.front(queue, firsts.iter().copied())?;
                Some((rank, class, false))
            });
            let best = open.min();
            let closed = if self.head.is_some() { None } else { self.first_closed() };
            let (rank, class, closed) = best.into_iter().chain(closed).min()?;
            let job = rank.5;
            if closed {
                self.become_head(job);
                continue;
            }
            let queue = self.queue.class(class).map(|class| class.queue.clone()).unwrap_or_default();
            let key = self.key_of(rank);
            if let Some(firsts) = self.open.get_mut(&queue) {
                firsts.remove(&(key, class));
            }
            if self.promised.iter().any(|shadow| shadow.job == job) || self.is_placed(job) {
                self.advance(class, key);
                continue;
            }
            return Some((job, class));
        }
    }

    /// Whether a job starts in this plan.
    pub(crate) fn starts(&self, job: JobId) -> bool {
        self.is_placed(job)
    }

    pub(super) fn is_placed(&self, job: JobId) -> bool {
        self.placed.contains(&job)
    }

    pub(super) fn key_of(&self, rank: Rank) -> Key {
        (rank.1, rank.3, rank.4, rank.5)
    }

    /// The first over all queues of those that wait for resources and are not to be tried.
    fn first_closed(&self) -> Option<(Rank, ClassId, bool)> {
        let firsts = self.queue.lanes().filter_map(|(queue, lane)| {
            let open = self.open.get(queue);
            let waits = |&(key, id): &(Key, ClassId)| {
                let code = self.queue.class(id).and_then(|class| class.blocked).map(|blocked| blocked.code);
                matches!(code, Some(ReasonCode::WaitingResources | ReasonCode::WaitingPriority))
                    && !open.is_some_and(|open| open.contains(&(key, id)))
                    && !self.is_placed(key.3)
            };
            let (rank, class) = self.front(queue, lane.iter().copied().filter(waits))?;
            Some((rank, class, true))
        });
        firsts.min()
    }

    /// Who comes first of a queue's classes, given in the queue's own order: of equal priority one that stays within the
    /// queue's guarantee goes before those that do not.
    fn front(
        &self,
        queue: &str,
        mut firsts: impl Iterator<Item = (Key, ClassId)>,
    ) -> Option<(Rank, ClassId)> {
        let first = firsts.next()?;
        let guarded = self.queue.config_ref(queue).is_some_and(|config| !config.guaranteed.is_empty());
        let equals = firsts.take_while(|(key, _)| (key.0, key.1) == (first.0.0, first.0.1));
        let looked_at = std::iter::once(first).chain(equals.take(if guarded { GUARDED_CLASSES } else { 0 }));
        looked_at.map(|(key, class)| (self.rank(queue, key, class), class)).min()
    }

    pub(super) fn rank(&self, queue: &str, key: Key, class: ClassId) -> Rank {
        let usage = self.cluster.usage(queue);
        let config = self.queue.config_ref(queue);
        let within = self.queue.class(class).zip(config).is_some_and(|(class, config)| {
            let gang = &class.gang;
            match usage {
                Some(usage) => config.within_guarantee(&usage.held, gang, gang.workers.min),
                None => config.within_guarantee(&Default::default(), gang, gang.workers.min),
            }
        });
        let weight = config.map_or(1.0, |config| config.weight);
        let share = self.cluster.share(queue) / weight;
        // A share is never negative, and the bits of such a number are in its order.
        (!within, key.0, share.to_bits(), key.1, key.2, key.3)
    }
}
