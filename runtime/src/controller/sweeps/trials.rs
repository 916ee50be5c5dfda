//! A trial from its proposal to its end: its job is placed, its reports are judged, its end is told.

use super::{LiveSweep, RUNG, STOPPED};
use crate::controller::{Controller, Saved, Submission};
use crate::protocol::Command;
use phalanx_core::report::Metric;
use phalanx_core::spec::{Search, SweepSpec};
use phalanx_core::{
    AttemptId, BestTrial, Ending, Job, JobId, JobState, NodeName, Rank, Reason, SweepId, SweepState, Time,
    Trial, TrialId, TrialOf, TrialState, Wish,
};
use phalanx_scheduler::Bundle;
use phalanx_tuner::{Ask, Decision, Handed, Outcome};
use std::collections::BTreeMap;

impl Controller {
    /// The scheduler has room for a sweep's next trial: now it is asked for, and starts.
    pub(in crate::controller) fn fill_slot(&mut self, now: Time, slot: JobId, bundles: &[Bundle]) {
        let Some(id) = self.sweeps.slot(slot) else { return };
        self.sweeps.filled = true;
        self.attend(id);
        let Some(live) = self.sweeps.live.get_mut(&id) else { return };
        match live.study.ask() {
            Ask::Trial(handed) if handed.resumed => {
                self.drop_slot(id);
                self.promote(now, TrialId { sweep: id, number: handed.number }, bundles);
            }
            Ask::Trial(handed) => self.start_trial(now, id, slot, handed, bundles),
            Ask::Wait => {
                live.waits = true;
                self.drop_slot(id);
            }
            Ask::Done => {
                live.dry = true;
                self.drop_slot(id);
            }
        }
    }

    fn start_trial(&mut self, now: Time, id: SweepId, slot: JobId, handed: Handed, bundles: &[Bundle]) {
        self.drop_slot(id);
        let Some(live) = self.sweeps.live.get_mut(&id) else { return };
        let spec = match live.spec().trial_job(&handed.params) {
            Ok(spec) => spec,
            Err(problems) => {
                live.open_trial(now, &handed, None);
                let why = format!("the file makes no job with these parameters: {problems}");
                return self.told(now, TrialId { sweep: id, number: handed.number }, Outcome::Failed, &why);
            }
        };
        live.open_trial(now, &handed, Some(slot));
        live.active.insert(handed.number);
        let trial = TrialOf {
            id: TrialId { sweep: id, number: handed.number },
            params: handed.params,
            judged: super::judged(live.spec()),
            from: handed.from.and_then(|from| live.checkpoints.get(&from)).map(|kept| kept.path.clone()),
        };
        let base_dir = live.sweep.asked.base_dir.clone();
        let preview = self.new_job(now, Submission { spec, base_dir });
        let job = Job { id: slot, trial: Some(Box::new(trial)), ..preview };
        self.admit(job);
        // What the scheduler has placed fits; where a node has left meanwhile the job waits in the queue.
        self.place(now, slot, bundles);
    }

    /// A paused trial goes on where there is room now; one whose processes are still ending follows when they are gone.
    fn promote(&mut self, now: Time, trial: TrialId, bundles: &[Bundle]) {
        let Some(live) = self.sweeps.live.get_mut(&trial.sweep) else { return };
        let Some(job) = live.open.get(&trial.number).and_then(|trial| trial.job) else { return };
        let paused = self.job(job).is_some_and(|job| job.state == JobState::Paused && job.run.is_none());
        if paused {
            self.enter(
                job,
                JobState::Queued,
                Reason::new("promoted", "promoted; goes on from its checkpoint"),
            );
            self.place(now, job, bundles);
        }
    }

