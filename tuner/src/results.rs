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
    /// The losses of the front's trials, one after the other: a walk over them meets no pointer.
    losses: Vec<f64>,
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
        let mine = trial.losses(objectives);
        let count = mine.len();
        let mut others = self.losses.chunks_exact(count);
        if mine.contains(&f64::INFINITY) || others.any(|other| pareto::dominates(other, &mine)) {
            return;
        }
        let mut kept = 0;
        for at in 0..self.front.len() {
            if !pareto::dominates(&mine, &self.losses[at * count..(at + 1) * count]) {
                self.front[kept] = self.front[at];
                self.losses.copy_within(at * count..(at + 1) * count, kept * count);
                kept += 1;
            }
        }
        self.front.truncate(kept);
        self.losses.truncate(kept * count);
        self.front.push(number);
        self.losses.extend(mine);
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
        let front: Vec<Vec<f64>> = self.losses.chunks_exact(objectives.len()).map(<[f64]>::to_vec).collect();
        Some(pareto::hypervolume(&front, &reference))
    }
}
