//! One decision: which waiting gangs start now and where, who gives way to them, and why the others wait.

use crate::bundle::Bundle;
use crate::check::check;
use crate::cluster::Cluster;
use crate::decide::Decision;
use crate::explain::why;
use crate::queue::Queue;
use crate::reason::Reason;
use phalanx_core::spec::SchedulingSpec;
use phalanx_core::{AttemptId, JobId, Time};
use std::time::Duration;

/// How many levels of service there are above the lowest.
const LAS_LEVELS: usize = 16;
/// By what each is wider than the one before.
const LAS_GROWTH: f64 = 4.0;

/// What a site may set.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// After so many gangs that were submitted later have started, what the first waiting gang could use is kept for it.
    pub max_bypass: usize,
    /// An elastic gang grows at most so often.
    pub resize_interval: Duration,
    /// After so long, what a queue has had counts half.
    pub share_half_life: Duration,
    /// In a queue of least attained service: the GPU-seconds (CPU-seconds without GPUs) after which a gang goes behind
    /// those that have had less; again after four times as many, and so on. With 0 nobody goes behind anybody.
    pub las_threshold_seconds: f64,
    /// How often, for each `las_threshold_seconds` of service, such a gang may be preempted for one that has had less.
    pub las_preemptions: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            max_bypass: 64,
            resize_interval: Duration::from_secs(60),
            share_half_life: Duration::from_secs(24 * 3600),
            las_threshold_seconds: 3600.0,
            las_preemptions: 1,
        }
    }
}

impl From<&SchedulingSpec> for Policy {
    fn from(set: &SchedulingSpec) -> Self {
        let default = Policy::default();
        Policy {
            max_bypass: set.max_bypass.map_or(default.max_bypass, |count| count as usize),
            resize_interval: set.resize_interval.unwrap_or(default.resize_interval),
            share_half_life: set.share_half_life.unwrap_or(default.share_half_life),
            las_threshold_seconds: set.las_threshold_seconds.unwrap_or(default.las_threshold_seconds),
            las_preemptions: set.las_preemptions.unwrap_or(default.las_preemptions),
        }
    }
}

impl Policy {
    /// The level of a gang that has had so much service: the lower goes first.
    ///
    /// Tiresias (NSDI'19) discretises service so that gangs which have had about the same do not take turns. It makes do
    /// with two levels; where lengths spread over decades, levels that grow fourfold bring the mean completion time down
    /// by an eighth, to that of exact least attained service.
    pub(crate) fn las_level(&self, attained: f64) -> u8 {
        self.las_bounds().take_while(|&bound| attained >= bound).count() as u8
    }

    /// The service at which it is next otherwise who may preempt a gang that has had `attained` and was preempted so often.
    pub(crate) fn las_next(&self, attained: f64, preemptions: u32) -> Option<f64> {
        let level = self.las_bounds().find(|&bound| bound > attained);
        let earned = self.las_earned(preemptions).filter(|&earned| earned > attained);
        level.into_iter().chain(earned).min_by(f64::total_cmp)
    }

    /// Whether a gang may be preempted once more for one of a lower level: what each preemption costs it is then never
    /// more than a part of what it gets done.
    pub(crate) fn las_may_preempt(&self, attained: f64, preemptions: u32) -> bool {
        self.las_earned(preemptions).is_some_and(|earned| attained >= earned)
    }

    /// The service that one more preemption takes.
    fn las_earned(&self, preemptions: u32) -> Option<f64> {
        let each = self.las_threshold_seconds / f64::from(self.las_preemptions);
        each.is_finite().then_some((f64::from(preemptions) + 1.0) * each)
    }

    fn las_bounds(&self) -> impl Iterator<Item = f64> {
        let first = self.las_threshold_seconds;
        let levels = if first > 0.0 { LAS_LEVELS } else { 0 };
        std::iter::successors(Some(first), |bound| Some(bound * LAS_GROWTH)).take(levels)
    }
}

/// A gang that is asked to checkpoint and end.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Eviction {
    /// Who ends.
    pub attempt: AttemptId,
    /// For whom.
    pub by: JobId,
}

/// A gang that goes on with other bundles, as a new attempt that starts from a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Resize {
    /// The attempt that ends for it.
    pub attempt: AttemptId,
    /// What the next attempt holds.
    pub bundles: Vec<Bundle>,
    /// For whom it shrinks; a gang that grows does so for itself.
    pub by: Option<JobId>,
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Gangs that start now, in order, with a bundle a rank, all on what is free.
    pub placements: Vec<(JobId, Vec<Bundle>)>,
    /// Gangs that end for others: tell [`Cluster::set_ending`] of them and [`Queue::promise`] of those they end for.
    pub evictions: Vec<Eviction>,
    /// Gangs that shrink for others (the same holds for them) or grow.
    pub resizes: Vec<Resize>,
    /// Why gangs wait that do not start, where that is news; one that is not named waits for what it was last told.
    pub reasons: Vec<(JobId, Reason)>,
    /// When to plan again even if nothing happens.
    pub wake: Option<Time>,
}

/// Decides what starts now. The cluster and the queue are afterwards as they were, but for what they remember to save
/// work: the caller carries the plan out with [`Queue::start`] and [`Cluster::hold`], and a plan on the state that
/// results places nothing.
pub fn plan(now: Time, cluster: &mut Cluster, queue: &mut Queue) -> Plan {
    Decision::new(now, cluster, queue).run()
}

/// Why a job waits, with the numbers of this moment; `None` when it is not in the queue or would start now.
pub fn explain(cluster: &Cluster, queue: &Queue, job: JobId) -> Option<Reason> {
    let pending = queue.get(job)?;
    if let Err(reason) = check(cluster, &pending.gang) {
        return Some(reason);
    }
    let class = queue.class(queue.class_of(job)?)?;
    let shadow = queue.memory.shadow.as_ref();
    Some(why(cluster, queue, pending, class.blocked?, shadow))
}
