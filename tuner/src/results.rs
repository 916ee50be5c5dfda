//! The best trial and the front, kept as trials complete.

use crate::pareto;
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::Objective;

/// Steps of a hypervolume that somebody waits for: some seconds.
const MOST_STEPS: f64 = 1e9;

/// Numbers of the best trials so far.
#[derive(Debug, Default)]
pub(crate) struct Results {
    best: Option<u64>,
    front: Vec<u64>,
}

impl Results {
    pub(crate) fn best(&self) -> Option<u64> {
        self.best
    }

    pub(crate) fn front(&self) -> &[u64] {
        &self.front
    }

    /// Sees whether a complete trial is the best so far, or on the front.
    pub(crate) fn crown(&mut self, trials: &[Trial], objectives: &[Objective], number: u64) {
        let trial = &trials[number as usize];
        if !trial.is_feasible() {
            return;
        }
        let best = self.best.map(|best| trials[best as usize].values[0]);
        let value = trial.values[0];
        if best.map_or(!value.is_nan(), |best| objectives[0].mode.is_better(value, best)) {
            self.best = Some(number);
        }
        let losses = |number: &u64| trials[*number as usize].losses(objectives);
        let mine = losses(&number);
        if mine.contains(&f64::INFINITY)
            || self.front.iter().any(|other| pareto::dominates(&losses(other), &mine))
        {
            return;
        }
        self.front.retain(|other| !pareto::dominates(&mine, &losses(other)));
        self.front.push(number);
    }

    /// The volume that the front takes up to each objective's reference: the one given, or the worst loss of the
    /// complete trials. `None` where it would take too long to compute.
    pub(crate) fn hypervolume(&self, trials: &[Trial], objectives: &[Objective]) -> Option<f64> {
        if pareto::hypervolume_steps(self.front.len(), objectives.len()) > MOST_STEPS {
            return None;
        }
        let complete = || trials.iter().filter(|trial| trial.state == TrialState::Complete);
        let worst = |at: usize| {
            let losses = complete().map(|trial| trial.losses(objectives)[at]).filter(|loss| loss.is_finite());
            losses.fold(f64::NEG_INFINITY, f64::max)
        };
        let reference: Vec<f64> = objectives
            .iter()
            .enumerate()
            .map(|(at, objective)| match objective.reference {
                Some(value) => crate::study::loss(objective.mode, value),
                None => worst(at),
            })
            .collect();
        let front: Vec<Vec<f64>> =
            self.front.iter().map(|number| trials[*number as usize].losses(objectives)).collect();
        Some(pareto::hypervolume(&front, &reference))
    }
}
