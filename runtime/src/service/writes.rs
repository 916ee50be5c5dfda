//! What the controller has decided, as the store takes it.

use crate::controller::{Effects, Saved};
use crate::store::Write;
use phalanx_core::{Group, JobId, JobState};
use std::collections::BTreeMap;

/// From submission to running, once a job.
pub(super) fn record_start(Saved { job, entered }: &Saved) {
    let first = *entered && job.attempts.len() == 1 && job.state == JobState::Running;
    if let Some(started) = job.started.filter(|_| first) {
        metrics::histogram!("phalanx_job_start_seconds").record(started.since(job.submitted).as_secs_f64());
    }
}

/// Each group as it was last.
fn group_writes(effects: &Effects) -> Option<Write> {
    let last: BTreeMap<JobId, &Group> = effects.groups.iter().map(|group| (group.id, group)).collect();
    (!last.is_empty()).then(|| Write::Groups(last.into_values().cloned().collect()))
}

/// A removed group is forgotten, and its number must not come back.
fn next_id(effects: &Effects) -> Option<Write> {
    let made = effects.groups.iter().filter(|group| group.rounds == 0).map(|group| group.id.0);
    made.max().map(|last| Write::NextId(JobId(last + 1)))
}

/// All that has to be stored of what was decided.
pub(super) fn all_writes(effects: &Effects) -> impl Iterator<Item = Write> {
    let jobs = effects.jobs.iter();
    let jobs = jobs.map(|saved| Write::SaveJob { job: Box::new(saved.job.clone()), visible: saved.entered });
    let nodes = effects.nodes.iter().map(|record| Write::Node { record: record.clone() });
    let queues = effects.queues.iter().map(|write| Write::Queue(write.clone()));
    let shares: BTreeMap<_, _> = effects.shares.iter().map(|(queue, share)| (queue, share)).collect();
    let shares =
        shares.into_iter().map(|(queue, share)| Write::Share { queue: queue.clone(), share: share.clone() });
    let groups = group_writes(effects).into_iter().chain(next_id(effects));
    let sweeps = effects.sweeps.iter().map(|write| Write::Sweep(Box::new(write.clone())));
    let asked = effects.asked.iter().map(|(request_id, fingerprint, number)| Write::Request {
        request_id: request_id.clone(),
        fingerprint: *fingerprint,
        job: JobId(*number),
    });
    let events = effects.events.iter().cloned().map(Write::Event);
    jobs.chain(nodes).chain(queues).chain(shares).chain(groups).chain(sweeps).chain(asked).chain(events)
}