    /// A trial's job has entered a state.
    pub(super) fn trial_entered(&mut self, now: Time, job: &Job) {
        let Some(trial) = job.trial.as_ref().map(|trial| trial.id) else { return };
        let Some(live) = self.sweeps.live.get_mut(&trial.sweep) else { return };
        if !live.open.contains_key(&trial.number) {
            return;
        }
        let state = match job.state {
            JobState::Queued | JobState::Restarting | JobState::Preempted => TrialState::Queued,
            JobState::Starting | JobState::Running => TrialState::Running,
            JobState::Paused => TrialState::Paused,
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
                return self.trial_ended(now, trial, job);
            }
        };
        let study = live.study.trials().get(trial.number as usize).map(|trial| trial.state);
        let promoted = state == TrialState::Paused
            && job.reason.code == RUNG
            && study == Some(phalanx_tuner::TrialState::Running);
        // One that a person has paused keeps its place among those that may run at once.
        if study == Some(phalanx_tuner::TrialState::Paused) && state == TrialState::Paused {
            live.active.remove(&trial.number);
        } else {
            live.active.insert(trial.number);
        }
        live.show(now, trial.number, state);
        self.attend(trial.sweep);
        let live = &self.sweeps.live[&trial.sweep];
        if promoted
            && live.sweep.now.wish == Wish::Run
            && self.job(job.id).is_some_and(|now| now.state == job.state)
        {
            self.enter(
                job.id,
                JobState::Queued,
                Reason::new("promoted", "promoted; goes on from its checkpoint"),
            );
        }
    }

    /// A trial's job has ended: the study is told.
    fn trial_ended(&mut self, now: Time, trial: TrialId, job: &Job) {
        let Some(live) = self.sweeps.live.get(&trial.sweep) else { return };
        let (outcome, why) = match job.state {
            JobState::Failed => (Outcome::Failed, job.reason.text.clone()),
            JobState::Cancelled if job.reason.code == STOPPED => (Outcome::Stopped, job.reason.text.clone()),
            JobState::Cancelled => (Outcome::Cancelled, job.reason.text.clone()),
            _ => live.last_values(trial.number),
        };
        self.told(now, trial, outcome, &why);
        let Some(live) = self.sweeps.live.get_mut(&trial.sweep) else { return };
        let complete =
            live.changed.get(&trial.number).is_some_and(|trial| trial.state == TrialState::Complete);
        match job.checkpoints.last().filter(|_| complete) {
            Some(latest) if matches!(live.spec().search, Search::Pbt(_)) => {
                live.checkpoints.insert(trial.number, latest.clone());
            }
            Some(_) => {}
            None => self.forget_checkpoints(job),
        }
    }

    /// What a trial has left that nobody goes on from.
    fn forget_checkpoints(&mut self, job: &Job) {
        if job.checkpoints.is_empty() {
            return;
        }
        for old in &job.checkpoints {
            self.send(&old.node, Command::DropCheckpoint { path: old.path.clone() });
        }
        let job = Job { checkpoints: Vec::new(), ..job.clone() };
        self.effects.jobs.push(Saved { job, entered: false });
    }

    /// Tells the study how a trial ended, and takes down what follows.
    pub(super) fn told(&mut self, now: Time, trial: TrialId, outcome: Outcome, why: &str) {
        let Some(live) = self.sweeps.live.get_mut(&trial.sweep) else { return };
        let refused = live.study.tell(trial.number, outcome).err();
        if refused.is_some() {
            // A failure needs no value, so this is taken.
            let _ = live.study.tell(trial.number, Outcome::Failed);
        }
        live.take_down(now, trial.number, &refused.map_or_else(|| why.to_owned(), |error| error.to_string()));
        self.attend(trial.sweep);
    }

    /// A trial's rank 0 has reported: where a rule judges it, the rank waits for what is answered here.
    pub(in crate::controller) fn trial_reported(
        &mut self,
        node: &NodeName,
        attempt: AttemptId,
        (rank, step): (Rank, u64),
        metrics: &BTreeMap<String, f64>,
    ) {
        let Some(trial) =
            self.current_attempt(attempt).and_then(|job| job.trial.clone()).filter(|_| rank == 0)
        else {
            return;
        };
        let TrialId { sweep, number } = trial.id;
        let Some(live) = self.sweeps.live.get_mut(&sweep) else { return };
        if !live.note(number, step, metrics) {
            return;
        }
        let decision = live.judge(number, step, metrics);
        live.waits &= decision == Decision::Continue;
        self.attend(sweep);
        match decision {
            Decision::Continue => {
                if trial.judged.is_some_and(|metric| metrics.contains_key(&metric)) {
                    self.send(node, Command::Judged { attempt, step });
                }
            }
            Decision::Pause => {
                let why = format!("at the rung of step {step}; goes on when its sweep promotes it");
                self.end_attempt(attempt.job, Ending::Rung, &why);
            }
            Decision::Stop => {
                let why = match self.sweeps.live[&sweep].spec() {
                    SweepSpec { search: Search::Pbt(_), .. } => {
                        format!("its interval has ended, at step {step}")
                    }
                    spec => format!("stopped early by {} at step {step}", spec.stopping.as_str()),
                };
                self.end_attempt(attempt.job, Ending::Stopped, &why);
            }
        }
    }
}

