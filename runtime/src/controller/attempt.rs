//! An attempt from its placement to the end of its last process.
//!
//! Two phases: every node keeps its place (`Reserve`), then all start (`Start`). Whatever happens in between ends with
//! a `Stop` to every node and a `Gone` from every node, so that nothing is given away that is still in use.

use super::assembly::{is_elastic, is_written_off};
use super::checkpoints::started_from;
use super::sweeps::{RUNG, STOPPED};
use super::{Controller, Live, RETRY_FIRST, RETRY_LONGEST, holder};
use crate::launch::{Launch, LaunchWork, RankLaunch};
use crate::protocol::{AgentEvent, Command, Happening, RankExit};
use phalanx_core::flight::{self, LastWords};
use phalanx_core::id::AttemptId;
use phalanx_core::job::{INTERRUPTED_CODE, Member, STOPPED_CODE, TIME_LIMIT_CODE};
use phalanx_core::spec::{Params, Work, WorkerSpec};
use phalanx_core::{
    Attempt, AttemptState, Ending, Job, JobId, JobState, NodeName, NodeRun, Rank, RankRun, Reason, Run, Time,
};
use phalanx_scheduler::Bundle;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an attempt under way holds: the ranks on nodes that are not done with it.
pub(super) fn bundles_still_held(job: &Job, run: &Run) -> Vec<Bundle> {
    let Some(attempt) = job.attempts.last() else { return Vec::new() };
    let keeps = keeps_all(run);
    // What was held on a lost node is given back before the others are resized for it.
    let keeps = |rank: &RankRun| keeps && !rank.lost;
    let held = |rank: &RankRun| keeps(rank) || run.nodes.get(&rank.node).is_some_and(|n| !n.gone);
    let bundles = bundles_of(job, &attempt.ranks);
    bundles.into_iter().zip(&attempt.ranks).filter(|(_, rank)| held(rank)).map(|(bundle, _)| bundle).collect()
}

/// A gang that is resized keeps all it holds until its last process is gone, so that nobody takes its place meanwhile.
fn keeps_all(run: &Run) -> bool {
    run.ending == Some(Ending::Resized)
}

/// What ranks take where they run.
fn bundles_of(job: &Job, ranks: &[RankRun]) -> Vec<Bundle> {
    let bundle = |(rank, run): (usize, &RankRun)| Bundle {
        rank: rank as Rank,
        node: run.node.clone(),
        gpus: run.gpus.clone(),
        takes: job.spec.gang.each.clone(),
    };
    ranks.iter().enumerate().map(bundle).collect()
}

/// An attempt as it is placed.
pub(super) fn first_attempt(now: Time, bundles: &[Bundle]) -> Attempt {
    Attempt {
        number: 1,
        state: AttemptState::Starting,
        placed: now,
        started: None,
        ended: None,
        exit_code: None,
        failed_rank: None,
        message: String::new(),
        ranks: rank_runs(bundles),
    }
}

impl Controller {
    /// Makes an attempt of a decision: devices held, every node asked to keep its place.
    /// Says whether it could, which a decision of the scheduler always can.
    pub(super) fn place(&mut self, now: Time, id: JobId, bundles: &[Bundle]) -> bool {
        self.note_time(now);
        let Some(live) = self.jobs.get_mut(&id) else { return false };
        let job = &mut live.job;
        let mut run = Run::default();
        for bundle in bundles {
            let Some(node) = self.nodes.get(&bundle.node) else { return false };
            let fresh = NodeRun {
                incarnation: node.incarnation().to_owned(),
                reserved: false,
                gone: false,
                flight: Vec::new(),
            };
            run.nodes.insert(bundle.node.clone(), fresh);
        }
        let attempt = AttemptId { job: id, number: job.attempts.len() as u32 + 1 };
        let mut holder = holder(job, now);
        holder.saved = now;
        let group = job.group;
        let held =
            self.ground(group).is_some_and(|(cluster, _)| cluster.hold(attempt, holder, bundles).is_ok());
        let Some(job) = self.jobs.get_mut(&id).map(|live| &mut live.job).filter(|_| held) else {
            return false;
        };
        job.attempts.push(Attempt { number: attempt.number, ..first_attempt(now, bundles) });
        job.run = Some(run);
        if let Some((_, queue)) = self.ground(group) {
            queue.start(id);
        }
        self.enter(id, JobState::Starting, Reason::new("starting", "its ranks are being started"));
        self.reserve(id);
        true
    }

