//! The model judged on held-out samples, by all ranks together.

use crate::Error;
use crate::data::{Batch, Dataset, Sample, Targets};
use crate::gang::Gang;
use crate::model::Model;
use crate::sampler::part_of;
use phalanx_core::spec::Loss;

/// Samples judged at a time. Fixed, so that a score has the same bits whatever the number of workers.
const CHUNK_SAMPLES: usize = 128;
/// Targets judged at a time, where a sample has several.
const CHUNK_TARGETS: usize = 4096;
/// Sums of a chunk: of losses, found classes, squared errors.
const SUMS: usize = 3;
/// Most classes that F1 counts apart.
const COUNTED_CLASSES: usize = 4096;

/// What held-out samples say of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The mean loss.
    pub loss: f64,
    /// Scores by name, the one that tells most first: `accuracy`, `f1` (the mean over classes) and, of two classes, `auc`;
    /// `r2` of numbers; `perplexity` and `accuracy` of a text. None for a model whose outputs are not one for each class.
    pub scores: Vec<(&'static str, f64)>,
}

impl Judgement {
    /// Its metrics by name, such as `val/loss`.
    pub(crate) fn metrics(&self, part: &str) -> Vec<(String, f64)> {
        let all = std::iter::once(("loss", self.loss)).chain(self.scores.iter().copied());
        all.map(|(name, value)| (format!("{part}/{name}"), value)).collect()
    }
}

/// What is counted for the scores of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Classes, so many.
    Classes(usize),
    /// 0 or 1 by one logit.
    Binary,
    /// Numbers.
    Numbers,
    /// The next token.
    Text,
}

impl Task {
    fn of(data: &Dataset) -> Task {
        match (data.sample, data.loss) {
            (Sample::Text { .. }, _) => Task::Text,
            (_, Loss::CrossEntropy) => Task::Classes(data.outputs()),
            (_, Loss::Bce) => Task::Binary,
            (_, Loss::Mse | Loss::Mae) => Task::Numbers,
        }
    }

    /// Classes that F1 counts apart.
    fn counted(self) -> usize {
        match self {
            Task::Classes(classes) if classes <= COUNTED_CLASSES => classes,
            Task::Binary => 2,
            _ => 0,
        }
    }

    /// Whether the order of outputs says something: there are two classes.
    fn ranks(self) -> bool {
        matches!(self, Task::Binary | Task::Classes(2))
    }
}

/// Sums over samples that are one rank's alone and zero on all others: adding them up rounds nothing.
struct Tally {
    task: Task,
    /// [`SUMS`] for each chunk.
    chunks: Vec<f64>,
    /// For each class: found, said, there.
    classes: Vec<f64>,
    /// How much each sample looks like class 1.
    ranking: Vec<f64>,
}

/// Judges the model on some samples; `None` where there are none.
pub(crate) fn judge(
    gang: &mut Gang,
    model: &mut dyn Model,
    data: &Dataset,
    samples: &[u32],
) -> Result<Option<Judgement>, Error> {
    if samples.is_empty() {
        return Ok(None);
    }
    let task = Task::of(data);
    let at_once = (CHUNK_TARGETS / data.targets_per_sample()).clamp(1, CHUNK_SAMPLES);
    let chunks: Vec<&[u32]> = samples.chunks(at_once).collect();
    let mut tally = Tally {
        task,
        chunks: vec![0.0; chunks.len() * SUMS],
        classes: vec![0.0; task.counted() * 3],
        ranking: vec![0.0; if task.ranks() { samples.len() } else { 0 }],
    };
    let (mut batch, mut outputs, mut scored) = (Batch::default(), Vec::new(), true);
    let own = part_of(&(0..chunks.len() as u64), gang.rank(), gang.world());
    let own = own.start as usize..own.end as usize;
    for (chunk, samples) in own.clone().zip(&chunks[own]) {
        data.fill(samples, None, &mut batch)?;
        tally.chunks[chunk * SUMS] = model.evaluate(&batch, &mut outputs)?;
        scored &= outputs.len() == batch.targets.len() * data.outputs();
        if scored {
            tally.count(&outputs, &batch.targets, chunk, chunk * at_once);
        }
    }
    gang.sum(&mut tally.chunks)?;
    scored = !gang.any(!scored)?;
    if scored {
        gang.sum(&mut tally.classes)?;
        gang.sum(&mut tally.ranking)?;
    }
    let targets = (samples.len() * data.targets_per_sample()) as f64;
    let loss = tally.total(0) / targets;
    let scores = if scored { tally.scores(data, samples, loss, targets) } else { Vec::new() };
    Ok(Some(Judgement { loss, scores }))
}

impl Tally {
    /// Counts a chunk whose first sample is the `first` of all.
    fn count(&mut self, outputs: &[f32], targets: &Targets, chunk: usize, first: usize) {
        let rows = outputs.chunks_exact((outputs.len() / targets.len().max(1)).max(1));
        let (mut correct, mut squared_error) = (0u64, 0.0);
        for (at, output) in rows.enumerate() {
            let (said, there) = match (targets, self.task) {
                (Targets::Values(values), Task::Binary) => {
                    // The output is a logit: above 0 it says 1.
                    (usize::from(output[0] > 0.0), usize::from(values[at] > 0.5))
                }
                (Targets::Values(values), _) => {
                    squared_error += (f64::from(output[0]) - f64::from(values[at])).powi(2);
                    continue;
                }
                (Targets::Classes(classes), _) => (largest(output), classes[at] as usize),
            };
            correct += u64::from(said == there);
            if !self.classes.is_empty() {
                self.classes[said * 3 + 1] += 1.0;
                self.classes[there * 3 + 2] += 1.0;
                self.classes[said * 3] += f64::from(u8::from(said == there));
            }
            if let Some(place) = self.ranking.get_mut(first + at) {
                *place = match output {
                    [zero, one] => f64::from(*one) - f64::from(*zero),
                    _ => f64::from(output[0]),
                };
            }
        }
        self.chunks[chunk * SUMS + 1] = correct as f64;
        self.chunks[chunk * SUMS + 2] = squared_error;
    }

