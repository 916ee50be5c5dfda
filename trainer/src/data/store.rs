//! Where samples lie: in memory, or what is too much for it, on disk.

use super::Targets;
use super::batch::Batch;
use super::error::DataError;
use super::hash_words;
use super::scaling::scale;
use super::source::Source;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Samples by number.
#[derive(Debug)]
pub(super) enum Store {
    /// Values in memory, scaled.
    Values { width: usize, values: Vec<f32> },
    /// Pixels in memory, scaled as they are taken.
    Bytes { width: usize, values: Vec<u8> },
    /// Values on disk, scaled as they are taken.
    Disk { width: usize, file: File, path: PathBuf, rows: usize },
    /// Texts of different lengths, each from where the one before ends.
    Texts { tokens: Vec<u32>, ends: Vec<usize> },
    /// One long text, and where in it each sample starts.
    Windows { tokens: Vec<u32>, starts: Vec<u32>, context: usize },
}

/// Bytes read from disk at a time when all of it is read.
const CHUNK_BYTES: usize = 1 << 20;

impl Store {
    /// Puts samples into a batch; of a text their targets too.
    pub(super) fn fill(
        &self,
        rows: &[u32],
        scaling: &[(f32, f32)],
        batch: &mut Batch,
    ) -> Result<(), DataError> {
        batch.values.clear();
        batch.tokens.clear();
        batch.lengths.clear();
        match self {
            Store::Values { width, values } => {
                for &row in rows {
                    batch.values.extend_from_slice(&values[row as usize * width..][..*width]);
                }
            }
            Store::Bytes { width, values } => {
                for &row in rows {
                    let bytes = &values[row as usize * width..][..*width];
                    batch.values.extend(bytes.iter().map(|&byte| f32::from(byte)));
                }
                scale(&mut batch.values, *width, scaling);
            }
            Store::Disk { width, file, path, .. } => {
                let mut bytes = vec![0; width * size_of::<f32>()];
                for &row in rows {
                    let at = u64::from(row) * bytes.len() as u64;
                    file.read_exact_at(&mut bytes, at)
                        .map_err(|source| DataError::Read { path: path.clone(), source })?;
                    batch.values.extend(words(&bytes).map(f32::from_bits));
                }
                scale(&mut batch.values, *width, scaling);
            }
            Store::Texts { tokens, ends } => fill_texts(tokens, ends, rows, batch),
            Store::Windows { tokens, starts, context } => {
                let mut next = match std::mem::take(&mut batch.targets) {
                    Targets::Classes(classes) => classes,
                    Targets::Values(_) => Vec::new(),
                };
                next.clear();
                for &row in rows {
                    let start = starts[row as usize] as usize;
                    batch.tokens.extend_from_slice(&tokens[start..start + context]);
                    next.extend_from_slice(&tokens[start + 1..start + context + 1]);
                }
                batch.targets = Targets::Classes(next);
            }
        }
        Ok(())
    }

    /// Calls `f` with a number of whole samples of values at a time, in order; for tokens never.
    pub(super) fn each_values(&self, mut f: impl FnMut(&[f32])) -> Result<(), DataError> {
        match self {
            Store::Values { values, .. } => f(values),
            Store::Bytes { width, values } => {
                let mut chunk = Vec::new();
                for bytes in values.chunks((CHUNK_BYTES / width).max(1) * width) {
                    chunk.clear();
                    chunk.extend(bytes.iter().map(|&byte| f32::from(byte)));
                    f(&chunk);
                }
            }
            Store::Disk { width, file, path, rows } => {
                let row_bytes = width * size_of::<f32>();
                let at_once = (CHUNK_BYTES / row_bytes).max(1);
                let (mut bytes, mut chunk) = (vec![0; at_once * row_bytes], Vec::new());
                for start in (0..*rows).step_by(at_once) {
                    let bytes = &mut bytes[..at_once.min(rows - start) * row_bytes];
                    file.read_exact_at(bytes, (start * row_bytes) as u64)
                        .map_err(|source| DataError::Read { path: path.clone(), source })?;
                    chunk.clear();
                    chunk.extend(words(bytes).map(f32::from_bits));
                    f(&chunk);
                }
            }
            Store::Texts { .. } | Store::Windows { .. } => {}
        }
        Ok(())
    }

