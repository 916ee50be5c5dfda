//! The model judged on held-out rows, by all ranks together.

use crate::Error;
use crate::data::{Dataset, Targets};
use crate::gang::Gang;
use crate::model::Engine;
use crate::sampler::part_of;
use phalanx_core::spec::Loss;

/// Rows judged at a time. Fixed, so that a score has the same bits whatever the number of workers.
const CHUNK_ROWS: usize = 128;
/// Sums of a chunk: of losses, found classes, squared errors.
const SUMS: usize = 3;

/// What held-out rows say of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// The mean loss.
    pub loss: f64,
    /// `accuracy` or `r2`.
    pub score: (&'static str, f64),
}

impl Judgement {
    /// Its metrics by name.
    pub(crate) fn metrics(&self) -> [(&'static str, f64); 2] {
        let name = if self.score.0 == "accuracy" { "val/accuracy" } else { "val/r2" };
        [("val/loss", self.loss), (name, self.score.1)]
    }
}

/// Judges the model on the held-out rows; `None` where there are none.
pub(crate) fn judge(
    gang: &mut Gang,
    engine: &mut dyn Engine,
    data: &Dataset,
) -> Result<Option<Judgement>, Error> {
    let chunks: Vec<&[u32]> = data.validation.chunks(CHUNK_ROWS).collect();
    if chunks.is_empty() {
        return Ok(None);
    }
    // A chunk's sums are one rank's alone and zero on all others: adding them up rounds nothing.
    let mut sums = vec![0.0; chunks.len() * SUMS];
    let own = part_of(&(0..chunks.len() as u64), gang.rank(), gang.world());
    for chunk in own.start as usize..own.end as usize {
        let score = engine.evaluate(data, chunks[chunk]);
        sums[chunk * SUMS..][..SUMS].copy_from_slice(&[
            score.loss,
            score.correct as f64,
            score.squared_error,
        ]);
    }
    gang.sum(&mut sums)?;
    let total = |which: usize| sums.iter().skip(which).step_by(SUMS).sum::<f64>();
    let count = data.validation.len() as f64;
    let score = match (data.loss, &data.targets) {
        (Loss::Mse | Loss::Mae, Targets::Values(values)) => {
            ("r2", 1.0 - total(2) / variation(values, &data.validation))
        }
        _ => ("accuracy", total(1) / count),
    };
    Ok(Some(Judgement { loss: total(0) / count, score }))
}

/// The sum of squared distances from the mean.
fn variation(values: &[f32], rows: &[u32]) -> f64 {
    let values = || rows.iter().map(|&row| f64::from(values[row as usize]));
    let mean = values().sum::<f64>() / rows.len() as f64;
    values().map(|value| (value - mean).powi(2)).sum()
}
