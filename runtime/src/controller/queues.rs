//! The named queues: what the configuration says of them, what is changed over the API, and what they have had.
//!
//! A queue that was set over the API is wholly the API's until it is reset: it stands over the file's queue of the same
//! name, also after a restart. Nothing replaces a configuration before it is known to fit every job that is not over.

use super::{Controller, Effects, Refusal};
use phalanx_core::spec::{DEFAULT_QUEUE, GangSpec, Limits, QueueSpec, SchedulingSpec, parse_queues};
use phalanx_core::{Job, JobId, Problem, Problems, Reason, Time};
use phalanx_scheduler::{Policy, QueueConfig, Share, check_quota};
use std::collections::BTreeMap;
use std::time::Duration;

/// Jobs that a refusal names one by one; of more it says how many.
const NAMED_JOBS: usize = 5;
/// Waiting jobs of one queue that are told one by one.
const WAITING_SHOWN: usize = 100;

/// The queues and what the site sets of scheduling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Queues {
    /// As the configuration has them.
    pub file: BTreeMap<String, QueueSpec>,
    /// As they were set over the API.
    pub api: BTreeMap<String, QueueSpec>,
    /// How the scheduler decides.
    pub scheduling: SchedulingSpec,
}

impl Queues {
    /// The queues in force, by name; `default` is always there.
    pub fn in_force(&self) -> BTreeMap<String, QueueSpec> {
        let mut queues = BTreeMap::from([(DEFAULT_QUEUE.to_owned(), QueueSpec::new(DEFAULT_QUEUE))]);
        queues.extend(self.file.clone());
        queues.extend(self.api.clone());
        queues
    }

    /// One queue in force.
    pub fn get(&self, name: &str) -> Option<QueueSpec> {
        let set = self.api.get(name).or_else(|| self.file.get(name));
        set.cloned().or_else(|| (name == DEFAULT_QUEUE).then(|| QueueSpec::new(name)))
    }

    /// The scheduler's settings.
    pub fn policy(&self) -> Policy {
        Policy::from(&self.scheduling)
    }
}

/// A change of the queues over the API.
#[derive(Clone, Debug, Default)]
pub struct QueueChange {
    /// `[[queue]]` tables; a key that is left out stays as it is.
    pub toml: String,
    /// Queues that are to be as the configuration has them again.
    pub reset: Vec<String>,
    /// Checks and changes nothing.
    pub validate_only: bool,
}

/// What a changed queue looks like to the store.
#[derive(Clone, Debug, PartialEq)]
pub enum QueueWrite {
    /// Set over the API.
    Set(QueueSpec),
    /// No longer set over the API.
    Reset(String),
}

/// A queue, what is in it and what it has had.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Its settings in force.
    pub spec: QueueSpec,
    /// It was set over the API.
    pub from_api: bool,
    /// What it holds.
    pub held: Limits,
    /// Its share of its dominant resource, of what it holds and has held (decayed): 0 to 2.
    pub share: f64,
    /// Jobs with an attempt under way.
    pub running: u64,
    /// Jobs that wait.
    pub length: u64,
    /// The first of them, by priority and submission, with their reasons.
    pub waiting: Vec<(JobId, String, Reason)>,
}

impl Controller {
    /// The queues as they are set up.
    pub fn queues(&self) -> &Queues {
        &self.config.queues
    }

