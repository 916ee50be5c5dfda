//! A margin for integers (Hamano et al., arXiv 2205.13482): along a coordinate with steps the distribution never becomes so
//! narrow, nor its mean so far from a cell's edge, that a neighbouring value is as good as never sampled.

use crate::sampler::normal::{cdf, quantile};
use crate::space::Scale;

/// A coordinate of the unit box whose values have steps.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    scale: Scale,
}

impl Steps {
    pub(super) fn new(scale: Scale) -> Option<Steps> {
        (scale.step > 0.0).then_some(Steps { scale })
    }

    /// The edges around the cell of a place that lie between two values; at an end of the range there is but one.
    fn edges(&self, place: f64) -> (Option<f64>, Option<f64>) {
        let (low, high) = self.scale.ends();
        let value = self.scale.unbend(low + place * (high - low));
        let (left, right) = self.scale.cell(value);
        let unit = |edge: f64| (edge - low) / (high - low);
        let half = 0.5 * self.scale.step;
        (
            (value - half > self.scale.low).then(|| unit(left)),
            (value + half < self.scale.high).then(|| unit(right)),
        )
    }

    /// The mean and the deviation that leave the values beside it at least `margin` likely, together.
    pub(super) fn corrected(&self, mean: f64, deviation: f64, margin: f64) -> (f64, f64) {
        match self.edges(mean) {
            // At an end: the mean may lie no further from the one edge than lets it be crossed.
            (None, Some(edge)) => (mean.max(edge - deviation * far(margin)).min(edge), deviation),
            (Some(edge), None) => (mean.min(edge + deviation * far(margin)).max(edge), deviation),
            (Some(left), Some(right)) => between(mean, deviation, left, right, margin),
            (None, None) => (mean, deviation),
        }
    }
}

/// How many deviations away a place is that is passed with this probability.
fn far(probability: f64) -> f64 {
    -quantile(probability.clamp(1e-12, 0.5))
}

fn between(mean: f64, deviation: f64, left: f64, right: f64, margin: f64) -> (f64, f64) {
    let (below, above) = (cdf((left - mean) / deviation), cdf((mean - right) / deviation));
    let least = margin / 2.0;
    if below >= least && above >= least {
        return (mean, deviation);
    }
    // Both get at least their half; what they take more than there is comes off in proportion.
    let (wanted_below, wanted_above) = (below.max(least), above.max(least));
    let middle = 1.0 - below - above;
    let surplus = 1.0 - wanted_below - wanted_above - middle;
    let spread = (wanted_below + wanted_above + middle - 3.0 * least).max(f64::MIN_POSITIVE);
    let settle = |wanted: f64| (wanted + surplus * (wanted - least) / spread).clamp(1e-10, 0.5 - 1e-10);
    let (to_left, to_right) = (far(settle(wanted_below)), far(settle(wanted_above)));
    let both = to_left + to_right;
    ((left * to_right + right * to_left) / both, (right - left) / both)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(log: bool) -> Steps {
        Steps::new(Scale { low: 1.0, high: 8.0, log, step: 1.0 }).unwrap()
    }

    #[test]
    fn neighbours_keep_their_chance() {
        for steps in [steps(false), steps(true)] {
            for place in [0.02, 0.2, 0.31, 0.44, 0.5, 0.77, 0.97] {
                for deviation in [1e-6, 1e-3, 0.02, 0.4] {
                    let margin = 0.05;
                    let (mean, found) = steps.corrected(place, deviation, margin);
                    let (left, right) = steps.edges(place);
                    let likely = |edge: Option<f64>, sign: f64| {
                        edge.map_or(1.0, |edge| cdf(sign * (edge - mean) / found))
                    };
                    let least = if left.is_some() && right.is_some() { margin / 2.0 } else { margin };
                    let both = [likely(left, 1.0), likely(right, -1.0)];
                    assert!(
                        both.iter().all(|chance| *chance >= least * (1.0 - 1e-6)),
                        "{place} {deviation}: {both:?}"
                    );
                    assert!(
                        steps.edges(mean) == (left, right),
                        "the mean has changed its cell: {place} {mean}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_wide_enough_stays() {
        assert_eq!(steps(false).corrected(0.5, 0.3, 0.1), (0.5, 0.3));
        assert!(Steps::new(Scale { low: 0.0, high: 1.0, log: false, step: 0.0 }).is_none());
    }
}
