//! What people ask of the controller. A request changes nothing that anybody hears of until it is committed: the loop
//! calls [`Controller::accept`] then, or [`Controller::roll_back`] where the store refused it.

use super::attempt::first_attempt;
use super::{Controller, Effects, Live, Saved, is_current, pending, told};
use phalanx_core::job::INTERRUPTED_CODE;
use phalanx_core::{
    Ending, GroupName, Job, JobId, JobSpec, JobState, Problems, Reason, SweepId, SweepState, Time,
};
use std::path::PathBuf;

/// A job to be run, read and valid.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What to run.
    pub spec: JobSpec,
    /// Where relative paths start from.
    pub base_dir: PathBuf,
}

/// Why a request is refused; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No job of this id that is still going on.
    NotLive(JobId),
    /// The cluster could not run it even if it were empty.
    Infeasible(Reason),
    /// A queue that the service does not have.
    UnknownQueue {
        /// Its name.
        queue: String,
        /// Those there are.
        there: Vec<String>,
    },
    /// Queues cannot be changed so.
    Queues {
        /// All that is wrong.
        problems: Problems,
        /// The change.
        text: String,
    },
    /// A secret that the service does not have.
    UnknownSecret(String),
    /// A secret that a job which is not over names.
    SecretInUse {
        /// Its name.
        secret: String,
        /// The job.
        job: JobId,
    },
    /// A node that the service has never seen.
    UnknownNode(String),
    /// A placement group that the service does not have.
    UnknownGroup(GroupName),
    /// A placement group of this name, with other content.
    GroupExists(GroupName),
    /// The job's state does not allow it.
    WrongState {
        /// The job.
        job: JobId,
        /// Its state.
        state: JobState,
        /// What was asked.
        asked: &'static str,
    },
    /// No sweep of this id that is still going on.
    SweepNotLive(SweepId),
    /// The sweep's state does not allow it.
    SweepState {
        /// The sweep.
        sweep: SweepId,
        /// Its state.
        state: SweepState,
        /// What was asked.
        asked: &'static str,
    },
    /// The service runs this sweep's trials itself.
    NotExternal(SweepId),
    /// A value was reported of a trial that has several objectives.
    ManyObjectives(SweepId),
    /// The study does not take it.
    Study(phalanx_tuner::Error),
    /// The service is being shut down.
    ShuttingDown,
}

impl Controller {
    /// Whether a job could be run here at all.
    pub fn validate(&self, submission: &Submission) -> Result<(), Refusal> {
        self.validate_spec(&submission.spec)
    }

