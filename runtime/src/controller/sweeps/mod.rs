//! Sweeps: searches whose trials are jobs.
//!
//! A sweep that could start a trial has one *slot* in its queue: a gang without a program. The scheduler places it as it
//! would any other gang, and only then is the study asked, so that a trial is proposed when it starts and knows of all
//! that ended before. What the study answers is stored together with the job that runs the trial; its log rebuilds it.
//!
//! People change only what a sweep is *wished* to do ([`Wish`]); [`Controller::drive_sweeps`] makes it so, from whatever
//! state a kill has left.

mod drive;
mod external;
mod trials;

use super::Controller;
use super::requests::Refusal;
use phalanx_core::spec::{Search, Stopping, SweepSpec};
use phalanx_core::sweep::{Asked, SweepNow};
use phalanx_core::{
    Job, JobId, KeptCheckpoint, Reason, Sweep, SweepId, SweepState, Time, Trial, TrialId, TrialState, Wish,
};
use phalanx_tuner::{Record, Study};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use external::{Answer, Asking};

/// Why a job is paused at a rung, in its reason.
pub(super) const RUNG: &str = "rung";
/// Why a job was ended although nobody cancelled it, in its reason.
pub(super) const STOPPED: &str = "stopped_early";

/// A sweep to be run, read and valid.
#[derive(Clone, Debug)]
pub struct SweepSubmission {
    /// What to search.
    pub spec: SweepSpec,
    /// Where relative paths start from.
    pub base_dir: PathBuf,
    /// Its trials are run by those who ask for them.
    pub external: bool,
}

/// A sweep that is not over, as the store has it.
#[derive(Clone, Debug)]
pub struct LoadedSweep {
    /// The sweep.
    pub sweep: Sweep,
    /// Its study's log.
    pub records: Vec<Record>,
    /// Its trials that have not ended.
    pub open: Vec<Trial>,
    /// Jobs of these that are over: the kill came before the study was told.
    pub over: Vec<Job>,
    /// The last checkpoints of its complete trials, where it is population-based training.
    pub checkpoints: Vec<(u64, KeptCheckpoint)>,
}

/// What the store has to write of a sweep.
#[derive(Clone, Debug)]
pub struct SweepWrite {
    /// As it is now.
    pub sweep: Sweep,
    /// It is new: what was asked has to be stored too.
    pub fresh: bool,
    /// Trials that have changed.
    pub trials: Vec<Trial>,
    /// How many records its log had before these.
    pub logged: u64,
    /// What its study has decided.
    pub records: Vec<Record>,
}

/// A sweep's place in a queue, for the next trial.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: JobId,
    group: Option<JobId>,
}

/// A sweep that is not over, with what follows from its log.
pub(super) struct LiveSweep {
    sweep: Sweep,
    study: Study,
    logged: u64,
    /// Not stored yet, not even that it was asked for.
    fresh: bool,
    /// Trials that have not ended.
    open: BTreeMap<u64, Trial>,
    /// Those that are not at a rung, or whose processes are not gone yet.
    active: BTreeSet<u64>,
    /// Trials as they are to be stored.
    changed: BTreeMap<u64, Trial>,
    slot: Option<Slot>,
    /// The sampler has no new point any more.
    dry: bool,
    /// The study has asked to wait until something of its trials is known.
    waits: bool,
    /// The last checkpoints of complete trials, where others may start from them.
    checkpoints: BTreeMap<u64, KeptCheckpoint>,
}

impl fmt::Debug for LiveSweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSweep").field("sweep", &self.sweep.id).field("open", &self.open).finish()
    }
}

/// All sweeps that are not over.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    live: BTreeMap<SweepId, LiveSweep>,
    slots: BTreeMap<JobId, SweepId>,
    next: u64,
    /// To be stored.
    dirty: BTreeSet<SweepId>,
    /// To be looked at.
    attention: BTreeSet<SweepId>,
    /// Trials' jobs that have entered a state, in order.
    news: Vec<Job>,
    /// How many of these came before the requests that are not committed yet.
    settled_news: usize,
    /// Sweeps as they were before those requests; none where there was none.
    undo: Vec<(SweepId, Option<SweepNow>)>,
    /// A slot was filled since the last look.
    filled: bool,
}

impl Sweeps {
    pub(super) fn starting_from(next: u64) -> Sweeps {
        Sweeps { next: next.max(1), ..Sweeps::default() }
    }

    /// A trial's job has entered a state.
    pub(super) fn hear(&mut self, job: &Job) {
        if job.trial.is_some() {
            self.news.push(job.clone());
        }
    }

    /// What has been heard so far is no request's doing.
    pub(super) fn note_news(&mut self) {
        self.settled_news = self.news.len();
    }

    /// The requests so far are committed, or have changed nothing.
    pub(super) fn accept(&mut self) {
        self.undo.clear();
        self.note_news();
    }

    /// Which sweep has this slot.
    pub(super) fn slot(&self, id: JobId) -> Option<SweepId> {
        self.slots.get(&id).copied()
    }

