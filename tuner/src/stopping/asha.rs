//! Asynchronous successive halving (Li et al., arXiv 1810.05934): trials meet at rungs `min · eta^k`, and a rung lets
//! one in `eta` go on.

use super::quantile::{Quantile, Total};
use super::{Report, Rule, stop_if};
use crate::trial::{Decision, Trial, TrialState};
use phalanx_core::spec::{Cutoff, Halving, HalvingMode, MetricMode};
use std::collections::BTreeMap;

/// The steps `first · eta^k ≤ max`, by integer arithmetic.
pub(super) fn rungs(first: u64, halving: &Halving) -> Vec<u64> {
    let next = |step: &u64| step.checked_mul(halving.eta);
    std::iter::successors(Some(first), next).take_while(|step| *step <= halving.max).collect()
}

/// Where a trial is in a rung: its loss, and how many came before it. The best first, and the earlier of equals.
type Place = (Total, u64);

/// What a rung has seen.
struct Rung {
    step: u64,
    /// The (1 − 1/eta) quantile of scores, which is the 1/eta quantile of losses.
    cutoff: Quantile,
    /// All of them, ascending; kept for promotion only.
    places: Vec<Place>,
    /// Those that have not gone on and may.
    waiting: BTreeMap<Place, u64>,
}

impl Rung {
    fn insert(&mut self, loss: f64) -> Place {
        let place = (Total::of(loss), self.places.len() as u64);
        let at = self.places.partition_point(|other| *other < place);
        self.places.insert(at, place);
        place
    }

    /// The best that waits, if it is among the top one in `eta`.
    fn promotable(&self, trials: &[Trial], eta: u64) -> Option<u64> {
        let last = (self.places.len() / eta as usize).checked_sub(1)?;
        let top = self.waiting.range(..=self.places[last]);
        // One that has just reported is not paused yet.
        let waits = |number: &u64| trials[*number as usize].state == TrialState::Paused;
        top.map(|(_, number)| *number).find(waits)
    }
}

pub(super) struct Asha {
    halving: Halving,
    rungs: Vec<Rung>,
    /// How many rungs a trial has behind it, and for promotion its place in the last of them.
    passed: BTreeMap<u64, (usize, Option<Place>)>,
}

impl Asha {
    pub(super) fn new(halving: Halving, first: u64) -> Asha {
        let share = 1.0 / halving.eta as f64;
        let rungs = rungs(first, &halving).into_iter().map(|step| Rung {
            step,
            cutoff: Quantile::new(share),
            places: Vec::new(),
            waiting: BTreeMap::new(),
        });
        Asha { halving, rungs: rungs.collect(), passed: BTreeMap::new() }
    }

    /// A trial waits no longer where it was last.
    fn leave(&mut self, number: u64) {
        if let Some((passed, Some(place))) = self.passed.get(&number) {
            self.rungs[passed - 1].waiting.remove(place);
        }
    }
}

impl Rule for Asha {
    fn report(&mut self, _: &[Trial], _: Option<u64>, report: &Report) -> Decision {
        let reached = self.rungs.partition_point(|rung| rung.step <= report.step);
        let passed = self.passed.get(&report.number).map_or(0, |(passed, _)| *passed);
        if reached <= passed {
            return Decision::Continue;
        }
        let (is_last, rung) = (report.step >= self.halving.max, &mut self.rungs[reached - 1]);
        let cutoff = match self.halving.cutoff {
            Cutoff::Linear => rung.cutoff.linear(),
            // Of so few that the line between two is long, the better one.
            Cutoff::Lower => rung.cutoff.lower(),
        };
        rung.cutoff.insert(report.loss);
        let place = self.promotes().then(|| self.rungs[reached - 1].insert(report.loss));
        self.passed.insert(report.number, (reached, place));
        match place {
            _ if is_last => Decision::Continue,
            Some(place) => {
                self.rungs[reached - 1].waiting.insert(place, report.number);
                Decision::Pause
            }
            None => stop_if(cutoff.is_some_and(|cutoff| report.loss > cutoff)),
        }
    }

    fn told(&mut self, _: MetricMode, trial: &Trial) {
        self.leave(trial.number);
    }

    fn promotable(&self, trials: &[Trial]) -> Option<u64> {
        self.rungs.iter().rev().find_map(|rung| rung.promotable(trials, self.halving.eta))
    }

    fn resumed(&mut self, number: u64) {
        self.leave(number);
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