    /// Changes queues over the API; nothing has changed where it is refused.
    pub fn change_queues(&mut self, now: Time, change: &QueueChange) -> Result<(), Refusal> {
        let current = self.config.queues.in_force();
        let refuse = |problems| Refusal::Queues { problems, text: change.toml.clone() };
        let changed = parse_queues(&change.toml, &current).map_err(refuse)?;
        let mut queues = self.config.queues.clone();
        let mut writes = Vec::new();
        let mut problems = Problems::default();
        for name in &change.reset {
            if changed.iter().any(|queue| queue.name == *name) {
                problems.0.push(Problem::of_file(format!("queue `{name}` cannot be both set and reset")));
            }
            match queues.api.remove(name) {
                Some(_) => writes.push(QueueWrite::Reset(name.clone())),
                None if queues.get(name).is_none() => problems.0.push(self.unknown_queue(name)),
                None => {}
            }
        }
        for queue in changed {
            queues.api.insert(queue.name.clone(), queue.clone());
            writes.push(QueueWrite::Set(queue));
        }
        problems.0.extend(self.misfits(&queues).0);
        if !problems.0.is_empty() {
            return Err(refuse(problems));
        }
        if !change.validate_only && self.config.queues != queues {
            self.undo_queues.get_or_insert_with(|| self.config.queues.clone());
            self.effects.queues.extend(writes);
            self.use_queues(now, queues);
        }
        Ok(())
    }

    /// Takes over what the configuration says now; what was set over the API stays.
    pub fn configure(
        &mut self,
        now: Time,
        file: BTreeMap<String, QueueSpec>,
        scheduling: SchedulingSpec,
    ) -> Result<(), Problems> {
        let queues = Queues { file, api: self.config.queues.api.clone(), scheduling };
        let problems = self.misfits(&queues);
        if !problems.0.is_empty() {
            return Err(problems);
        }
        self.use_queues(now, queues);
        Ok(())
    }

    /// Whether a queue takes a gang. One that runs in a placement group takes nothing of the quota: the group has.
    pub(super) fn check_queue(&self, name: &str, gang: &GangSpec) -> Result<(), Refusal> {
        let Some(queue) = self.config.queues.get(name) else {
            let there = self.config.queues.in_force().into_keys().collect();
            return Err(Refusal::UnknownQueue { queue: name.to_owned(), there });
        };
        if gang.group.is_some() {
            return Ok(());
        }
        let fits = check_quota(&QueueConfig::from(&queue), gang);
        fits.map_err(|reason| Refusal::Infeasible(Reason::new(reason.code.as_str(), reason.text)))
    }

    /// Whether a job's queue has room for so many of its workers now.
    pub(super) fn within_quota(&self, id: JobId, workers: usize) -> bool {
        let Some(job) = self.job(id) else { return false };
        if job.group.is_some() {
            return true;
        }
        let held = self.cluster.held(&job.spec.queue);
        self.queue.config(&job.spec.queue).has_room(&held, &job.spec.gang, workers as u32)
    }

    fn unknown_queue(&self, name: &str) -> Problem {
        let there: Vec<String> = self.config.queues.in_force().into_keys().collect();
        let names: Vec<&str> = there.iter().map(String::as_str).collect();
        let problem = Problem::of_file(format!("there is no queue `{name}`"));
        match phalanx_core::diagnostic::suggest(name, &names) {
            Some(help) => problem.help(help),
            None => problem,
        }
    }

    /// What jobs that are not over would be left without a queue, or could never run in theirs.
    pub fn misfits(&self, queues: &Queues) -> Problems {
        let mut without: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut problems = Problems::default();
        let jobs = self.jobs().filter(|job| !job.embedded);
        let jobs = jobs.map(|job| (job.id.to_string(), &job.spec.queue, &job.spec.gang));
        let groups = self.groups().map(|group| {
            (format!("placement group `{}`", group.spec.name), &group.spec.queue, &group.spec.gang)
        });
        let sweeps = self.sweeps().filter(|sweep| !sweep.asked.embedded && !sweep.asked.external);
        let sweeps = sweeps.filter_map(|sweep| {
            let job = sweep.asked.spec.job.as_ref()?;
            Some((sweep.id.to_string(), &job.queue, &job.gang))
        });
        for (who, name, gang) in jobs.chain(groups).chain(sweeps) {
            let Some(queue) = queues.get(name) else {
                without.entry(name).or_default().push(who);
                continue;
            };
            // What runs in a group takes nothing of the quota.
            let fits =
                if gang.group.is_some() { Ok(()) } else { check_quota(&QueueConfig::from(&queue), gang) };
            if let Err(reason) = fits {
                let queue = &queue.name;
                let message = format!("{who} could never run in queue `{queue}`: {}", reason.text);
                problems.0.push(Problem::of_file(message).help("cancel it, or leave the queue as it is"));
            }
        }
        for (queue, jobs) in without {
            let more = jobs.len().saturating_sub(NAMED_JOBS);
            let named = jobs.iter().take(NAMED_JOBS).cloned().collect::<Vec<_>>().join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!("queue `{queue}` would be gone, but {named}{more} are in it");
            problems.0.push(Problem::of_file(message).help("cancel them, or leave the queue in"));
        }
        problems
    }

