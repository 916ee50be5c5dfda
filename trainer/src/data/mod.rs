//! Data: read, checked, split and normalised before the first step.

mod error;
mod table;
mod target;

pub use error::{CellProblem, DataError};
pub use target::Targets;

use crate::random::Stream;
use crate::sampler::Permutation;
use phalanx_core::spec::{DataSpec, Loss, Validation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use table::{Source, Table};
use target::Class;

/// All rows that a run uses, and which of them train.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The training file, as messages name it.
    pub path: PathBuf,
    /// Names of the features.
    pub columns: Vec<String>,
    /// Features, row-major, `columns.len()` a row.
    pub features: Vec<f32>,
    /// One target a row.
    pub targets: Targets,
    /// Names of the classes by number; empty when the target is a number.
    pub classes: Vec<String>,
    /// Rows that train.
    pub training: Vec<u32>,
    /// Rows that are held out.
    pub validation: Vec<u32>,
    /// The loss: the one asked for, or the target's own.
    pub loss: Loss,
    /// What was taken from each feature and what it was then divided by; empty without normalisation.
    pub scaling: Vec<(f32, f32)>,
}

impl Dataset {
    /// Reads what `spec` names; relative paths start at `base`.
    pub fn read(spec: &DataSpec, loss: Option<Loss>, base: &Path, seed: u64) -> Result<Dataset, DataError> {
        let DataSpec::Csv { path, target, validation, normalize } = spec;
        let source = |path: &str| Source { shown: PathBuf::from(path), path: base.join(path) };
        let (from, held_out_from) = (
            source(path),
            match validation {
                Some(Validation::File(file)) => Some(source(file)),
                _ => None,
            },
        );
        let mut table = table::read(&from, target, None)?;
        let held_out = match &held_out_from {
            Some(from) => Some((from, table::read(from, target, Some(&table.columns))?)),
            None => None,
        };
        let loss = loss.unwrap_or_else(|| target::default_loss(&table.targets));
        let rows = table.starts.len();
        let (training, validation) = match validation {
            Some(Validation::Fraction(fraction)) => split(&from, rows, *fraction, seed)?,
            _ => ((0..row_number(&from, rows)?).collect(), Vec::new()),
        };
        let mut found = Labelled::default();
        found.add(&from, target, &table, loss, &training, &validation)?;
        let mut data = Dataset {
            path: PathBuf::from(path),
            columns: std::mem::take(&mut table.columns),
            features: std::mem::take(&mut table.features),
            targets: Targets::Values(Vec::new()),
            classes: Vec::new(),
            training,
            validation,
            loss,
            scaling: Vec::new(),
        };
        if let Some((from, mut other)) = held_out {
            let total = row_number(from, rows + other.starts.len())?;
            found.add(
                from,
                target,
                &other,
                loss,
                &[],
                &(0..other.starts.len() as u32).collect::<Vec<_>>(),
            )?;
            data.features.append(&mut other.features);
            data.validation = (rows as u32..total).collect();
        }
        data.classes = found.numbered.keys().map(ToString::to_string).collect();
        data.targets = match loss {
            Loss::CrossEntropy => Targets::Classes(found.classes),
            Loss::Mse | Loss::Mae | Loss::Bce => Targets::Values(found.values),
        };
        if loss == Loss::CrossEntropy && data.classes.len() < 2 {
            let problem = format!(
                "the column `{target}` has only the class `{}`; there is nothing to tell apart",
                data.classes.first().map_or("", String::as_str)
            );
            return Err(from.fail(problem));
        }
        if *normalize {
            data.normalize();
        }
        Ok(data)
    }

    /// Features a row.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Features of one row.
    pub fn row(&self, row: u32) -> &[f32] {
        let start = row as usize * self.width();
        &self.features[start..start + self.width()]
    }

    /// Outputs that a model of this data has.
    pub fn outputs(&self) -> usize {
        self.classes.len().max(1)
    }