    /// Whether a job of this specification could be run here at all.
    pub(super) fn validate_spec(&self, spec: &JobSpec) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::ShuttingDown);
        }
        self.check_queue(&spec.queue, &spec.gang)?;
        if let Some(secret) = spec.secrets.iter().find(|name| !self.secrets.contains(*name)) {
            return Err(Refusal::UnknownSecret(secret.clone()));
        }
        if let Some(name) = &spec.gang.group {
            let check = self.group_for(name)?.ground.check(&spec.gang);
            return check.map_err(|reason| {
                let text = format!("in the placement group `{name}`: {}", reason.text);
                Refusal::Infeasible(Reason::new(reason.code.as_str(), text))
            });
        }
        // A service that no node has joined yet knows nothing of what will be possible.
        if self.nodes.is_empty() {
            return Ok(());
        }
        let check = phalanx_scheduler::check(&self.cluster, &spec.gang);
        check.map_err(|reason| Refusal::Infeasible(Reason::new(reason.code.as_str(), reason.text)))
    }

    /// There is a value for a secret now.
    pub fn know_secret(&mut self, name: String) {
        self.secrets.insert(name);
    }

    /// There is no value for a secret any more; refused while a job may still need it.
    pub fn forget_secret(&mut self, name: &str) -> Result<(), Refusal> {
        let mut live = self.jobs.values().map(|live| &live.job);
        if let Some(job) = live.find(|job| job.spec.secrets.iter().any(|secret| secret == name)) {
            return Err(Refusal::SecretInUse { secret: name.to_owned(), job: job.id });
        }
        self.secrets.remove(name);
        Ok(())
    }

    /// Queues a job.
    pub fn submit(&mut self, now: Time, submission: Submission) -> Result<Job, Refusal> {
        self.validate(&submission)?;
        let job = Job { id: JobId(self.next_job), ..self.new_job(now, submission) };
        let id = job.id;
        self.next_job += 1;
        self.undo.push((id, None));
        self.admit(job.clone());
        Ok(job)
    }

    /// Takes a new job in, and queues it.
    pub(super) fn admit(&mut self, job: Job) {
        let id = job.id;
        self.effects.jobs.push(Saved { job: job.clone(), entered: true });
        if let Some(live) = job.group.and_then(|group| self.groups.live.get_mut(&group)) {
            live.jobs.insert(id);
        }
        self.jobs.insert(id, Live::new(job));
        self.sync_queue(id);
    }

    /// The job that a submission would make, with the id 0: its one attempt says where its ranks would run if it were
    /// submitted now, or its reason why it would wait. It is tried on a copy, of which nothing stays.
    pub fn preview(&self, now: Time, submission: Submission) -> Job {
        let mut job = self.new_job(now, submission);
        if let Some(reason) = self.waits_for_group(job.group) {
            return Job { reason, ..job };
        }
        let ground = self.ground_seen(job.group);
        let Some((mut cluster, mut queue)) = ground.map(|(cluster, queue)| (cluster.clone(), queue.clone()))
        else {
            return job;
        };
        let trial = JobId(self.next_job);
        queue.insert(pending(&Job { id: trial, ..job.clone() }));
        let plan = phalanx_scheduler::plan(now, &mut cluster, &mut queue);
        let found = plan.placements.iter().find(|(placed, _)| *placed == trial);
        if let Some((_, bundles)) = found {
            job.reason = Reason::new("would_start", "would start at once");
            job.attempts.push(first_attempt(now, bundles));
            return job;
        }
        let ended = plan.evictions.iter().filter(|end| end.by == trial).map(|end| end.attempt.job);
        let shrunk = plan.resizes.iter().filter(|end| end.by == Some(trial)).map(|end| end.attempt.job);
        let giving: Vec<String> = ended.chain(shrunk).map(|job| job.to_string()).collect();
        if !giving.is_empty() {
            let text = format!("would start once {} have given way", giving.join(", "));
            job.reason = Reason::new("would_preempt", text);
        } else if let Some(reason) = phalanx_scheduler::explain(&cluster, &queue, trial) {
            job.reason = Reason::new(reason.code.as_str(), told(&reason, now));
        }
        job
    }

    /// The job that a submission is, with the id 0.
    pub(super) fn new_job(&self, now: Time, submission: Submission) -> Job {
        Job {
            id: JobId(0),
            group: submission
                .spec
                .gang
                .group
                .as_ref()
                .and_then(|name| Some(self.group_for(name).ok()?.group.id)),
            spec: submission.spec,
            base_dir: submission.base_dir,
            embedded: self.config.embedded,
            state: JobState::Queued,
            reason: Reason::new("submitted", "waits for the scheduler's next decision"),
            exit_code: None,
            submitted: now,
            started: None,
            ended: None,
            failures: 0,
            attempts: Vec::new(),
            checkpoints: Vec::new(),
            trial: None,
            run: None,
        }
    }

    /// Ends a job for good; asked again while it ends, it changes nothing.
    pub fn cancel(&mut self, now: Time, id: JobId) -> Result<Job, Refusal> {
        self.cancel_because(now, id, "cancelled")
    }

    pub(super) fn cancel_because(&mut self, now: Time, id: JobId, why: &str) -> Result<Job, Refusal> {
        let job = self.touch(id)?;
        if job.run.is_some() {
            self.end_attempt(id, Ending::Cancelled, why);
            return self.current(id);
        }
        let live = self.jobs.get_mut(&id).ok_or(Refusal::NotLive(id))?;
        live.job.ended = Some(now);
        live.job.exit_code = Some(INTERRUPTED_CODE);
        let mut job = live.job.clone();
        let reason = Reason::new("cancelled", format!("{why} before it ran"));
        (job.state, job.reason) = (JobState::Cancelled, reason.clone());
        self.enter(id, JobState::Cancelled, reason);
        Ok(job)
    }

    /// Ends a job's processes, after asking for a checkpoint, until it is resumed.
    pub fn pause(&mut self, _now: Time, id: JobId) -> Result<Job, Refusal> {
        let job = self.touch(id)?;
        let (state, ending) = (job.state, job.run.as_ref().map(|run| run.ending.clone()));
        match ending {
            None if state == JobState::Paused => {}
            None => self.enter(id, JobState::Paused, Reason::new("paused", "paused; resume it to go on")),
            Some(Some(
                Ending::Cancelled
                | Ending::TimeLimit
                | Ending::Stopped
                | Ending::Failure { for_good: true, .. },
            )) => {
                return Err(Refusal::WrongState { job: id, state, asked: "paused" });
            }
            Some(_) => self.end_attempt(id, Ending::Paused, "paused"),
        }
        self.current(id)
    }

    /// Lets a paused job go on.
    pub fn resume(&mut self, _now: Time, id: JobId) -> Result<Job, Refusal> {
        let state = self.touch(id)?.state;
        if state != JobState::Paused {
            return Err(Refusal::WrongState { job: id, state, asked: "resumed" });
        }
        if self.job(id).is_some_and(|job| self.is_at_rung(job)) {
            let asked = "resumed by hand: its trial is at a rung, and its sweep decides which go on";
            return Err(Refusal::WrongState { job: id, state, asked });
        }
        self.enter(id, JobState::Queued, Reason::new("resumed", "waits for the scheduler's next decision"));
        self.current(id)
    }

    fn touch(&mut self, id: JobId) -> Result<&Job, Refusal> {
        let live = self.jobs.get(&id).ok_or(Refusal::NotLive(id))?;
        self.undo.push((id, Some(live.clone())));
        Ok(&live.job)
    }

    fn current(&self, id: JobId) -> Result<Job, Refusal> {
        self.job(id).cloned().ok_or(Refusal::NotLive(id))
    }

    /// What the requests since the last commit have to write and send.
    pub fn requested(&mut self) -> Effects {
        if self.undo.is_empty() {
            self.sweeps.note_news();
        }
        self.take_effects()
    }

    /// The requests are committed.
    pub fn accept(&mut self) {
        self.undo.clear();
        self.undo_queues = None;
        self.groups.accept();
        self.sweeps.accept();
    }

    /// The requests could not be committed: every job is again as it was before them.
    pub fn roll_back(&mut self) {
        self.effects = Effects::default();
        self.roll_back_queues();
        while let Some((id, before)) = self.undo.pop() {
            let group = match before {
                Some(live) => {
                    let group = live.job.group;
                    self.jobs.insert(id, live);
                    if let Some(live) = group.and_then(|group| self.groups.live.get_mut(&group)) {
                        live.jobs.insert(id);
                    }
                    group
                }
                None => {
                    let group = self.jobs.remove(&id).and_then(|live| live.job.group);
                    if let Some(live) = group.and_then(|group| self.groups.live.get_mut(&group)) {
                        live.jobs.remove(&id);
                    }
                    group
                }
            };
            self.dirty.remove(&id);
            if let Some((_, queue)) = self.ground(group) {
                queue.remove(id);
            }
            self.sync_queue(id);
        }
        self.roll_back_groups();
        self.roll_back_sweeps();
    }

    /// Whether the job has this attempt under way (for late events of older ones).
    pub(super) fn current_attempt(&self, attempt: phalanx_core::AttemptId) -> Option<&Job> {
        self.job(attempt.job).filter(|job| is_current(job, attempt))
    }
}
