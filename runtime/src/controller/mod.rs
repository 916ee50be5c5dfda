//! The controller: a state machine that turns requests, agents' events and the passing of time into effects.
//!
//! Architecture invariant: nothing here reads a clock, waits or does I/O. The loop around it (`service::core`) commits
//! the writes of an [`Effects`] before it sends the commands, so that whatever anybody hears of is already durable; a
//! seeded simulator drives the same machine with crashed agents, lost messages and a killed service.

mod assembly;
mod attempt;
mod checkpoints;
mod groups;
mod nodes;
mod queues;
mod requests;
mod seats;
#[cfg(test)]
mod simulation;
mod sweeps;
#[cfg(test)]
mod tests;

pub use nodes::{Node, NodeRecord};
pub use queues::{QueueChange, QueueStatus, QueueWrite, Queues};
pub use requests::{Refusal, Submission};
pub use sweeps::{Answer, Asking, LoadedSweep, SweepSubmission, SweepWrite};

use crate::protocol::Command;
use crate::store::Loaded;
use groups::Groups;
use phalanx_core::id::AttemptId;
use phalanx_core::spec::Work;
use phalanx_core::{
    Attempt, AttemptState, Ending, Group, Job, JobId, JobState, NewEvent, NodeName, Reason, Time,
};
use phalanx_scheduler::{Bundle, Cluster, HoldError, Holder, Pending, Plan, Queue, Resize, Share};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use sweeps::Sweeps;

/// What the controller is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The controller of a `run` without a service: it runs its own jobs only, and they end with it.
    pub embedded: bool,
    /// How long an agent may be silent.
    pub node_timeout: Duration,
    /// The queues, and how the scheduler decides.
    pub queues: Queues,
}

/// After a node is called lost its agent has ended the ranks there; so much later their devices are promised again.
const FENCE_MARGIN: Duration = Duration::from_secs(2);
/// Trials that may start in one turn of the loop: what has been decided is to be stored and sent soon.
const PLANS_AT_ONCE: usize = 64;
/// An attempt that a node could not start is tried again after this, doubled each time in a row …
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// … up to this.
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// What has to happen because of what the controller decided: first all writes in one transaction, then the sends.
#[derive(Debug, Default)]
pub struct Effects {
    /// Jobs as they are to be stored; several of one job stand in the order of their time.
    pub jobs: Vec<Saved>,
    /// Nodes whose record changed.
    pub nodes: Vec<NodeRecord>,
    /// Queues that were changed over the API.
    pub queues: Vec<QueueWrite>,
    /// What queues have had.
    pub shares: Vec<(String, Share)>,
    /// Placement groups as they are to be stored, those that are removed too; of several of one the last counts.
    pub groups: Vec<Group>,
    /// Sweeps as they are to be stored, in the order of their time.
    pub sweeps: Vec<SweepWrite>,
    /// Requests that were answered with a trial: their name, what they asked, and the trial's number.
    pub asked: Vec<(String, [u8; 32], u64)>,
    /// Why jobs wait, where that has been decided anew; need not be stored.
    pub reasons: Vec<(JobId, Reason)>,
    /// The scheduler was asked.
    pub planned: bool,
    /// What happened besides jobs entering another state.
    pub events: Vec<NewEvent>,
    /// Commands for agents.
    pub sends: Vec<(NodeName, Command)>,
}

impl Effects {
    /// Puts what was decided later behind what is still to be done.
    pub fn absorb(&mut self, later: Effects) {
        self.jobs.extend(later.jobs);
        self.nodes.extend(later.nodes);
        self.queues.extend(later.queues);
        self.shares.extend(later.shares);
        self.groups.extend(later.groups);
        self.sweeps.extend(later.sweeps);
        self.asked.extend(later.asked);
        self.reasons.extend(later.reasons);
        self.planned |= later.planned;
        self.events.extend(later.events);
        self.sends.extend(later.sends);
    }
}

