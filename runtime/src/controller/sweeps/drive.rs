//! What a sweep should do, made so: from whatever state a kill has left, as often as something of it has changed.

use super::{LiveSweep, RUNG, Slot};
use crate::controller::{Controller, attempt};
use phalanx_core::spec::Stopping;
use phalanx_core::{Ending, JobId, JobState, Reason, Sweep, SweepId, SweepState, Time, TrialId, Wish};
use phalanx_scheduler::Pending;

impl Controller {
    /// Lets sweeps that outran their time come to their end.
    pub(in crate::controller) fn tick_sweeps(&mut self, now: Time) {
        let due = |live: &&LiveSweep| {
            live.sweep.now.over.is_none() && ends_at(&live.sweep).is_some_and(|at| at <= now)
        };
        let due: Vec<SweepId> = self.sweeps.live.values().filter(due).map(|live| live.sweep.id).collect();
        for id in due {
            if let Some(live) = self.sweeps.live.get_mut(&id) {
                let limit = live.spec().time_limit.unwrap_or_default();
                live.sweep.now.over =
                    Some(Reason::new("time_limit", format!("its time limit of {limit:?} is over")));
            }
            self.attend(id);
        }
    }

    pub(in crate::controller) fn sweeps_timer(&self) -> Option<Time> {
        let running = self.sweeps.live.values().filter(|live| live.sweep.now.over.is_none());
        running.filter_map(|live| ends_at(&live.sweep)).min()
    }

    /// Makes every sweep that has changed do what it should.
    pub(in crate::controller) fn drive_sweeps(&mut self, now: Time) {
        loop {
            for job in std::mem::take(&mut self.sweeps.news) {
                self.trial_entered(now, &job);
            }
            self.sweeps.settled_news = 0;
            match self.sweeps.attention.pop_first() {
                Some(id) => self.drive_sweep(now, id),
                None if self.sweeps.news.is_empty() => return,
                None => {}
            }
        }
    }

    fn drive_sweep(&mut self, now: Time, id: SweepId) {
        let Some(live) = self.sweeps.live.get_mut(&id) else { return };
        if live.sweep.now.state.is_terminal() || self.stopping {
            return self.drop_slot(id);
        }
        if live.sweep.now.over.is_none() && live.study.is_over() {
            live.sweep.now.over = Some(why_over(live));
        }
        let wish = live.sweep.now.wish;
        if wish != Wish::Cancel && live.sweep.now.over.is_none() && is_finished(live) {
            live.sweep.now.over = Some(Reason::new("finished", "every trial has come to its end"));
        }
        if wish == Wish::Cancel || live.sweep.now.over.is_some() {
            return self.wind_sweep_down(now, id);
        }
        match wish {
            Wish::Pause => {
                self.drop_slot(id);
                for job in self.trial_jobs(id) {
                    self.pause_trial(job);
                }
            }
            Wish::Resume => {
                // Those that are still being paused follow once they are: then there is a look at the sweep again.
                if !self.resume_trials(id)
                    && let Some(live) = self.sweeps.live.get_mut(&id)
                {
                    live.sweep.now.wish = Wish::Run;
                    self.attend(id);
                }
                self.sync_slot(now, id);
            }
            Wish::Run | Wish::Cancel => self.sync_slot(now, id),
        }
    }

    /// The jobs of trials that have not ended.
    fn trial_jobs(&self, id: SweepId) -> Vec<JobId> {
        let open = self.sweeps.live.get(&id).into_iter().flat_map(|live| live.open.values());
        open.filter_map(|trial| trial.job).collect()
    }

    fn pause_trial(&mut self, id: JobId) {
        let Some(job) = self.job(id) else { return };
        if job.run.is_some() {
            self.end_attempt(id, Ending::Paused, "its sweep is paused");
        } else if job.state != JobState::Paused {
            self.enter(
                id,
                JobState::Paused,
                Reason::new("paused", "its sweep is paused; resume it to go on"),
            );
        }
    }

    /// Lets trials that are not at a rung go on; whether some are still being paused.
    fn resume_trials(&mut self, id: SweepId) -> bool {
        let mut pausing = false;
        for id in self.trial_jobs(id) {
            let Some(job) = self.job(id) else { continue };
            pausing |= job.run.as_ref().is_some_and(|run| run.ending == Some(Ending::Paused));
            if job.state == JobState::Paused && job.run.is_none() && !self.is_at_rung(job) {
                let reason = Reason::new("resumed", "waits for the scheduler's next decision");
                self.enter(id, JobState::Queued, reason);
            }
        }
        pausing
    }

    /// Ends what is open of a sweep; once nothing is, the sweep has ended too.
    fn wind_sweep_down(&mut self, now: Time, id: SweepId) {
        self.drop_slot(id);
        let Some(live) = self.sweeps.live.get(&id) else { return };
        let cancelled = live.sweep.now.wish == Wish::Cancel;
        let why = match (&live.sweep.now.over, cancelled) {
            (_, true) => "its sweep was cancelled".to_owned(),
            (Some(over), _) => format!("its sweep has ended: {}", over.text),
            (None, _) => String::new(),
        };
        let external: Vec<u64> =
            live.open.values().filter(|trial| trial.job.is_none()).map(|trial| trial.number).collect();
        for number in external {
            self.end_external(now, TrialId { sweep: id, number }, cancelled, &why);
        }
        for job in self.trial_jobs(id) {
            self.end_trial(now, job, cancelled, &why);
        }
        let Some(live) = self.sweeps.live.get_mut(&id) else { return };
        if live.open.is_empty() {
            let (state, reason) = outcome(&live.sweep);
            live.sweep.now.ended = Some(now);
            live.say(state, reason);
            self.sweeps.dirty.insert(id);
        }
    }