    fn total(&self, which: usize) -> f64 {
        self.chunks.iter().skip(which).step_by(SUMS).sum()
    }

    fn scores(&self, data: &Dataset, samples: &[u32], loss: f64, targets: f64) -> Vec<(&'static str, f64)> {
        let accuracy = ("accuracy", self.total(1) / targets);
        match (self.task, &data.targets) {
            (Task::Text, _) => vec![("perplexity", loss.exp()), accuracy],
            (Task::Numbers, Targets::Values(values)) => {
                vec![("r2", 1.0 - self.total(2) / variation(values, samples))]
            }
            (_, all) => {
                let is_one = |&row: &u32| match all {
                    Targets::Classes(classes) => classes[row as usize] == 1,
                    Targets::Values(values) => values[row as usize] > 0.5,
                };
                let f1 = mean_f1(&self.classes).map(|f1| ("f1", f1));
                let auc = auc(&self.ranking, samples.iter().map(is_one)).map(|auc| ("auc", auc));
                std::iter::once(accuracy).chain(f1).chain(auc).collect()
            }
        }
    }
}

/// The first of the largest.
fn largest(output: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in output.iter().enumerate() {
        if *value > output[best] {
            best = at;
        }
    }
    best
}

/// The mean over classes (said or there) of 2·found / (said + there).
fn mean_f1(counts: &[f64]) -> Option<f64> {
    let seen = counts.as_chunks::<3>().0.iter().filter(|[_, said, there]| said + there > 0.0);
    let scores = seen.map(|[found, said, there]| 2.0 * found / (said + there));
    let (sum, count) = scores.fold((0.0, 0), |(sum, count), score| (sum + score, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The share of pairs of a 1 and a 0 whose order is right, equals counting half (Mann & Whitney 1947); `None` where one
/// of the two is missing or a value is NaN.
fn auc(ranking: &[f64], ones: impl Iterator<Item = bool>) -> Option<f64> {
    let mut ranked: Vec<(f64, bool)> = ranking.iter().copied().zip(ones).collect();
    if ranked.iter().any(|(value, _)| value.is_nan()) {
        return None;
    }
    ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut zeros, mut ones, mut right) = (0.0, 0.0, 0.0);
    for equal in ranked.chunk_by(|a, b| a.0 == b.0) {
        let one = equal.iter().filter(|(_, one)| *one).count() as f64;
        let zero = equal.len() as f64 - one;
        right += one * (zeros + 0.5 * zero);
        zeros += zero;
        ones += one;
    }
    (zeros > 0.0 && ones > 0.0).then(|| right / (zeros * ones))
}

/// The sum of squared distances from the mean.
fn variation(values: &[f32], rows: &[u32]) -> f64 {
    let values = || rows.iter().map(|&row| f64::from(values[row as usize]));
    let mean = values().sum::<f64>() / rows.len() as f64;
    values().map(|value| (value - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_is_the_mean_over_classes() {
        // Class 0: 2 found of 3 said and 2 there; class 1: 1 of 1 and 2; class 2 never comes.
        let f1 = mean_f1(&[2.0, 3.0, 2.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0]).unwrap();
        assert!((f1 - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!(mean_f1(&[]), None);
    }

    #[test]
    fn auc_counts_pairs_in_order() {
        let auc_of = |pairs: &[(f64, bool)]| {
            let values: Vec<f64> = pairs.iter().map(|(value, _)| *value).collect();
            auc(&values, pairs.iter().map(|(_, one)| *one))
        };
        assert_eq!(auc_of(&[(0.1, false), (0.4, false), (0.35, true), (0.8, true)]), Some(0.75));
        assert_eq!(auc_of(&[(0.5, false), (0.5, true)]), Some(0.5));
        assert_eq!(auc_of(&[(1.0, true), (0.0, true)]), None);
        assert_eq!(auc_of(&[(f64::NAN, true), (0.0, false)]), None);
    }

    #[test]
    fn a_tally_counts_what_was_found() {
        let tally = |task: Task, outputs: &[f32], targets: Targets| {
            let mut tally = Tally {
                task,
                chunks: vec![0.0; SUMS],
                classes: vec![0.0; task.counted() * 3],
                ranking: vec![0.0; targets.len()],
            };
            tally.count(outputs, &targets, 0, 0);
            tally
        };
        let found = tally(Task::Classes(2), &[0.0, 1.0, 5.0, 4.0, 2.0, 1.0], Targets::Classes(vec![1, 0, 1]));
        assert_eq!(found.total(1), 2.0);
        assert_eq!(found.classes, [1.0, 2.0, 1.0, 1.0, 1.0, 2.0]);
        assert_eq!(found.ranking, [1.0, -1.0, -1.0]);
        let found = tally(Task::Binary, &[3.0, -1.0], Targets::Values(vec![1.0, 0.0]));
        assert_eq!((found.total(1), found.ranking), (2.0, vec![3.0, -1.0]));
        let found = tally(Task::Numbers, &[3.0, -1.0], Targets::Values(vec![1.0, 0.0]));
        assert_eq!(found.total(2), 5.0);
    }
}
