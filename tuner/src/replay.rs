//! Runs the early stopping of a sweep over recorded learning curves, as it would have gone live.

use crate::error::Error;
use crate::study::Study;
use crate::trial::{Decision, Outcome, TrialState};
use phalanx_core::report::Metric;
use phalanx_core::spec::{MetricMode, Search, SweepSpec};
use serde::Serialize;
use std::collections::BTreeMap;

/// Largest trial number of a replay.
pub const MAX_TRIAL: u64 = 10_000_000;

/// One reported value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// The trial's number, at most [`MAX_TRIAL`].
    pub trial: u64,
    /// The step.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// How a recorded trial would have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// Its curve came to its end.
    Completed,
    /// It was stopped, or the sweep ended before it began.
    Stopped,
    /// It waits at a rung and was never promoted.
    Paused,
}

/// What became of a trial.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrialReplay {
    /// Its number.
    pub trial: u64,
    /// How it ended.
    pub decision: Ending,
    /// The last step that it ran; 0 if it never began.
    pub at_step: u64,
}

/// What all of it cost and found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Rows that were run.
    pub steps_run: u64,
    /// Rows that were not.
    pub steps_saved: u64,
    /// The best last value of a completed trial.
    pub best_kept: Option<Metric>,
    /// The best last value of any recorded curve.
    pub best_overall: Option<Metric>,
}

/// A whole replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// By trial number.
    pub trials: Vec<TrialReplay>,
    /// In sum.
    pub summary: Summary,
}

/// A recorded curve and how far it was run.
#[derive(Default)]
struct Curve {
    /// (index of the row, step, value).
    rows: Vec<(usize, u64, f64)>,
    run: usize,
    begun: bool,
}

/// Replays rows in the order in which they were reported. A paused trial keeps its rows until it is promoted, which
/// happens as soon as the rule allows: a slot is taken to be free.
///
/// # Errors
/// The index of the row at which steps go backwards, with the reason.
pub fn replay(spec: &SweepSpec, rows: &[Row]) -> Result<Replay, (usize, Error)> {
    let mut curves: BTreeMap<u64, Curve> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        curves.entry(row.trial).or_default().rows.push((index, row.step, row.value));
    }
    let mut study = open_study(spec, curves.keys().last().copied());
    for (index, row) in rows.iter().enumerate() {
        run_to(&mut study, &mut curves, row.trial, index)?;
        while let Some(promoted) = study.ask_promoted() {
            run_to(&mut study, &mut curves, promoted.number, index)?;
        }
    }
    Ok(summarize(&study, &curves, spec.objectives[0].mode))
}

/// A study of the same rule with a trial for every number, so that what depends on numbers is as it was live.
fn open_study(spec: &SweepSpec, last: Option<u64>) -> Study {
    let mut bare = spec.clone();
    (bare.search, bare.trials, bare.max_failed_trials) = (Search::Random, None, None);
    bare.objectives.truncate(1);
    bare.objectives[0].target = None;
    bare.params.clear();
    bare.enqueue.clear();
    let mut study = Study::new(&bare);
    for _ in 0..last.map_or(0, |last| last + 1) {
        study.ask();
        study.take_records();
    }
    study
}

/// Runs a trial's rows up to one of the file, as far as it may.
fn run_to(
    study: &mut Study,
    curves: &mut BTreeMap<u64, Curve>,
    trial: u64,
    until: usize,
) -> Result<(), (usize, Error)> {
    let over = study.is_over();
    let Some(curve) = curves.get_mut(&trial).filter(|curve| curve.begun || !over) else { return Ok(()) };
    curve.begun = true;
    while let Some(&(index, step, value)) = curve.rows.get(curve.run).filter(|(index, _, _)| *index <= until)
    {
        if study.trials()[trial as usize].state != TrialState::Running {
            return Ok(());
        }
        let decision = study.report(trial, step, value).map_err(|error| (index, error))?;
        curve.run += 1;
        let outcome = match decision {
            Decision::Stop => Outcome::Stopped,
            Decision::Continue if curve.run == curve.rows.len() => Outcome::LastReport,
            Decision::Continue | Decision::Pause => continue,
        };
        study.tell(trial, outcome).map_err(|error| (index, error))?;
    }
    study.take_records();
    Ok(())
}