impl LiveSweep {
    /// A trial that was handed out just now.
    pub(super) fn open_trial(&mut self, now: Time, handed: &Handed, job: Option<JobId>) {
        let origin = self.study.trials().get(handed.number as usize).map(|trial| trial.origin.as_str());
        let trial = Trial {
            number: handed.number,
            state: TrialState::Queued,
            params: handed.params.clone(),
            values: vec![None; self.spec().objectives.len()],
            measured: vec![None; self.spec().constraints.len()],
            step: handed.from.and_then(|from| self.checkpoints.get(&from)).map(|kept| kept.step),
            job,
            sampler: origin.unwrap_or_default().to_owned(),
            message: String::new(),
            started: now,
            ended: None,
            stints: Vec::new(),
            changed: 0,
        };
        self.open.insert(handed.number, trial);
        self.sweep.now.counts.queued += 1;
        self.show(now, handed.number, if job.is_some() { TrialState::Queued } else { TrialState::Running });
    }

    /// Shows where a trial is.
    pub(super) fn show(&mut self, now: Time, number: u64, state: TrialState) {
        self.change(number, |trial| trial.enter(now, state));
        let sweep = &mut self.sweep.now;
        if state == TrialState::Running && sweep.started.is_none() {
            sweep.started = Some(now);
        }
        if state == TrialState::Running && sweep.state == SweepState::Queued {
            self.say(SweepState::Running, Reason::new("running", "trials run"));
        }
    }

    /// Takes down what a trial has reported; whether it is an objective's.
    pub(super) fn note(&mut self, number: u64, step: u64, metrics: &BTreeMap<String, f64>) -> bool {
        let SweepSpec { objectives, constraints, .. } = &self.sweep.asked.spec;
        let value = |metric: &String| metrics.get(metric).copied();
        let found: Vec<Option<f64>> = objectives.iter().map(|one| value(&one.metric)).collect();
        let measured: Vec<Option<f64>> = constraints.iter().map(|one| value(&one.metric)).collect();
        if found.iter().chain(&measured).all(Option::is_none) {
            return false;
        }
        let Some(before) = self.open.get(&number).map(|trial| trial.step) else { return false };
        let new_steps = step.saturating_sub(before.unwrap_or(0));
        self.change(number, |trial| {
            trial.step = Some(step.max(before.unwrap_or(0)));
            let known = trial.values.iter_mut().chain(&mut trial.measured);
            for (known, found) in known.zip(found.into_iter().chain(measured)) {
                *known = found.map(Metric).or(*known);
            }
        });
        self.sweep.now.steps_run += new_steps;
        true
    }

    /// What the study says to a report. One that comes too late or steps back, as after a lost attempt, is passed over.
    fn judge(&mut self, number: u64, step: u64, metrics: &BTreeMap<String, f64>) -> Decision {
        let spec = &self.sweep.asked.spec;
        if spec.has_several_objectives() {
            return Decision::Continue;
        }
        let value = spec.objectives.first().and_then(|one| metrics.get(&one.metric));
        value.map_or(Decision::Continue, |&value| self.study.report(number, step, value).unwrap_or_default())
    }

