//! The study: hands out trials, judges their reports, hears how they ended, and writes all of it down.

use crate::error::Error;
use crate::sampler::{self, Samplers, View};
use crate::space::{Point, Space};
use crate::stopping::{self, Rule};
use crate::trial::{Decision, Origin, Outcome, Trial, TrialState};
use phalanx_core::report::Metric;
use phalanx_core::spec::{MetricMode, Objective, ParamSpec, Params, Search, Stopping, SweepSpec};
use serde::{Deserialize, Serialize};

/// The settings that decisions follow from; a log belongs to one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// What is improved.
    pub objectives: Vec<Objective>,
    /// Seeds every random choice.
    pub seed: u64,
    /// What proposes.
    pub search: Search,
    /// What stops early.
    pub stopping: Stopping,
    /// The parameters.
    pub params: Vec<ParamSpec>,
    /// Points to try first.
    pub enqueue: Vec<Params>,
}

impl Identity {
    fn of(spec: &SweepSpec) -> Identity {
        Identity {
            objectives: spec.objectives.clone(),
            seed: spec.seed,
            search: spec.search,
            stopping: spec.stopping.clone(),
            params: spec.params.clone(),
            enqueue: spec.enqueue.clone(),
        }
    }

    /// The first table in which two differ.
    fn difference(&self, other: &Identity) -> Option<&'static str> {
        let parts = [
            ("sweep.metric", self.objectives == other.objectives),
            ("sweep.seed", self.seed == other.seed),
            ("search", self.search == other.search),
            ("stopping", self.stopping == other.stopping),
            ("params", self.params == other.params),
            ("enqueue", self.enqueue == other.enqueue),
        ];
        parts.iter().find(|(_, same)| !same).map(|(name, _)| *name)
    }
}

/// One entry of a study's log. The log is append-only; all of a study's state follows from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The first record: whose log this is.
    Study(Box<Identity>),
    /// A new trial was handed out.
    Asked {
        /// Its number.
        number: u64,
        /// What made the parameters.
        sampler: Origin,
        /// The index of the enqueued point, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        enqueued: Option<usize>,
        /// The parameters.
        params: Params,
    },
    /// A paused trial was handed out again.
    Resumed {
        /// Its number.
        number: u64,
    },
    /// A trial reported, and this was decided.
    Reported {
        /// Its number.
        number: u64,
        /// The step.
        step: u64,
        /// The value.
        value: Metric,
        /// What it heard.
        decision: Decision,
    },
    /// A trial ended.
    Told {
        /// Its number.
        number: u64,
        /// How.
        state: TrialState,
        /// With which values, if any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        values: Vec<Metric>,
    },
}

/// What a study hands out.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A trial to run.
    Trial(Handed),
    /// Nothing now; a running trial may still let a paused one go on.
    Wait,
    /// Nothing any more.
    Done,
}

/// A trial to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Handed {
    /// Its number.
    pub number: u64,
    /// What it runs with.
    pub params: Params,
    /// Whether it was paused and goes on from its checkpoint.
    pub resumed: bool,
}

/// A search under way.
///
/// Every call that changes something appends to the records; a driver makes them durable before it acts on the answer.
pub struct Study {
    identity: Identity,
    trials_limit: Option<u64>,
    max_failed: Option<u64>,
    space: Space,
    enqueue: Vec<Point>,
    next_enqueued: usize,
    trials: Vec<Trial>,
    samplers: Samplers,
    rule: Box<dyn Rule>,
    counts: Counts,
    best: Option<u64>,
    front: Vec<u64>,
    records: Vec<Record>,
}

/// Trials by how they ended, and those that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Running.
    pub running: u64,
    /// Paused at a rung.
    pub paused: u64,
    /// Complete.
    pub complete: u64,
    /// Stopped early.
    pub stopped: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl Counts {
    fn of(&mut self, state: TrialState) -> &mut u64 {
        match state {
            TrialState::Running => &mut self.running,
            TrialState::Paused => &mut self.paused,
            TrialState::Complete => &mut self.complete,
            TrialState::Stopped => &mut self.stopped,
            TrialState::Failed => &mut self.failed,
            TrialState::Cancelled => &mut self.cancelled,
        }
    }
}

/// A value as a loss: lower is better, and what is not a number is worst.
pub(crate) fn loss(mode: MetricMode, value: f64) -> f64 {
    match mode {
        _ if value.is_nan() => f64::INFINITY,
        MetricMode::Min => value,
        MetricMode::Max => -value,
    }
}