    /// Lets a resized gang go on: with the workers it was given, else with those it had, else when it is placed again.
    fn go_on(&mut self, now: Time, id: JobId, next: &[RankRun]) {
        let Some(job) = self.job(id) else { return };
        let before = job.attempts.last().map(|attempt| attempt.ranks.as_slice()).unwrap_or_default();
        let ways = [bundles_of(job, next), bundles_of(job, before)];
        // A gang that gives workers back does not take them again.
        let ways = if next.len() < before.len() { &ways[..1] } else { &ways[..] };
        for bundles in ways {
            let all_there = |bundle: &Bundle| {
                self.nodes.get(&bundle.node).is_some_and(|node| node.silent_since.is_none() && !node.lost)
            };
            if bundles.is_empty() || !bundles.iter().all(all_there) || !self.within_quota(id, bundles.len()) {
                continue;
            }
            if self.place(now, id, bundles) {
                return;
            }
        }
    }

    /// Asks every node that does not keep its place yet.
    fn reserve(&mut self, id: JobId) {
        let Some(Live { job, .. }) = self.jobs.get(&id) else { return };
        let Some(run) = &job.run else { return };
        let attempt = job.attempt_id();
        let master = master_node(job);
        let waiting: Vec<NodeName> =
            run.nodes.iter().filter(|(_, node)| !node.reserved).map(|(name, _)| name.clone()).collect();
        for node in waiting {
            let wants_master_port = master.as_ref() == Some(&node);
            self.send(&node, Command::Reserve { attempt, wants_master_port });
        }
    }

    /// Brings one node of an attempt up to date after its agent has come (back): commands are idempotent, so the one
    /// that the attempt's phase asks for is sent again.
    pub(super) fn remind(&mut self, id: JobId, node: &NodeName) {
        let Some(Live { job, .. }) = self.jobs.get(&id) else { return };
        let Some(run) = &job.run else { return };
        let attempt = job.attempt_id();
        let lost = job.attempts.last().is_some_and(|attempt| is_written_off(attempt, node));
        let command = match &run.ending {
            None if lost => stop_command(job, attempt, &Ending::Lost, Duration::ZERO),
            Some(ending) => stop_command(job, attempt, ending, self.way_grace(job)),
            None if run.launched => Command::Start(Box::new(self.launch(job, run, node))),
            None => Command::Reserve { attempt, wants_master_port: master_node(job).as_ref() == Some(node) },
        };
        let runs = matches!(command, Command::Start(_));
        self.send(node, command);
        if runs {
            self.remind_of_group(id, node);
        }
    }

    /// Takes in what happened to an attempt. Events may be repeated and may speak of attempts long over.
    pub fn happened(&mut self, now: Time, node: &NodeName, event: &AgentEvent) {
        self.note_time(now);
        let attempt = event.attempt;
        match &event.what {
            Happening::Log(_) => return,
            Happening::Report { rank, step, metrics } => {
                self.note_metric(attempt.job, metrics);
                return self.trial_reported(node, attempt, (*rank, *step), metrics);
            }
            Happening::Checkpoint { step, path } => {
                return self.take_checkpoint(node, attempt, event.time, *step, path);
            }
            _ => {}
        }
        if self.groups.get(attempt.job).is_some() {
            return self.group_happened(node, event);
        }
        let Some(job) = self.current_attempt(attempt) else { return };
        if job.run.as_ref().is_none_or(|run| run.nodes.get(node).is_none_or(|n| n.gone)) {
            return;
        }
        self.dirty.insert(attempt.job);
        match &event.what {
            Happening::Reserved { master_port } => self.reserved(attempt.job, node, *master_port),
            Happening::Refused { message } => {
                self.end_attempt(attempt.job, Ending::Lost, &format!("{node} could not start it: {message}"));
            }
            Happening::RankStarted { rank, life, .. } => {
                self.rank_started(event.time, attempt.job, Member { rank: *rank, life: *life });
            }
            Happening::RankMeets { who, epoch, port } => self.rank_meets(attempt.job, *who, *epoch, *port),
            Happening::RankExited(exit) => self.rank_exited(attempt.job, exit),
            Happening::Flight { ranks } => self.take_flight_record(attempt.job, node, ranks),
            Happening::Gone { unreaped } => self.gone(now, event.time, attempt.job, node, unreaped),
            Happening::Log(_) | Happening::Report { .. } | Happening::Checkpoint { .. } => {}
        }
    }