    /// The values that are in memory as they are.
    pub(super) fn values_mut(&mut self) -> Option<&mut [f32]> {
        match self {
            Store::Values { values, .. } => Some(values),
            _ => None,
        }
    }

    pub(super) fn hash(&self, hasher: &mut blake3::Hasher) -> Result<(), DataError> {
        match self {
            Store::Bytes { values, .. } => {
                hasher.update(values);
            }
            Store::Texts { tokens, ends } => {
                hash_words(hasher, tokens.iter().copied());
                hash_words(hasher, ends.iter().map(|&end| end as u32));
            }
            Store::Windows { tokens, starts, .. } => {
                hash_words(hasher, tokens.iter().copied());
                hash_words(hasher, starts.iter().copied());
            }
            Store::Values { .. } | Store::Disk { .. } => {
                self.each_values(|values| hash_words(hasher, values.iter().map(|value| value.to_bits())))?;
            }
        }
        Ok(())
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}

/// Texts padded by token 0 to the longest among them.
fn fill_texts(tokens: &[u32], ends: &[usize], rows: &[u32], batch: &mut Batch) {
    let text = |row: u32| {
        let row = row as usize;
        &tokens[row.checked_sub(1).map_or(0, |before| ends[before])..ends[row]]
    };
    let longest = rows.iter().map(|&row| text(row).len()).max().unwrap_or(0);
    for &row in rows {
        let text = text(row);
        batch.tokens.extend_from_slice(text);
        batch.tokens.resize(batch.tokens.len() + longest - text.len(), 0);
        batch.lengths.push(text.len() as u32);
    }
}

/// Takes rows of values one by one, and moves to disk when they are more than may be in memory.
#[derive(Debug)]
pub(super) struct Collector {
    width: usize,
    rows: usize,
    values: Vec<f32>,
    /// Most values in memory.
    limit: usize,
    scratch: PathBuf,
    disk: Option<(File, PathBuf)>,
}

/// Values in memory before they are written to disk.
const WRITE_LEN: usize = 1 << 18;

impl Collector {
    pub(super) fn new(memory_bytes: Option<u64>, scratch: &Path) -> Collector {
        let limit = memory_bytes.map_or(usize::MAX, |bytes| bytes as usize / size_of::<f32>());
        Collector { width: 0, rows: 0, values: Vec::new(), limit, scratch: scratch.to_owned(), disk: None }
    }

    /// Takes a row; all have one width.
    pub(super) fn push(&mut self, row: &[f32]) -> Result<(), DataError> {
        self.width = row.len();
        self.rows += 1;
        self.values.extend_from_slice(row);
        if self.disk.is_none() && self.values.len() > self.limit {
            self.disk = Some(create(&self.scratch)?);
        }
        if self.disk.is_some() && self.values.len() >= WRITE_LEN { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), DataError> {
        let Some((file, path)) = &mut self.disk else { return Ok(()) };
        let mut bytes = Vec::with_capacity(self.values.len() * size_of::<f32>());
        self.values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
        self.values.clear();
        file.write_all(&bytes).map_err(|source| DataError::Scratch { path: path.clone(), source })
    }

    pub(super) fn finish(mut self) -> Result<Store, DataError> {
        self.write()?;
        Ok(match self.disk {
            None => Store::Values { width: self.width, values: self.values },
            Some((file, path)) => Store::Disk { width: self.width, file, path, rows: self.rows },
        })
    }
}

/// A file that is gone with its last user, however that ends.
fn create(scratch: &Path) -> Result<(File, PathBuf), DataError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = scratch.join(format!("phalanx-data-{}-{number}", std::process::id()));
    let create = || {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    };
    match create() {
        Ok(file) => Ok((file, path)),
        Err(source) => Err(DataError::Scratch { path, source }),
    }
}

impl Source {
    /// Samples are numbered by 32 bits.
    pub(super) fn row_number(&self, rows: usize) -> Result<u32, DataError> {
        u32::try_from(rows).map_err(|_| self.fail(format!("{rows} samples; the limit is {}", u32::MAX)))
    }
}
