//! Percentile (and median) stopping, as in Google Vizier (Golovin et al. 2017): a trial whose best so far is worse than
//! a percentile of the completed trials at the same step.

use super::quantile::Quantile;
use super::{Report, Rule, is_due, stop_if};
use crate::study::loss;
use crate::trial::{Decision, Trial, TrialState};
use phalanx_core::spec::{MetricMode, Pace};
use std::collections::BTreeMap;

pub(super) struct Percentile {
    share: f64,
    startup: u64,
    pace: Pace,
    completed: u64,
    /// Of the losses of the completed trials, by step.
    cutoffs: BTreeMap<u64, Quantile>,
}

impl Percentile {
    pub(super) fn new(percentile: f64, startup: u64, pace: Pace) -> Percentile {
        Percentile { share: percentile / 100.0, startup, pace, completed: 0, cutoffs: BTreeMap::new() }
    }
}

impl Rule for Percentile {
    fn report(&mut self, trials: &[Trial], _: Option<u64>, report: &Report) -> Decision {
        let reports = &trials[report.number as usize].reports;
        if self.completed < self.startup || !is_due(self.pace, reports) {
            return Decision::Continue;
        }
        let best = reports.iter().map(|(_, value)| loss(report.mode, *value)).fold(f64::INFINITY, f64::min);
        let cutoff = self.cutoffs.get(&report.step).and_then(Quantile::linear);
        stop_if(cutoff.is_some_and(|cutoff| best > cutoff))
    }

    fn told(&mut self, mode: MetricMode, trial: &Trial) {
        if trial.state != TrialState::Complete {
            return;
        }
        self.completed += 1;
        for (step, value) in &trial.reports {
            let cutoff = self.cutoffs.entry(*step).or_insert_with(|| Quantile::new(self.share));
            cutoff.insert(loss(mode, *value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, study};
    use crate::Decision;

    #[test]
    fn the_best_so_far_is_held_against_the_median() {
        let mut study = study("kind = \"median\"\nstartup = 3", "min");
        for end in [1.0, 2.0, 3.0] {
            assert_eq!(run(&mut study, &[5.0 + end, end, end]), None);
        }
        // The medians are 7, 2, 2. A tie goes on, and a good first step carries the later ones.
        assert_eq!(run(&mut study, &[7.0, 2.0, 9.0]), None);
        assert_eq!(run(&mut study, &[7.5]), Some((1, Decision::Stop)));
        // The third step's median of [1, 2, 3, 9] is 2.5.
        assert_eq!(run(&mut study, &[6.0, 2.1]), Some((2, Decision::Stop)));
        // Steps that no completed trial has are not judged.
        assert_eq!(run(&mut study, &[1.0, 1.0, 1.0, 99.0]), None);
    }

    #[test]
    fn warmup_interval_and_percentile_count() {
        let lines = "kind = \"percentile\"\npercentile = 25\nstartup = 2\nwarmup = 2\ninterval = 2";
        let mut study = study(lines, "max");
        for value in [4.0, 8.0] {
            assert_eq!(run(&mut study, &[value; 6]), None);
        }
        // The better quarter begins at 7. Step 1 is warm-up; 2 and 4 are judged, 3 and 5 are not.
        assert_eq!(run(&mut study, &[6.0, 6.0]), Some((2, Decision::Stop)));
        assert_eq!(run(&mut study, &[7.0; 6]), None);
    }
}