    fn reserved(&mut self, id: JobId, node: &NodeName, master_port: u16) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let master = master_node(job);
        let Some(run) = &mut job.run else { return };
        if run.launched || run.ending.is_some() {
            return;
        }
        if let Some(at) = run.nodes.get_mut(node) {
            at.reserved = true;
        }
        if master.as_ref() == Some(node) {
            run.master_port = master_port;
        }
        if run.nodes.values().all(|node| node.reserved) {
            run.launched = true;
            let nodes: Vec<NodeName> = run.nodes.keys().cloned().collect();
            nodes.iter().for_each(|node| self.remind(id, node));
        }
    }

    fn rank_started(&mut self, at: Time, id: JobId, who: Member) {
        let Some(Live { job, fruitless, .. }) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = job.attempts.last_mut() else { return };
        if let Some(run) = attempt.ranks.get_mut(who.rank as usize).filter(|run| run.life == who.life) {
            run.running = true;
        }
        if attempt.state != AttemptState::Starting || !attempt.ranks.iter().all(|rank| rank.running) {
            return;
        }
        *fruitless = 0;
        attempt.state = AttemptState::Running;
        attempt.started = Some(at);
        job.started.get_or_insert(at);
        let ranks = attempt.ranks.len();
        self.enter(id, JobState::Running, Reason::new("running", format!("{ranks} ranks run")));
    }

    fn rank_exited(&mut self, id: JobId, exit: &RankExit) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = job.attempts.last_mut() else { return };
        let Some(rank) = attempt.ranks.get_mut(exit.rank as usize) else { return };
        if rank.life != exit.life {
            return;
        }
        rank.exit_code = Some(exit.code);
        let ending = job.run.as_ref().and_then(|run| run.ending.as_ref());
        if exit.asked || ending.is_some() {
            return;
        }
        if exit.code == 0 {
            // Whoever waits to be let in learns that there is nothing left to do.
            return self.say_group(id);
        }
        if self.outlives(id, exit) {
            return;
        }
        let Some(attempt) = self.jobs.get_mut(&id).and_then(|live| live.job.attempts.last_mut()) else {
            return;
        };
        attempt.failed_rank = Some(exit.rank);
        attempt.exit_code = Some(exit.code);
        let message = format!("rank {} {}", exit.rank, exit.message);
        let ending = Ending::Failure { code: exit.code, for_good: exit.not_started };
        self.end_attempt(id, ending, &message);
    }

    /// Keeps what the ranks of a node were doing until those of all nodes are known.
    fn take_flight_record(&mut self, id: JobId, node: &NodeName, ranks: &[LastWords]) {
        let run = self.jobs.get_mut(&id).and_then(|live| live.job.run.as_mut());
        if let Some(at) = run.and_then(|run| run.nodes.get_mut(node)) {
            at.flight = ranks.to_vec();
        }
    }

    /// Orders an attempt to end; what has been ordered for a stronger reason stays.
    pub(super) fn end_attempt(&mut self, id: JobId, ending: Ending, message: &str) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let attempt_id = job.attempt_id();
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last_mut()) else { return };
        let first = run.ending.is_none();
        if run.ending.as_ref().is_some_and(|earlier| weight(earlier) >= weight(&ending)) {
            return;
        }
        run.ending = Some(ending.clone());
        attempt.state = AttemptState::Stopping;
        if first || attempt.failed_rank.is_none() {
            attempt.message = message.to_owned();
        }
        job.reason = Reason::new("stopping", format!("being ended: {message}"));
        self.dirty.insert(id);
        let group = job.group;
        if let Some((cluster, _)) = self.ground(group) {
            cluster.set_ending(attempt_id);
        }
        let job = &self.jobs[&id].job;
        let command = stop_command(job, attempt_id, &ending, self.way_grace(job));
        let nodes = self.jobs[&id].job.run.iter().flat_map(|run| &run.nodes);
        let nodes: Vec<NodeName> =
            nodes.filter(|(_, node)| !node.gone).map(|(name, _)| name.clone()).collect();
        nodes.iter().for_each(|node| self.send(node, command.clone()));
    }

    /// No process of the attempt is left on a node: what it held there is free, unless something could not be ended.
    pub(super) fn gone(&mut self, now: Time, at: Time, id: JobId, node: &NodeName, unreaped: &str) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let attempt_id = job.attempt_id();
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last_mut()) else { return };
        if let Some(node) = run.nodes.get_mut(node) {
            node.gone = true;
        }
        if !unreaped.is_empty() {
            attempt.message = format!("{}; on {node} could not be ended: {unreaped}", attempt.message);
        }
        let keeps = keeps_all(run);
        let here = attempt.ranks.iter().filter(|rank| rank.node == *node);
        let stuck: Vec<u32> = here.flat_map(|rank| &rank.gpus).map(|gpu| gpu.index).collect();
        let all_gone = run.nodes.values().all(|node| node.gone);
        // An agent that could not reach the service has ended its ranks unasked.
        let unfinished = attempt.ranks.iter().any(|rank| rank.node == *node && rank.exit_code != Some(0));
        let unasked = unfinished && run.ending.is_none() && !is_written_off(attempt, node);
        let group = job.group;
        for device in stuck.into_iter().filter(|_| !unreaped.is_empty()) {
            self.cluster.quarantine(node, device);
            if let Some((cluster, _)) = self.ground(group) {
                cluster.quarantine(node, device);
            }
        }
        if let Some((cluster, _)) = self.ground(group).filter(|_| !keeps) {
            cluster.release_on(attempt_id, node);
        }
        self.dirty.insert(id);
        self.replan = true;
        self.groups.replan.extend(group);
        if unasked && !self.outlives_node(id, node) {
            self.end_attempt(
                id,
                Ending::Lost,
                &format!("{node} lost touch with the service and ended its ranks"),
            );
        }
        if all_gone {
            self.finish(now, at, id);
        } else {
            self.go_on_smaller(id);
        }
        if let Some(group) = group {
            self.sweep_group(group);
        }
    }

    /// The last process is gone: the attempt's outcome decides what becomes of the job.
    fn finish(&mut self, now: Time, at: Time, id: JobId) {
        let Some((attempt, group)) = self.job(id).map(|job| (job.attempt_id(), job.group)) else { return };
        if let Some((cluster, _)) = self.ground(group) {
            cluster.release(attempt);
        }
        let Some(live) = self.jobs.get_mut(&id) else { return };
        let job = &mut live.job;
        let (Some(run), Some(attempt)) = (job.run.take(), job.attempts.last_mut()) else { return };
        attempt.ended = Some(at);
        if let Some(Ending::Failure { .. }) = &run.ending
            && let Some(found) = flight::diagnose(&flight_records(&run))
        {
            attempt.message = format!("{}; {found}", attempt.message);
        }
        let message = attempt.message.clone();
        let of_trial = run.ending.as_ref().filter(|ending| matches!(ending, Ending::Rung | Ending::Stopped));
        let of_trial = of_trial.map(|ending| end_of_trial(ending, &message).1);
        let (outcome, next, code) = match run.ending {
            None => (AttemptState::Succeeded, JobState::Succeeded, Some(0)),
            Some(Ending::Failure { code, for_good }) => {
                job.failures += 1;
                let last = for_good || job.failures > job.spec.max_failures;
                let next = if last { JobState::Failed } else { JobState::Restarting };
                (AttemptState::Failed, next, Some(code))
            }
            Some(Ending::TimeLimit) => (AttemptState::Failed, JobState::Failed, Some(TIME_LIMIT_CODE)),
            Some(Ending::Cancelled) => (AttemptState::Cancelled, JobState::Cancelled, Some(INTERRUPTED_CODE)),
            Some(Ending::Stopped) => (AttemptState::Cancelled, JobState::Cancelled, Some(STOPPED_CODE)),
            Some(Ending::Paused | Ending::Rung) => (AttemptState::Paused, JobState::Paused, None),
            Some(Ending::Preempted | Ending::Shutdown) => {
                (AttemptState::Preempted, JobState::Preempted, None)
            }
            Some(Ending::Resized) => (AttemptState::Resized, JobState::Restarting, None),
            Some(Ending::Lost) => (AttemptState::Lost, JobState::Restarting, None),
        };
        attempt.state = outcome;
        attempt.exit_code = attempt.exit_code.or(code);
        if next.is_terminal() {
            job.ended = Some(at);
            job.exit_code = code;
        }
        if outcome == AttemptState::Lost && attempt.started.is_none() {
            live.fruitless += 1;
            live.retry_at =
                Some(at + (RETRY_FIRST * 2_u32.saturating_pow(live.fruitless - 1)).min(RETRY_LONGEST));
        }
        let reason = of_trial.unwrap_or_else(|| outcome_reason(job, next, &message));
        self.drop_checkpoints(id);
        self.enter(id, next, reason);
        if outcome == AttemptState::Resized && !self.stopping {
            self.go_on(now, id, &run.next);
        }
    }

    fn launch(&self, job: &Job, run: &Run, node: &NodeName) -> Launch {
        let attempt = job.attempts.last();
        let ranks = attempt.map(|attempt| attempt.ranks.as_slice()).unwrap_or_default();
        let here = ranks.iter().enumerate().filter(|(_, rank)| rank.node == *node);
        let devices =
            self.nodes.get(node).map(|node| node.record.capacity.devices.as_slice()).unwrap_or_default();
        let master = master_node(job).and_then(|name| self.nodes.get(&name));
        Launch {
            attempt: job.attempt_id(),
            work: launch_work(job),
            workdir: workdir(job),
            env: job.spec.env.clone(),
            secret_names: job.spec.secrets.clone(),
            secrets: BTreeMap::new(),
            cpus: job.spec.gang.each.cpus,
            memory_bytes: job.spec.gang.each.memory_bytes,
            world: ranks.len() as u32,
            group_rank: nodes_by_rank(ranks).iter().position(|name| *name == node).unwrap_or(0) as u32,
            group_world: run.nodes.len() as u32,
            master_addr: master.map_or_else(|| "127.0.0.1".to_owned(), |node| node.record.address.clone()),
            master_port: run.master_port,
            restart_count: job.failures,
            max_restarts: job.spec.max_failures,
            grace: job.spec.grace,
            checkpoint: restored_from(job),
            elastic: is_elastic(job),
            trial: job.trial.clone(),
            params: params(job),
            ranks: here
                .map(|(rank, run)| RankLaunch {
                    rank: rank as Rank,
                    visible_devices: phalanx_gpu::visible_devices(
                        &devices
                            .iter()
                            .filter(|d| run.gpus.iter().any(|gpu| gpu.index == d.index))
                            .cloned()
                            .collect::<Vec<_>>(),
                    ),
                })
                .collect(),
        }
    }
}

