//! The virtual clock: what happens when, and what the plans make of it.

use super::outcome::{Attempt, JobOutcome, Outcome, PlacedRank, Told};
use super::statistics::Statistics;
use crate::amounts::Amounts;
use crate::bundle::{Bundle, Holder};
use crate::check::{check, over_quota};
use crate::cluster::Cluster;
use crate::lanes::QueueConfig;
use crate::plan::{Plan, Policy, Resize, plan};
use crate::queue::{Pending, Queue};
use phalanx_core::quantity::format_milli;
use phalanx_core::spec::{Happening, Scenario, ScenarioJob};
use phalanx_core::{AttemptId, JobId, NodeName, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Plans at one instant, beyond one for each job; more would mean that they undo one another.
const PLANS_AT_ONCE: usize = 1000;

/// Reads a clock for `--timings`: microseconds since some start. The simulation itself looks at no clock.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Runs a scenario to its end. The same scenario gives the same outcome; only the timings, taken where there is a
/// clock, differ.
pub fn simulate(scenario: &Scenario, clock: Option<Clock<'_>>) -> Outcome {
    Engine::new(scenario, clock).run()
}

/// What happens at an instant, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// An attempt's work is done, or its time limit is reached.
    End(AttemptId),
    /// The grace of an attempt that was asked to end is over.
    GiveWay(AttemptId),
    /// A node joins for the first time.
    Appear(usize),
    /// An event of the file on a node.
    Node(usize),
    /// An event of the file on a job.
    Cancel(usize),
    Submit(usize),
    Wake,
}

/// An attempt under way.
#[derive(Debug)]
struct Run {
    attempt: AttemptId,
    started: Time,
    /// When it begins to work.
    works_from: Time,
    /// Its speed; 1 with all its workers.
    speed: f64,
    /// When its work or its limit ends.
    ends: Time,
    outlasts_limit: bool,
}

/// A job under way.
#[derive(Debug)]
struct Job {
    outcome: JobOutcome,
    /// Its place in the order of submission: by time, then as the file has it.
    sequence: u64,
    /// Work that is safe, in microseconds at full speed.
    saved: u64,
    /// Time its attempts have run.
    ran: Duration,
    attained: f64,
    preemptions: u32,
    run: Option<Run>,
}

struct Engine<'a> {
    scenario: &'a Scenario,
    clock: Option<Clock<'a>>,
    grace: Duration,
    cluster: Cluster,
    queue: Queue,
    events: BTreeSet<(Time, Event)>,
    jobs: Vec<Job>,
    nodes: BTreeMap<NodeName, usize>,
    names: BTreeMap<&'a str, usize>,
    statistics: Statistics,
    now: Time,
}

