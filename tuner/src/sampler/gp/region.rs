//! What the losses so far say of looking near the best trial: whether it pays, and how far to look in many dimensions.

/// Less than this share of what lies between the median and the best is no gain.
const REGION_GAIN: f64 = 1e-6;

/// Whether it still pays to look around the best trial, after these losses in the order they came: no longer once more
/// in a row than there are dimensions brought no gain.
pub(super) fn pays(losses: &[f64], feasible: &[bool], dims: usize) -> bool {
    let kept: Vec<f64> =
        losses.iter().zip(feasible).filter(|(_, kept)| **kept).map(|(loss, _)| *loss).collect();
    let mut sorted: Vec<f64> = kept.iter().copied().filter(|loss| loss.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(least) = sorted.first() else { return false };
    let gain = REGION_GAIN * (sorted[sorted.len() / 2] - least);
    let (mut best, mut without) = (f64::INFINITY, 0);
    for loss in kept {
        without = if loss < best - gain { 0 } else { without + 1 };
        best = best.min(loss);
    }
    without <= dims
}

/// The side of the trust region after these losses, in the order they came: doubled after three improvements in a row,
/// halved after as many failures as there are dimensions, begun again where it has become too small.
pub(super) fn region_side(losses: &[f64], dims: usize) -> f64 {
    const FIRST: f64 = 0.8;
    const LONGEST: f64 = 1.6;
    const SHORTEST: f64 = 0.007_812_5;
    const SUCCESSES: usize = 3;
    let (mut side, mut best, mut good, mut bad) = (FIRST, f64::INFINITY, 0, 0);
    for loss in losses {
        let improves = *loss < best - 1e-3 * best.abs() || (best == f64::INFINITY && loss.is_finite());
        best = best.min(*loss);
        (good, bad) = if improves { (good + 1, 0) } else { (0, bad + 1) };
        if good == SUCCESSES {
            (side, good) = ((2.0 * side).min(LONGEST), 0);
        } else if bad == dims {
            (side, bad) = (if side < 2.0 * SHORTEST { FIRST } else { side / 2.0 }, 0);
        }
    }
    side
}
