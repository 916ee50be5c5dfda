//! Stops a trial that is worse than the best complete one by Wilcoxon's signed-rank test over their common steps; for
//! steps that are folds or instances rather than time.

use super::{Report, Rule, stop_if};
use crate::study::loss;
use crate::trial::{Decision, Trial};

pub(super) struct Wilcoxon {
    pub(super) p: f64,
    pub(super) startup_steps: u64,
}

impl Rule for Wilcoxon {
    fn report(&mut self, trials: &[Trial], best: Option<u64>, report: &Report) -> Decision {
        let Some(best) = best.map(|number| &trials[number as usize].reports) else {
            return Decision::Continue;
        };
        let mine = &trials[report.number as usize].reports;
        let losses = |reports: &[(u64, f64)]| -> Vec<f64> {
            reports.iter().map(|(_, value)| loss(report.mode, *value)).collect()
        };
        let all_finite = |reports: &[(u64, f64)]| reports.iter().all(|(_, value)| value.is_finite());
        let mut differences = Vec::with_capacity(mine.len());
        for (step, value) in mine {
            if let Ok(at) = best.binary_search_by_key(step, |(step, _)| *step) {
                differences.push(loss(report.mode, *value) - loss(report.mode, best[at].1));
            }
        }
        let enough = differences.len() as u64 >= self.startup_steps.max(2);
        if !enough || !all_finite(mine) || !all_finite(best) {
            return Decision::Continue;
        }
        let mean = |losses: Vec<f64>| losses.iter().sum::<f64>() / losses.len() as f64;
        // For safety a trial that is better on average goes on whatever the test says.
        let better = mean(losses(best)) >= mean(losses(mine));
        stop_if(!better && p_value(&differences) < self.p)
    }
}

/// Differences up to which the distribution of the statistic is counted out, without and with ties.
const EXACT_WITHOUT_TIES: usize = 50;
const EXACT_WITH_TIES: usize = 13;

/// How likely so large a sum of positive ranks is if differences are symmetric about zero; zeros are split between
/// both signs (`zsplit`). Exact for few differences, else by the normal approximation; the choices of
/// scipy 1.17.
fn p_value(differences: &[f64]) -> f64 {
    let count = differences.len();
    let (ranks, tie_sum) = double_ranks(differences);
    let zeros: u64 = differences.iter().zip(&ranks).filter(|(d, _)| **d == 0.0).map(|(_, rank)| rank).sum();
    let positive: u64 = differences.iter().zip(&ranks).filter(|(d, _)| **d > 0.0).map(|(_, rank)| rank).sum();
    let has_ties = tie_sum > 0.0 || zeros > 0;
    let exact = if has_ties { EXACT_WITH_TIES } else { EXACT_WITHOUT_TIES };
    if count <= exact {
        let signed =
            differences.iter().zip(&ranks).filter(|(d, _)| **d != 0.0).map(|(_, rank)| *rank as usize);
        return tail(&signed.collect::<Vec<usize>>(), positive as usize);
    }
    let n = count as f64;
    let mean = n * (n + 1.0) / 4.0;
    let deviation = ((n * (n + 1.0) * (2.0 * n + 1.0) - tie_sum / 2.0) / 24.0).sqrt();
    let statistic = positive as f64 / 2.0 + zeros as f64 / 4.0;
    let z = (statistic - mean) / deviation;
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}

/// Twice the average ranks of the absolute values, and Σ t³ − t over groups of ties.
fn double_ranks(differences: &[f64]) -> (Vec<u64>, f64) {
    let mut order: Vec<usize> = (0..differences.len()).collect();
    order.sort_by(|a, b| differences[*a].abs().total_cmp(&differences[*b].abs()));
    let (mut ranks, mut ties) = (vec![0; differences.len()], 0.0);
    for group in order.chunk_by(|a, b| differences[*a].abs() == differences[*b].abs()) {
        let size = group.len() as u64;
        let before = ranks.iter().filter(|rank| **rank > 0).count() as u64;
        group.iter().for_each(|index| ranks[*index] = 2 * before + size + 1);
        ties += (size.pow(3) - size) as f64;
    }
    (ranks, ties)
}

/// The share of all choices of signs whose positive ranks sum to at least `observed`.
fn tail(ranks: &[usize], observed: usize) -> f64 {
    let total: usize = ranks.iter().sum();
    // Counts stay below 2^50, so that floats hold them exactly.
    let mut ways = vec![0.0_f64; total + 1];
    ways[0] = 1.0;
    let mut reached = 0;
    for &rank in ranks {
        reached += rank;
        for sum in (rank..=reached).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    ways[observed.min(total + 1)..].iter().sum::<f64>() / 2.0_f64.powi(ranks.len() as i32)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, study};
    use super::*;

    #[test]
    fn p_values_are_those_of_scipy() {
        // scipy 1.17: wilcoxon(d, alternative="greater", zero_method="zsplit").pvalue
        let long: Vec<f64> = (1..=60).map(|i| f64::from(i % 7) - 2.2 + f64::from(i) * 0.001).collect();
        let tied: Vec<f64> = (0..20).map(|i| f64::from(i % 4) - 1.0).collect();
        for (differences, expected) in [
            (vec![1.0, 2.0, 3.0], 0.125),
            (vec![1.0, -2.0, 3.0, 4.0, 5.0], 0.09375),
            (vec![1.0, 1.0, -1.0, 2.0], 0.25),
            (vec![0.0, 1.0, 1.0, 2.0], 0.125),
            (vec![0.0, 0.0], 1.0),
            (tied, 0.043_559_218_723_573_906),
            (long, 0.006_287_509_221_845_99),
        ] {
            let found = p_value(&differences);
            assert!((found - expected).abs() < 1e-12, "{differences:?}: {found} not {expected}");
        }
    }

    #[test]
    fn a_trial_that_loses_on_every_fold_stops() {
        let mut study = study("kind = \"wilcoxon\"\np = 0.1", "min");
        assert_eq!(run(&mut study, &[1.0, 2.0, 3.0, 4.0, 5.0]), None);
        // 1/2^n falls below 0.1 at the fourth; a mean that is still better protects before the fifth fold.
        assert_eq!(run(&mut study, &[6.1, 6.2, 6.3, 6.4, 6.5]), Some((4, Decision::Stop)));
        assert_eq!(run(&mut study, &[1.1, 2.2, 3.3, 4.4, 5.5]), Some((5, Decision::Stop)));
        assert_eq!(run(&mut study, &[0.9, 2.1, 2.9, 4.1, 4.8]), None);
    }
}