    fn use_queues(&mut self, now: Time, queues: Queues) {
        self.note_time(now);
        self.config.queues = queues;
        self.set_queues_up();
    }

    pub(super) fn set_queues_up(&mut self) {
        let queues = self.config.queues.in_force();
        let configs = queues.iter().map(|(name, queue)| (name.clone(), QueueConfig::from(queue)));
        self.queue.set_up(self.config.queues.policy(), configs.collect());
        self.replan = true;
    }

    /// The queues are as they were before the requests that could not be committed.
    pub(super) fn roll_back_queues(&mut self) {
        if let Some(before) = self.undo_queues.take() {
            self.config.queues = before;
            self.set_queues_up();
        }
    }

    /// Lets the clock of the shares run: to be called before what is held changes.
    pub(super) fn note_time(&mut self, now: Time) {
        self.cluster.settle(now, self.queue.policy().share_half_life);
    }

    /// Puts back what queues had had when the service before this one stopped.
    pub(super) fn restore_shares(&mut self, shares: Vec<(String, Share)>) {
        for (queue, share) in shares {
            self.stored_shares.insert(queue.clone(), share.clone());
            self.cluster.restore_share(queue, share);
        }
    }

    /// What queues have had, where that is not what the store has.
    pub(super) fn changed_shares(&mut self, effects: &mut Effects) {
        if self.config.embedded {
            return;
        }
        for (queue, share) in self.cluster.shares() {
            if self.stored_shares.get(queue) != Some(share) {
                effects.shares.push((queue.to_owned(), share.clone()));
            }
        }
        self.stored_shares.extend(effects.shares.iter().cloned());
    }

    /// How long a gang that gives way has for its checkpoint: what the site sets, else what its job does.
    pub(super) fn way_grace(&self, job: &Job) -> Duration {
        self.config.queues.scheduling.grace.unwrap_or(job.spec.grace)
    }

    /// Every queue with what is in it. Jobs of a queue that is gone are over.
    pub fn queue_status(&self, now: Time) -> Vec<QueueStatus> {
        let mut queues: BTreeMap<String, QueueStatus> = self
            .config
            .queues
            .in_force()
            .into_iter()
            .map(|(name, spec)| {
                let status = QueueStatus {
                    from_api: self.config.queues.api.contains_key(&name),
                    held: Limits::from(&self.cluster.held(&name)),
                    share: self.cluster.share(&name),
                    running: 0,
                    length: 0,
                    waiting: Vec::new(),
                    spec,
                };
                (name, status)
            })
            .collect();
        for job in self.jobs().filter(|job| job.run.is_some()) {
            if let Some(queue) = queues.get_mut(&job.spec.queue) {
                queue.running += 1;
            }
        }
        let mut waiting: Vec<&Job> =
            self.jobs().filter(|job| job.run.is_none() && job.state.is_waiting()).collect();
        waiting.sort_by_key(|job| (std::cmp::Reverse(job.spec.priority), job.id));
        for job in waiting {
            if let Some(queue) = queues.get_mut(&job.spec.queue) {
                queue.length += 1;
                if queue.waiting.len() < WAITING_SHOWN {
                    let reason = self.explain(now, job.id).unwrap_or_else(|| job.reason.clone());
                    queue.waiting.push((job.id, job.spec.name.clone(), reason));
                }
            }
        }
        queues.into_values().collect()
    }
}