/// A job as it is to be stored.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The job.
    pub job: Job,
    /// It has entered another state: those who watch it are told.
    pub entered: bool,
}

/// A job that is not terminal, with what need not outlive the process.
#[derive(Clone, Debug)]
struct Live {
    job: Job,
    /// Not placed again before this time.
    retry_at: Option<Time>,
    /// Attempts in a row that ended before all their ranks had started, through no fault of the job.
    fruitless: u32,
    /// The last value of the checkpoint policy's metric.
    metric: Option<f64>,
}

impl Live {
    fn new(job: Job) -> Self {
        Live { job, retry_at: None, fruitless: 0, metric: None }
    }
}

/// The state machine.
#[derive(Debug)]
pub struct Controller {
    config: Config,
    jobs: BTreeMap<JobId, Live>,
    next_job: u64,
    nodes: BTreeMap<NodeName, Node>,
    cluster: Cluster,
    queue: Queue,
    groups: Groups,
    sweeps: Sweeps,
    /// The names of the secrets there are.
    secrets: BTreeSet<String>,
    /// Something changed that may let a waiting gang start.
    replan: bool,
    /// When the scheduler wants to be asked again even if nothing changes.
    plan_at: Option<Time>,
    stopping: bool,
    dirty: BTreeSet<JobId>,
    effects: Effects,
    /// Jobs as they were before the requests that are not committed yet; `None` where there was none.
    undo: Vec<(JobId, Option<Live>)>,
    /// The queues as they were before them.
    undo_queues: Option<Queues>,
    /// What queues had had when it was last handed out to be stored.
    stored_shares: BTreeMap<String, Share>,
}

impl Controller {
    /// Starts from what the store holds: jobs that are not terminal, and the nodes that were known.
    ///
    /// Nodes count as disconnected from `now` on. A job of an embedded `run` that died has nobody left to run it and
    /// fails here; the jobs of a service are left alone by an embedded controller.
    pub fn restore(config: Config, now: Time, loaded: Loaded) -> Self {
        let mut controller = Controller {
            config,
            jobs: BTreeMap::new(),
            next_job: loaded.next_job,
            nodes: BTreeMap::new(),
            cluster: Cluster::new(),
            queue: Queue::new(),
            groups: Groups::default(),
            sweeps: Sweeps::starting_from(loaded.next_sweep),
            secrets: BTreeSet::new(),
            replan: true,
            plan_at: None,
            stopping: false,
            dirty: BTreeSet::new(),
            effects: Effects::default(),
            undo: Vec::new(),
            undo_queues: None,
            stored_shares: BTreeMap::new(),
        };
        // A `run` of one's own is nobody's team's.
        if !controller.config.embedded {
            controller.config.queues.api = loaded.queues;
            controller.restore_shares(loaded.shares);
        }
        controller.set_queues_up();
        for record in loaded.nodes {
            controller.restore_node(now, record);
        }
        let groups = if controller.config.embedded { Vec::new() } else { loaded.groups };
        groups.into_iter().for_each(|group| controller.restore_group(group));
        for job in loaded.live_jobs {
            if job.embedded {
                controller.bury(now, job);
            } else if !controller.config.embedded {
                controller.adopt(job);
            }
        }
        controller.renew_promises(&loaded.passed);
        loaded.sweeps.into_iter().for_each(|sweep| controller.restore_sweep(now, sweep));
        controller
    }

    /// A job whose `run` died with it.
    fn bury(&mut self, now: Time, mut job: Job) {
        let text = "the `phalanx run` it belonged to was killed";
        if let (Some(_), Some(attempt)) = (job.run.take(), job.attempts.last_mut()) {
            attempt.state = AttemptState::Lost;
            attempt.ended = Some(now);
            attempt.message = text.to_owned();
        }
        job.state = JobState::Failed;
        job.reason = Reason::new("run_killed", text);
        job.exit_code = Some(phalanx_core::job::SERVICE_TROUBLE_CODE);
        job.ended = Some(now);
        self.effects.jobs.push(Saved { job, entered: true });
    }

