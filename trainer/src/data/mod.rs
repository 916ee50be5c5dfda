//! Data: read, checked, split and normalised before the first step.

mod array;
mod arrow;
mod assemble;
mod batch;
mod column;
mod error;
mod image;
mod parquet;
mod scaling;
mod source;
mod store;
mod table;
mod target;
mod text;
mod tokenizer;

pub use batch::{Batch, Sample};
pub use error::{CellProblem, DataError};
pub use target::Targets;

use crate::random::{Stream, draw, key};
use phalanx_core::spec::{DataSpec, Loss};
use std::path::{Path, PathBuf};
use store::Store;

/// All samples that a run uses, and which of them train.
#[derive(Debug)]
pub struct Dataset {
    /// The training file, as messages name it.
    pub path: PathBuf,
    /// What one sample is.
    pub sample: Sample,
    /// Names of the features, where they have any.
    pub columns: Vec<String>,
    /// One target a sample; of a text none, since its targets are its own tokens.
    pub targets: Targets,
    /// Names of the classes by number; of a text its tokens; empty when the target is a number.
    pub classes: Vec<String>,
    /// Tokens by number, where samples are text.
    pub vocabulary: Vec<String>,
    /// Samples that train.
    pub training: Vec<u32>,
    /// Samples that are held out, and judged during training.
    pub validation: Vec<u32>,
    /// Samples that are held out, and judged at the end.
    pub test: Vec<u32>,
    /// The loss: the one asked for, or the target's own.
    pub loss: Loss,
    /// What was taken from each feature (of images, each channel) and what it was then divided by; empty without
    /// normalisation.
    pub scaling: Vec<(f32, f32)>,
    store: Store,
}