    pub(super) fn end_trial(&mut self, now: Time, id: JobId, cancelled: bool, why: &str) {
        let ending = if cancelled { Ending::Cancelled } else { Ending::Stopped };
        let Some(live) = self.jobs.get_mut(&id) else { return };
        if live.job.run.is_some() {
            return self.end_attempt(id, ending, why);
        }
        let at_rung = live.job.reason.code == RUNG && !cancelled;
        let why = if at_rung { "its sweep ended before it was promoted from its rung" } else { why };
        let (code, reason) = attempt::end_of_trial(&ending, why);
        (live.job.ended, live.job.exit_code) = (Some(now), Some(code));
        self.enter(id, JobState::Cancelled, reason);
    }

    /// Keeps a place in the queue as long as a trial could be started.
    fn sync_slot(&mut self, now: Time, id: SweepId) {
        let Some(live) = self.sweeps.live.get(&id) else { return };
        let spec = live.spec();
        let room = spec.concurrency.is_none_or(|most| live.active.len() < most as usize);
        let Some(job) = spec.job.as_ref().filter(|_| room && !live.sweep.asked.external && live.has_next())
        else {
            return self.drop_slot(id);
        };
        if live.slot.is_some() {
            return;
        }
        let name = job.gang.group.clone();
        let group = match name.as_ref().map(|name| self.group_for(name)).transpose() {
            Ok(group) => group.map(|live| live.group.id),
            Err(_) => {
                let text = format!(
                    "its placement group `{}` was removed",
                    name.map(|n| n.to_string()).unwrap_or_default()
                );
                return self.end_sweep_for(id, Reason::new("group_removed", text));
            }
        };
        let slot = Slot { id: JobId(self.next_job), group };
        self.next_job += 1;
        let mut pending = Pending::new(slot.id, now, slot.id.0, job.gang.clone());
        pending.label = format!("the next trial of {id}");
        pending.queue.clone_from(&job.queue);
        pending.priority = job.priority;
        pending.preemptible = job.preemptible;
        pending.time_limit = job.time_limit;
        if let Some((_, queue)) = self.ground(group) {
            queue.insert(pending);
        }
        self.groups.replan.extend(group);
        self.replan = true;
        self.sweeps.slots.insert(slot.id, id);
        if let Some(live) = self.sweeps.live.get_mut(&id) {
            live.slot = Some(slot);
        }
    }

    fn end_sweep_for(&mut self, id: SweepId, reason: Reason) {
        if let Some(live) = self.sweeps.live.get_mut(&id) {
            live.sweep.now.over = Some(reason);
        }
        self.attend(id);
    }

    pub(super) fn drop_slot(&mut self, id: SweepId) {
        let Some(slot) = self.sweeps.live.get_mut(&id).and_then(|live| live.slot.take()) else { return };
        self.sweeps.slots.remove(&slot.id);
        if let Some((_, queue)) = self.ground(slot.group) {
            queue.remove(slot.id);
        }
        self.replan = true;
    }

    /// Why the next trial of a sweep waits.
    pub(in crate::controller) fn slot_reason(&mut self, id: SweepId, reason: &Reason) {
        let Some(live) = self.sweeps.live.get_mut(&id) else { return };
        if live.active.is_empty() && live.sweep.now.wish == Wish::Run && live.sweep.now.reason != *reason {
            live.sweep.now.reason = reason.clone();
            live.sweep.now.seq += 1;
            self.sweeps.dirty.insert(id);
        }
    }
}

/// When a sweep's time is over.
fn ends_at(sweep: &Sweep) -> Option<Time> {
    Some(sweep.now.started? + sweep.asked.spec.time_limit?)
}

/// Nothing runs, nothing may be promoted, and nothing new follows.
fn is_finished(live: &LiveSweep) -> bool {
    live.study.counts().running == 0 && !live.has_next()
}

/// Why a study ends before its trials do.
fn why_over(live: &LiveSweep) -> Reason {
    let (spec, failed) = (live.spec(), live.study.counts().failed);
    if let Some(allowed) = spec.max_failed_trials.filter(|&allowed| failed > allowed) {
        let text = format!("{failed} trials have failed, and {allowed} may");
        return Reason::new("too_many_failures", text);
    }
    if matches!(spec.stopping, Stopping::Plateau { .. })
        && spec.objectives.iter().all(|one| one.target.is_none())
    {
        return Reason::new("plateau", "its best value no longer improves");
    }
    Reason::new("target_reached", "a trial has reached the target")
}

/// How a sweep has ended.
fn outcome(sweep: &Sweep) -> (SweepState, Reason) {
    let now = &sweep.now;
    let counts = now.counts;
    let mut text = format!("{} trials: {} complete", counts.all(), counts.complete);
    for (count, word) in
        [(counts.stopped, "stopped early"), (counts.failed, "failed"), (counts.cancelled, "cancelled")]
    {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    if now.wish == Wish::Cancel {
        return (SweepState::Cancelled, Reason::new("cancelled", format!("cancelled after {text}")));
    }
    let over = now.over.clone().unwrap_or_default();
    if matches!(over.code.as_str(), "too_many_failures" | "group_removed") {
        return (SweepState::Failed, Reason::new(&over.code, format!("{}; {text}", over.text)));
    }
    let state = if counts.complete > 0 { SweepState::Succeeded } else { SweepState::Failed };
    match over.code.as_str() {
        "finished" => (state, Reason::new("finished", text)),
        code => (state, Reason::new(code, format!("{}; {text}", over.text))),
    }
}