    /// A job that the service goes on with: its gang keeps what it holds until its agents have spoken.
    fn adopt(&mut self, job: Job) {
        let id = job.id;
        let attempt = job.attempt_id();
        let held = job.run.as_ref().map(|run| attempt::bundles_still_held(&job, run)).unwrap_or_default();
        if let Some(current) = job.attempts.last().filter(|_| !held.is_empty()) {
            let holder = holder(&job, current.placed);
            if let Some((cluster, _)) = self.ground(job.group) {
                // The node records are stored with the placements, so what was held then fits now; only of a group's
                // ground a part may be lost on which the job is still ending.
                let kept = match job.group {
                    None => cluster.hold(attempt, holder, &held).map(|()| held.len()),
                    Some(_) => hold_what_stands(cluster, attempt, &holder, held),
                };
                let kept = kept
                    .unwrap_or_else(|error| panic!("{attempt} does not fit where it was placed: {error}"));
                if kept < current.ranks.len() {
                    cluster.set_rigid(attempt);
                }
                if job.run.as_ref().is_some_and(|run| run.ending.is_some()) {
                    cluster.set_ending(attempt);
                }
            }
        }
        if let Some(live) = job.group.and_then(|group| self.groups.live.get_mut(&group)) {
            live.jobs.insert(id);
        }
        self.jobs.insert(id, Live::new(job));
        self.sync_queue(id);
    }

    /// What the service before this one had promised: what others end for, and whom a waiting gang has let pass.
    fn renew_promises(&mut self, passed: &[JobId]) {
        let started = self.jobs.values().filter(|live| !live.job.attempts.is_empty()).map(|live| live.job.id);
        let started: BTreeSet<JobId> = started.chain(passed.iter().copied()).collect();
        for id in started {
            let group = self.job(id).and_then(|job| job.group);
            if let Some((_, queue)) = self.ground(group) {
                queue.note_started(id.0);
            }
        }
        let runs = self.jobs.values().filter_map(|live| live.job.run.as_ref());
        let promised: Vec<JobId> = runs.filter_map(|run| run.gives_way_to).collect();
        for id in promised {
            let group = self.job(id).and_then(|job| job.group);
            if let Some((_, queue)) = self.ground(group) {
                queue.promise(id);
            }
        }
    }

