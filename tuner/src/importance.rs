//! How much each parameter matters, by PED-ANOVA (Watanabe, Bansal & Hutter, arXiv 2304.10255, and for parameters with
//! conditions arXiv 2601.20800): how differently its values are spread among the best trials and among all.

use crate::pareto;
use crate::sampler::log_mass;
use crate::space::{Axis, Param, Scale, Space};
use crate::trial::{Trial, TrialState};
use phalanx_core::spec::Objective;

/// The best share of the trials, whose parameters are compared with those of all.
const TARGET_SHARE: f64 = 0.1;
/// Cells of a continuum.
const CELLS: usize = 50;
/// Trials that have a parameter, for it to be judged.
const LEAST_TRIALS: usize = 2;
/// No cell is less likely.
const SMALLEST_MASS: f64 = 1e-12;

/// The importance of every searched parameter, the largest first; the shares sum to 1 where any parameter matters, and
/// are all 0 where there are too few complete and feasible trials to tell.
pub fn importance<'a>(space: &'a Space, trials: &[Trial], objectives: &[Objective]) -> Vec<(&'a str, f64)> {
    let searched: Vec<usize> =
        (0..space.params().len()).filter(|at| space.params()[*at].axis != Axis::Single).collect();
    let divergences = divergences(space, &searched, trials, objectives);
    let total: f64 = divergences.iter().sum();
    let share = |divergence: f64| if total > 0.0 { divergence / total } else { 0.0 };
    let name = |at: &usize| space.params()[*at].name.as_str();
    let mut found: Vec<(&str, f64)> =
        searched.iter().map(name).zip(divergences.into_iter().map(share)).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found
}

/// The divergence of each parameter before it is made a share.
fn divergences(space: &Space, searched: &[usize], trials: &[Trial], objectives: &[Objective]) -> Vec<f64> {
    let finite = |trial: &&Trial| {
        trial.state == TrialState::Complete
            && trial.is_feasible()
            && trial.losses(objectives).iter().all(|loss| loss.is_finite())
    };
    let region: Vec<&Trial> = trials.iter().filter(finite).collect();
    let target = targets(&region, objectives);
    let count = |trials: &[bool]| trials.iter().filter(|is| **is).count() as f64;
    let of = |at: &usize| {
        let all: Vec<f64> = region.iter().filter_map(|trial| trial.point[*at]).collect();
        let best = region.iter().zip(&target).filter(|(_, is_best)| **is_best);
        let best: Vec<f64> = best.filter_map(|(trial, _)| trial.point[*at]).collect();
        if all.len() < LEAST_TRIALS || best.is_empty() {
            return 0.0;
        }
        // Of all and of the best trials, how many have the parameter at all.
        let (in_best, in_all) = (best.len() as f64 / count(&target), all.len() as f64 / region.len() as f64);
        in_best * in_best / in_all * divergence(&space.params()[*at], &best, &all)
    };
    searched.iter().map(of).collect()
}

/// Which trials are among the best.
fn targets(region: &[&Trial], objectives: &[Objective]) -> Vec<bool> {
    let losses: Vec<Vec<f64>> = region.iter().map(|trial| trial.losses(objectives)).collect();
    let count = (TARGET_SHARE * losses.len() as f64).ceil() as usize;
    if objectives.len() == 1 {
        let mut sorted: Vec<f64> = losses.iter().map(|losses| losses[0]).collect();
        sorted.sort_by(f64::total_cmp);
        let cutoff = count.checked_sub(1).map_or(f64::NEG_INFINITY, |last| sorted[last]);
        return losses.iter().map(|losses| losses[0] <= cutoff).collect();
    }
    // Whole fronts, as many as it takes.
    let ranks = pareto::ranks(&losses);
    let mut sorted = ranks.clone();
    sorted.sort_unstable();
    let last = count.checked_sub(1).map(|last| sorted[last]);
    ranks.iter().map(|rank| last.is_some_and(|last| *rank <= last)).collect()
}

/// Pearson's divergence of the best trials' values from all trials' values.
fn divergence(param: &Param, best: &[f64], all: &[f64]) -> f64 {
    let (best, all) = (masses(param, best), masses(param, all));
    best.iter().zip(&all).map(|(best, all)| all * (best / all - 1.0).powi(2)).sum()
}

/// How likely each cell of a parameter's axis is, by a Parzen estimator with Scott's width and a prior.
fn masses(param: &Param, floats: &[f64]) -> Vec<f64> {
    let counts = match param.axis {
        Axis::Numeric(scale) => counts_of_numbers(&scale, param.count(), floats),
        Axis::Categories(count) => {
            let mut counts = vec![0.0; count];
            floats.iter().for_each(|float| counts[*float as usize] += 1.0);
            counts
        }
        Axis::Single => vec![floats.len() as f64],
    };
    let masses = match param.axis {
        Axis::Categories(_) => smoothed(&counts),
        _ => spread(&counts),
    };
    masses.into_iter().map(|mass| mass + SMALLEST_MASS).collect()
}

fn counts_of_numbers(scale: &Scale, values: Option<u64>, floats: &[f64]) -> Vec<f64> {
    let cells = match values {
        Some(values) if scale.log => ((values as f64).log2().ceil() as usize + 1).min(CELLS),
        Some(values) => (values as usize).min(CELLS),
        None => CELLS,
    };
    let (low, high) = (scale.bend(scale.low), scale.bend(scale.high));
    let width = (high - low) / (cells - 1) as f64;
    let mut counts = vec![0.0; cells];
    for float in floats {
        // Half-way between two cells belongs to the lower one.
        let cell = ((scale.bend(*float) - low) / width - 0.5).ceil().max(0.0) as usize;
        counts[cell.min(cells - 1)] += 1.0;
    }
    counts
}

