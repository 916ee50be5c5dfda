//! Which losses a model may compare: those of one step, the highest that enough trials have reached (Falkner et al.,
//! BOHB, arXiv 1807.01774). Without early stopping every trial has one loss, the one it was told with.

use super::View;
use crate::study::loss;
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::Stopping;

/// Trials beyond the number of dimensions that make enough.
const SPARE_TRIALS: usize = 2;

/// The step at which trials are compared.
pub(super) struct Level {
    /// `None`: by the values they were told with.
    step: Option<u64>,
    /// Drop of the loss from each step that trials ended at to that level.
    drops: Vec<(u64, f64)>,
}

impl Level {
    /// The level for a model of so many dimensions.
    pub(super) fn of(view: &View<'_>, dims: usize) -> Level {
        let told = Level { step: None, drops: Vec::new() };
        if matches!(view.stopping, Stopping::None | Stopping::Plateau { .. }) || view.objectives.len() > 1 {
            return told;
        }
        let is_cut = |trial: &&Trial| matches!(trial.state, TrialState::Stopped | TrialState::Paused);
        let complete = view.trials.iter().filter(|trial| trial.state == TrialState::Complete).count();
        let mut reached: Vec<u64> =
            view.trials.iter().filter(is_cut).filter_map(|trial| Some(trial.last_report()?.0)).collect();
        let enough = dims + SPARE_TRIALS;
        if reached.is_empty() {
            return told;
        }
        reached.sort_unstable();
        let mut steps = reached.clone();
        steps.dedup();
        let count_from = |step: u64| complete + reached.len() - reached.partition_point(|at| *at < step);
        let found = steps.iter().rev().copied().find(|step| count_from(*step) >= enough);
        let step = if complete >= enough { None } else { Some(found.unwrap_or(steps[0])) };
        let mut level = Level { step, drops: Vec::new() };
        level.drops = steps.iter().filter_map(|from| Some((*from, level.drop_from(view, *from)?))).collect();
        level
    }

    /// By how much losses drop from a step to this level: the median over the trials that have both.
    fn drop_from(&self, view: &View<'_>, from: u64) -> Option<f64> {
        let mut drops: Vec<f64> = view
            .trials
            .iter()
            .filter_map(|trial| Some(self.reached(view, trial)? - at_step(view, trial, from)?))
            .filter(|drop| drop.is_finite())
            .collect();
        drops.sort_by(f64::total_cmp);
        drops.get(drops.len() / 2).copied()
    }

    /// A trial's own loss at this level, if it got there.
    fn reached(&self, view: &View<'_>, trial: &Trial) -> Option<f64> {
        match self.step {
            Some(step) => at_step(view, trial, step),
            None if trial.state == TrialState::Complete => {
                trial.values.first().map(|value| loss(view.objectives[0].mode, *value))
            }
            None => None,
        }
    }

    /// The loss to learn from: at this level, or what would be expected there of a trial that did not get so far.
    pub(super) fn loss(&self, view: &View<'_>, trial: &Trial) -> f64 {
        if trial.state == TrialState::Failed {
            return f64::INFINITY;
        }
        if let Some(loss) = self.reached(view, trial) {
            return loss;
        }
        let mode = view.objectives[0].mode;
        match trial.last_report() {
            Some((step, value)) => {
                let at = self.drops.partition_point(|(from, _)| *from <= step);
                let drop = at.checked_sub(1).map_or(0.0, |at| self.drops[at].1);
                loss(mode, value) + drop.min(0.0)
            }
            None => trial.value().map_or(f64::INFINITY, |value| loss(mode, value)),
        }
    }
}

/// The loss at a step: of the last report up to it, where the trial went as far.
fn at_step(view: &View<'_>, trial: &Trial, step: u64) -> Option<f64> {
    let count = trial.reports.partition_point(|(at, _)| *at <= step);
    let went_on = count < trial.reports.len() || trial.reports.last().is_some_and(|(at, _)| *at == step);
    let value = match count.checked_sub(1) {
        Some(at) if went_on => trial.reports[at].1,
        _ if trial.state == TrialState::Complete => *trial.values.first()?,
        _ => return None,
    };
    Some(loss(view.objectives[0].mode, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;
    use crate::space::Space;
    use crate::space::tests::sweep;
    use phalanx_core::spec::Params;

    /// A trial whose loss falls by 1/step from where it ends.
    fn trial(number: usize, state: TrialState, last: u64, end: f64) -> Trial {
        let mut trial = Trial::new(number, number as u64, Origin::Random, Params::new(), vec![Some(0.5)]);
        trial.state = state;
        trial.reports = (1..=last).map(|step| (step, end + 1.0 / step as f64)).collect();
        if state == TrialState::Complete {
            trial.values = vec![end + 1.0 / last as f64];
        }
        trial
    }

    fn level_of(trials: &[Trial], dims: usize) -> (Option<u64>, Vec<f64>) {
        let spec = sweep(
            "[stopping]\nkind = \"asha\"\nmax = 27\n[params]\nx = { kind = \"float\", low = 0, high = 1 }\n",
        );
        let space = Space::new(&spec.params);
        let view = View {
            space: &space,
            trials,
            known: 0,
            objectives: &spec.objectives,
            constraints: &[],
            stopping: &spec.stopping,
            seed: 0,
        };
        let level = Level::of(&view, dims);
        (level.step, trials.iter().map(|trial| level.loss(&view, trial)).collect())
    }

    #[test]
    fn trials_are_compared_at_the_highest_rung_that_enough_have_reached() {
        let mut trials: Vec<Trial> = (0..6).map(|at| trial(at, TrialState::Stopped, 1, at as f64)).collect();
        assert_eq!(level_of(&trials, 2).0, Some(1));
        trials.extend((6..9).map(|at| trial(at, TrialState::Stopped, 3, 0.5)));
        // Three of four that are needed: the first rung still, where all of them are.
        let (step, losses) = level_of(&trials, 2);
        assert_eq!((step, losses[8]), (Some(1), 1.5));
        trials.push(trial(9, TrialState::Complete, 27, 0.0));
        let (step, losses) = level_of(&trials, 2);
        assert_eq!((step, losses[9]), (Some(3), 1.0 / 3.0));
        // One that did not get so far: as much as those that did have fallen since.
        assert!((losses[2] - (3.0 - 2.0 / 3.0)).abs() < 1e-12, "{}", losses[2]);
        trials.extend((10..13).map(|at| trial(at, TrialState::Complete, 27, 0.1)));
        assert_eq!(level_of(&trials, 2).0, None);
        trials.push(trial(13, TrialState::Failed, 0, 0.0));
        assert_eq!(level_of(&trials, 2).1[13], f64::INFINITY);
    }
}