    /// Every job that is not terminal.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().map(|live| &live.job)
    }

    /// A job that is not terminal.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id).map(|live| &live.job)
    }

    /// Every node that was ever seen.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// What is held and free where.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// No attempt is under way.
    pub fn is_idle(&self) -> bool {
        self.jobs.values().all(|live| live.job.run.is_none())
    }

    /// Ends every attempt, to be run again by the next service, and places nothing any more.
    pub fn shut_down(&mut self) {
        self.stopping = true;
        let running: Vec<JobId> =
            self.jobs.iter().filter(|(_, live)| live.job.run.is_some()).map(|(&id, _)| id).collect();
        let ending = if self.config.embedded { Ending::Cancelled } else { Ending::Shutdown };
        for id in running {
            self.end_attempt(id, ending.clone(), "the service was shut down");
        }
    }

    /// Lets time pass: silent nodes, time limits, retries.
    pub fn tick(&mut self, now: Time) {
        self.check_nodes(now);
        let late: Vec<JobId> = self
            .jobs
            .values()
            .filter(|live| time_limit_at(&live.job).is_some_and(|at| at <= now))
            .map(|live| live.job.id)
            .collect();
        for id in late {
            let limit = self.jobs[&id].job.spec.time_limit.unwrap_or_default();
            let message = format!("the job outran its time limit of {limit:?}");
            self.end_attempt(id, Ending::TimeLimit, &message);
        }
        let due: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, live)| live.retry_at.is_some_and(|at| at <= now))
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            if let Some(live) = self.jobs.get_mut(&id) {
                live.retry_at = None;
            }
            self.sync_queue(id);
        }
        self.tick_groups(now);
        self.tick_sweeps(now);
    }

    /// When `tick` has something to do next.
    pub fn next_timer(&self) -> Option<Time> {
        let limits = self.jobs.values().filter_map(|live| time_limit_at(&live.job));
        let retries = self.jobs.values().filter_map(|live| live.retry_at);
        limits
            .chain(retries)
            .chain(self.node_timer())
            .chain(self.groups_timer())
            .chain(self.sweeps_timer())
            .chain(self.plan_at)
            .min()
    }

    /// Places what can be placed and hands out everything that has to happen since the last call.
    pub fn settle(&mut self, now: Time) -> Effects {
        for _ in 0..PLANS_AT_ONCE {
            self.drive_sweeps(now);
            let due = self.plan_at.is_some_and(|at| at <= now);
            if (self.replan || due) && !self.stopping {
                self.replan = false;
                self.plan(now);
            }
            // A slot that was filled leaves room for the sweep's next one.
            if !self.sweeps.has_filled() {
                return self.take_effects();
            }
        }
        self.plan_at = Some(now);
        self.drive_sweeps(now);
        self.take_effects()
    }

    fn take_effects(&mut self) -> Effects {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(live) = self.jobs.get(&id) {
                self.effects.jobs.push(Saved { job: live.job.clone(), entered: false });
            }
        }
        let mut effects = std::mem::take(&mut self.effects);
        effects.sweeps = self.take_sweeps();
        self.changed_shares(&mut effects);
        effects
    }

    /// Asks the scheduler: for the nodes, and then for every group in which something has changed.
    fn plan(&mut self, now: Time) {
        if self.plan_at.take().is_some_and(|at| at <= now) {
            let waiting = self.groups.live.iter().filter(|(_, live)| !live.ground.queue.is_empty());
            self.groups.replan.extend(waiting.map(|(&id, _)| id));
        }
        let plan = phalanx_scheduler::plan(now, &mut self.cluster, &mut self.queue);
        self.carry_out(now, plan);
        for id in std::mem::take(&mut self.groups.replan) {
            let Some((cluster, queue)) = self.ground(Some(id)).filter(|(_, queue)| !queue.is_empty()) else {
                continue;
            };
            let plan = phalanx_scheduler::plan(now, cluster, queue);
            self.carry_out(now, plan);
        }
    }

    fn carry_out(&mut self, now: Time, plan: Plan) {
        self.effects.planned = true;
        self.plan_at = plan.wake.filter(|&at| at > now).into_iter().chain(self.plan_at).min();
        for (id, reason) in plan.reasons {
            let reason = self.reason_of(now, id, &reason);
            if self.groups.get(id).is_some() {
                self.group_reason(id, &reason);
            } else if let Some(sweep) = self.sweeps.slot(id) {
                self.slot_reason(sweep, &reason);
                continue;
            } else if let Some(live) = self.jobs.get_mut(&id) {
                live.job.reason = reason.clone();
            }
            self.effects.reasons.push((id, reason));
        }
        for eviction in plan.evictions {
            let message = format!("gave its place to {}", eviction.by);
            self.make_way(eviction.attempt, Ending::Preempted, Some(eviction.by), &message);
        }
        for resize in plan.resizes {
            self.resize(resize);
        }
        for (id, bundles) in plan.placements {
            if self.groups.get(id).is_some() {
                self.place_group(now, id, bundles);
                continue;
            }
            if self.sweeps.slot(id).is_some() {
                self.fill_slot(now, id, &bundles);
                continue;
            }
            let placed = self.place(now, id, &bundles);
            assert!(placed, "the scheduler placed {id} over what is free");
        }
    }

    /// What is told of a job or a group that waits.
    fn reason_of(&self, now: Time, id: JobId, reason: &phalanx_scheduler::Reason) -> Reason {
        let group = self.jobs.get(&id).and_then(|live| live.job.spec.gang.group.as_ref());
        let text = match group {
            Some(name) => format!("in the placement group `{name}`: {}", told(reason, now)),
            None => told(reason, now),
        };
        Reason::new(reason.code.as_str(), text)
    }

    /// Why a job or a group waits for its place, with the numbers of this moment; `None` where it does not.
    pub fn explain(&self, now: Time, id: JobId) -> Option<Reason> {
        let group = self.jobs.get(&id).and_then(|live| live.job.group);
        let (cluster, queue) = self.ground_seen(group)?;
        let reason = phalanx_scheduler::explain(cluster, queue, id)?;
        Some(self.reason_of(now, id, &reason))
    }

    /// Ends an attempt for a resize: all of it goes on elsewhere, as a new attempt from its checkpoint.
    fn resize(&mut self, resize: Resize) {
        let id = resize.attempt.job;
        let Some(live) = self.jobs.get_mut(&id) else { return };
        let Some(run) = live.job.run.as_mut().filter(|run| run.ending.is_none()) else { return };
        let workers = live.job.attempts.last().map_or(0, |attempt| attempt.ranks.len());
        run.next = attempt::rank_runs(&resize.bundles);
        let next = run.next.len();
        let message = match resize.by {
            Some(by) => format!("resized: gives way to {by} and goes on with {next} of {workers} workers"),
            None => format!("resized: goes on with {next} workers instead of {workers}"),
        };
        self.make_way(resize.attempt, Ending::Resized, resize.by, &message);
    }

    /// Ends an attempt that gives way; what it frees is kept for the gang that it does so for.
    fn make_way(&mut self, attempt: AttemptId, ending: Ending, by: Option<JobId>, message: &str) {
        if let Some(run) = self.jobs.get_mut(&attempt.job).and_then(|live| live.job.run.as_mut()) {
            run.gives_way_to = by;
        }
        if let Some(by) = by {
            let group = self.jobs.get(&by).map_or_else(|| self.sweeps.slot_group(by), |live| live.job.group);
            if let Some((_, queue)) = self.ground(group) {
                queue.promise(by);
            }
        }
        self.end_attempt(attempt.job, ending, message);
    }

    /// Makes the queue say what the job's state says: a waiting job is in it, any other is not. One that runs in a group
    /// waits in the group's own queue, once there is something of the group.
    fn sync_queue(&mut self, id: JobId) {
        self.replan = true;
        let Some(Live { job, retry_at, .. }) = self.jobs.get(&id) else { return drop(self.queue.remove(id)) };
        let (group, waits) = (job.group, job.state.is_waiting() && job.run.is_none() && retry_at.is_none());
        let pending = waits.then(|| pending(job));
        let waits_for_group = self.waits_for_group(group).is_some();
        let Some((_, queue)) = self.ground(group) else { return };
        queue.remove(id);
        if let Some(pending) = pending.filter(|_| !waits_for_group) {
            queue.insert(pending);
        }
        self.groups.replan.extend(group);
        if waits && waits_for_group {
            self.say_group_waits(id);
        }
    }

    /// Moves a job to another state; the only place where a state changes.
    fn enter(&mut self, id: JobId, state: JobState, reason: Reason) {
        let Some(live) = self.jobs.get_mut(&id) else { return };
        assert!(live.job.state.may_become(state), "{id} cannot go from {} to {state}", live.job.state);
        live.job.state = state;
        live.job.reason = reason;
        self.dirty.remove(&id);
        self.sweeps.hear(&live.job);
        self.effects.jobs.push(Saved { job: live.job.clone(), entered: true });
        self.sync_queue(id);
        if state.is_terminal() {
            let group = self.jobs.remove(&id).and_then(|live| live.job.group);
            if let Some(live) = group.and_then(|group| self.groups.live.get_mut(&group)) {
                live.jobs.remove(&id);
            }
        }
    }

    fn send(&mut self, node: &NodeName, command: Command) {
        self.effects.sends.push((node.clone(), command));
    }
}

