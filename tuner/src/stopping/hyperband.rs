//! Hyperband (Li et al., JMLR 18-185): successive halving from every rung on, so that slow starters have brackets in
//! which nobody judges them early.

use super::asha::{Asha, rungs};
use super::{Report, Rule};
use crate::trial::{Decision, Trial};
use phalanx_core::spec::{Halving, HalvingMode, MetricMode};

pub(super) struct Hyperband {
    brackets: Vec<Asha>,
    /// Out of the sum of these, so many trials belong to each bracket.
    shares: Vec<u64>,
    seed: u64,
    mode: HalvingMode,
}

impl Hyperband {
    pub(super) fn new(halving: Halving, seed: u64) -> Hyperband {
        let firsts = rungs(halving.min, &halving);
        let brackets = firsts.iter().map(|&first| Asha::new(halving, first)).collect();
        Hyperband { shares: shares(firsts.len(), halving.eta), brackets, seed, mode: halving.mode }
    }

    /// The bracket of a trial: a function of the sweep's seed and the trial's number. A Weyl sequence gives every
    /// stretch of numbers its fair part of every bracket.
    fn bracket(&self, number: u64) -> usize {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let place = (self.seed.wrapping_add(1))
            .wrapping_mul(0xD1B5_4A32_D192_ED03)
            .wrapping_add(number.wrapping_mul(GOLDEN));
        let total: u64 = self.shares.iter().sum();
        let mut left = ((u128::from(place) * u128::from(total)) >> 64) as u64;
        for (bracket, share) in self.shares.iter().enumerate() {
            if left < *share {
                return bracket;
            }
            left -= share;
        }
        self.shares.len() - 1
    }
}

/// Trials of each bracket, the one with the lowest first rung first: with `s` rungs above the first, ⌈n·eta^s/(s+1)⌉, so
/// that each bracket gets about the same budget.
fn shares(brackets: usize, eta: u64) -> Vec<u64> {
    /// Beyond it a share is all there is.
    const LARGEST: u64 = 1 << 40;
    let share = |bracket: usize| {
        let above = (brackets - 1 - bracket) as u64;
        let trials = (brackets as u64).saturating_mul(eta.saturating_pow(above as u32));
        trials.div_ceil(above + 1).min(LARGEST)
    };
    (0..brackets).map(share).collect()
}

impl Rule for Hyperband {
    fn report(&mut self, trials: &[Trial], best: Option<u64>, report: &Report) -> Decision {
        let bracket = self.bracket(report.number);
        self.brackets[bracket].report(trials, best, report)
    }

    fn told(&mut self, mode: MetricMode, trial: &Trial) {
        let bracket = self.bracket(trial.number);
        self.brackets[bracket].told(mode, trial);
    }

    fn promotable(&self, trials: &[Trial]) -> Option<u64> {
        self.brackets.iter().find_map(|bracket| bracket.promotable(trials))
    }

    fn resumed(&mut self, number: u64) {
        let bracket = self.bracket(number);
        self.brackets[bracket].resumed(number);
    }

    fn promotes(&self) -> bool {
        self.mode == HalvingMode::Promote
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::spec::Cutoff;

    fn hyperband(seed: u64) -> Hyperband {
        Hyperband::new(
            Halving { mode: HalvingMode::Stop, min: 1, max: 81, eta: 3, cutoff: Cutoff::Linear },
            seed,
        )
    }

    #[test]
    fn brackets_are_shared_as_in_the_paper() {
        // n = ⌈5 · 3^s / (s + 1)⌉ for s = 4 … 0.
        assert_eq!(shares(5, 3), [81, 34, 15, 8, 5]);
        assert_eq!(shares(1, 3), [1]);
    }

    #[test]
    fn trials_are_spread_evenly_and_always_alike() {
        let (rule, again) = (hyperband(3), hyperband(3));
        let mut counts = [0_u64; 5];
        for number in 0..143 {
            assert_eq!(rule.bracket(number), again.bracket(number));
            counts[rule.bracket(number)] += 1;
        }
        for (count, share) in counts.iter().zip(&rule.shares) {
            assert!(count.abs_diff(*share) <= 2, "{counts:?}");
        }
        assert!((0..50).any(|number| rule.bracket(number) != hyperband(4).bracket(number)));
    }

    #[test]
    fn a_bracket_judges_from_its_own_first_rung() {
        use super::super::tests::{run, study};
        let mut study = study("kind = \"hyperband\"\nmax = 9\neta = 3", "min");
        let rule = Hyperband::new(
            Halving { mode: HalvingMode::Stop, min: 1, max: 9, eta: 3, cutoff: Cutoff::Linear },
            0,
        );
        let (mut best_run, mut stops) = ([false; 3], 0);
        for number in 0..40 {
            let bracket = rule.bracket(number);
            // Worse from trial to trial: only the first of a bracket has nobody before it.
            let loss = number as f64;
            let stopped = run(&mut study, &[loss; 9]);
            let expected = if best_run[bracket] { [Some(1), Some(3), None][bracket] } else { None };
            assert_eq!(stopped.map(|(step, _)| step), expected, "trial {number} of bracket {bracket}");
            best_run[bracket] = true;
            stops += u32::from(stopped.is_some());
        }
        assert!(best_run == [true; 3] && stops > 20);
    }
}
