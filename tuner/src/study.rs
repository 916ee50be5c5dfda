//! The study: hands out trials, judges their reports, hears how they ended, and writes all of it down.

use crate::error::Error;
use crate::record::{self, Identity, Known, Record};
use crate::results::Results;
use crate::sampler::{Proposal, Samplers, Suggestion, View};
use crate::space::{Point, Space};
use crate::stopping::{self, Rule};
use crate::trial::{Decision, Origin, Outcome, Trial, TrialState};
use phalanx_core::report::Metric;
use phalanx_core::spec::{Constraint, MetricMode, Objective, Params, Search, SweepSpec};
use std::collections::BTreeMap;

/// What a study hands out.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A trial to run.
    Trial(Handed),
    /// Nothing now; once a running trial reports or ends, a paused one may go on, or a member of a population.
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
    /// The trial whose last checkpoint a new one starts from; where it has none, from nothing.
    pub from: Option<u64>,
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
    /// Those of older studies first.
    trials: Vec<Trial>,
    known: usize,
    samplers: Samplers,
    rule: Box<dyn Rule>,
    counts: Counts,
    results: Results,
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
            samplers: Samplers::new(spec, &space),
            rule: stopping::rule(&spec.stopping, spec.seed),
            space,
            enqueue,
            next_enqueued: 0,
            trials: Vec::new(),
            known: 0,
            counts: Counts::default(),
            results: Results::default(),
            records: Vec::new(),
        }
    }

    /// The records since the last call, in order.
    pub fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// All trials, by number; those of older studies are not among them.
    pub fn trials(&self) -> &[Trial] {
        &self.trials[self.known..]
    }

    /// Takes complete trials of older studies in, so that the search begins with what they found; how many of them fit.
    /// One that has other parameters, values outside of their bounds, or another number of objectives or constraints
    /// does not.
    ///
    /// # Errors
    /// Once a trial has been asked for: suggestions follow from what was known before them.
    pub fn learn(&mut self, known: impl IntoIterator<Item = Known>) -> Result<usize, Error> {
        if !self.trials().is_empty() {
            return Err(Error::Begun);
        }
        let before = self.known;
        for trial in known {
            if self.fits(&trial) {
                self.take(Record::Known(trial));
            }
        }
        Ok(self.known - before)
    }

    /// The same with the log of an older study: its complete trials, and those that it had learnt from.
    ///
    /// # Errors
    /// Where the older study improves another metric or keeps other ones, and once a trial has been asked for.
    pub fn learn_from(&mut self, log: &[Record]) -> Result<usize, Error> {
        let Some(Record::Study(theirs)) = log.first() else {
            return Err(Error::BadLog("it does not begin with its study".to_owned()));
        };
        let goals = |identity: &Identity| {
            let objectives = identity.objectives.iter().map(|o| (o.metric.clone(), Some(o.mode)));
            let constraints = identity.constraints.iter().map(|c| (c.metric.clone(), None));
            objectives.chain(constraints).collect::<Vec<_>>()
        };
        if goals(theirs) != goals(&self.identity) {
            return Err(Error::OtherGoal);
        }
        self.learn(record::knowledge(log))
    }

    fn fits(&self, known: &Known) -> bool {
        let whole = |point: Point| {
            let active = (0..point.len()).all(|at| self.space.is_active(at, &point) == point[at].is_some());
            active && !point.is_empty()
        };
        known.values.len() == self.identity.objectives.len()
            && known.measured.len() == self.identity.constraints.len()
            && known.values.iter().all(|value| value.0.is_finite())
            && self.space.point_of(&known.params).is_some_and(whole)
    }

    /// How many trials are in which state.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The space that is searched.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Whether trials are members of a population, which wait for each other.
    pub(crate) fn is_population(&self) -> bool {
        matches!(self.identity.search, Search::Pbt(_))
    }

    /// Whether several objectives are improved at once: then there is a front, and no single best.
    pub fn has_several_objectives(&self) -> bool {
        self.identity.objectives.len() > 1
    }

    /// What is improved.
    pub fn objectives(&self) -> &[Objective] {
        &self.identity.objectives
    }

    /// What the best trials have to keep, in the order in which their metrics are told.
    pub fn constraints(&self) -> &[Constraint] {
        &self.identity.constraints
    }

    /// The values of the constraints' metrics by name, in the order of the constraints; none where none is given.
    ///
    /// # Errors
    /// When one is about no constraint, or a constraint has none.
    pub fn measured(&self, given: &BTreeMap<String, f64>) -> Result<Vec<f64>, Error> {
        let known = self.constraints();
        if let Some(other) = given.keys().find(|name| known.iter().all(|one| one.metric != **name)) {
            return Err(Error::UnknownConstraint(other.clone()));
        }
        if given.is_empty() {
            return Ok(Vec::new());
        }
        let value = |one: &Constraint| {
            given.get(&one.metric).copied().ok_or_else(|| Error::MissingConstraint(one.metric.clone()))
        };
        known.iter().map(value).collect()
    }

    /// The complete and feasible trial with the best value of the first objective; the earliest of equals.
    pub fn best(&self) -> Option<&Trial> {
        self.results.best().map(|number| &self.trials()[number as usize])
    }

    /// The complete and feasible trials that no other one beats in every objective, by number.
    pub fn front(&self) -> impl Iterator<Item = &Trial> {
        self.results.front().iter().map(|number| &self.trials()[*number as usize])
    }

    /// How much of the space of several objectives the front takes, up to their references; `None` for one objective, and
    /// where there are so many that it would take too long to compute.
    pub fn hypervolume(&self) -> Option<f64> {
        self.has_several_objectives()
            .then(|| self.results.hypervolume(self.trials(), self.objectives()))
            .flatten()
    }

    /// How much each searched parameter matters for being among the best tenth, the most important first; the shares
    /// sum to 1 where anything matters (see [`crate::importance`]).
    pub fn importance(&self) -> Vec<(&str, f64)> {
        crate::importance::importance(&self.space, self.trials(), self.objectives())
    }

    /// The next trial to run: one that was promoted before any new one.
    pub fn ask(&mut self) -> Ask {
        if self.is_over() {
            return Ask::Done;
        }
        if let Some(promoted) = self.ask_promoted() {
            return Ask::Trial(promoted);
        }
        let number = self.trials().len() as u64;
        if self.trials_limit.is_some_and(|limit| number >= limit) {
            return self.nothing_new();
        }
        let (proposal, enqueued) = match self.propose() {
            (Suggestion::Proposal(proposal), enqueued) => (proposal, enqueued),
            (Suggestion::Wait, _) => return Ask::Wait,
            (Suggestion::Exhausted, _) => return self.nothing_new(),
        };
        let Proposal { origin, point, lineage } = proposal;
        let sampler = if enqueued.is_some() { Origin::Enqueued } else { origin };
        let params = self.space.params_of(&point);
        self.take(Record::Asked { number, sampler, enqueued, lineage, params });
        Ask::Trial(self.handed(number, false))
    }

    /// Whether a paused trial would be handed out now.
    pub fn is_promotable(&self) -> bool {
        !self.is_over() && self.rule.promotable(&self.trials).is_some()
    }

    /// Whether the number of trials lets another one in; what only the sampler knows, as that its grid is done, is not
    /// looked at.
    pub fn has_trials_left(&self) -> bool {
        !self.is_over() && self.trials_limit.is_none_or(|limit| (self.trials().len() as u64) < limit)
    }

    /// A paused trial that goes on now, if there is one; never a new one.
    pub fn ask_promoted(&mut self) -> Option<Handed> {
        let number = self.rule.promotable(self.trials()).filter(|_| !self.is_over())?;
        self.take(Record::Resumed { number });
        Some(self.handed(number, true))
    }

    fn handed(&self, number: u64, resumed: bool) -> Handed {
        let trial = &self.trials()[number as usize];
        let from = trial.lineage.and_then(|lineage| lineage.from).filter(|_| !resumed);
        Handed { number, params: trial.params.clone(), resumed, from }
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

    /// The next point, and the index of the enqueued one that it was made of.
    fn propose(&mut self) -> (Suggestion, Option<usize>) {
        let view = View {
            space: &self.space,
            trials: &self.trials,
            known: self.known,
            objectives: &self.identity.objectives,
            constraints: &self.identity.constraints,
            stopping: &self.identity.stopping,
            seed: self.identity.seed,
        };
        while let Some(given) = self.enqueue.get(self.next_enqueued) {
            // A grid may have been at this point already; then it is passed over.
            match self.samplers.suggest(&view, given) {
                Suggestion::Exhausted => self.next_enqueued += 1,
                found => return (found, Some(self.next_enqueued)),
            }
        }
        let nothing: Point = vec![None; self.space.params().len()];
        (self.samplers.suggest(&view, &nothing), None)
    }

    /// Judges a report. A repeated step, and one after a stop or pause, changes nothing and is answered as before.
    ///
    /// # Errors
    /// When there is no such trial, it has been told, or the step goes backwards.
    pub fn report(&mut self, number: u64, step: u64, value: f64) -> Result<Decision, Error> {
        let trial = self.trials().get(number as usize).ok_or(Error::UnknownTrial(number))?;
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
        let trial = &mut self.trials[self.known + number as usize];
        if trial.last_report().is_some_and(|(last, _)| step <= last) || self.identity.objectives.len() > 1 {
            return Decision::Continue;
        }
        trial.reports.push((step, value));
        let mode = self.identity.objectives[0].mode;
        let seen = stopping::Report { number, step, value, loss: loss(mode, value), mode };
        let decision = self.rule.report(&self.trials[self.known..], self.results.best(), &seen);
        let ends = seen.loss == f64::INFINITY || self.ends_interval(number, step);
        if ends { Decision::Stop } else { decision }
    }

    /// Whether a member of a population is at the end of its interval, and so its trial at its own.
    fn ends_interval(&self, number: u64, step: u64) -> bool {
        let Search::Pbt(population) = self.identity.search else { return false };
        let lineage = self.trials()[number as usize].lineage;
        lineage.is_some_and(|lineage| step >= (lineage.generation + 1).saturating_mul(population.interval))
    }

    /// Takes down how a trial ended; told again nothing changes.
    ///
    /// # Errors
    /// When there is no such trial, or the values are too few or too many.
    pub fn tell(&mut self, number: u64, outcome: Outcome) -> Result<(), Error> {
        let trial = self.trials().get(number as usize).ok_or(Error::UnknownTrial(number))?;
        if trial.state.is_told() {
            return Ok(());
        }
        let (state, values, measured) = self.ending(trial, outcome)?;
        let metrics = |values: Vec<f64>| values.into_iter().map(Metric).collect();
        self.take(Record::Told { number, state, values: metrics(values), measured: metrics(measured) });
        Ok(())
    }

    /// How a trial ends, with which values and measures.
    fn ending(&self, trial: &Trial, outcome: Outcome) -> Result<(TrialState, Vec<f64>, Vec<f64>), Error> {
        let (number, wanted) = (trial.number, self.identity.objectives.len());
        let last = trial.last_report().filter(|_| wanted == 1);
        // A member at the end of its interval has done all that was asked of it.
        let whole = last.is_some_and(|(step, value)| {
            self.ends_interval(number, step) && loss(self.mode(), value) != f64::INFINITY
        });
        let early = trial.decision == Decision::Stop || trial.state == TrialState::Paused;
        let ended = if early && !whole { TrialState::Stopped } else { TrialState::Complete };
        let last = last.map(|(_, value)| vec![value]);
        let (state, values, measured) = match outcome {
            Outcome::Values(values) => (ended, values, Vec::new()),
            Outcome::Measured { values, measured } if values.is_empty() => {
                (ended, last.ok_or(Error::NoValue(number))?, measured)
            }
            Outcome::Measured { values, measured } => (ended, values, measured),
            Outcome::LastReport => (ended, last.ok_or(Error::NoValue(number))?, Vec::new()),
            Outcome::Stopped if whole => (TrialState::Complete, last.unwrap_or_default(), Vec::new()),
            Outcome::Stopped => return Ok((TrialState::Stopped, last.unwrap_or_default(), Vec::new())),
            Outcome::Failed => return Ok((TrialState::Failed, Vec::new(), Vec::new())),
            Outcome::Cancelled => return Ok((TrialState::Cancelled, Vec::new(), Vec::new())),
        };
        if values.len() != wanted {
            return Err(Error::ValueCount { number, wanted, found: values.len() });
        }
        let (constraints, found) = (self.identity.constraints.len(), measured.len());
        let unmeasured = found == 0 && state == TrialState::Stopped;
        if found != constraints && !unmeasured {
            return Err(Error::MeasureCount { number, wanted: constraints, found });
        }
        Ok((state, values, measured))
    }

    fn mode(&self) -> MetricMode {
        self.identity.objectives[0].mode
    }

    /// Writes a record down and does what it says.
    fn take(&mut self, record: Record) {
        self.apply(&record);
        self.records.push(record);
    }

    /// Does again what a record of the log says.
    fn replay(&mut self, record: Record) -> Result<(), Error> {
        self.check(&record).map_err(Error::BadLog)?;
        if let Record::Reported { number, step, value, .. } = &record {
            // The rule learns from the report again; what the trial heard then is what counts.
            self.judge(*number, *step, value.0);
        }
        self.apply(&record);
        Ok(())
    }

    /// Whether a record can follow the ones before it.
    fn check(&self, record: &Record) -> Result<(), String> {
        let state = |number: u64| self.trials().get(number as usize).map(|trial| trial.state);
        let next = self.trials().len() as u64;
        match record {
            Record::Study(_) => Err("it begins twice".to_owned()),
            Record::Known(known) if next > 0 || !self.fits(known) => {
                Err("a trial of an older study does not belong there".to_owned())
            }
            Record::Asked { number, .. } if *number != next => {
                Err(format!("trial {number} is asked for as number {next}"))
            }
            Record::Asked { number, params, .. } if self.space.point_of(params).is_none() => {
                Err(format!("trial {number} has parameters outside of the space"))
            }
            Record::Resumed { number } if state(*number) != Some(TrialState::Paused) => {
                Err(format!("trial {number} is resumed and was not paused"))
            }
            Record::Reported { number, .. } if state(*number) != Some(TrialState::Running) => {
                Err(format!("trial {number} reports and does not run"))
            }
            Record::Told { number, state: ended, .. }
                if state(*number).is_none_or(TrialState::is_told) || !ended.is_told() =>
            {
                Err(format!("trial {number} is told and was not open"))
            }
            Record::Told { number, state: TrialState::Complete, values, measured }
                if values.len() != self.identity.objectives.len()
                    || measured.len() != self.identity.constraints.len() =>
            {
                Err(format!("trial {number} is told too few or too many values"))
            }
            _ => Ok(()),
        }
    }

    /// The one place where state changes, for what happens and for what is replayed.
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Study(_) => {}
            Record::Known(known) => {
                self.add(0, Origin::Enqueued, &known.params);
                self.known += 1;
                self.end(self.known - 1, TrialState::Complete, &known.values, &known.measured);
            }
            Record::Asked { number, sampler, enqueued, lineage, params } => {
                let trial = self.add(*number, *sampler, params);
                trial.lineage = *lineage;
                self.counts.running += 1;
                if let Some(index) = enqueued {
                    self.next_enqueued = index + 1;
                }
                self.samplers.asked(&self.space, &self.trials[self.known + *number as usize]);
            }
            Record::Resumed { number } => {
                self.rule.resumed(*number);
                self.move_to(*number, TrialState::Running);
                let trial = &mut self.trials[self.known + *number as usize];
                (trial.decision, trial.run_step) = (Decision::Continue, None);
            }
            Record::Reported { number, step, decision, .. } => {
                let trial = &mut self.trials[self.known + *number as usize];
                (trial.decision, trial.run_step) = (*decision, Some(*step));
                if *decision == Decision::Pause {
                    self.move_to(*number, TrialState::Paused);
                }
            }
            Record::Told { number, state, values, measured } => {
                let index = self.known + *number as usize;
                *self.counts.of(self.trials[index].state) -= 1;
                *self.counts.of(*state) += 1;
                self.end(index, *state, values, measured);
                if *state == TrialState::Complete {
                    let (trials, objectives) = (&self.trials[self.known..], &self.identity.objectives);
                    self.results.crown(trials, objectives, *number);
                }
                self.rule.told(self.identity.objectives[0].mode, &self.trials[index]);
            }
        }
    }

    fn add(&mut self, number: u64, origin: Origin, params: &Params) -> &mut Trial {
        let (index, point) = (self.trials.len(), self.space.point_of(params).unwrap_or_default());
        self.trials.push(Trial::new(index, number, origin, params.clone(), point));
        &mut self.trials[index]
    }

    fn end(&mut self, index: usize, state: TrialState, values: &[Metric], measured: &[Metric]) {
        let trial = &mut self.trials[index];
        trial.state = state;
        trial.values = values.iter().map(|value| value.0).collect();
        trial.measured = measured.iter().map(|value| value.0).collect();
        let measures = self.identity.constraints.iter().zip(&trial.measured);
        trial.violation = measures.map(|(constraint, value)| constraint.excess(*value).max(0.0)).sum();
        self.samplers.moved(&self.identity.objectives, &self.trials[index]);
    }

    fn move_to(&mut self, number: u64, state: TrialState) {
        let trial = &mut self.trials[self.known + number as usize];
        *self.counts.of(trial.state) -= 1;
        *self.counts.of(state) += 1;
        trial.state = state;
        self.samplers.moved(&self.identity.objectives, &self.trials[self.known + number as usize]);
    }
}

#[cfg(test)]
#[path = "study_tests.rs"]
mod tests;
