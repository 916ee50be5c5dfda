//! Losses as a Gaussian process likes them: bent by the Yeo-Johnson transform (Biometrika 87-4, 2000) whose power makes
//! them most like a normal distribution, then with mean 0 and variance 1.
//!
//! Losses are measured from the best one, in units of the distance to a low quantile: as the search closes in, the
//! units shrink, and the transform tells good trials apart however large the bad ones are.

/// The losses whose distance from the best is the unit.
const UNIT_QUANTILE: f64 = 0.5;
/// Powers that are tried: from one that flattens all bad losses to the straight line.
const POWERS: std::ops::RangeInclusive<i32> = -4..=4;
/// The step between them.
const POWER_STEP: f64 = 0.25;
/// A spread below this is none.
const SMALLEST_SPREAD: f64 = 1e-12;

/// Warps losses; those that are not finite become the worst of the others. `None` where they do not differ.
pub(super) fn warp(losses: &[f64]) -> Option<Vec<f64>> {
    let mut sorted: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (best, worst) = (*sorted.first()?, *sorted.last()?);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize] - best;
    let unit = [at(UNIT_QUANTILE), worst - best].into_iter().find(|unit| *unit > 0.0)?;
    let scaled: Vec<f64> =
        losses.iter().map(|loss| (if loss.is_finite() { *loss } else { worst } - best) / unit).collect();
    let power = POWERS.map(|step| f64::from(step) * POWER_STEP);
    let (_, warped) =
        power.filter_map(|power| likelihood(&scaled, power)).max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    Some(warped)
}

/// ln of the likelihood of the transformed losses under their best normal distribution, and them standardised.
fn likelihood(scaled: &[f64], power: f64) -> Option<(f64, Vec<f64>)> {
    // All are ≥ 0: the transform's other branch is never needed.
    let bend = |y: &f64| if power == 0.0 { y.ln_1p() } else { (power * y.ln_1p()).exp_m1() / power };
    let mut bent: Vec<f64> = scaled.iter().map(bend).collect();
    let count = bent.len() as f64;
    let mean = bent.iter().sum::<f64>() / count;
    let variance = bent.iter().map(|y| (y - mean) * (y - mean)).sum::<f64>() / count;
    if variance <= SMALLEST_SPREAD || !variance.is_finite() {
        return None;
    }
    let jacobian: f64 = scaled.iter().map(|y| y.ln_1p()).sum::<f64>() * (power - 1.0);
    bent.iter_mut().for_each(|y| *y = (*y - mean) / variance.sqrt());
    Some((jacobian - 0.5 * count * variance.ln(), bent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_stays_and_the_spread_is_one() {
        let losses = [3.0, f64::INFINITY, 1e9, 4.0, 3.5, f64::NAN, 10.0, 3.25];
        let warped = warp(&losses).unwrap();
        assert!(warped[0] < warped[7] && warped[7] < warped[4] && warped[4] < warped[3]);
        assert!(warped[6] < warped[2] && warped[1] == warped[2] && warped[5] == warped[2]);
        let mean = warped.iter().sum::<f64>() / 8.0;
        let variance = warped.iter().map(|y| y * y).sum::<f64>() / 8.0;
        assert!(mean.abs() < 1e-12 && (variance - 1.0).abs() < 1e-9);
        // The good ones are told apart beside a loss of a thousand million.
        assert!(warped[3] - warped[0] > 0.1, "{warped:?}");
    }

    #[test]
    fn equal_losses_have_nothing_to_say() {
        assert_eq!(warp(&[2.0; 5]), None);
        assert_eq!(warp(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(warp(&[]), None);
    }
}