impl<'a> Engine<'a> {
    fn new(scenario: &'a Scenario, clock: Option<Clock<'a>>) -> Self {
        let mut queue = Queue::with_policy(Policy::from(&scenario.policy));
        for config in &scenario.queues {
            queue.configure(&config.name, QueueConfig::from(config));
        }
        let mut events = BTreeSet::new();
        events.extend(scenario.nodes.iter().enumerate().map(|(at, node)| (node.at, Event::Appear(at))));
        events.extend(scenario.jobs.iter().enumerate().map(|(at, job)| (job.at, Event::Submit(at))));
        events.extend(scenario.events.iter().enumerate().map(|(at, event)| match event.what {
            Happening::Cancel(_) => (event.at, Event::Cancel(at)),
            _ => (event.at, Event::Node(at)),
        }));
        let mut jobs: Vec<Job> = scenario.jobs.iter().map(new_job).collect();
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&at| scenario.jobs[at].at);
        order.into_iter().zip(0..).for_each(|(at, sequence)| jobs[at].sequence = sequence);
        Engine {
            scenario,
            clock,
            grace: scenario.policy.grace.unwrap_or_default(),
            cluster: Cluster::new(),
            queue,
            events,
            jobs,
            nodes: scenario.nodes.iter().enumerate().map(|(at, node)| (node.name.clone(), at)).collect(),
            names: scenario.jobs.iter().enumerate().map(|(at, job)| (job.name.as_str(), at)).collect(),
            statistics: Statistics::default(),
            now: Time::ZERO,
        }
    }

    fn run(mut self) -> Outcome {
        while let Some(&(now, _)) = self.events.first() {
            self.statistics.advance(now, &self.cluster, &self.queue);
            self.now = now;
            self.cluster.settle(now, self.queue.policy().share_half_life);
            let mut submitted = 0;
            while let Some((_, event)) = self.events.pop_first_if_at(now) {
                submitted += u64::from(matches!(event, Event::Submit(_)));
                self.happen(event);
            }
            self.decide(submitted);
        }
        self.finish()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::End(attempt) => self.end(attempt),
            Event::GiveWay(attempt) => self.give_way(attempt),
            Event::Appear(at) => self.join(at),
            Event::Node(at) => match &self.scenario.events[at].what {
                Happening::NodeLost(name) => self.lose(name),
                Happening::NodeJoined(name) => {
                    if let Some(&at) = self.nodes.get(name) {
                        self.join(at);
                    }
                }
                Happening::Cancel(_) => {}
            },
            Event::Cancel(at) => {
                if let Happening::Cancel(name) = &self.scenario.events[at].what
                    && let Some(&job) = self.names.get(name.as_str())
                {
                    self.cancel(job);
                }
            }
            Event::Submit(at) => {
                if self.jobs[at].outcome.state == "queued" {
                    self.enqueue(at);
                }
            }
            Event::Wake => {}
        }
    }

    fn join(&mut self, at: usize) {
        let node = &self.scenario.nodes[at];
        if self.cluster.slot(&node.name).is_none() {
            self.cluster.set_node(node.name.clone(), node.capacity.clone());
        }
    }

    fn lose(&mut self, name: &NodeName) {
        for attempt in self.cluster.remove_node(name) {
            let at = index(attempt.job);
            self.stop(at, "node_lost");
            self.enqueue(at);
        }
    }

    fn cancel(&mut self, at: usize) {
        if !matches!(self.jobs[at].outcome.state, "queued" | "running") {
            return;
        }
        self.queue.remove(job_id(at));
        self.stop(at, "cancelled");
        self.conclude(at, "cancelled");
    }

    fn end(&mut self, attempt: AttemptId) {
        let at = index(attempt.job);
        let outlasts = self.jobs[at].run.as_ref().is_some_and(|run| run.outlasts_limit);
        let (outcome, state) = if outlasts { ("time_limit", "failed") } else { ("finished", "finished") };
        self.stop(at, outcome);
        self.conclude(at, state);
    }

    fn give_way(&mut self, attempt: AttemptId) {
        let at = index(attempt.job);
        if self.jobs[at].run.as_ref().is_some_and(|run| run.attempt == attempt) {
            self.statistics.preemptions += 1;
            self.jobs[at].preemptions += 1;
            self.stop(at, "preempted");
            self.enqueue(at);
        }
    }

    fn conclude(&mut self, at: usize, state: &'static str) {
        self.jobs[at].outcome.state = state;
        self.jobs[at].outcome.end = Some(self.now.max(self.jobs[at].outcome.submitted));
    }

    /// Puts a job's gang into the queue, at its place.
    fn enqueue(&mut self, at: usize) {
        let spec = &self.scenario.jobs[at];
        let job = &mut self.jobs[at];
        job.outcome.state = "queued";
        let mut pending = Pending::new(job_id(at), spec.at, job.sequence, spec.gang.clone());
        pending.label.clone_from(&spec.name);
        pending.queue.clone_from(&spec.queue);
        pending.priority = spec.priority;
        pending.preemptible = spec.preemptible;
        pending.time_limit = spec.time_limit.map(|limit| limit.saturating_sub(job.ran));
        pending.attained = job.attained;
        pending.preemptions = job.preemptions;
        self.queue.insert(pending);
    }

    /// Ends the attempt under way, if there is one, and keeps of its work what its outcome lets it keep.
    fn stop(&mut self, at: usize, outcome: &'static str) {
        let Some(run) = self.jobs[at].run.take() else { return };
        let held = Amounts::of_bundles(self.cluster.bundles(run.attempt));
        let now = self.now;
        self.events.remove(&(run.ends, Event::End(run.attempt)));
        self.cluster.release(run.attempt);
        let spec = &self.scenario.jobs[at];
        let job = &mut self.jobs[at];
        let done = (now.since(run.works_from).as_micros() as f64 * run.speed) as u64;
        let total = job.saved.saturating_add(done);
        job.saved = match outcome {
            "resized" => total,
            "preempted" | "node_lost" => {
                let every = spec.checkpoint_every.map(|every| every.as_micros() as u64);
                every.map_or(job.saved, |every| (total / every * every).max(job.saved))
            }
            _ => job.saved,
        };
        job.ran += now.since(run.started);
        job.attained += now.since(run.started).as_secs_f64() * held.size_milli() as f64 / 1000.0;
        if let Some(attempt) = job.outcome.attempts.last_mut() {
            attempt.end = Some(now);
            attempt.outcome = outcome;
        }
        self.recount();
    }

    fn recount(&mut self) {
        let mut running = Amounts::default();
        for name in self.cluster.queues() {
            running.add(&self.cluster.held_by(name));
        }
        self.statistics.running = running;
    }

    /// Starts an attempt on bundles that are free.
    fn start(&mut self, at: usize, bundles: &[Bundle], pending: &Pending) {
        let spec = &self.scenario.jobs[at];
        let job = &mut self.jobs[at];
        let number = job.outcome.attempts.len() as u32 + 1;
        let attempt = AttemptId { job: job_id(at), number };
        let restart = if number > 1 { spec.restart } else { Duration::ZERO };
        let works_from = self.now + restart;
        let part = bundles.len() as f64 / f64::from(spec.gang.workers.max);
        let speed =
            if bundles.len() as u32 == spec.gang.workers.max { 1.0 } else { part.powf(spec.efficiency) };
        let left = (spec.work.as_micros() as u64).saturating_sub(job.saved);
        let works = works_from + Duration::from_micros((left as f64 / speed).ceil() as u64);
        let limit = spec.time_limit.map(|limit| self.now + limit.saturating_sub(job.ran));
        let ends = limit.map_or(works, |limit| limit.min(works));
        let mut holder = Holder::new(pending, self.now);
        holder.attained = job.attained;
        holder.preemptions = job.preemptions;
        holder.saved = works_from;
        holder.saves_every = spec.checkpoint_every.map(|every| {
            // The next checkpoint is due at the next multiple of all the job's work.
            let every_micros = every.as_micros() as u64;
            let into = Duration::from_micros(((job.saved % every_micros) as f64 / speed) as u64);
            holder.saved = works_from - into;
            Duration::from_micros(((every_micros as f64 / speed) as u64).max(1))
        });
        if let Err(problem) = self.cluster.hold(attempt, holder, bundles) {
            unreachable!("a plan places on what is free: {problem}");
        }
        let placed = bundles.iter().map(|bundle| PlacedRank {
            rank: bundle.rank,
            node: bundle.node.to_string(),
            gpus: bundle.gpus.iter().map(|share| share.index).collect(),
        });
        let bundles = placed.collect();
        job.outcome.attempts.push(Attempt { start: self.now, end: None, outcome: "running", bundles });
        job.outcome.start = job.outcome.start.or(Some(self.now));
        job.outcome.state = "running";
        let outlasts_limit = ends < works;
        job.run = Some(Run { attempt, started: self.now, works_from, speed, ends, outlasts_limit });
        self.events.insert((ends, Event::End(attempt)));
        self.recount();
    }

    /// Plans until a plan changes nothing more at this instant.
    fn decide(&mut self, submitted: u64) {
        let mut decisions = submitted.max(1);
        for _ in 0..PLANS_AT_ONCE + self.jobs.len() {
            let before = self.clock.map(|clock| clock());
            let plan = plan(self.now, &mut self.cluster, &mut self.queue);
            if let Some((clock, before)) = self.clock.zip(before) {
                self.statistics.decide_us.push((clock() - before) / decisions as f64);
            }
            self.statistics.decisions += decisions;
            decisions = 1;
            let again = !plan.evictions.is_empty() || !plan.resizes.is_empty();
            self.carry_out(plan);
            if !again {
                #[cfg(test)]
                self.assert_settled();
                return;
            }
        }
    }

    /// A plan on what a plan has led to changes nothing; nor would one that remembers nothing but its reservation. Only a
    /// guarantee may take back at once what has just been borrowed: a queue's own order of priorities goes before its
    /// guarantee, that before other queues, and their priorities before its own.
    #[cfg(test)]
    fn assert_settled(&self) {
        let guarded = self.scenario.queues.iter().any(|queue| queue.guaranteed.named().next().is_some());
        let settled = |mut queue: Queue, which: &str| {
            let plan = plan(self.now, &mut self.cluster.clone(), &mut queue);
            let moved = !guarded && (!plan.evictions.is_empty() || !plan.resizes.is_empty());
            let settled = plan.placements.is_empty() && !moved;
            assert!(settled, "at {} a planned state is planned anew by {which}: {plan:#?}", self.now);
        };
        settled(self.queue.clone(), "who remembers");
        if self.queue.memory.shadow.is_none() {
            let mut forgetful = self.queue.forgetful();
            self.queue.iter().for_each(|pending| forgetful.insert(pending.clone()));
            settled(forgetful, "who forgets");
        }
    }

    fn carry_out(&mut self, plan: Plan) {
        for (job, bundles) in plan.placements {
            if let Some(pending) = self.queue.start(job) {
                self.start(index(job), &bundles, &pending);
            }
        }
        for eviction in plan.evictions {
            self.cluster.set_ending(eviction.attempt);
            self.queue.promise(eviction.by);
            if self.grace.is_zero() {
                self.give_way(eviction.attempt);
            } else {
                self.events.insert((self.now + self.grace, Event::GiveWay(eviction.attempt)));
            }
        }
        for resize in plan.resizes {
            self.resize(resize);
        }
        for (job, reason) in plan.reasons {
            let text = reason.told(|at| format!("by {} s", format_milli(at.as_micros() / 1000)));
            let told = Told { at: self.now, text, code: reason.code.as_str() };
            self.jobs[index(job)].outcome.reasons.push(told);
        }
        let some_run = self.jobs_run();
        if let Some(wake) = plan.wake.filter(|_| some_run) {
            self.events.insert((wake, Event::Wake));
        }
    }

    fn jobs_run(&self) -> bool {
        self.statistics.running.iter().any(|(_, amount)| amount > 0)
    }

    /// A gang goes on with other bundles.
    fn resize(&mut self, resize: Resize) {
        let at = index(resize.attempt.job);
        let Some(holder) = self.cluster.holder(resize.attempt) else { return };
        let (submitted, gang) = (self.scenario.jobs[at].at, (*holder.gang).clone());
        let mut pending = Pending::new(resize.attempt.job, submitted, self.jobs[at].sequence, gang);
        pending.label.clone_from(&holder.label);
        pending.queue.clone_from(&holder.queue);
        pending.priority = holder.priority;
        pending.preemptible = holder.preemptible;
        if let Some(by) = resize.by {
            self.queue.promise(by);
        }
        self.stop(at, "resized");
        let ran = self.jobs[at].ran;
        pending.time_limit = self.scenario.jobs[at].time_limit.map(|limit| limit.saturating_sub(ran));
        self.start(at, &resize.bundles, &pending);
    }

    fn finish(mut self) -> Outcome {
        for at in 0..self.jobs.len() {
            let Some(pending) = self.queue.get(job_id(at)) else { continue };
            let quota = over_quota(&self.queue.config(&pending.queue), &pending.gang).is_some();
            if quota || check(&self.cluster, &pending.gang).is_err() {
                self.jobs[at].outcome.state = "infeasible";
            }
        }
        let jobs: Vec<JobOutcome> = self.jobs.into_iter().map(|job| job.outcome).collect();
        let summary = self.statistics.summary(&jobs);
        Outcome { jobs, summary }
    }
}

/// Takes the first event if it is of this instant.
trait PopAt {
    fn pop_first_if_at(&mut self, now: Time) -> Option<(Time, Event)>;
}

impl PopAt for BTreeSet<(Time, Event)> {
    fn pop_first_if_at(&mut self, now: Time) -> Option<(Time, Event)> {
        if self.first()?.0 == now { self.pop_first() } else { None }
    }
}

fn new_job(spec: &ScenarioJob) -> Job {
    let outcome = JobOutcome {
        name: spec.name.clone(),
        state: "queued",
        submitted: spec.at,
        start: None,
        end: None,
        attempts: Vec::new(),
        reasons: Vec::new(),
    };
    Job { outcome, sequence: 0, saved: 0, ran: Duration::ZERO, attained: 0.0, preemptions: 0, run: None }
}

fn job_id(at: usize) -> JobId {
    JobId(at as u64 + 1)
}

fn index(job: JobId) -> usize {
    (job.0 - 1) as usize
}
