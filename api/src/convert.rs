//! The model as messages.

use crate::v1 as pb;
use phalanx_core::spec::GangSpec;
use phalanx_core::{
    Attempt, AttemptState, Group, GroupBundle, GroupState, Job, JobState, KeptCheckpoint, NodeState, Reason,
    Seat, Time,
};
use std::collections::BTreeMap;

/// Thousandths in one.
const MILLI: f64 = 1000.0;
const MICROS: u64 = 1_000_000;

/// A point in time on the wire.
pub fn timestamp(time: Time) -> prost_types::Timestamp {
    let micros = time.as_micros();
    prost_types::Timestamp {
        seconds: i64::try_from(micros / MICROS).unwrap_or(i64::MAX),
        // Below a second in nanoseconds: fits.
        nanos: (micros % MICROS * 1000) as i32,
    }
}

/// A point in time from the wire, to the microsecond; what lies before the epoch is the epoch.
pub fn time_of(timestamp: &prost_types::Timestamp) -> Time {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or(0);
    let micros = u64::try_from(timestamp.nanos).unwrap_or(0) / 1000;
    Time::from_micros(seconds.saturating_mul(MICROS).saturating_add(micros))
}

impl From<JobState> for pb::job::State {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => pb::job::State::Queued,
            JobState::Starting => pb::job::State::Starting,
            JobState::Running => pb::job::State::Running,
            JobState::Paused => pb::job::State::Paused,
            JobState::Restarting => pb::job::State::Restarting,
            JobState::Preempted => pb::job::State::Preempted,
            JobState::Succeeded => pb::job::State::Succeeded,
            JobState::Failed => pb::job::State::Failed,
            JobState::Cancelled => pb::job::State::Cancelled,
        }
    }
}

impl From<AttemptState> for pb::attempt::State {
    fn from(state: AttemptState) -> Self {
        match state {
            AttemptState::Starting => pb::attempt::State::Starting,
            AttemptState::Running => pb::attempt::State::Running,
            AttemptState::Stopping => pb::attempt::State::Stopping,
            AttemptState::Succeeded => pb::attempt::State::Succeeded,
            AttemptState::Failed => pb::attempt::State::Failed,
            AttemptState::Cancelled => pb::attempt::State::Cancelled,
            AttemptState::Paused => pb::attempt::State::Paused,
            AttemptState::Preempted => pb::attempt::State::Preempted,
            AttemptState::Lost => pb::attempt::State::Lost,
            AttemptState::Resized => pb::attempt::State::Resized,
        }
    }
}

impl From<NodeState> for pb::node::State {
    fn from(state: NodeState) -> Self {
        match state {
            NodeState::Ready => pb::node::State::Ready,
            NodeState::Draining => pb::node::State::Draining,
            NodeState::Lost => pb::node::State::Lost,
        }
    }
}

impl From<GroupState> for pb::placement_group::State {
    fn from(state: GroupState) -> Self {
        use pb::placement_group::State;
        match state {
            GroupState::Pending => State::Pending,
            GroupState::Reserving => State::Reserving,
            GroupState::Ready => State::Ready,
            GroupState::Repairing => State::Repairing,
            GroupState::Removing => State::Removing,
            GroupState::Removed => State::Removed,
        }
    }
}

impl From<&Group> for pb::PlacementGroup {
    fn from(group: &Group) -> Self {
        let bundle = |(seat, bundle): (&Seat, &GroupBundle)| pb::RankPlacement {
            rank: int(bundle.rank),
            node: seat.node.to_string(),
            gpus: bundle.gpus.iter().map(|share| int(share.index)).collect(),
        };
        let mut bundles: Vec<pb::RankPlacement> = group.kept().map(bundle).collect();
        bundles.sort_by_key(|bundle| bundle.rank);
        pb::PlacementGroup {
            name: group.spec.name.name.clone(),
            namespace: group.spec.name.namespace.clone(),
            state: pb::placement_group::State::from(group.state) as i32,
            reason: Some((&group.reason).into()),
            queue: group.spec.queue.clone(),
            priority: group.spec.priority,
            gang: Some((&group.spec.gang).into()),
            bundles,
            create_time: Some(timestamp(group.created)),
            ready_time: group.ready.map(timestamp),
        }
    }
}

impl From<&Reason> for pb::Reason {
    fn from(reason: &Reason) -> Self {
        pb::Reason { code: reason.code.clone(), text: reason.text.clone() }
    }
}