/// What all ranks of an attempt were doing at its end, by rank.
fn flight_records(run: &Run) -> Vec<LastWords> {
    let mut ranks: Vec<LastWords> = run.nodes.values().flat_map(|node| node.flight.clone()).collect();
    ranks.sort_by_key(|words| words.rank);
    ranks
}

pub(super) fn rank_runs(bundles: &[Bundle]) -> Vec<RankRun> {
    let mut bundles: Vec<&Bundle> = bundles.iter().collect();
    bundles.sort_by_key(|bundle| bundle.rank);
    let runs = bundles.into_iter().map(|bundle| RankRun {
        node: bundle.node.clone(),
        gpus: bundle.gpus.clone(),
        running: false,
        exit_code: None,
        life: 0,
        lost: false,
    });
    runs.collect()
}

/// A later wish overrides an earlier one only where it weighs more: a person's word over the machine's, the end over a
/// pause, and what failed for good over what may be tried again.
fn weight(ending: &Ending) -> u8 {
    match ending {
        Ending::Shutdown | Ending::Preempted | Ending::Resized => 0,
        Ending::Lost => 1,
        Ending::Failure { for_good: false, .. } => 2,
        Ending::Paused | Ending::Rung => 3,
        Ending::Failure { for_good: true, .. } | Ending::Stopped => 4,
        Ending::TimeLimit => 5,
        Ending::Cancelled => 6,
    }
}

