//! What a sweep may cost before it runs: the steps that its trials take at most, and those that are expected when early
//! stopping ends most of them.
//!
//! What is expected is tried out: the study itself runs a few sweeps, one trial at a time, whose trials are as good at
//! every step as at the last and come in random order. Real curves cross, and a search gets better: both bring trials
//! further.

use crate::random::Stream;
use crate::trial::{Decision, Outcome};
use crate::{Ask, Study};
use phalanx_core::spec::{Halving, MetricMode, Search, Stopping, SweepSpec};

/// Sweeps that are tried out.
const SWEEPS: u64 = 16;
/// Trials of each; what more of them would cost follows from these.
const MOST_TRIALS: u64 = 400;

/// Steps of all trials together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// If none of them were stopped early.
    pub most: u64,
    /// What the rule is expected to let run.
    pub expected: u64,
}

/// What so many trials of a sweep cost; `None` where nothing in the file says how many steps a trial has.
pub fn budget(sweep: &SweepSpec, trials: u64) -> Option<Budget> {
    if let Search::Pbt(population) = sweep.search {
        let all = trials.saturating_mul(population.interval);
        return Some(Budget { most: all, expected: all });
    }
    let (Stopping::Asha(halving) | Stopping::Hyperband(halving)) = sweep.stopping else { return None };
    let most = trials.saturating_mul(halving.max);
    // Several objectives have no order in which trials could be stopped.
    let expected = if sweep.objectives.len() > 1 { most } else { expected(sweep, &halving, trials) };
    Some(Budget { most, expected: expected.min(most) })
}

fn expected(sweep: &SweepSpec, halving: &Halving, trials: u64) -> u64 {
    let tried = trials.min(MOST_TRIALS);
    let mut plain = sweep.clone();
    (plain.search, plain.trials, plain.max_failed_trials) = (Search::Random, Some(tried), None);
    plain.constraints.clear();
    plain.enqueue.clear();
    plain.objectives.iter_mut().for_each(|objective| objective.target = None);
    let steps: f64 = (0..SWEEPS).map(|run| steps_of(&plain, halving, run) as f64).sum();
    (steps / SWEEPS as f64 * (trials as f64 / tried.max(1) as f64)).round() as u64
}

/// The steps of one sweep in which a trial's loss is the same at every step.
fn steps_of(sweep: &SweepSpec, halving: &Halving, run: u64) -> u64 {
    let next = |step: &u64| step.checked_mul(halving.eta);
    let rungs = std::iter::successors(Some(halving.min), next).take_while(|step| *step < halving.max);
    let steps: Vec<u64> = rungs.chain([halving.max]).collect();
    let mut study = Study::new(sweep);
    let mut taken = 0_u64;
    while let Ask::Trial(trial) = study.ask() {
        let loss = Stream::new(run, trial.number, "budget", "loss").unit();
        let value = if sweep.objectives[0].mode == MetricMode::Max { -loss } else { loss };
        let mut last = study.trials()[trial.number as usize].last_report().map_or(0, |(step, _)| step);
        let mut decision = Decision::Continue;
        for step in steps.iter().copied().filter(|step| *step > last).collect::<Vec<u64>>() {
            taken = taken.saturating_add(step - last);
            last = step;
            // A trial that was just handed out may report, and one that has not ended be told.
            decision = study.report(trial.number, step, value).unwrap_or(Decision::Stop);
            if decision != Decision::Continue {
                break;
            }
        }
        if decision != Decision::Pause && study.tell(trial.number, Outcome::LastReport).is_err() {
            break;
        }
        study.take_records();
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::tests::sweep;

    fn of(lines: &str, trials: u64) -> Option<Budget> {
        let params = "[params]\nx = { kind = \"float\", low = 0, high = 1 }\n";
        budget(&sweep(&format!("{lines}\n{params}")), trials)
    }

    #[test]
    fn rungs_bound_what_is_expected() {
        let asha = |mode: &str| {
            of(&format!("[stopping]\nkind = \"asha\"\nmax = 81\neta = 3\nmode = \"{mode}\""), 100).unwrap()
        };
        let (promote, stop) = (asha("promote"), asha("stop"));
        assert_eq!((promote.most, stop.most), (8100, 8100));
        // A third at each rung would be 340 steps; before a rung has seen many, more go on than that.
        assert!((340..700).contains(&promote.expected), "{promote:?}");
        assert!((340..1200).contains(&stop.expected), "{stop:?}");
        let hyperband = of("[stopping]\nkind = \"hyperband\"\nmax = 81\neta = 3", 100).unwrap();
        assert!(hyperband.expected > stop.expected && hyperband.expected < 4000, "{hyperband:?}");
    }

    #[test]
    fn many_trials_cost_in_proportion_and_one_costs_all() {
        let of = |trials| {
            of("mode = \"max\"\n[stopping]\nkind = \"hyperband\"\nmax = 9\neta = 3", trials).unwrap()
        };
        assert_eq!(of(1), Budget { most: 9, expected: 9 });
        assert_eq!(of(0), Budget { most: 0, expected: 0 });
        let (some, many) = (of(MOST_TRIALS), of(100 * MOST_TRIALS));
        assert!(many.expected.abs_diff(100 * some.expected) <= 100, "{some:?} {many:?}");
        assert_eq!(of(u64::MAX).most, u64::MAX);
    }

    #[test]
    fn a_last_step_that_is_no_rung_is_reached_all_the_same() {
        let lines = "[stopping]\nkind = \"asha\"\nmin = 2\nmax = 100\neta = 3\nmode = \"promote\"";
        // Of one trial alone nobody is promoted: it stays at the first rung.
        assert_eq!(of(lines, 1), Some(Budget { most: 100, expected: 2 }));
        assert!(of(lines, 200).unwrap().expected > 200 * 2 + 66 * 4 + 22 * 12);
    }

    #[test]
    fn without_rungs_only_a_population_says_how_long_trials_are() {
        assert_eq!(of("[search]\nkind = \"random\"", 20), None);
        assert_eq!(of("[stopping]\nkind = \"median\"", 20), None);
        let population = of("[search]\nkind = \"pbt\"\npopulation = 4\ninterval = 5", 40);
        assert_eq!(population, Some(Budget { most: 200, expected: 200 }));
    }

    #[test]
    fn what_ends_a_sweep_or_is_tried_first_does_not_matter() {
        let rule = "[stopping]\nkind = \"asha\"\nmax = 27\neta = 3\nmode = \"promote\"";
        let plain = of(rule, 60);
        assert_eq!(of(&format!("target = 0.9\n{rule}"), 60), plain);
        assert_eq!(of(&format!("{rule}\n[[enqueue]]\nx = 0.5"), 60), plain);
    }
}