impl Study {
    /// A study that has not begun; its first record says whose log it is.
    pub fn new(spec: &SweepSpec) -> Study {
        let mut study = Study::empty(spec);
        study.records.push(Record::Study(Box::new(study.identity.clone())));
        study
    }

    /// The study that these records of an earlier one lead to. Its `trials` and `max_failed_trials` may differ from
    /// the earlier ones, so that a finished search can be gone on with.
    ///
    /// # Errors
    /// When the log belongs to another study or its records cannot follow one another.
    pub fn rebuild(spec: &SweepSpec, records: impl IntoIterator<Item = Record>) -> Result<Study, Error> {
        let mut study = Study::empty(spec);
        let mut records = records.into_iter();
        match records.next() {
            None => return Ok(Study::new(spec)),
            Some(Record::Study(theirs)) => {
                if let Some(table) = study.identity.difference(&theirs) {
                    return Err(Error::OtherStudy(table));
                }
            }
            Some(_) => return Err(Error::BadLog("it does not begin with its study".to_owned())),
        }
        records.try_for_each(|record| study.replay(record))?;
        Ok(study)
    }

    fn empty(spec: &SweepSpec) -> Study {
        let space = Space::new(&spec.params);
        // The reader has checked every enqueued point against the same parameters.
        let enqueue = spec.enqueue.iter().filter_map(|point| space.point_of(point)).collect();
        Study {
            identity: Identity::of(spec),
            trials_limit: spec.trials,
            max_failed: spec.max_failed_trials,
            samplers: Samplers::new(spec.search, &space, spec.objectives.len()),
            rule: stopping::rule(&spec.stopping, spec.seed),
            space,
            enqueue,
            next_enqueued: 0,
            trials: Vec::new(),
            counts: Counts::default(),
            best: None,
            front: Vec::new(),
            records: Vec::new(),
        }
    }

    /// The records since the last call, in order.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// All trials, by number.
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// How many trials are in which state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The space that is searched.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Whether several objectives are improved at once: then there is a front, and no single best.
    pub fn has_several_objectives(&self) -> bool {
        self.identity.objectives.len() > 1
    }

    /// The complete trial with the best value of the first objective; the earliest of equals.
    pub fn best(&self) -> Option<&Trial> {
        self.best.map(|number| &self.trials[number as usize])
    }

    /// The complete trials that no other one beats in every objective, by number.
    pub fn front(&self) -> impl Iterator<Item = &Trial> {
        self.front.iter().map(|number| &self.trials[*number as usize])
    }

    /// The next trial to run: one that was promoted before any new one.
    pub fn ask(&mut self) -> Ask {
        if self.is_over() {
            return Ask::Done;
        }
        if let Some(promoted) = self.ask_promoted() {
            return Ask::Trial(promoted);
        }
        if self.trials_limit.is_some_and(|limit| self.trials.len() as u64 >= limit) {
            return self.nothing_new();
        }
        let Some((origin, enqueued, point)) = self.propose() else { return self.nothing_new() };
        let number = self.trials.len() as u64;
        self.take(Record::Asked { number, sampler: origin, enqueued, params: self.space.params_of(&point) });
        Ask::Trial(self.handed(number, false))
    }

    /// A paused trial that goes on now, if there is one; never a new one.
    pub fn ask_promoted(&mut self) -> Option<Handed> {
        let number = self.rule.promotable(&self.trials).filter(|_| !self.is_over())?;
        self.take(Record::Resumed { number });
        Some(self.handed(number, true))
    }

    fn handed(&self, number: u64, resumed: bool) -> Handed {
        Handed { number, params: self.trials[number as usize].params.clone(), resumed }
    }

    fn nothing_new(&self) -> Ask {
        if self.rule.promotes() && self.counts.running > 0 { Ask::Wait } else { Ask::Done }
    }

    /// Whether a stopper, a target or too many failures have ended the search.
    pub fn is_over(&self) -> bool {
        let failed = self.max_failed.is_some_and(|limit| self.counts.failed > limit);
        failed || self.rule.ends_sweep() || self.has_reached_targets()
    }