fn stop_command(job: &Job, attempt: AttemptId, ending: &Ending, way_grace: Duration) -> Command {
    let gives_way = matches!(ending, Ending::Preempted | Ending::Resized);
    let grace = if gives_way { way_grace } else { job.spec.grace };
    let asks = matches!(ending, Ending::Paused | Ending::Rung | Ending::Stopped);
    Command::Stop { attempt, ask_first: gives_way || asks, grace }
}

/// The code and the reason of a trial's job that its sweep ends or pauses.
pub(super) fn end_of_trial(ending: &Ending, why: &str) -> (i32, Reason) {
    match ending {
        Ending::Rung => (STOPPED_CODE, Reason::new(RUNG, why)),
        Ending::Stopped => (STOPPED_CODE, Reason::new(STOPPED, why)),
        _ => (INTERRUPTED_CODE, Reason::new("cancelled", why)),
    }
}

fn outcome_reason(job: &Job, next: JobState, message: &str) -> Reason {
    let (failures, allowed) = (job.failures, job.spec.max_failures);
    match next {
        JobState::Succeeded => Reason::new("succeeded", "every rank ended with exit code 0"),
        JobState::Restarting if job.attempts.last().is_some_and(|a| a.state == AttemptState::Resized) => {
            Reason::new("resized", message)
        }
        JobState::Restarting if job.attempts.last().is_some_and(|a| a.state == AttemptState::Lost) => {
            Reason::new("node_lost", format!("waits for another attempt: {message}"))
        }
        JobState::Restarting => Reason::new(
            "restarting",
            format!("waits for another attempt after failure {failures} of {allowed} allowed: {message}"),
        ),
        JobState::Failed => Reason::new("failed", message),
        JobState::Cancelled => Reason::new("cancelled", message),
        JobState::Paused => Reason::new("paused", "paused; resume it to go on"),
        _ => Reason::new("preempted", format!("waits to go on: {message}")),
    }
}