impl From<&GangSpec> for pb::Gang {
    fn from(gang: &GangSpec) -> Self {
        let resources: BTreeMap<_, _> =
            gang.each.custom.iter().map(|(name, &milli)| (name.clone(), milli as f64 / MILLI)).collect();
        pb::Gang {
            min_workers: int(gang.workers.min),
            max_workers: int(gang.workers.max),
            cpus: gang.each.cpus.milli() as f64 / MILLI,
            gpus: gang.each.gpus.shares() as f64 / MILLI,
            memory_bytes: gang.each.memory_bytes,
            resources,
            placement: gang.placement.as_str().to_owned(),
            group: gang.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl From<&Attempt> for pb::Attempt {
    fn from(attempt: &Attempt) -> Self {
        pb::Attempt {
            number: int(attempt.number),
            state: pb::attempt::State::from(attempt.state) as i32,
            start_time: Some(timestamp(attempt.placed)),
            end_time: attempt.ended.map(timestamp),
            exit_code: attempt.exit_code,
            failed_rank: attempt.failed_rank.map(int),
            message: attempt.message.clone(),
        }
    }
}

impl From<&KeptCheckpoint> for pb::Checkpoint {
    fn from(checkpoint: &KeptCheckpoint) -> Self {
        pb::Checkpoint {
            attempt: int(checkpoint.attempt),
            step: checkpoint.step,
            time: Some(timestamp(checkpoint.time)),
            metric: checkpoint.metric,
            path: checkpoint.path.to_string_lossy().into_owned(),
        }
    }
}

impl From<&Job> for pb::Job {
    fn from(job: &Job) -> Self {
        let (sweep, trial) = crate::sweeps::trial_of(job);
        pb::Job {
            // A validated submission is no job yet.
            id: if job.id.0 == 0 { String::new() } else { job.id.to_string() },
            name: job.spec.name.clone(),
            state: pb::job::State::from(job.state) as i32,
            reason: Some((&job.reason).into()),
            queue: job.spec.queue.clone(),
            priority: job.spec.priority,
            attempt: int(job.attempt_id().number),
            exit_code: job.exit_code,
            submit_time: Some(timestamp(job.submitted)),
            start_time: job.started.map(timestamp),
            end_time: job.ended.map(timestamp),
            sweep,
            trial,
            gang: Some((&job.spec.gang).into()),
            placement: job.attempts.last().map(placement).unwrap_or_default(),
            attempts: job.attempts.iter().map(Into::into).collect(),
            checkpoints: job.checkpoints.iter().map(Into::into).collect(),
        }
    }
}

fn placement(attempt: &Attempt) -> Vec<pb::RankPlacement> {
    let ranks = attempt.ranks.iter().enumerate().map(|(rank, run)| pb::RankPlacement {
        rank: int(rank as u32),
        node: run.node.to_string(),
        gpus: run.gpus.iter().map(|share| int(share.index)).collect(),
    });
    ranks.collect()
}

/// The model's bounds keep ranks, attempts and devices far below what an int32 holds.
pub(crate) fn int(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl pb::Job {
    /// The name of its state; empty for one that this program does not know.
    pub fn state_name(&self) -> &'static str {
        pb::job::State::try_from(self.state).map_or("", |state| state.as_str_name())
    }

    /// Nothing follows.
    pub fn is_terminal(&self) -> bool {
        use pb::job::State;
        matches!(self.state(), State::Succeeded | State::Failed | State::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_same_names_on_the_wire() {
        for &state in JobState::ALL {
            assert_eq!(pb::job::State::from(state).as_str_name(), state.as_str());
        }
        for &state in AttemptState::ALL {
            assert_eq!(pb::attempt::State::from(state).as_str_name(), state.as_str());
        }
        for &state in GroupState::ALL {
            assert_eq!(pb::placement_group::State::from(state).as_str_name(), state.as_str());
        }
        for &state in NodeState::ALL {
            assert_eq!(pb::node::State::from(state).as_str_name(), state.as_str());
        }
    }

    #[test]
    fn terminal_on_the_wire_is_terminal_in_the_model() {
        for &state in JobState::ALL {
            let job = pb::Job { state: pb::job::State::from(state) as i32, ..pb::Job::default() };
            assert_eq!(job.is_terminal(), state.is_terminal(), "{state}");
            assert_eq!(job.state_name(), state.as_str());
        }
    }

    #[test]
    fn times_keep_their_microseconds() {
        let time = Time::from_micros(1_700_000_000_123_456);
        assert_eq!(time_of(&timestamp(time)), time);
        assert_eq!(time_of(&prost_types::Timestamp { seconds: -1, nanos: 5 }), Time::ZERO);
    }
}
