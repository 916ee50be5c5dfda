//! Which of a job's checkpoints are kept: the best so many by the policy's metric, the latest, and while an attempt lasts the one
//! that it started from, which a rank that is late, or started again, has yet to read.

use super::{Controller, Live};
use crate::protocol::Command;
use phalanx_core::id::AttemptId;
use phalanx_core::spec::CheckpointPolicy;
use phalanx_core::{JobId, KeptCheckpoint, NodeName, Time};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::Path;

impl Controller {
    /// A checkpoint that an agent has made durable: it is the one to go on from, and older ones may go.
    pub(super) fn take_checkpoint(
        &mut self,
        node: &NodeName,
        attempt: AttemptId,
        at: Time,
        step: u64,
        path: &Path,
    ) {
        let Some(live) = self.jobs.get_mut(&attempt.job) else { return };
        let kept = &mut live.job.checkpoints;
        if kept.iter().any(|old| old.path == path) {
            return;
        }
        let (number, metric) = (attempt.number, live.metric);
        let (path, node) = (path.to_owned(), node.clone());
        // A node that was lost may come back with one of an earlier attempt.
        let place = kept.partition_point(|old| old.attempt <= number);
        kept.insert(place, KeptCheckpoint { attempt: number, step, time: at, metric, path, node });
        let group = live.job.group;
        if let Some(holder) = self.ground(group).and_then(|(cluster, _)| cluster.holder_mut(attempt)) {
            holder.saved = at;
            // From now on it can grow without losing its work.
            self.replan |= !std::mem::replace(&mut holder.grows, true);
        }
        self.dirty.insert(attempt.job);
        self.drop_checkpoints(attempt.job);
    }

    /// Lets those go that need not be kept, after one has come or an attempt is over.
    pub(super) fn drop_checkpoints(&mut self, id: JobId) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let running = job.run.as_ref().map(|_| job.attempt_id().number);
        for old in drop_worse(&mut job.checkpoints, &job.spec.checkpoint, running) {
            self.send(&old.node, Command::DropCheckpoint { path: old.path });
        }
    }

    /// Remembers the policy's metric, to be written beside the next checkpoint.
    pub(super) fn note_metric(&mut self, id: JobId, metrics: &BTreeMap<String, f64>) {
        let Some(live) = self.jobs.get_mut(&id) else { return };
        let name = live.job.spec.checkpoint.metric.as_deref();
        if let Some(&value) = name.and_then(|name| metrics.get(name)) {
            live.metric = Some(value);
        }
    }
}

/// The latest checkpoint of the attempts before this one.
pub(super) fn started_from(kept: &[KeptCheckpoint], attempt: u32) -> Option<usize> {
    kept.iter().rposition(|checkpoint| checkpoint.attempt < attempt)
}

/// Takes out what need not be kept, while this attempt runs or none.
fn drop_worse(
    kept: &mut Vec<KeptCheckpoint>,
    policy: &CheckpointPolicy,
    running: Option<u32>,
) -> Vec<KeptCheckpoint> {
    let latest = kept.len().checked_sub(1);
    let in_use = running.and_then(|attempt| started_from(kept, attempt));
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by(|&a, &b| better_first(kept, policy, a, b));
    let mut stays = vec![false; kept.len()];
    for &index in order.iter().take(policy.keep as usize) {
        stays[index] = true;
    }
    for index in [latest, in_use].into_iter().flatten() {
        stays[index] = true;
    }
    let mut stays = stays.into_iter();
    kept.extract_if(.., |_| !stays.next().unwrap_or(true)).collect()
}

/// By the metric where both have one (any is better than none); otherwise the later one is the better.
fn better_first(kept: &[KeptCheckpoint], policy: &CheckpointPolicy, a: usize, b: usize) -> Ordering {
    let value = |index: usize| policy.metric.as_ref().and(kept[index].metric).filter(|value| !value.is_nan());
    let by_metric = match (value(a), value(b)) {
        (Some(x), Some(y)) if policy.mode.is_better(x, y) => Ordering::Less,
        (Some(x), Some(y)) if policy.mode.is_better(y, x) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        _ => Ordering::Equal,
    };
    by_metric.then(b.cmp(&a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::spec::MetricMode;

    fn checkpoint(step: u64, metric: Option<f64>) -> KeptCheckpoint {
        let (path, node) = (format!("/c/{step}").into(), "a".parse().unwrap());
        KeptCheckpoint { attempt: 1, step, time: Time::ZERO, metric, path, node }
    }

    fn steps_kept(metrics: &[Option<f64>], keep: u32, metric: Option<&str>, mode: MetricMode) -> Vec<u64> {
        let policy = CheckpointPolicy { every_steps: None, keep, metric: metric.map(str::to_owned), mode };
        let mut kept = Vec::new();
        for (step, &metric) in metrics.iter().enumerate() {
            kept.push(checkpoint(step as u64, metric));
            drop_worse(&mut kept, &policy, None);
        }
        kept.iter().map(|checkpoint| checkpoint.step).collect()
    }

    #[test]
    fn what_an_attempt_started_from_stays_as_long_as_it_runs() {
        let policy = CheckpointPolicy::default();
        let mut kept: Vec<KeptCheckpoint> = (0..4).map(|step| checkpoint(step, None)).collect();
        kept[2..].iter_mut().for_each(|checkpoint| checkpoint.attempt = 2);
        let steps = |kept: &[KeptCheckpoint]| kept.iter().map(|kept| kept.step).collect::<Vec<u64>>();
        assert_eq!(steps(&drop_worse(&mut kept, &policy, Some(2))), [0, 2]);
        assert_eq!(steps(&drop_worse(&mut kept, &policy, Some(2))), [0; 0]);
        assert_eq!(steps(&drop_worse(&mut kept, &policy, None)), [1]);
        assert_eq!(steps(&kept), [3]);
    }

    #[test]
    fn the_best_and_the_latest_stay() {
        let losses = [Some(3.0), Some(1.0), Some(2.0), Some(f64::NAN), None, Some(4.0)];
        assert_eq!(steps_kept(&losses, 2, Some("loss"), MetricMode::Min), [1, 2, 5]);
        assert_eq!(steps_kept(&losses, 2, Some("loss"), MetricMode::Max), [0, 5]);
        assert_eq!(steps_kept(&losses, 2, None, MetricMode::Min), [4, 5]);
        assert_eq!(steps_kept(&losses, 0, Some("loss"), MetricMode::Min), [5]);
    }
}
