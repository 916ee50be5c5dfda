//! Sweeps whose trials are run by those who ask for them: ask, report and tell over the service.

use super::Refusal;
use crate::controller::Controller;
use phalanx_core::report::Metric;
use phalanx_core::{BestTrial, SweepId, Time, Trial, TrialId, TrialState, Wish};
use phalanx_tuner::{Ask, Decision, Outcome};
use std::collections::BTreeMap;

/// What is asked of an external sweep.
#[derive(Clone, Debug)]
pub enum Asking {
    /// A trial to run.
    Ask,
    /// A trial's value at a step.
    Report {
        /// Its number.
        number: u64,
        /// The step.
        step: u64,
        /// The value.
        value: f64,
    },
    /// How a trial ended.
    Tell {
        /// Its number.
        number: u64,
        /// How.
        outcome: Outcome,
        /// The values of the constraints' metrics.
        constraints: BTreeMap<String, f64>,
    },
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A trial to run.
    Trial {
        /// It.
        trial: Box<Trial>,
        /// It was paused and goes on.
        resumed: bool,
    },
    /// Nothing now.
    Wait,
    /// Nothing any more.
    Done,
    /// What a trial is to do.
    Decision(Decision),
    /// A trial as it ended, and the best so far.
    Told(Box<Trial>, Option<Box<BestTrial>>),
}

impl Controller {
    /// Answers what was asked of an external sweep. What changes is handed out with the next effects, and is to be
    /// stored before the answer is given.
    pub fn ask_sweep(&mut self, now: Time, id: SweepId, asking: Asking) -> Result<Answer, Refusal> {
        if self.stopping {
            return Err(Refusal::ShuttingDown);
        }
        let live = self.sweeps.live.get(&id).ok_or(Refusal::SweepNotLive(id))?;
        if !live.sweep.asked.external {
            return Err(Refusal::NotExternal(id));
        }
        let answer = match asking {
            Asking::Ask => Ok(self.hand_out(now, id)),
            Asking::Report { number, step, value } => {
                self.report_external(now, TrialId { sweep: id, number }, step, value)
            }
            Asking::Tell { number, outcome, constraints } => {
                self.tell_external(now, TrialId { sweep: id, number }, outcome, &constraints)
            }
        };
        self.attend(id);
        self.drive_sweeps(now);
        answer
    }

    fn hand_out(&mut self, now: Time, id: SweepId) -> Answer {
        let Some(live) = self.sweeps.live.get_mut(&id) else { return Answer::Done };
        if live.sweep.now.wish != Wish::Run {
            return Answer::Wait;
        }
        let room = live.spec().concurrency.is_none_or(|most| live.study.counts().running < u64::from(most));
        if !room {
            return Answer::Wait;
        }
        match live.study.ask() {
            Ask::Trial(handed) => {
                match handed.resumed {
                    true => live.show(now, handed.number, TrialState::Running),
                    false => live.open_trial(now, &handed, None),
                }
                let trial = live.open.get(&handed.number).cloned();
                trial.map_or(Answer::Wait, |trial| Answer::Trial {
                    trial: Box::new(trial),
                    resumed: handed.resumed,
                })
            }
            Ask::Wait => Answer::Wait,
            Ask::Done => {
                live.dry = true;
                Answer::Done
            }
        }
    }

    fn report_external(
        &mut self,
        now: Time,
        trial: TrialId,
        step: u64,
        value: f64,
    ) -> Result<Answer, Refusal> {
        let live = self.sweeps.live.get_mut(&trial.sweep).ok_or(Refusal::SweepNotLive(trial.sweep))?;
        if live.spec().has_several_objectives() {
            return Err(Refusal::ManyObjectives(trial.sweep));
        }
        let decision = live.study.report(trial.number, step, value).map_err(Refusal::Study)?;
        let metric = live.spec().objectives.first().map(|one| one.metric.clone()).unwrap_or_default();
        live.note(trial.number, step, &BTreeMap::from([(metric, value)]));
        if decision == Decision::Pause {
            live.show(now, trial.number, TrialState::Paused);
        }
        Ok(Answer::Decision(decision))
    }

    fn tell_external(
        &mut self,
        now: Time,
        trial: TrialId,
        outcome: Outcome,
        constraints: &BTreeMap<String, f64>,
    ) -> Result<Answer, Refusal> {
        let live = self.sweeps.live.get_mut(&trial.sweep).ok_or(Refusal::SweepNotLive(trial.sweep))?;
        let measured = live.study.measured(constraints).map_err(Refusal::Study)?;
        let outcome = match outcome {
            Outcome::LastReport if !measured.is_empty() => Outcome::Measured { values: Vec::new(), measured },
            Outcome::Values(values) => Outcome::Measured { values, measured },
            other => other,
        };
        live.study.tell(trial.number, outcome).map_err(Refusal::Study)?;
        live.take_down(now, trial.number, "");
        let told = live.changed.get(&trial.number).cloned().or_else(|| live.told_before(now, trial.number));
        let told = told.ok_or(Refusal::Study(phalanx_tuner::Error::UnknownTrial(trial.number)))?;
        Ok(Answer::Told(Box::new(told), live.sweep.now.best.clone().map(Box::new)))
    }

    /// Whether a trial has not ended yet.
    pub fn is_open(&self, trial: TrialId) -> bool {
        self.sweeps.live.get(&trial.sweep).is_some_and(|live| live.open.contains_key(&trial.number))
    }

    /// An open trial of an external sweep that has ended.
    pub(super) fn end_external(&mut self, now: Time, trial: TrialId, cancelled: bool, why: &str) {
        let outcome = if cancelled { Outcome::Cancelled } else { Outcome::Stopped };
        self.told(now, trial, outcome, why);
    }
}

impl super::LiveSweep {
    /// A trial that had been told before, as the study knows it.
    fn told_before(&self, now: Time, number: u64) -> Option<Trial> {
        let told = self.study.trials().get(number as usize)?;
        Some(Trial {
            number,
            state: super::trials::shown(told.state),
            params: told.params.clone(),
            values: told.values.iter().map(|&value| Some(Metric(value))).collect(),
            measured: told.measured.iter().map(|&value| Some(Metric(value))).collect(),
            step: told.last_report().map(|(step, _)| step),
            job: None,
            sampler: told.origin.as_str().to_owned(),
            message: String::new(),
            started: now,
            ended: None,
            stints: Vec::new(),
            changed: self.sweep.now.seq,
        })
    }
}