fn launch_work(job: &Job) -> LaunchWork {
    match &job.spec.work {
        Work::Program(program) => LaunchWork::Program(program.command.clone()),
        Work::Train(train) => LaunchWork::Worker(Box::new(WorkerSpec {
            name: job.spec.name.clone(),
            train: (**train).clone(),
            checkpoint: job.spec.checkpoint.clone(),
            base_dir: job.base_dir.clone(),
        })),
    }
}

/// What a program finds in its file of parameters; the trainer has them in its specification.
fn params(job: &Job) -> Option<Params> {
    match (&job.spec.work, &job.trial) {
        (Work::Train(_), _) => None,
        (Work::Program(_), Some(trial)) => Some(trial.params.clone()),
        (Work::Program(_), None) => Some(job.spec.params.clone()).filter(|params| !params.is_empty()),
    }
}

/// The checkpoint to go on from: the job's own latest, else the one that its trial starts from.
fn restored_from(job: &Job) -> Option<PathBuf> {
    let own = started_from(&job.checkpoints, job.attempt_id().number);
    own.map(|at| job.checkpoints[at].path.clone()).or_else(|| job.trial.as_ref()?.from.clone())
}

fn workdir(job: &Job) -> PathBuf {
    match &job.spec.work {
        Work::Program(program) => {
            job.base_dir.join(program.workdir.as_deref().map_or(Path::new("."), Path::new))
        }
        Work::Train(_) => job.base_dir.clone(),
    }
}

/// The node of rank 0.
fn master_node(job: &Job) -> Option<NodeName> {
    Some(job.attempts.last()?.ranks.first()?.node.clone())
}

/// The gang's nodes, each at the place of its lowest rank.
fn nodes_by_rank(ranks: &[RankRun]) -> Vec<&NodeName> {
    let mut first: BTreeMap<&NodeName, usize> = BTreeMap::new();
    for (rank, run) in ranks.iter().enumerate() {
        first.entry(&run.node).or_insert(rank);
    }
    let mut nodes: Vec<(&NodeName, usize)> = first.into_iter().collect();
    nodes.sort_by_key(|&(_, rank)| rank);
    nodes.into_iter().map(|(node, _)| node).collect()
}
