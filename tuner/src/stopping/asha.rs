//! Asynchronous successive halving (Li et al., arXiv 1810.05934): trials meet at rungs `min · eta^k`, and a rung lets
//! one in `eta` go on.

use super::{Report, Rule, insert_sorted, lower_quantile, quantile, stop_if};
use crate::trial::{Decision, Trial, TrialState};
use phalanx_core::spec::{Cutoff, Halving, HalvingMode};
use std::collections::{BTreeMap, BTreeSet};

/// The steps `first · eta^k ≤ max`, by integer arithmetic.
pub(super) fn rungs(first: u64, halving: &Halving) -> Vec<u64> {
    let next = |step: &u64| step.checked_mul(halving.eta);
    std::iter::successors(Some(first), next).take_while(|step| *step <= halving.max).collect()
}

/// What a rung has seen.
#[derive(Default)]
struct Rung {
    step: u64,
    /// Ascending losses.
    losses: Vec<f64>,
    /// (loss, trial), best first and the earlier of equals first; kept for promotion only.
    ranking: Vec<(f64, u64)>,
    promoted: BTreeSet<u64>,
}

pub(super) struct Asha {
    halving: Halving,
    rungs: Vec<Rung>,
    /// How many rungs a trial has behind it.
    passed: BTreeMap<u64, usize>,
}

impl Asha {
    pub(super) fn new(halving: Halving, first: u64) -> Asha {
        let rungs = rungs(first, &halving).into_iter().map(|step| Rung { step, ..Rung::default() });
        Asha { halving, rungs: rungs.collect(), passed: BTreeMap::new() }
    }
}

impl Rule for Asha {
    fn report(&mut self, _: &[Trial], _: Option<u64>, report: &Report) -> Decision {
        let reached = self.rungs.partition_point(|rung| rung.step <= report.step);
        let passed = self.passed.get(&report.number).copied().unwrap_or(0);
        if reached <= passed {
            return Decision::Continue;
        }
        self.passed.insert(report.number, reached);
        let rung = &mut self.rungs[reached - 1];
        // The (1 − 1/eta) quantile of scores is the 1/eta quantile of losses.
        let share = 1.0 / self.halving.eta as f64;
        let cutoff = match self.halving.cutoff {
            Cutoff::Linear => quantile(&rung.losses, share),
            // Of so few that the line between two is long, the better one.
            Cutoff::Lower => lower_quantile(&rung.losses, share),
        };
        insert_sorted(&mut rung.losses, report.loss);
        if self.halving.mode == HalvingMode::Promote {
            let at = rung.ranking.partition_point(|(loss, _)| *loss <= report.loss);
            rung.ranking.insert(at, (report.loss, report.number));
        }
        if report.step >= self.halving.max {
            return Decision::Continue;
        }
        match self.halving.mode {
            HalvingMode::Stop => stop_if(cutoff.is_some_and(|cutoff| report.loss > cutoff)),
            HalvingMode::Promote => Decision::Pause,
        }
    }

    fn promotable(&self, trials: &[Trial]) -> Option<u64> {
        self.rungs.iter().rev().find_map(|rung| {
            let places = rung.ranking.len() / self.halving.eta as usize;
            let top = rung.ranking[..places].iter().map(|(_, number)| *number);
            let waits = |number: &u64| trials[*number as usize].state == TrialState::Paused;
            top.into_iter().find(|number| !rung.promoted.contains(number) && waits(number))
        })
    }

    fn resumed(&mut self, number: u64) {
        if let Some(passed) = self.passed.get(&number) {
            self.rungs[passed - 1].promoted.insert(number);
        }
    }

    fn promotes(&self) -> bool {
        self.halving.mode == HalvingMode::Promote
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ask, run, study};
    use super::*;
    use crate::{Ask, Study};

    #[test]
    fn no_rung_is_lost_to_a_logarithm() {
        let of = |min, max, eta| {
            rungs(min, &Halving { mode: HalvingMode::Stop, min, max, eta, cutoff: Cutoff::Linear })
        };
        assert_eq!(of(1, 1000, 10), [1, 10, 100, 1000]);
        assert_eq!(of(1, 243, 3), [1, 3, 9, 27, 81, 243]);
        assert_eq!(of(2, 100, 3), [2, 6, 18, 54]);
        assert_eq!(of(5, 5, 2), [5]);
        assert_eq!(of(1 << 62, u64::MAX, 5), [1 << 62]);
    }

