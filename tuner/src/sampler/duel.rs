//! Which of two samplers is asked: the one whose latest trials were better gets three of four, so that the other one keeps
//! its chance.

use crate::study::loss;
use crate::trial::{Origin, Trial};
use phalanx_core::spec::MetricMode;
use std::collections::VecDeque;

/// Trials of each that are compared.
const LATEST: usize = 16;

/// The latest losses of both.
#[derive(Default)]
pub(super) struct Duel {
    cmaes: VecDeque<f64>,
    tpe: VecDeque<f64>,
}

impl Duel {
    pub(super) fn moved(&mut self, mode: MetricMode, trial: &Trial) {
        let latest = match trial.origin {
            Origin::Cmaes => &mut self.cmaes,
            Origin::Tpe => &mut self.tpe,
            _ => return,
        };
        if !trial.state.is_told() {
            return;
        }
        let value = trial.value().filter(|_| trial.is_feasible());
        latest.push_back(value.map_or(f64::INFINITY, |value| loss(mode, value)));
        if latest.len() > LATEST {
            latest.pop_front();
        }
    }

    /// Whose turn it is at a trial.
    pub(super) fn next(&self, number: u64) -> Origin {
        let level = |losses: &VecDeque<f64>| {
            let mut sorted: Vec<f64> = losses.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 4).copied()
        };
        let leads = match (level(&self.cmaes), level(&self.tpe)) {
            (Some(cmaes), Some(tpe)) if self.cmaes.len() == LATEST && self.tpe.len() == LATEST => {
                cmaes <= tpe
            }
            // Until both have shown something they take turns.
            _ => return if number.is_multiple_of(2) { Origin::Cmaes } else { Origin::Tpe },
        };
        if leads != number.is_multiple_of(4) { Origin::Cmaes } else { Origin::Tpe }
    }
}
