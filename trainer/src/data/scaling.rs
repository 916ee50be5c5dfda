//! Normalisation: features, or the channels of images, at mean 0 and variance 1 over what trains.

use super::error::DataError;
use super::store::Store;

/// What to take from each of `parts` (features, or channels of neighbouring values) and what to divide it by; a constant
/// one becomes 0.
pub(super) fn fit(
    store: &Store,
    width: usize,
    parts: usize,
    training: &[u32],
) -> Result<Vec<(f32, f32)>, DataError> {
    let each = width / parts;
    let count = (training.len() * each) as f64;
    let sums = |of: &dyn Fn(usize, f32) -> f64| -> Result<Vec<f64>, DataError> {
        let (mut sums, mut row, mut next) = (vec![0f64; parts], 0u32, training.iter().peekable());
        store.each_values(|values| {
            for values in values.chunks_exact(width) {
                if next.next_if_eq(&&row).is_some() {
                    for (part, (sum, values)) in sums.iter_mut().zip(values.chunks_exact(each)).enumerate() {
                        *sum += values.iter().map(|&value| of(part, value)).sum::<f64>();
                    }
                }
                row += 1;
            }
        })?;
        Ok(sums)
    };
    let means: Vec<f64> = sums(&|_, value| f64::from(value))?.iter().map(|sum| sum / count).collect();
    let squares = sums(&|part, value| (f64::from(value) - means[part]).powi(2))?;
    let scaling = means.iter().zip(&squares).map(|(&mean, square)| {
        let deviation = (square / count).sqrt() as f32;
        (mean as f32, if deviation > 0.0 { deviation } else { 1.0 })
    });
    Ok(scaling.collect())
}

/// Scales rows of `width` values.
pub(super) fn scale(values: &mut [f32], width: usize, scaling: &[(f32, f32)]) {
    if scaling.is_empty() {
        return;
    }
    let each = width / scaling.len();
    for row in values.chunks_exact_mut(width) {
        for (values, (mean, deviation)) in row.chunks_exact_mut(each).zip(scaling) {
            values.iter_mut().for_each(|value| *value = (*value - mean) / deviation);
        }
    }
}