    /// The placement group that a slot is in.
    pub(super) fn slot_group(&self, id: JobId) -> Option<JobId> {
        self.live.get(self.slots.get(&id)?)?.slot?.group
    }

    pub(super) fn has_filled(&mut self) -> bool {
        std::mem::take(&mut self.filled)
    }
}

impl LiveSweep {
    fn new(sweep: Sweep, study: Study) -> Self {
        LiveSweep {
            sweep,
            study,
            logged: 0,
            fresh: false,
            open: BTreeMap::new(),
            active: BTreeSet::new(),
            changed: BTreeMap::new(),
            slot: None,
            dry: false,
            waits: false,
            checkpoints: BTreeMap::new(),
        }
    }

    fn spec(&self) -> &SweepSpec {
        &self.sweep.asked.spec
    }

    /// Changes a trial that has not ended, and what is counted of it.
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Trial)) {
        let Some(trial) = self.open.get_mut(&number) else { return };
        let now = &mut self.sweep.now;
        *now.counts.of(trial.state) -= 1;
        change(trial);
        *now.counts.of(trial.state) += 1;
        now.seq += 1;
        trial.changed = now.seq;
        let trial = trial.clone();
        if trial.state.is_terminal() {
            self.open.remove(&number);
            self.active.remove(&number);
        }
        self.changed.insert(number, trial);
    }

    /// Whether a trial could be asked for now, were there room.
    fn has_next(&self) -> bool {
        !self.waits && (self.study.is_promotable() || (!self.dry && self.study.has_trials_left()))
    }

    fn say(&mut self, state: SweepState, reason: Reason) {
        let now = &mut self.sweep.now;
        (now.state, now.reason) = (state, reason);
        now.seq += 1;
    }
}

/// The metric whose reports are answered only once they are judged: where a rule may stop a trial by it.
fn judged(spec: &SweepSpec) -> Option<String> {
    let judges = !matches!(spec.stopping, Stopping::None | Stopping::Plateau { .. })
        || matches!(spec.search, Search::Pbt(_));
    spec.objectives.first().filter(|_| judges && !spec.has_several_objectives()).map(|one| one.metric.clone())
}

impl Controller {
    /// Goes on with a sweep from the store, or buries one whose `run` was killed.
    pub(super) fn restore_sweep(&mut self, now: Time, loaded: LoadedSweep) {
        let LoadedSweep { sweep, records, open, over, checkpoints } = loaded;
        let id = sweep.id;
        if !sweep.asked.embedded && self.config.embedded {
            return;
        }
        let logged = records.len() as u64;
        let study = match Study::rebuild(&sweep.asked.spec, records) {
            Ok(study) => study,
            Err(error) => {
                tracing::error!(%error, sweep = %id, "the log of a sweep cannot be followed; the sweep fails");
                Study::new(&sweep.asked.spec)
            }
        };
        let broken = (study.trials().len() as u64) < sweep.now.counts.all();
        let embedded = sweep.asked.embedded;
        let mut live = LiveSweep::new(sweep, study);
        live.logged = logged;
        live.checkpoints.extend(checkpoints);
        live.open = open.into_iter().map(|trial| (trial.number, trial)).collect();
        let mut jobs: Vec<Job> = over;
        jobs.extend(live.open.values().filter_map(|trial| Some(self.jobs.get(&trial.job?)?.job.clone())));
        jobs.sort_by_key(|job| job.id);
        if embedded || broken {
            let reason = match embedded {
                true => Reason::new("run_killed", "the `phalanx run` it belonged to was killed"),
                false => Reason::new("damaged_log", "the log of its study cannot be followed"),
            };
            let numbers: Vec<u64> = live.open.keys().copied().collect();
            for number in numbers {
                live.change(number, |trial| {
                    trial.enter(now, TrialState::Failed);
                    (trial.ended, trial.message) = (Some(now), reason.text.clone());
                });
            }
            live.sweep.now.ended = Some(now);
            live.say(SweepState::Failed, reason);
        }
        self.sweeps.live.insert(id, live);
        self.sweeps.news.extend(jobs);
        self.attend(id);
    }

    /// Every sweep that is not over.
    pub fn sweeps(&self) -> impl Iterator<Item = &Sweep> {
        self.sweeps.live.values().map(|live| &live.sweep)
    }

    /// A sweep that is not over.
    pub fn sweep(&self, id: SweepId) -> Option<&Sweep> {
        self.sweeps.live.get(&id).map(|live| &live.sweep)
    }

    /// Whether a sweep could be run here at all.
    pub fn validate_sweep(&self, submission: &SweepSubmission) -> Result<(), Refusal> {
        match &submission.spec.job {
            Some(job) if !submission.external => self.validate_spec(job),
            _ if self.stopping => Err(Refusal::ShuttingDown),
            _ => Ok(()),
        }
    }

    /// The sweep that a submission would make, with the id 0.
    pub fn preview_sweep(&self, now: Time, submission: SweepSubmission) -> Sweep {
        let asked = Asked {
            spec: submission.spec,
            base_dir: submission.base_dir,
            embedded: self.config.embedded,
            external: submission.external,
            submitted: now,
        };
        Sweep { id: SweepId(0), asked: Arc::new(asked), now: SweepNow::new() }
    }

