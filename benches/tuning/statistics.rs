//! Medians, and whether one of two is better over the same seeds.

/// The median.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The mean.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The one-sided p of Wilcoxon's signed-rank test that `ours` is not less than `theirs` over pairs, by the normal
/// approximation with ties; `None` below ten pairs that differ.
pub(crate) fn wilcoxon(ours: &[f64], theirs: &[f64]) -> Option<f64> {
    const LEAST_PAIRS: usize = 10;
    let mut differences: Vec<f64> =
        ours.iter().zip(theirs).map(|(a, b)| a - b).filter(|difference| *difference != 0.0).collect();
    differences.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    if differences.len() < LEAST_PAIRS {
        return None;
    }
    let (n, mut positive, mut ties, mut before) = (differences.len() as f64, 0.0, 0.0, 0.0);
    for group in differences.chunk_by(|a, b| a.abs() == b.abs()) {
        let size = group.len() as f64;
        positive += group.iter().filter(|d| **d > 0.0).count() as f64 * (before + (size + 1.0) / 2.0);
        ties += size.powi(3) - size;
        before += size;
    }
    let deviation = (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties / 48.0).sqrt();
    let z = (positive - n * (n + 1.0) / 4.0) / deviation;
    Some(0.5 * libm::erfc(-z / std::f64::consts::SQRT_2))
}