/// Choices: every kind that was seen is a kernel, each with the prior's share, and the prior is one of its own.
fn smoothed(counts: &[f64]) -> Vec<f64> {
    let kinds = counts.iter().filter(|count| **count > 0.0).count();
    let (total, cells) = (counts.iter().sum::<f64>() + 1.0, counts.len() as f64);
    let extra = 1.0 / (kinds + 1) as f64;
    let row = 1.0 + cells * extra;
    let mass = |at: usize| {
        let seen: f64 = counts
            .iter()
            .enumerate()
            .map(|(kind, count)| count * (extra + f64::from(u8::from(kind == at))) / row)
            .sum();
        (seen + 1.0 / cells) / total
    };
    (0..counts.len()).map(mass).collect()
}

/// Numbers: a truncated normal around every cell that was seen, all of one width, and a wide one as the prior.
fn spread(counts: &[f64]) -> Vec<f64> {
    let total: f64 = counts.iter().sum();
    let seen: Vec<(f64, f64)> =
        counts.iter().enumerate().filter(|(_, count)| **count > 0.0).map(|(at, c)| (at as f64, *c)).collect();
    let last = (counts.len() - 1) as f64;
    let width = scott_width(&seen, total);
    let kernels = seen.iter().map(|(at, count)| (*at, width, *count)).chain([(last / 2.0, last + 1.0, 1.0)]);
    let mut masses = vec![0.0; counts.len()];
    for (centre, width, weight) in kernels {
        let between = |from: f64, to: f64| log_mass((from - centre) / width, (to - centre) / width);
        let whole = between(-0.5, last + 0.5);
        for (at, mass) in masses.iter_mut().enumerate() {
            let at = at as f64;
            *mass += weight / (total + 1.0) * (between(at - 0.5, at + 0.5) - whole).exp();
        }
    }
    masses
}

/// Scott's rule over cells with their counts, robust against outliers by the quartiles.
fn scott_width(seen: &[(f64, f64)], total: f64) -> f64 {
    /// A cell's half is within 1.64 deviations.
    const LEAST: f64 = 0.5 / 1.64;
    let mean = seen.iter().map(|(at, count)| at * count).sum::<f64>() / total;
    let squares: f64 = seen.iter().map(|(at, count)| count * (at - mean) * (at - mean)).sum();
    let deviation = (squares / (total - 1.0).max(1.0)).sqrt();
    let mut sum = 0.0;
    let sums: Vec<f64> = seen
        .iter()
        .map(|(_, count)| {
            sum += count;
            sum
        })
        .collect();
    let quarters = |count: f64| (count * total / 4.0).floor();
    let first = sums.partition_point(|sum| *sum < quarters(1.0));
    let third = sums.partition_point(|sum| *sum <= quarters(3.0)).min(seen.len() - 1);
    let quartiles = seen[third].0 - seen[first].0;
    (1.059 * (quartiles / 1.34).min(deviation) * total.powf(-0.2)).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::tests::sweep;
    use crate::{Ask, Outcome, Study};
    use phalanx_core::spec::{ParamValue, Params};
    use serde::Deserialize;
    use std::collections::BTreeMap;

    /// What Optuna 5 computes: `tests/fixtures/importance.py` made it.
    const FIXTURE: &str = include_str!("../tests/fixtures/importance.json");

    #[derive(Deserialize)]
    struct Case {
        params: String,
        trials: Vec<(Params, f64)>,
        importance: BTreeMap<String, f64>,
    }

    #[test]
    fn importances_are_optuna_s() {
        let cases: Vec<Case> = serde_json::from_str(FIXTURE).unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let spec = sweep(&format!("[search]\nkind = \"random\"\n{}", case.params));
            let mut study = Study::new(&spec);
            let space = Space::new(&spec.params);
            let mut trials = Vec::new();
            for (number, (params, value)) in case.trials.into_iter().enumerate() {
                let point = space.point_of(&params).unwrap();
                let mut trial = Trial::new(number, number as u64, crate::Origin::Random, params, point);
                (trial.state, trial.values) = (TrialState::Complete, vec![value]);
                trials.push(trial);
            }
            let found = importance(&space, &trials, &spec.objectives);
            assert_eq!(found.len(), case.importance.len());
            for (name, share) in found {
                let expected = case.importance[name];
                assert!((share - expected).abs() < 1e-6, "{name}: {share} is not {expected}");
            }
            // Without complete trials nothing is known.
            study.ask();
            assert!(study.importance().iter().all(|(_, share)| *share == 0.0));
        }
    }

    #[test]
    fn what_matters_comes_first_and_what_is_fixed_does_not_come() {
        let spec = sweep(
            "[search]\nkind = \"sobol\"\n[params]\nidle = { kind = \"float\", low = 0, high = 1 }\nfixed = 3\n\
             choice = { kind = \"choice\", values = [\"a\", \"b\", \"c\"] }\nx = { kind = \"float\", low = 0, high = 1 }\n",
        );
        let mut study = Study::new(&spec);
        for _ in 0..200 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let wrong = f64::from(u8::from(trial.params["choice"] != ParamValue::Text("b".into())));
            let value = (trial.params["x"].as_f64().unwrap() - 0.3).abs() + 0.1 * wrong;
            study.tell(trial.number, Outcome::Values(vec![value])).unwrap();
        }
        let found = study.importance();
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["x", "choice", "idle"], "{found:?}");
        assert!((found.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(found[2].1 < 0.1);
    }
}