    /// Starts a sweep.
    pub fn create_sweep(&mut self, now: Time, submission: SweepSubmission) -> Result<Sweep, Refusal> {
        let study = Study::new(&submission.spec);
        self.create_sweep_with(now, submission, study)
    }

    /// Starts a sweep whose study has learnt from older ones.
    pub fn create_sweep_with(
        &mut self,
        now: Time,
        submission: SweepSubmission,
        study: Study,
    ) -> Result<Sweep, Refusal> {
        self.validate_sweep(&submission)?;
        let sweep = Sweep { id: SweepId(self.sweeps.next), ..self.preview_sweep(now, submission) };
        let id = sweep.id;
        self.sweeps.next += 1;
        self.sweeps.undo.push((id, None));
        let live = LiveSweep { fresh: true, ..LiveSweep::new(sweep.clone(), study) };
        self.sweeps.live.insert(id, live);
        self.attend(id);
        Ok(sweep)
    }

    /// Ends a sweep and its trials for good.
    pub fn cancel_sweep(&mut self, id: SweepId) -> Result<Sweep, Refusal> {
        self.wish(id, Wish::Cancel, "cancelled")
    }

    /// Starts no more trials of a sweep, and pauses those that run.
    pub fn pause_sweep(&mut self, id: SweepId) -> Result<Sweep, Refusal> {
        self.wish(id, Wish::Pause, "paused")
    }

    /// Lets a paused sweep go on.
    pub fn resume_sweep(&mut self, id: SweepId) -> Result<Sweep, Refusal> {
        self.wish(id, Wish::Resume, "resumed")
    }

    fn wish(&mut self, id: SweepId, wish: Wish, asked: &'static str) -> Result<Sweep, Refusal> {
        let live = self.sweeps.live.get_mut(&id).ok_or(Refusal::SweepNotLive(id))?;
        let (before, state) = (live.sweep.now.clone(), live.sweep.now.state);
        let allowed = match wish {
            Wish::Cancel => true,
            _ if before.wish == Wish::Cancel || before.over.is_some() => false,
            Wish::Resume => before.wish == Wish::Pause,
            Wish::Pause | Wish::Run => true,
        };
        if !allowed {
            return Err(Refusal::SweepState { sweep: id, state, asked });
        }
        if before.wish != wish {
            live.sweep.now.wish = wish;
            match wish {
                Wish::Cancel => live.say(state, Reason::new("cancelling", "its trials are being ended")),
                Wish::Pause => {
                    live.say(SweepState::Paused, Reason::new("paused", "paused; resume it to go on"))
                }
                Wish::Resume | Wish::Run => {
                    let resumed =
                        if before.started.is_some() { SweepState::Running } else { SweepState::Queued };
                    live.say(resumed, Reason::new("resumed", "waits for the scheduler's next decision"));
                }
            }
            self.sweeps.undo.push((id, Some(before)));
            self.attend(id);
        }
        Ok(self.sweeps.live[&id].sweep.clone())
    }

    /// Whether a job's trial waits for its sweep to promote it.
    pub(super) fn is_at_rung(&self, job: &Job) -> bool {
        let study = |trial: TrialId| Some(&self.sweeps.live.get(&trial.sweep)?.study);
        let found =
            job.trial.as_ref().and_then(|trial| study(trial.id)?.trials().get(trial.id.number as usize));
        found.is_some_and(|trial| trial.state == phalanx_tuner::TrialState::Paused)
    }

    /// Every sweep is as it was before the requests that could not be committed.
    pub(super) fn roll_back_sweeps(&mut self) {
        self.sweeps.news.truncate(self.sweeps.settled_news);
        while let Some((id, before)) = self.sweeps.undo.pop() {
            match (before, self.sweeps.live.get_mut(&id)) {
                (Some(before), Some(live)) => live.sweep.now = before,
                _ => {
                    self.sweeps.live.remove(&id);
                    self.sweeps.attention.remove(&id);
                    self.sweeps.dirty.remove(&id);
                }
            }
        }
    }

    /// It has changed: it is stored, and looked at before the next decision.
    fn attend(&mut self, id: SweepId) {
        self.sweeps.dirty.insert(id);
        self.sweeps.attention.insert(id);
    }

    /// What is to be stored of sweeps.
    pub(super) fn take_sweeps(&mut self) -> Vec<SweepWrite> {
        let mut writes = Vec::new();
        for id in std::mem::take(&mut self.sweeps.dirty) {
            let Some(live) = self.sweeps.live.get_mut(&id) else { continue };
            let records = live.study.take_records();
            let logged = live.logged;
            live.logged += records.len() as u64;
            writes.push(SweepWrite {
                sweep: live.sweep.clone(),
                fresh: std::mem::take(&mut live.fresh),
                trials: std::mem::take(&mut live.changed).into_values().collect(),
                logged,
                records,
            });
            if live.sweep.now.state.is_terminal() {
                self.sweeps.live.remove(&id);
            }
        }
        writes
    }
}
