//! Which trials stop early, and which paused ones go on. One rule a file; every rule is a function of the reports
//! before it.

mod asha;
mod hyperband;
mod patient;
mod percentile;
mod plateau;
mod quantile;
mod threshold;
mod wilcoxon;

use crate::trial::{Decision, Trial};
use phalanx_core::spec::{MetricMode, Pace, Stopping};

/// A report that is being judged; it is the trial's last one already.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) number: u64,
    pub(crate) step: u64,
    pub(crate) value: f64,
    /// Lower is better; infinite where the value is as bad as can be.
    pub(crate) loss: f64,
    pub(crate) mode: MetricMode,
}

/// An early-stopping rule.
pub(crate) trait Rule: Send + Sync {
    /// Judges a report. `best` is the best complete trial. A loss of infinity stops the trial whatever is answered.
    fn report(&mut self, trials: &[Trial], best: Option<u64>, report: &Report) -> Decision;

    /// A trial ended.
    fn told(&mut self, _mode: MetricMode, _trial: &Trial) {}

    /// The paused trial that goes on next.
    fn promotable(&self, _trials: &[Trial]) -> Option<u64> {
        None
    }

    /// A paused trial goes on.
    fn resumed(&mut self, _number: u64) {}

    /// Whether paused trials may go on.
    fn promotes(&self) -> bool {
        false
    }

    /// Whether the whole search is at its end.
    fn ends_sweep(&self) -> bool {
        false
    }
}

/// Never stops a trial.
struct Never;

impl Rule for Never {
    fn report(&mut self, _: &[Trial], _: Option<u64>, _: &Report) -> Decision {
        Decision::Continue
    }
}

/// The rule that a file asks for.
pub(crate) fn rule(stopping: &Stopping, seed: u64) -> Box<dyn Rule> {
    match *stopping {
        Stopping::None => Box::new(Never),
        Stopping::Asha(halving) => Box::new(asha::Asha::new(halving, halving.min)),
        Stopping::Hyperband(halving) => Box::new(hyperband::Hyperband::new(halving, seed)),
        Stopping::Percentile { percentile, startup, pace } => {
            Box::new(percentile::Percentile::new(percentile, startup, pace))
        }
        Stopping::Wilcoxon { p, startup_steps } => Box::new(wilcoxon::Wilcoxon { p, startup_steps }),
        Stopping::Patient { patience, min_delta } => Box::new(patient::Patient { patience, min_delta }),
        Stopping::Threshold { lower, upper, pace } => Box::new(threshold::Threshold { lower, upper, pace }),
        Stopping::Plateau { trials, min_delta } => Box::new(plateau::Plateau::new(trials, min_delta)),
    }
}

fn stop_if(poor: bool) -> Decision {
    if poor { Decision::Stop } else { Decision::Continue }
}

/// Whether the last of these reports is the first one of its interval from the warm-up on.
fn is_due(pace: Pace, reports: &[(u64, f64)]) -> bool {
    let Some(&(step, _)) = reports.last() else { return false };
    if step < pace.warmup {
        return false;
    }
    let interval_begin = (step - pace.warmup) / pace.interval * pace.interval + pace.warmup;
    reports.len().checked_sub(2).is_none_or(|before| reports[before].0 < interval_begin)
}

#[cfg(test)]
mod optuna_tests;

#[cfg(test)]
mod tests {
    use crate::space::tests::sweep;
    use crate::{Ask, Decision, Outcome, Study};

    pub(crate) fn study(stopping: &str, mode: &str) -> Study {
        Study::new(&sweep(&format!("mode = \"{mode}\"\n[stopping]\n{stopping}\n")))
    }

    pub(crate) fn ask(study: &mut Study) -> u64 {
        match study.ask() {
            Ask::Trial(trial) => trial.number,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a whole curve, steps from 1 on; the step after which it was stopped or paused, or `None`.
    pub(crate) fn run(study: &mut Study, curve: &[f64]) -> Option<(u64, Decision)> {
        let number = ask(study);
        for (step, value) in (1..).zip(curve) {
            let decision = study.report(number, step, *value).unwrap();
            if decision != Decision::Continue {
                if decision == Decision::Stop {
                    study.tell(number, Outcome::LastReport).unwrap();
                }
                return Some((step, decision));
            }
        }
        study.tell(number, Outcome::LastReport).unwrap();
        None
    }

    #[test]
    fn what_is_not_a_number_stops_under_every_rule() {
        for kind in [
            "kind = \"none\"",
            "kind = \"asha\"\nmax = 9",
            "kind = \"asha\"\nmax = 9\nmode = \"promote\"",
            "kind = \"hyperband\"\nmax = 9",
            "kind = \"median\"",
            "kind = \"wilcoxon\"",
            "kind = \"patient\"\npatience = 3",
            "kind = \"threshold\"\nupper = 3",
            "kind = \"plateau\"\ntrials = 3",
        ] {
            for (mode, bad) in
                [("min", f64::INFINITY), ("max", f64::NEG_INFINITY), ("min", f64::NAN), ("max", f64::NAN)]
            {
                let mut study = study(kind, mode);
                let number = ask(&mut study);
                assert_eq!(study.report(number, 1, bad), Ok(Decision::Stop), "{kind} {mode} {bad}");
            }
        }
        let mut study = study("kind = \"none\"", "max");
        let number = ask(&mut study);
        assert_eq!(study.report(number, 1, f64::INFINITY), Ok(Decision::Continue));
    }
}