/// A reason with its reservation, if there is one, as a time from now.
fn told(reason: &phalanx_scheduler::Reason, now: Time) -> String {
    reason.told(|at| format!("within {} s", at.since(now).as_secs() + 1))
}

/// What the scheduler knows of a job's gang.
fn pending(job: &Job) -> Pending {
    let mut pending = Pending::new(job.id, job.submitted, job.id.0, job.spec.gang.clone());
    pending.queue = job.spec.queue.clone();
    pending.priority = job.spec.priority;
    pending.preemptible = job.spec.preemptible;
    pending.time_limit = job.spec.time_limit;
    pending.preemptions =
        job.attempts.iter().filter(|past| past.state == AttemptState::Preempted).count() as u32;
    pending.attained = job.attempts.iter().map(|past| attained(job, past)).sum();
    pending
}

/// Holds those of a job's bundles whose part of its group's ground is not lost; answers how many.
fn hold_what_stands(
    cluster: &mut Cluster,
    attempt: AttemptId,
    holder: &Holder,
    mut bundles: Vec<Bundle>,
) -> Result<usize, HoldError> {
    while !bundles.is_empty() {
        let error = match cluster.hold(attempt, holder.clone(), &bundles) {
            Ok(()) => break,
            Err(error) => error,
        };
        let lost = match &error {
            HoldError::UnknownNode { node, .. } => bundles.iter().position(|bundle| bundle.node == *node),
            HoldError::NotFree { rank, .. } => bundles.iter().position(|bundle| bundle.rank == *rank),
            HoldError::Twice { .. } => None,
        };
        bundles.remove(lost.ok_or(error)?);
    }
    Ok(bundles.len())
}

