//! The record of a sweep and its trials: what has become of them. How the search goes on is in its study's log.

use crate::id::{JobId, SweepId};
use crate::job::Reason;
use crate::limits::TRIAL_STINTS;
use crate::report::Metric;
use crate::spec::{Params, SweepSpec};
use crate::state::{SweepState, TrialState};
use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// What a sweep is asked for, beside what never changes. Stored with it, so that it is done whatever happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Goes on.
    #[default]
    Run,
    /// Its trials are paused, and none starts.
    Pause,
    /// It runs, and its paused trials go on: those that are still being paused as soon as they are.
    Resume,
    /// Ends for good.
    Cancel,
}

/// What the service knows of a sweep, without its trials and its study.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Its id.
    pub id: SweepId,
    /// What was asked; never changes.
    pub asked: Arc<Asked>,
    /// What becomes of it.
    pub now: SweepNow,
}

/// What was asked of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The file, read and valid.
    pub spec: SweepSpec,
    /// The folder relative paths of the file start from.
    pub base_dir: PathBuf,
    /// Belongs to a `run` without a service, and ends with it.
    pub embedded: bool,
    /// Its trials are run by those who ask for them.
    pub external: bool,
    /// When it was submitted.
    pub submitted: Time,
}

/// The part of a sweep that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepNow {
    /// Where it is in its life.
    pub state: SweepState,
    /// Why it waits, or how it ended.
    pub reason: Reason,
    /// What a person wants of it.
    pub wish: Wish,
    /// Why its open trials are being ended although nobody cancelled it.
    pub over: Option<Reason>,
    /// The complete trial with the best value of the first objective.
    pub best: Option<BestTrial>,
    /// With several objectives: the complete trials that no other one beats in all of them.
    pub front: Vec<BestTrial>,
    /// Trials by state.
    pub counts: TrialCounts,
    /// Steps that trials have run, over all of them.
    pub steps_run: u64,
    /// When its first trial started.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
    /// Counts the changes of it and its trials.
    pub seq: u64,
}

impl SweepNow {
    /// A sweep of which nothing has happened yet.
    pub fn new() -> Self {
        SweepNow {
            state: SweepState::Queued,
            reason: Reason::new("submitted", "waits for the scheduler's next decision"),
            wish: Wish::Run,
            over: None,
            best: None,
            front: Vec::new(),
            counts: TrialCounts::default(),
            steps_run: 0,
            started: None,
            ended: None,
            seq: 1,
        }
    }
}

impl Default for SweepNow {
    fn default() -> Self {
        SweepNow::new()
    }
}

/// One of the best trials of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestTrial {
    /// Its number.
    pub number: u64,
    /// What it ran with.
    pub params: Params,
    /// Its value of every objective.
    pub values: Vec<Metric>,
    /// Its job; none where the sweep is external.
    pub job: Option<JobId>,
}

/// Trials by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialCounts {
    /// Waiting to be placed.
    pub queued: u64,
    /// Running.
    pub running: u64,
    /// At a rung, or paused by a person.
    pub paused: u64,
    /// Came to their end.
    pub complete: u64,
    /// Stopped early.
    pub stopped: u64,
    /// Failed.
    pub failed: u64,
    /// Ended by a person.
    pub cancelled: u64,
}

impl TrialCounts {
    /// How many are in a state.
    pub fn of(&mut self, state: TrialState) -> &mut u64 {
        match state {
            TrialState::Queued => &mut self.queued,
            TrialState::Running => &mut self.running,
            TrialState::Paused => &mut self.paused,
            TrialState::Complete => &mut self.complete,
            TrialState::Stopped => &mut self.stopped,
            TrialState::Failed => &mut self.failed,
            TrialState::Cancelled => &mut self.cancelled,
        }
    }

    /// Trials that have ended.
    pub fn ended(&self) -> u64 {
        self.complete + self.stopped + self.failed + self.cancelled
    }

    /// All trials that were ever handed out.
    pub fn all(&self) -> u64 {
        self.ended() + self.queued + self.running + self.paused
    }
}

/// What the service knows of a trial beside what its job says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number in the sweep, from 0.
    pub number: u64,
    /// Where it is in its life.
    pub state: TrialState,
    /// What it runs with.
    pub params: Params,
    /// The last value of every objective; none that was never reported.
    pub values: Vec<Option<Metric>>,
    /// The last value of the metric of every constraint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Option<Metric>>,
    /// The last step that was reported.
    pub step: Option<u64>,
    /// Its job; none where the sweep is external.
    pub job: Option<JobId>,
    /// What made its parameters.
    pub sampler: String,
    /// How it ended, where that needs saying.
    pub message: String,
    /// When it was handed out.
    pub started: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// When it ran: between two it was paused, or waited to go on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stints: Vec<Stint>,
    /// The sweep's number of its last change.
    pub changed: u64,
}

/// A time during which a trial ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stint {
    /// When it began.
    pub from: Time,
    /// When it was over; none while it runs.
    pub until: Option<Time>,
}

impl Trial {
    /// It is in this state from now on.
    pub fn enter(&mut self, now: Time, state: TrialState) {
        let ran = self.state == TrialState::Running && !self.stints.is_empty();
        match (ran, state == TrialState::Running) {
            (false, true) => {
                if self.stints.len() == TRIAL_STINTS {
                    self.stints.remove(0);
                }
                self.stints.push(Stint { from: now, until: None });
            }
            (true, false) => {
                if let Some(last) = self.stints.last_mut() {
                    last.until = Some(now);
                }
            }
            _ => {}
        }
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial() -> Trial {
        Trial {
            number: 3,
            state: TrialState::Queued,
            params: Params::new(),
            values: Vec::new(),
            measured: Vec::new(),
            step: Some(9),
            job: Some(JobId(4)),
            sampler: "tpe".to_owned(),
            message: String::new(),
            started: Time::ZERO,
            ended: None,
            stints: Vec::new(),
            changed: 7,
        }
    }

    #[test]
    fn a_trial_knows_when_it_ran() {
        use TrialState::{Complete, Paused, Queued, Running};
        let mut trial = trial();
        for (at, state) in [(1, Running), (2, Running), (3, Paused), (4, Queued), (6, Running), (9, Complete)]
        {
            trial.enter(Time::from_micros(at), state);
        }
        let ran: Vec<(u64, Option<u64>)> = trial
            .stints
            .iter()
            .map(|stint| (stint.from.as_micros(), stint.until.map(Time::as_micros)))
            .collect();
        assert_eq!(ran, [(1, Some(3)), (6, Some(9))]);
        for at in 0..200 {
            trial.enter(Time::from_micros(10 + at), if at % 2 == 0 { Running } else { Queued });
        }
        assert_eq!(trial.stints.len(), TRIAL_STINTS);
        assert_eq!(trial.stints.last().unwrap().until, Some(Time::from_micros(209)));
    }

    #[test]
    fn a_trial_reads_back_whatever_its_values() {
        for value in [1.5, f64::INFINITY, f64::NEG_INFINITY] {
            let trial = Trial { values: vec![Some(Metric(value)), None], ..trial() };
            let text = serde_json::to_string(&trial).unwrap();
            assert_eq!(serde_json::from_str::<Trial>(&text).unwrap(), trial);
        }
    }
}
