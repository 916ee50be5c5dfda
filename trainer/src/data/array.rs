//! Arrays: NumPy's `.npy`, the IDX files of MNIST, safetensors.

use super::Dataset;
use super::assemble::{Found, Part, Wanted};
use super::batch::Sample;
use super::error::DataError;
use super::source::{Places, Source};
use super::store::Store;
use super::target::Cells;
use ::safetensors::{Dtype, SafeTensors};
use phalanx_core::spec::{ArrayData, HeldOut, Loss};
use std::path::Path;

/// Numbers with a shape, the first dimension of which counts samples.
#[derive(Debug, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Values,
}

#[derive(Debug, PartialEq)]
pub(super) enum Values {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// Types of numbers in files.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
}

impl Array {
    fn new(
        source: &Source,
        shape: Vec<usize>,
        kind: Kind,
        bytes: &[u8],
        big: bool,
    ) -> Result<Array, DataError> {
        let size = match kind {
            Kind::Unsigned(size) | Kind::Signed(size) | Kind::Float(size) => size,
            Kind::Bool => 1,
        };
        let wanted = shape.iter().try_fold(size, |bytes, &side| bytes.checked_mul(side));
        if wanted != Some(bytes.len()) {
            return Err(source.fail(format!(
                "the shape {shape:?} needs {} bytes of numbers, and the file has {}; it is cut short or damaged",
                wanted.map_or("too many".to_owned(), |wanted| wanted.to_string()),
                bytes.len()
            )));
        }
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            for (at, byte) in chunk.iter().enumerate() {
                word[if big { chunk.len() - 1 - at } else { at }] = *byte;
            }
            u64::from_le_bytes(word)
        };
        let words = bytes.chunks_exact(size).map(word);
        let values = match kind {
            Kind::Unsigned(1) | Kind::Bool => Values::Bytes(bytes.to_vec()),
            Kind::Unsigned(_) => Values::Integers(words.map(|word| word as i64).collect()),
            Kind::Signed(size) => {
                let shift = 64 - 8 * size;
                Values::Integers(words.map(|word| (word << shift) as i64 >> shift).collect())
            }
            Kind::Float(2) => {
                Values::Floats(words.map(|word| half::f16::from_bits(word as u16).to_f32()).collect())
            }
            Kind::Float(4) => Values::Floats(words.map(|word| f32::from_bits(word as u32)).collect()),
            Kind::Float(_) => Values::Floats(words.map(|word| f64::from_bits(word) as f32).collect()),
        };
        Ok(Array { shape, values })
    }

    /// Reads `.npy` (NumPy's format, versions 1 to 3) or IDX.
    pub(super) fn read(source: &Source) -> Result<Array, DataError> {
        let bytes = source.read()?;
        if bytes.starts_with(b"\x93NUMPY") {
            return parse_npy(source, &bytes);
        }
        if bytes.starts_with(&[0, 0]) && bytes.len() > 4 {
            return parse_idx(source, &bytes);
        }
        Err(source.fail(match bytes.is_empty() {
            true => "the file is empty".to_owned(),
            false => "the file is neither `.npy` nor IDX; unpack it if it is compressed".to_owned(),
        }))
    }

    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// What one sample is: three dimensions behind the first are an image, two an image of one channel.
    fn sample(&self) -> Sample {
        match self.shape[..] {
            [_, height, width] => Sample::Image([1, height, width]),
            [_, channels, height, width] => Sample::Image([channels, height, width]),
            _ => Sample::Features(self.shape[1..].iter().product()),
        }
    }

    /// Moves channels from the end to the front, where that is where they seem to be.
    fn channels_first(&mut self) {
        let [rows, height, width, channels] = self.shape[..] else { return };
        if matches!(height, 1 | 3 | 4) || !matches!(channels, 1 | 3 | 4) {
            return;
        }
        fn transposed<T: Copy>(values: &[T], places: usize, channels: usize) -> Vec<T> {
            let of_image = |image: &[T]| -> Vec<T> {
                (0..channels * places).map(|at| image[at % places * channels + at / places]).collect()
            };
            values.chunks_exact(places * channels).flat_map(of_image).collect()
        }
        let places = height * width;
        match &mut self.values {
            Values::Bytes(values) => *values = transposed(values, places, channels),
            Values::Floats(values) => *values = transposed(values, places, channels),
            Values::Integers(values) => *values = transposed(values, places, channels),
        }
        self.shape = vec![rows, channels, height, width];
    }

    fn append(&mut self, other: Array, source: &Source) -> Result<(), DataError> {
        if self.shape[1..] != other.shape[1..] {
            return Err(source.fail(format!(
                "samples are {:?}, and those of the training file {:?}",
                &other.shape[1..],
                &self.shape[1..]
            )));
        }
        self.shape[0] += other.shape[0];
        match (&mut self.values, other.values) {
            (Values::Bytes(values), Values::Bytes(mut more)) => values.append(&mut more),
            (values, more) => {
                let mut floats = std::mem::replace(values, Values::Bytes(Vec::new())).into_floats();
                floats.append(&mut more.into_floats());
                *values = Values::Floats(floats);
            }
        }
        Ok(())
    }

    /// The samples as a store; a value that is no number is told with the entry that has it.
    fn into_store(self, source: &Source) -> Result<(Sample, Store), DataError> {
        let sample = self.sample();
        let width = sample.width().unwrap_or(0);
        if width == 0 || self.rows() == 0 {
            return Err(source.fail(format!("the shape {:?} holds no sample", self.shape)));
        }
        let store = match self.values {
            Values::Bytes(values) => Store::Bytes { width, values },
            values => Store::Values { width, values: values.into_floats() },
        };
        if let Store::Values { values, .. } = &store
            && let Some(at) = values.iter().position(|value| !value.is_finite())
        {
            return Err(source.fail_cell(
                format!("entry {}", at / width + 1),
                match values[at] {
                    value if value.is_nan() => super::CellProblem::Nan,
                    value => super::CellProblem::Infinite(value.to_string()),
                },
            ));
        }
        Ok((sample, store))
    }

    /// One number for each sample, as a column of cells.
    fn into_targets(self, source: &Source) -> Result<Cells, DataError> {
        if self.shape.iter().skip(1).product::<usize>() != 1 {
            return Err(source.fail(format!(
                "the targets have the shape {:?}; one number for each sample is needed",
                self.shape
            )));
        }
        let mut cells = Cells::default();
        match self.values {
            Values::Bytes(values) => values.iter().for_each(|value| cells.push(&value.to_string())),
            Values::Integers(values) => values.iter().for_each(|value| cells.push(&value.to_string())),
            Values::Floats(values) => {
                for (at, value) in values.iter().enumerate() {
                    if value.is_nan() {
                        return Err(source.fail_cell(format!("entry {}", at + 1), super::CellProblem::Nan));
                    }
                    cells.push(&value.to_string());
                }
            }
        }
        Ok(cells)
    }
}