/// What the scheduler knows of an attempt that was placed at `placed`.
fn holder(job: &Job, placed: Time) -> Holder {
    let mut holder = Holder::new(&pending(job), placed);
    holder.saved = job.checkpoints.last().map_or(placed, |checkpoint| checkpoint.time.max(placed));
    let saves = matches!(job.spec.work, Work::Train(_)) || job.spec.checkpoint.every_steps.is_some();
    holder.grows = saves || !job.checkpoints.is_empty();
    holder
}

/// What an attempt that is over has had: GPU-seconds, or CPU-seconds where the gang asks for no GPU.
fn attained(job: &Job, past: &Attempt) -> f64 {
    let (Some(started), Some(ended)) = (past.started, past.ended) else { return 0.0 };
    let each = &job.spec.gang.each;
    let milli = if each.gpus.shares() > 0 { each.gpus.shares() } else { each.cpus.milli() };
    ended.since(started).as_secs_f64() * past.ranks.len() as f64 * milli as f64 / 1000.0
}

/// When a job with an attempt under way reaches its time limit: what it has run so far counts over all attempts.
fn time_limit_at(job: &Job) -> Option<Time> {
    let limit = job.spec.time_limit?;
    let run = job.run.as_ref().filter(|run| run.ending.is_none())?;
    let attempt = job.attempts.last().filter(|_| run.launched)?;
    let earlier: Duration = job
        .attempts
        .iter()
        .map(|past| match (past.started, past.ended) {
            (Some(started), Some(ended)) => ended.since(started),
            _ => Duration::ZERO,
        })
        .sum();
    Some(attempt.started? + limit.saturating_sub(earlier))
}

/// The attempt an event speaks of, if it is the one under way.
fn is_current(job: &Job, attempt: AttemptId) -> bool {
    job.run.is_some() && job.attempt_id() == attempt
}