impl Dataset {
    /// Reads what the specification names; relative paths start at `base`. What does not fit into memory is kept in
    /// `scratch`.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn read(
        spec: &DataSpec,
        loss: Option<Loss>,
        seed: u64,
        base: &Path,
        scratch: &Path,
    ) -> Result<Dataset, DataError> {
        match spec {
            DataSpec::Csv(data) => table::dataset(data, table::Format::Csv, loss, seed, base, scratch),
            DataSpec::Parquet(data) => {
                table::dataset(data, table::Format::Parquet, loss, seed, base, scratch)
            }
            DataSpec::Arrow(data) => table::dataset(data, table::Format::Arrow, loss, seed, base, scratch),
            DataSpec::Text(data) => text::dataset(data, base),
            DataSpec::Images(data) => image::dataset(data, loss, seed, base),
            DataSpec::Npy(data) => array::npy(data, loss, seed, base),
            DataSpec::Safetensors(data) => array::safetensors(data, loss, seed, base),
            DataSpec::Custom => Err(DataError::File {
                path: PathBuf::from("train.data"),
                problem: "it is missing; name what to learn from".to_owned(),
            }),
        }
    }

    /// A text from elsewhere as tokens below `vocabulary`, cut into samples of `context` tokens, all of which train.
    ///
    /// # Errors
    /// [`DataError::File`] if a token is not below `vocabulary`, or there are too few of them.
    pub fn of_tokens(tokens: Vec<u32>, vocabulary: usize, context: usize) -> Result<Dataset, DataError> {
        let fail = |problem: String| DataError::File { path: PathBuf::from("the tokens"), problem };
        if tokens.len() <= context || context == 0 || u32::try_from(tokens.len()).is_err() {
            let count = tokens.len();
            return Err(fail(format!("{count} tokens make no sample of {context} and the one that follows")));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(fail(format!("the token {token} is not below the vocabulary of {vocabulary}")));
        }
        let starts: Vec<u32> =
            (0..tokens.len() - context).step_by(context).map(|start| start as u32).collect();
        let names: Vec<String> = (0..vocabulary).map(|token| token.to_string()).collect();
        Ok(Dataset {
            path: PathBuf::from("memory"),
            sample: Sample::Text { vocabulary, context },
            columns: Vec::new(),
            targets: Targets::default(),
            classes: names.clone(),
            vocabulary: names,
            training: (0..starts.len() as u32).collect(),
            validation: Vec::new(),
            test: Vec::new(),
            loss: Loss::CrossEntropy,
            scaling: Vec::new(),
            store: Store::Windows { tokens, starts, context },
        })
    }

    /// Samples from elsewhere, all of which train: `values` has those of one after the other, and `targets` one for each.
    /// The loss is cross-entropy for classes and the mean square for numbers.
    ///
    /// # Errors
    /// [`DataError::File`] if the lengths do not go together or there is no sample.
    pub fn of_values(sample: Sample, values: Vec<f32>, targets: Targets) -> Result<Dataset, DataError> {
        let fail = |problem: String| DataError::File { path: PathBuf::from("the samples"), problem };
        let Some(width) = sample.width().filter(|&width| width > 0) else {
            return Err(fail(format!("{sample:?} has no values")));
        };
        let rows = targets.len();
        if rows == 0 || rows * width != values.len() || u32::try_from(rows).is_err() {
            let found = values.len();
            return Err(fail(format!("{rows} targets need {rows} × {width} values, not {found}")));
        }
        let (loss, classes) = match &targets {
            Targets::Classes(classes) => {
                let count = classes.iter().max().map_or(0, |&largest| largest + 1);
                (Loss::CrossEntropy, (0..count).map(|class| class.to_string()).collect())
            }
            Targets::Values(_) => (Loss::Mse, Vec::new()),
        };
        Ok(Dataset {
            path: PathBuf::from("memory"),
            sample,
            columns: Vec::new(),
            targets,
            classes,
            vocabulary: Vec::new(),
            training: (0..rows as u32).collect(),
            validation: Vec::new(),
            test: Vec::new(),
            loss,
            scaling: Vec::new(),
            store: Store::Values { width, values },
        })
    }

    /// Holds out this share of the training samples for judging during training, picked by `seed`.
    ///
    /// # Errors
    /// [`DataError::File`] if that leaves nothing on one side.
    pub fn hold_out(&mut self, fraction: f64, seed: u64) -> Result<(), DataError> {
        let rows = self.training.len();
        let picked = assemble::pick(&self.path, rows, [fraction, 0.0], seed)?;
        self.validation = picked.validation.iter().map(|&at| self.training[at as usize]).collect();
        self.training = picked.training.iter().map(|&at| self.training[at as usize]).collect();
        Ok(())
    }

    /// Outputs that a model of this data has for each target.
    pub fn outputs(&self) -> usize {
        self.classes.len().max(1)
    }

    /// Targets of each sample: the tokens of a text, else one.
    pub fn targets_per_sample(&self) -> usize {
        match self.sample {
            Sample::Text { context, .. } => context,
            _ => 1,
        }
    }

    /// Puts samples into `batch`. With an `epoch` they train, and have the noise that dropout needs.
    ///
    /// # Errors
    /// [`DataError::Read`] where samples that are kept on disk cannot be read.
    pub fn fill(&self, rows: &[u32], epoch: Option<(u64, u64)>, batch: &mut Batch) -> Result<(), DataError> {
        batch.rows = rows.len();
        batch.noise.clear();
        if let Some((seed, epoch)) = epoch {
            let key = key(seed, Stream::Dropout(epoch));
            batch.noise.extend(rows.iter().map(|&row| draw(key, u64::from(row))));
        }
        self.store.fill(rows, &self.scaling, batch)?;
        match (&self.targets, &mut batch.targets) {
            _ if matches!(self.sample, Sample::Text { .. }) => {}
            (Targets::Classes(from), Targets::Classes(to)) => gather(from, rows, to),
            (Targets::Values(from), Targets::Values(to)) => gather(from, rows, to),
            (Targets::Classes(from), to) => {
                *to = Targets::Classes(rows.iter().map(|&row| from[row as usize]).collect());
            }
            (Targets::Values(from), to) => {
                *to = Targets::Values(rows.iter().map(|&row| from[row as usize]).collect());
            }
        }
        Ok(())
    }

    /// A hash of everything that training sees.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn fingerprint(&self) -> Result<blake3::Hash, DataError> {
        let mut hasher = blake3::Hasher::new();
        self.store.hash(&mut hasher)?;
        match &self.targets {
            Targets::Classes(classes) => hash_words(&mut hasher, classes.iter().copied()),
            Targets::Values(values) => hash_words(&mut hasher, values.iter().map(|value| value.to_bits())),
        }
        for rows in [&self.training, &self.validation, &self.test] {
            hash_words(&mut hasher, rows.iter().copied());
        }
        hash_words(
            &mut hasher,
            self.scaling.iter().flat_map(|(mean, deviation)| [mean.to_bits(), deviation.to_bits()]),
        );
        for name in self.columns.iter().chain(&self.classes).chain(&self.vocabulary) {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        }
        Ok(hasher.finalize())
    }
}

fn gather<T: Copy>(from: &[T], rows: &[u32], to: &mut Vec<T>) {
    to.clear();
    to.extend(rows.iter().map(|&row| from[row as usize]));
}

/// Hashes words and how many there are.
fn hash_words(hasher: &mut blake3::Hasher, words: impl Iterator<Item = u32>) {
    const BUFFER: usize = 1 << 16;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut count = 0u64;
    for word in words {
        buffer.extend_from_slice(&word.to_le_bytes());
        count += 1;
        if buffer.len() == BUFFER {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
    hasher.update(&count.to_le_bytes());
}

#[cfg(test)]
mod tests;