    /// A hash of everything that training sees.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut words = |words: &mut dyn Iterator<Item = u32>| {
            let mut buffer = Vec::with_capacity(1 << 16);
            let mut count = 0u64;
            for word in words {
                buffer.extend_from_slice(&word.to_le_bytes());
                count += 1;
                if buffer.len() >= 1 << 16 {
                    hasher.update(&buffer);
                    buffer.clear();
                }
            }
            hasher.update(&buffer);
            hasher.update(&count.to_le_bytes());
        };
        words(&mut self.features.iter().map(|value| value.to_bits()));
        match &self.targets {
            Targets::Classes(classes) => words(&mut classes.iter().copied()),
            Targets::Values(values) => words(&mut values.iter().map(|value| value.to_bits())),
        }
        words(&mut self.training.iter().copied());
        words(&mut self.validation.iter().copied());
        for name in self.columns.iter().chain(&self.classes) {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        }
        hasher.finalize()
    }

    /// Brings every feature to mean 0 and variance 1 over the training rows; a constant one becomes 0.
    fn normalize(&mut self) {
        let width = self.width();
        let count = self.training.len() as f64;
        let mut means = vec![0f64; width];
        for &row in &self.training {
            for (mean, &value) in means.iter_mut().zip(self.row(row)) {
                *mean += f64::from(value);
            }
        }
        means.iter_mut().for_each(|mean| *mean /= count);
        let mut squares = vec![0f64; width];
        for &row in &self.training {
            for ((square, mean), &value) in squares.iter_mut().zip(&means).zip(self.row(row)) {
                *square += (f64::from(value) - mean).powi(2);
            }
        }
        let scaling = means.iter().zip(&squares).map(|(&mean, square)| {
            let deviation = (square / count).sqrt() as f32;
            (mean as f32, if deviation > 0.0 { deviation } else { 1.0 })
        });
        self.scaling = scaling.collect();
        for row in self.features.chunks_exact_mut(width) {
            for (value, (mean, deviation)) in row.iter_mut().zip(&self.scaling) {
                *value = (*value - mean) / deviation;
            }
        }
    }
}

/// Rows are numbered by 32 bits.
fn row_number(source: &Source, rows: usize) -> Result<u32, DataError> {
    u32::try_from(rows).map_err(|_| source.fail(format!("{rows} rows; the limit is {}", u32::MAX)))
}

/// Training rows and held-out rows, each in the file's order; which is which depends on the seed alone.
fn split(source: &Source, rows: usize, fraction: f64, seed: u64) -> Result<(Vec<u32>, Vec<u32>), DataError> {
    let total = row_number(source, rows)?;
    let held_out = (rows as f64 * fraction).round() as u64;
    if held_out == 0 || held_out == rows as u64 {
        let side = if held_out == 0 { "held-out" } else { "training" };
        let problem = format!("`data.validation` is {fraction} of {rows} rows, which leaves no {side} row");
        return Err(source.fail(problem));
    }
    let order = Permutation::new(rows as u64, seed, Stream::Split);
    let mut is_held_out = vec![false; rows];
    for place in 0..held_out {
        is_held_out[order.at(place) as usize] = true;
    }
    Ok((0..total).partition(|&row| !is_held_out[row as usize]))
}

/// Targets of one file or of two, under the classes of the first one's training rows.
#[derive(Default)]
struct Labelled {
    numbered: BTreeMap<Class, u32>,
    classes: Vec<u32>,
    values: Vec<f32>,
}

impl Labelled {
    fn add(
        &mut self,
        source: &Source,
        target: &str,
        table: &Table,
        loss: Loss,
        training: &[u32],
        validation: &[u32],
    ) -> Result<(), DataError> {
        let fail = |(row, problem): (usize, CellProblem)| source.fail_in(table.starts[row], target, problem);
        if loss != Loss::CrossEntropy {
            self.values.append(&mut target::values(&table.targets, loss).map_err(fail)?);
            return Ok(());
        }
        let first = self.numbered.is_empty();
        let text = match self.numbered.keys().next() {
            // A validation file reads as its training file does.
            Some(class) => matches!(class, Class::Text(_)),
            None => target::is_text(&table.targets),
        };
        let found = target::classes(&table.targets, text).map_err(fail)?;
        if first {
            self.numbered = target::number_classes(&found, training);
        }
        for &row in validation {
            let class = &found[row as usize];
            if !self.numbered.contains_key(class) {
                return Err(fail((row as usize, CellProblem::UnseenClass(table::shown(&class.to_string())))));
            }
        }
        self.classes.extend(found.iter().map(|class| self.numbered[class]));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
