//! Ends the whole search when its best no longer improves.

use super::{Report, Rule};
use crate::study::loss;
use crate::trial::{Decision, Trial, TrialState};
use phalanx_core::spec::MetricMode;

pub(super) struct Plateau {
    trials: u64,
    min_delta: f64,
    best: Option<f64>,
    /// Completed trials in a row without improvement.
    idle: u64,
}

impl Plateau {
    pub(super) fn new(trials: u64, min_delta: f64) -> Plateau {
        Plateau { trials, min_delta, best: None, idle: 0 }
    }
}

impl Rule for Plateau {
    fn report(&mut self, _: &[Trial], _: Option<u64>, _: &Report) -> Decision {
        Decision::Continue
    }

    fn told(&mut self, mode: MetricMode, trial: &Trial) {
        if trial.state != TrialState::Complete || self.ends_sweep() {
            return;
        }
        let loss = trial.value().map_or(f64::INFINITY, |value| loss(mode, value));
        let improved = self.best.is_none_or(|best| best - loss > self.min_delta);
        self.idle = if improved { 0 } else { self.idle + 1 };
        self.best = Some(self.best.map_or(loss, |best| best.min(loss)));
    }

    fn ends_sweep(&self) -> bool {
        self.idle >= self.trials
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ask, study};
    use crate::{Ask, Outcome};

    #[test]
    fn the_sweep_ends_after_so_many_in_a_row() {
        let mut study = study("kind = \"plateau\"\ntrials = 2\nmin_delta = 0.1", "max");
        for (index, value) in [1.0, 1.0, 1.5, 1.55, 1.8, 1.9, 1.7].into_iter().enumerate() {
            let number = ask(&mut study);
            if index == 3 {
                let failed = ask(&mut study);
                study.tell(failed, Outcome::Failed).unwrap();
            }
            study.tell(number, Outcome::Values(vec![value])).unwrap();
        }
        // 1.8 to 1.9 is no more than 0.1, within rounding above it here; 1.7 is none at all.
        let number = match study.ask() {
            Ask::Done => return,
            Ask::Trial(trial) => trial.number,
            Ask::Wait => panic!("nothing to wait for"),
        };
        study.tell(number, Outcome::Values(vec![1.0])).unwrap();
        assert_eq!(study.ask(), Ask::Done);
    }
}