    /// How a trial that ended well did.
    fn last_values(&self, number: u64) -> (Outcome, String) {
        let Some(trial) = self.open.get(&number) else { return (Outcome::Failed, String::new()) };
        let SweepSpec { objectives, constraints, .. } = self.spec();
        let names = objectives.iter().map(|one| &one.metric).chain(constraints.iter().map(|one| &one.metric));
        let values = trial.values.iter().chain(&trial.measured);
        let missing: Vec<String> = names
            .zip(values)
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        if !missing.is_empty() {
            let why = format!(
                "it ended without ever reporting {}; report it from rank 0, or correct the sweep's metric",
                missing.join(" and ")
            );
            return (Outcome::Failed, why);
        }
        let numbers =
            |known: &[Option<Metric>]| known.iter().flatten().map(|value| value.0).collect::<Vec<f64>>();
        let (values, measured) = (numbers(&trial.values), numbers(&trial.measured));
        let outcome = match (values.len(), measured.is_empty()) {
            (1, true) => Outcome::LastReport,
            (_, true) => Outcome::Values(values),
            (_, false) => Outcome::Measured { values, measured },
        };
        (outcome, String::new())
    }

    /// Takes down how a trial ended that the study has been told of.
    pub(super) fn take_down(&mut self, now: Time, number: u64, why: &str) {
        if !self.open.contains_key(&number) {
            return;
        }
        self.waits = false;
        let Some(told) = self.study.trials().get(number as usize) else { return };
        let state = shown(told.state);
        let (values, measured) = (told.values.clone(), told.measured.clone());
        // One that has come to its end needs no more words, whoever ended its processes.
        let why = if state == TrialState::Complete { "" } else { why };
        self.change(number, |trial| {
            trial.enter(now, state);
            (trial.ended, trial.message) = (Some(now), why.to_owned());
            let told = trial.values.iter_mut().zip(values);
            for (shown, value) in told.chain(trial.measured.iter_mut().zip(measured)) {
                *shown = Some(Metric(value));
            }
        });
        if state == TrialState::Complete {
            self.crown(number);
        }
        let counts = self.sweep.now.counts;
        let reason = format!("{} of its trials have ended, {} run", counts.ended(), counts.running);
        if self.sweep.now.state == SweepState::Running && self.sweep.now.wish == Wish::Run {
            self.sweep.now.reason = Reason::new("running", reason);
        }
    }

    /// Takes over what the study calls best, now that this trial is complete.
    fn crown(&mut self, number: u64) {
        let job = |known: &[BestTrial], of: u64| match of == number {
            true => self.changed.get(&number).and_then(|trial| trial.job),
            false => known.iter().find(|best| best.number == of).and_then(|best| best.job),
        };
        let best_trial = |known: &[BestTrial], trial: &phalanx_tuner::Trial| BestTrial {
            number: trial.number,
            params: trial.params.clone(),
            values: trial.values.iter().copied().map(Metric).collect(),
            job: job(known, trial.number),
        };
        let known = &self.sweep.now.front;
        let front = match self.study.has_several_objectives() {
            true => self.study.front().map(|trial| best_trial(known, trial)).collect(),
            false => Vec::new(),
        };
        let is_best = self.study.best().filter(|best| best.number == number);
        let best = is_best.map(|best| best_trial(&[], best));
        self.sweep.now.front = front;
        self.sweep.now.best = best.or(self.sweep.now.best.take());
    }
}

/// How a trial that has ended is shown.
pub(super) fn shown(state: phalanx_tuner::TrialState) -> TrialState {
    match state {
        phalanx_tuner::TrialState::Running => TrialState::Running,
        phalanx_tuner::TrialState::Paused => TrialState::Paused,
        phalanx_tuner::TrialState::Complete => TrialState::Complete,
        phalanx_tuner::TrialState::Stopped => TrialState::Stopped,
        phalanx_tuner::TrialState::Failed => TrialState::Failed,
        phalanx_tuner::TrialState::Cancelled => TrialState::Cancelled,
    }
}