fn summarize(study: &Study, curves: &BTreeMap<u64, Curve>, mode: MetricMode) -> Replay {
    let mut summary = Summary { steps_run: 0, steps_saved: 0, best_kept: None, best_overall: None };
    let mut trials = Vec::with_capacity(curves.len());
    let better = |best: &mut Option<Metric>, value: f64| {
        if best.map_or(!value.is_nan(), |best| mode.is_better(value, best.0)) {
            *best = Some(Metric(value));
        }
    };
    for (&trial, curve) in curves {
        let decision = match study.trials()[trial as usize].state {
            TrialState::Complete => Ending::Completed,
            TrialState::Paused => Ending::Paused,
            _ => Ending::Stopped,
        };
        let at_step = curve.run.checked_sub(1).map_or(0, |last| curve.rows[last].1);
        summary.steps_run += curve.run as u64;
        summary.steps_saved += (curve.rows.len() - curve.run) as u64;
        if let Some((_, _, value)) = curve.rows.last() {
            better(&mut summary.best_overall, *value);
            if decision == Ending::Completed {
                better(&mut summary.best_kept, *value);
            }
        }
        trials.push(TrialReplay { trial, decision, at_step });
    }
    Replay { trials, summary }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::tests::sweep;

    fn replayed(stopping: &str, rows: &[(u64, u64, f64)]) -> (Vec<(u64, Ending, u64)>, Summary) {
        let rows: Vec<Row> = rows.iter().map(|&(trial, step, value)| Row { trial, step, value }).collect();
        let replay = replay(&sweep(&format!("[stopping]\n{stopping}")), &rows).unwrap();
        (replay.trials.iter().map(|t| (t.trial, t.decision, t.at_step)).collect(), replay.summary)
    }

    #[test]
    fn rows_after_a_stop_are_saved() {
        let rows = [
            (0, 1, 1.0),
            (0, 2, 0.9),
            (2, 1, 2.0),
            (2, 2, 0.1),
            (2, 3, 0.05),
            (1, 1, 0.5),
            (1, 2, f64::NAN),
            (1, 3, 0.1),
        ];
        let (trials, summary) = replayed("kind = \"asha\"\nmax = 9\neta = 3", &rows);
        assert_eq!(trials, [(0, Ending::Completed, 2), (1, Ending::Stopped, 2), (2, Ending::Stopped, 1)]);
        let (kept, overall) = (Some(Metric(0.9)), Some(Metric(0.05)));
        assert_eq!(summary, Summary { steps_run: 5, steps_saved: 3, best_kept: kept, best_overall: overall });
    }

    #[test]
    fn a_promoted_trial_goes_on_with_the_rows_it_kept() {
        // Whole curves one after the other: trial 0 pauses at its first rung and is promoted once there are three.
        let mut rows = Vec::new();
        for (trial, value) in [(0, 0.1), (1, 0.5), (2, 0.9)] {
            rows.extend((1..=9).map(|step| (trial, step, value / step as f64)));
        }
        let (trials, summary) = replayed("kind = \"asha\"\nmode = \"promote\"\nmax = 9\neta = 3", &rows);
        assert_eq!(trials, [(0, Ending::Paused, 3), (1, Ending::Paused, 1), (2, Ending::Paused, 1)]);
        assert_eq!((summary.steps_run, summary.steps_saved, summary.best_kept), (5, 22, None));
    }

    #[test]
    fn steps_that_go_backwards_name_their_row() {
        let rows = [Row { trial: 0, step: 2, value: 1.0 }, Row { trial: 0, step: 1, value: 1.0 }];
        let (index, error) = replay(&sweep(""), &rows).unwrap_err();
        assert_eq!((index, error), (1, Error::Backwards { number: 0, last: 2, step: 1 }));
    }

    #[test]
    fn trials_after_the_plateau_never_begin() {
        let rows: Vec<(u64, u64, f64)> = (0..5).map(|trial| (trial, 1, 1.0)).collect();
        let (trials, summary) = replayed("kind = \"plateau\"\ntrials = 2", &rows);
        assert_eq!(trials[2..4], [(2, Ending::Completed, 1), (3, Ending::Stopped, 0)]);
        assert_eq!((summary.steps_run, summary.steps_saved), (3, 2));
    }
}