    fn has_reached_targets(&self) -> bool {
        let objectives = &self.identity.objectives;
        if objectives.iter().all(|objective| objective.target.is_none()) {
            return false;
        }
        self.front().any(|trial| {
            objectives.iter().zip(&trial.values).all(|(objective, value)| {
                objective
                    .target
                    .is_none_or(|target| !objective.mode.is_better(target, *value) && !value.is_nan())
            })
        })
    }

    fn propose(&mut self) -> Option<(Origin, Option<usize>, Point)> {
        let view = View {
            space: &self.space,
            trials: &self.trials,
            objectives: &self.identity.objectives,
            stopping: &self.identity.stopping,
            seed: self.identity.seed,
        };
        while let Some(given) = self.enqueue.get(self.next_enqueued) {
            // A grid may have been at this point already; then it is passed over.
            match self.samplers.suggest(&view, given) {
                Some((_, point)) => return Some((Origin::Enqueued, Some(self.next_enqueued), point)),
                None => self.next_enqueued += 1,
            }
        }
        let nothing: Point = vec![None; self.space.params().len()];
        self.samplers.suggest(&view, &nothing).map(|(origin, point)| (origin, None, point))
    }

    /// Judges a report. A repeated step, and one after a stop or pause, changes nothing and is answered as before.
    ///
    /// # Errors
    /// When there is no such trial, it has been told, or the step goes backwards.
    pub fn report(&mut self, number: u64, step: u64, value: f64) -> Result<Decision, Error> {
        let trial = self.trials.get(number as usize).ok_or(Error::UnknownTrial(number))?;
        if trial.state.is_told() {
            return Err(Error::Told(number));
        }
        if let Some(last) = trial.run_step.filter(|last| step < *last) {
            return Err(Error::Backwards { number, last, step });
        }
        if trial.decision != Decision::Continue || trial.run_step == Some(step) {
            return Ok(trial.decision);
        }
        let decision = self.judge(number, step, value);
        self.take(Record::Reported { number, step, value: Metric(value), decision });
        Ok(decision)
    }

    /// Lets the rule see a report. A trial resumed from nothing repeats steps: those are judged no second time.
    fn judge(&mut self, number: u64, step: u64, value: f64) -> Decision {
        let trial = &mut self.trials[number as usize];
        if trial.last_report().is_some_and(|(last, _)| step <= last) || self.identity.objectives.len() > 1 {
            return Decision::Continue;
        }
        trial.reports.push((step, value));
        let mode = self.identity.objectives[0].mode;
        let seen = stopping::Report { number, step, value, loss: loss(mode, value), mode };
        let decision = self.rule.report(&self.trials, self.best, &seen);
        if seen.loss == f64::INFINITY { Decision::Stop } else { decision }
    }

    /// Takes down how a trial ended; told again nothing changes.
    ///
    /// # Errors
    /// When there is no such trial, or the values are too few or too many.
    pub fn tell(&mut self, number: u64, outcome: Outcome) -> Result<(), Error> {
        let trial = self.trials.get(number as usize).ok_or(Error::UnknownTrial(number))?;
        if trial.state.is_told() {
            return Ok(());
        }
        let wanted = self.identity.objectives.len();
        let last = || trial.last_report().map(|(_, value)| vec![value]);
        let early = trial.decision == Decision::Stop || trial.state == TrialState::Paused;
        let ended = if early { TrialState::Stopped } else { TrialState::Complete };
        let (state, values) = match outcome {
            Outcome::Values(values) if values.len() == wanted => (ended, values),
            Outcome::Values(values) => return Err(Error::ValueCount { number, wanted, found: values.len() }),
            Outcome::LastReport => (ended, last().filter(|_| wanted == 1).ok_or(Error::NoValue(number))?),
            Outcome::Stopped => (TrialState::Stopped, last().unwrap_or_default()),
            Outcome::Failed => (TrialState::Failed, Vec::new()),
            Outcome::Cancelled => (TrialState::Cancelled, Vec::new()),
        };
        self.take(Record::Told { number, state, values: values.into_iter().map(Metric).collect() });
        Ok(())
    }

    /// Writes a record down and does what it says.
    fn take(&mut self, record: Record) {
        self.apply(&record);
        self.records.push(record);
    }