    #[test]
    fn stop_compares_with_the_quantile_of_those_before() {
        let mut study = study("kind = \"asha\"\nmin = 1\nmax = 9\neta = 3", "min");
        let report = |study: &mut Study, step, value| {
            let number = ask(study);
            study.report(number, step, value).unwrap()
        };
        // Rung 1 holds nothing: the first goes on. Then [1]: 1 is a tie, 1.1 is worse.
        assert_eq!(report(&mut study, 1, 1.0), Decision::Continue);
        assert_eq!(report(&mut study, 1, 1.0), Decision::Continue);
        assert_eq!(report(&mut study, 1, 1.1), Decision::Stop);
        // [1, 1, 1.1]: the third is at 2/3 of the way, 1.0; [1, 1, 1.1, 4] then has 1.0 there as well.
        assert_eq!(report(&mut study, 1, 4.0), Decision::Stop);
        assert_eq!(report(&mut study, 1, 0.5), Decision::Continue);
        // [0.5, 1, 1, 1.1, 4]: place 4/3, so 1.0 again; at 2/3 of the way from 0.5 it would not be.
        assert_eq!(report(&mut study, 1, 0.9), Decision::Continue);
        // [0.5, 0.9, 1, 1, 1.1, 4]: place 5/3, 0.9 + 2/3 · 0.1.
        assert_eq!(report(&mut study, 1, 0.967), Decision::Stop);
        assert_eq!(report(&mut study, 1, 0.9), Decision::Continue);
    }

    #[test]
    fn the_lower_cutoff_is_one_that_was_seen() {
        let mut study = study("kind = \"asha\"\nmin = 1\nmax = 9\neta = 3\ncutoff = \"lower\"", "max");
        let decisions = [1.0, 0.9, 2.0, 1.9, 1.8, 2.0].map(|value| {
            let number = ask(&mut study);
            study.report(number, 1, value).unwrap()
        });
        let (go, stop) = (Decision::Continue, Decision::Stop);
        // The fifth meets [2, 1.9, 1, 0.9]: the place of a third is the first, 2. The sixth is equal to it.
        assert_eq!(decisions, [go, stop, go, stop, stop, go]);
    }

    #[test]
    fn a_report_counts_once_at_the_highest_rung() {
        let mut study = study("kind = \"asha\"\nmin = 1\nmax = 9\neta = 3", "max");
        let first = ask(&mut study);
        assert_eq!(study.report(first, 5, 10.0), Ok(Decision::Continue));
        let second = ask(&mut study);
        // Rung 1 has seen nobody: the first trial came in at rung 3.
        assert_eq!(study.report(second, 2, 0.0), Ok(Decision::Continue));
        assert_eq!(study.report(second, 4, 9.9), Ok(Decision::Stop));
        // At max a trial is complete whatever its value.
        assert_eq!(study.report(first, 9, -50.0), Ok(Decision::Continue));
        let third = ask(&mut study);
        assert_eq!(study.report(third, 12, -90.0), Ok(Decision::Continue));
    }

    #[test]
    fn the_best_third_is_promoted_from_the_highest_rung_first() {
        let mut study = study("kind = \"asha\"\nmode = \"promote\"\nmin = 1\nmax = 9\neta = 3", "min");
        let pause = Some((1, Decision::Pause));
        for value in [0.5, 0.3, 0.4] {
            assert_eq!(run(&mut study, &[value]), pause);
        }
        // Three at the rung: the best of them goes on, and its step between rungs is not judged.
        assert_eq!(resumed(&mut study), Some(1));
        assert_eq!(study.report(1, 2, 9.0), Ok(Decision::Continue));
        assert_eq!(study.report(1, 3, 0.29), Ok(Decision::Pause));
        // Trial 3 takes the one place among four, trial 4 gets none among five.
        assert_eq!(run(&mut study, &[0.2]), pause);
        assert_eq!(resumed(&mut study), Some(3));
        assert_eq!(study.report(3, 3, 0.1), Ok(Decision::Pause));
        assert_eq!(run(&mut study, &[0.6]), pause);
        // A sixth makes it the best two, 3 and 1: both were promoted before, and a new trial is handed out.
        assert_eq!(run(&mut study, &[0.9]), pause);
        assert_eq!(resumed(&mut study), None);
        assert_eq!(study.report(6, 1, 0.25), Ok(Decision::Pause));
        assert_eq!(resumed(&mut study), Some(6));
        // The third at rung 3 promotes the best there, before anyone at rung 1.
        assert_eq!(study.report(6, 4, 0.15), Ok(Decision::Pause));
        assert_eq!(resumed(&mut study), Some(3));
        assert_eq!(study.report(3, 9, 0.05), Ok(Decision::Continue));
    }

    fn resumed(study: &mut Study) -> Option<u64> {
        match study.ask() {
            Ask::Trial(trial) if trial.resumed => Some(trial.number),
            _ => None,
        }
    }

    #[test]
    fn worst_values_are_kept_at_the_rung() {
        let mut study = study("kind = \"asha\"\nmin = 1\nmax = 9\neta = 2", "min");
        for value in [f64::NAN, f64::INFINITY] {
            assert_eq!(run(&mut study, &[value]), Some((1, Decision::Stop)));
        }
        // The median of two infinities is one: nothing finite is worse.
        assert_eq!(run(&mut study, &[1e300]), None);
        assert_eq!(run(&mut study, &[2e300]), None);
    }
}