impl Values {
    fn into_floats(self) -> Vec<f32> {
        match self {
            Values::Bytes(values) => values.into_iter().map(f32::from).collect(),
            Values::Integers(values) => values.into_iter().map(|value| value as f32).collect(),
            Values::Floats(values) => values,
        }
    }
}

fn parse_npy(source: &Source, bytes: &[u8]) -> Result<Array, DataError> {
    let bad = || source.fail("the header of the `.npy` file is damaged");
    let (length, start) = match bytes.get(6) {
        Some(1) => (
            u16::from_le_bytes([*bytes.get(8).ok_or_else(bad)?, *bytes.get(9).ok_or_else(bad)?]) as usize,
            10,
        ),
        Some(2 | 3) => {
            let word = bytes.get(8..12).and_then(|word| word.try_into().ok()).ok_or_else(bad)?;
            (u32::from_le_bytes(word) as usize, 12)
        }
        _ => return Err(bad()),
    };
    let header = bytes.get(start..start + length).and_then(|header| std::str::from_utf8(header).ok());
    let header = header.ok_or_else(bad)?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = after("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'')).ok_or_else(bad)?.0;
    if after("fortran_order").is_some_and(|rest| rest.starts_with("True")) {
        return Err(source.fail("the array is in Fortran's order; save `numpy.ascontiguousarray(array)`"));
    }
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or_else(bad)?.0;
    let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape: Vec<usize> = sides.map(|side| side.parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
    if shape.is_empty() {
        return Err(source.fail("the array is a single number"));
    }
    let (order, name) = descr.split_at_checked(1).ok_or_else(bad)?;
    let kind = match name {
        "b1" => Kind::Bool,
        "u1" | "u2" | "u4" | "u8" => Kind::Unsigned(size_of_name(name)),
        "i1" | "i2" | "i4" | "i8" => Kind::Signed(size_of_name(name)),
        "f2" | "f4" | "f8" => Kind::Float(size_of_name(name)),
        _ => {
            return Err(
                source.fail(format!("the array's type is `{descr}`; save it as float32, or as integers"))
            );
        }
    };
    Array::new(source, shape, kind, &bytes[start + length..], order == ">")
}

fn size_of_name(name: &str) -> usize {
    usize::from(name.as_bytes()[1] - b'0')
}

/// The format of MNIST (LeCun, Cortes & Burges): two zero bytes, type, dimensions, sizes, numbers, all big-endian.
fn parse_idx(source: &Source, bytes: &[u8]) -> Result<Array, DataError> {
    let kind = match bytes[2] {
        0x08 => Kind::Unsigned(1),
        0x09 => Kind::Signed(1),
        0x0B => Kind::Signed(2),
        0x0C => Kind::Signed(4),
        0x0D => Kind::Float(4),
        0x0E => Kind::Float(8),
        other => return Err(source.fail(format!("the type {other:#04x} of the IDX file is unknown"))),
    };
    let sides = usize::from(bytes[3]);
    let end = 4 + 4 * sides;
    if sides == 0 || bytes.len() < end {
        return Err(source.fail("the header of the IDX file is damaged"));
    }
    let shape =
        bytes[4..end].as_chunks::<4>().0.iter().map(|side| u32::from_be_bytes(*side) as usize).collect();
    Array::new(source, shape, kind, &bytes[end..], true)
}

/// One file of samples and the one of its targets.
struct Pair {
    samples: (Source, Array),
    targets: (Source, Array),
}

/// Samples in one `.npy` or IDX file and targets in another.
pub(super) fn npy(
    data: &ArrayData,
    loss: Option<Loss>,
    seed: u64,
    base: &Path,
) -> Result<Dataset, DataError> {
    let read = |path: &str, target: Option<&str>| {
        let samples = Source::new(base, path);
        let Some(target) = target else {
            return Err(
                samples.fail("the file has samples and no targets; name the file of those as `target`")
            );
        };
        let targets = Source::new(base, target);
        let (array, labels) = (Array::read(&samples)?, Array::read(&targets)?);
        Ok(Pair { samples: (samples, array), targets: (targets, labels) })
    };
    let training = read(&data.path, data.target.as_deref())?;
    let other = |held_out: &Option<HeldOut>| match held_out {
        Some(HeldOut::Files { path, target }) => read(path, Some(target)).map(Some),
        Some(HeldOut::File(path)) => read(path, None).map(Some),
        Some(HeldOut::Fraction(_)) | None => Ok(None),
    };
    assemble(data, loss, seed, training, other(&data.validation)?, other(&data.test)?)
}

/// Two tensors of a safetensors file.
pub(super) fn safetensors(
    data: &ArrayData,
    loss: Option<Loss>,
    seed: u64,
    base: &Path,
) -> Result<Dataset, DataError> {
    let read = |path: &str| {
        let source = Source::new(base, path);
        let bytes = source.read()?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| source.fail(format!("the file is no safetensors file: {error}")))?;
        let target = data.target.as_deref().unwrap_or_default();
        let mut names: Vec<&str> = file.names().into_iter().collect();
        names.sort_unstable();
        let others: Vec<&str> = names.iter().copied().filter(|name| *name != target).collect();
        let features = match (&data.features, &others[..]) {
            (Some(name), _) => name.as_str(),
            (None, [only]) => only,
            (None, _) => {
                let names = names.join("`, `");
                return Err(source.fail(format!(
                    "which tensor has the samples? The file has `{names}`; name one as `features`"
                )));
            }
        };
        let tensor = |name: &str, key: &str| {
            let view = file.tensor(name).map_err(|_| {
                source.fail(format!(
                    "there is no tensor `{name}` (`data.{key}`); there are `{}`",
                    names.join("`, `")
                ))
            })?;
            let kind = match view.dtype() {
                Dtype::BOOL => Kind::Bool,
                Dtype::U8 => Kind::Unsigned(1),
                Dtype::U16 => Kind::Unsigned(2),
                Dtype::U32 => Kind::Unsigned(4),
                Dtype::U64 => Kind::Unsigned(8),
                Dtype::I8 => Kind::Signed(1),
                Dtype::I16 => Kind::Signed(2),
                Dtype::I32 => Kind::Signed(4),
                Dtype::I64 => Kind::Signed(8),
                Dtype::F16 => Kind::Float(2),
                Dtype::F32 => Kind::Float(4),
                Dtype::F64 => Kind::Float(8),
                other => {
                    return Err(
                        source.fail(format!("the tensor `{name}` is {other:?}; save it as F32 or integers"))
                    );
                }
            };
            if view.shape().is_empty() {
                return Err(source.fail(format!("the tensor `{name}` is a single number")));
            }
            Array::new(&source, view.shape().to_vec(), kind, view.data(), false)
        };
        let (samples, targets) = (tensor(features, "features")?, tensor(target, "target")?);
        Ok(Pair { samples: (source.clone(), samples), targets: (source.clone(), targets) })
    };
    let training = read(&data.path)?;
    let other = |held_out: &Option<HeldOut>| match held_out {
        Some(HeldOut::File(path)) => read(path).map(Some),
        Some(HeldOut::Files { path, .. }) => {
            Err(Source::new(base, path).fail("a safetensors file has its targets in it; name the file alone"))
        }
        Some(HeldOut::Fraction(_)) | None => Ok(None),
    };
    assemble(data, loss, seed, training, other(&data.validation)?, other(&data.test)?)
}

fn assemble(
    data: &ArrayData,
    loss: Option<Loss>,
    seed: u64,
    training: Pair,
    validation: Option<Pair>,
    test: Option<Pair>,
) -> Result<Dataset, DataError> {
    let (source, mut samples) = training.samples;
    let part = |pair_targets: (Source, Array), rows: usize, samples: &Source| {
        let (source, targets) = pair_targets;
        if targets.rows() != rows {
            let found = targets.rows();
            return Err(source.fail(format!(
                "there are {found} targets and {rows} samples in {}",
                samples.shown.display()
            )));
        }
        let targets = targets.into_targets(&source)?;
        Ok(Part { source, targets, places: Places::Entries })
    };
    samples.channels_first();
    let training = part(training.targets, samples.rows(), &source)?;
    let mut other = |pair: Option<Pair>| -> Result<Option<Part>, DataError> {
        let Some(Pair { samples: (other, mut array), targets }) = pair else { return Ok(None) };
        array.channels_first();
        let part = part(targets, array.rows(), &other)?;
        samples.append(array, &other)?;
        Ok(Some(part))
    };
    let (validation, test) = (other(validation)?, other(test)?);
    let (sample, store) = samples.into_store(&source)?;
    let held_out = [data.validation.as_ref(), data.test.as_ref()];
    let wanted = Wanted { held_out, normalize: data.normalize, loss, seed };
    let (columns, vocabulary) = (Vec::new(), Vec::new());
    Found { sample, columns, vocabulary, store, training, validation, test }.assemble(&wanted)
}