    /// Does again what a record of the log says.
    fn replay(&mut self, record: Record) -> Result<(), Error> {
        let state = |number: u64| self.trials.get(number as usize).map(|trial| trial.state);
        let bad = |message: String| Err(Error::BadLog(message));
        match &record {
            Record::Study(_) => return bad("it begins twice".to_owned()),
            Record::Asked { number, params, .. } => {
                if *number != self.trials.len() as u64 {
                    return bad(format!("trial {number} is asked for as number {}", self.trials.len()));
                }
                if self.space.point_of(params).is_none() {
                    return bad(format!("trial {number} has parameters outside of the space"));
                }
            }
            Record::Resumed { number } if state(*number) != Some(TrialState::Paused) => {
                return bad(format!("trial {number} is resumed and was not paused"));
            }
            Record::Reported { number, step, value, .. } => {
                if state(*number) != Some(TrialState::Running) {
                    return bad(format!("trial {number} reports and does not run"));
                }
                // The rule learns from the report again; what the trial heard then is what counts.
                self.judge(*number, *step, value.0);
            }
            Record::Told { number, values, state: ended } => {
                let wanted = self.identity.objectives.len();
                if state(*number).is_none_or(TrialState::is_told) || !ended.is_told() {
                    return bad(format!("trial {number} is told and was not open"));
                }
                if *ended == TrialState::Complete && values.len() != wanted {
                    return bad(format!(
                        "trial {number} is told {} values for {wanted} objectives",
                        values.len()
                    ));
                }
            }
            Record::Resumed { .. } => {}
        }
        self.apply(&record);
        Ok(())
    }

    /// The one place where state changes, for what happens and for what is replayed.
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Study(_) => {}
            Record::Asked { number, sampler, enqueued, params } => {
                let point = self.space.point_of(params).unwrap_or_default();
                self.trials.push(Trial {
                    number: *number,
                    params: params.clone(),
                    point,
                    origin: *sampler,
                    state: TrialState::Running,
                    decision: Decision::Continue,
                    reports: Vec::new(),
                    values: Vec::new(),
                    run_step: None,
                });
                self.counts.running += 1;
                if let Some(index) = enqueued {
                    self.next_enqueued = index + 1;
                }
                self.samplers.asked(&self.space, &self.trials[*number as usize]);
            }
            Record::Resumed { number } => {
                self.rule.resumed(*number);
                self.move_to(*number, TrialState::Running);
                let trial = &mut self.trials[*number as usize];
                (trial.decision, trial.run_step) = (Decision::Continue, None);
            }
            Record::Reported { number, step, decision, .. } => {
                let trial = &mut self.trials[*number as usize];
                (trial.decision, trial.run_step) = (*decision, Some(*step));
                if *decision == Decision::Pause {
                    self.move_to(*number, TrialState::Paused);
                }
            }
            Record::Told { number, state, values } => {
                self.trials[*number as usize].values = values.iter().map(|value| value.0).collect();
                self.move_to(*number, *state);
                if *state == TrialState::Complete {
                    self.crown(*number);
                }
                let mode = self.identity.objectives[0].mode;
                self.rule.told(mode, &self.trials[*number as usize]);
            }
        }
    }

    fn move_to(&mut self, number: u64, state: TrialState) {
        let trial = &mut self.trials[number as usize];
        *self.counts.of(trial.state) -= 1;
        *self.counts.of(state) += 1;
        trial.state = state;
        let mode = self.identity.objectives[0].mode;
        self.samplers.moved(mode, &self.trials[number as usize]);
    }

    /// Sees whether a complete trial is the best so far, or on the front.
    fn crown(&mut self, number: u64) {
        let objectives = &self.identity.objectives;
        let value = self.trials[number as usize].values[0];
        let beaten =
            self.best().map_or(!value.is_nan(), |best| objectives[0].mode.is_better(value, best.values[0]));
        if beaten {
            self.best = Some(number);
        }
        let losses = |number: u64| {
            let values = &self.trials[number as usize].values;
            objectives
                .iter()
                .zip(values)
                .map(|(objective, value)| loss(objective.mode, *value))
                .collect::<Vec<f64>>()
        };
        let mine = losses(number);
        if mine.contains(&f64::INFINITY)
            || self.front.iter().any(|other| sampler::dominates(&losses(*other), &mine))
        {
            return;
        }
        let kept: Vec<u64> =
            self.front.iter().copied().filter(|other| !sampler::dominates(&mine, &losses(*other))).collect();
        self.front = kept;
        self.front.push(number);
    }
}

#[cfg(test)]
#[path = "study_tests.rs"]
mod tests;
