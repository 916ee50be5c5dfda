//! Figures of several rounds.

/// The median, the least and the most; there must be one.
pub(crate) fn spread(found: &[f64]) -> (f64, f64, f64) {
    let mut sorted = found.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}
