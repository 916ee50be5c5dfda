//! Checkpoints: `model.safetensors`, `optimizer.safetensors`, `trainer.json` and `checksums.b3` in one folder.
//!
//! The folder is staged in the attempt's scratch folder and handed to the agent, which moves it, makes it durable and
//! renames it into place. Outside a job it is renamed into place here. `checksums.b3` has the form of `b3sum`'s output
//! and covers the other three, so that a damaged checkpoint is told from a good one wherever it has travelled.

use crate::Error;
use crate::layer::wide::wide;
use crate::model::Tensor;
use crate::optimizer::Optimizer;
use crate::report;
use crate::sampler::Position;
use phalanx_core::spec::MetricMode;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer.json";
const CHECKSUMS: &str = "checksums.b3";
/// The agent's own list of a checkpoint's files.
const MANIFEST: &str = "manifest.json";
/// Version of the layout above.
const FORMAT: u32 = 2;
/// How long a checkpoint under way is waited for before the next one; above the agent's own deadline.
const WRITE_DEADLINE: Duration = Duration::from_secs(900);

/// Everything but the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Version of the layout.
    pub(crate) format: u32,
    /// How far the run has come.
    pub(crate) position: Position,
    /// Samples per optimizer step when it was made.
    pub(crate) batch_size: u32,
    /// The run's seed: it fixes the order of samples and the held-out part.
    pub(crate) seed: u64,
    /// The optimizer's kind.
    pub(crate) optimizer: String,
    /// The model in words, such as `mlp 64-128-10 relu`.
    pub(crate) model: String,
    /// A hash of the data.
    pub(crate) data: String,
    /// Names of the features, in the order of the model's inputs.
    pub(crate) features: Vec<String>,
    /// What was taken from each feature, and what it was divided by.
    pub(crate) scaling: Vec<(f32, f32)>,
    /// Names of the classes, in the order of the model's outputs.
    pub(crate) classes: Vec<String>,
    /// The tokens of a text, in the order of the model's embedding.
    pub(crate) vocabulary: Vec<String>,
    /// What `checkpoint.metric` was.
    pub(crate) score: Option<f64>,
}

/// A copy of a run that training does not touch.
#[derive(Debug)]
struct Snapshot {
    state: State,
    parameters: Vec<f32>,
    slots: Vec<(&'static str, Vec<f32>)>,
}

/// Where finished checkpoints go.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    /// To the agent at `socket`, staged in `scratch`.
    Agent {
        /// `$PHALANX_SOCKET`.
        socket: PathBuf,
        /// `$PHALANX_SCRATCH`.
        scratch: PathBuf,
    },
    /// Kept in this folder, one `step-N` each: the best so many, and the latest.
    Folder {
        /// The folder.
        path: PathBuf,
        /// How many stay beside the latest.
        keep: usize,
        /// Which scores are better.
        mode: MetricMode,
    },
}

/// Writes checkpoints from a thread of its own while training goes on.
pub(crate) struct Writer {
    jobs: SyncSender<Snapshot>,
    /// The buffers, and whether they were written: parameters that are no numbers are not.
    done: Receiver<Result<(Snapshot, bool), Error>>,
    /// The buffers, when no checkpoint is under way.
    spare: Option<Snapshot>,
    /// The step of the last one that was written.
    latest: Option<u64>,
}

impl Writer {
    /// A writer of so many parameters and slots of optimizer state. Its buffers are made and touched here, so that a
    /// checkpoint costs training no more than the copy.
    pub(crate) fn new(
        destination: Destination,
        tensors: &[Tensor],
        state: State,
        slots: &[&'static str],
    ) -> Writer {
        let (jobs, queue) = mpsc::sync_channel::<Snapshot>(1);
        let (report, done) = mpsc::sync_channel(1);
        let layout = tensors.to_vec();
        thread::spawn(move || {
            for snapshot in queue {
                let finite = all_finite(&snapshot.parameters);
                let delivered = if finite { destination.deliver(&snapshot, &layout) } else { Ok(()) };
                if report.send(delivered.map(|()| (snapshot, finite))).is_err() {
                    return;
                }
            }
        });
        let parameters = tensors.last().map_or(0, |last| last.range.end);
        // Not `vec![0.0; …]`, whose pages are only promised.
        let touched = || (0..parameters).map(|at| at as f32).collect::<Vec<f32>>();
        let slots = slots.iter().map(|slot| (*slot, touched())).collect();
        let spare = Some(Snapshot { state, parameters: touched(), slots });
        Writer { jobs, done, spare, latest: None }
    }

    /// Copies the run and has the copy written; `fill` puts all of a slot's values, by its number, where it is told. What was
    /// under way must have [ended](Self::finish).
    pub(crate) fn write(&mut self, state: State, parameters: &[f32], fill: impl Fn(usize, &mut [f32])) {
        let Some(mut snapshot) = self.spare.take() else { unreachable!("a checkpoint is under way") };
        snapshot.state = state;
        snapshot.parameters.copy_from_slice(parameters);
        for (at, (_, values)) in snapshot.slots.iter_mut().enumerate() {
            fill(at, values);
        }
        // The thread only ends when this writer is gone.
        let sent = self.jobs.send(snapshot);
        assert!(sent.is_ok(), "the checkpoint thread ended early");
    }

    /// Waits until the checkpoint under way, if any, is durable. The answer is whether it was written: one with parameters
    /// that are no numbers is not.
    pub(crate) fn finish(&mut self) -> Result<bool, Error> {
        if self.spare.is_some() {
            return Ok(true);
        }
        let Ok(outcome) = self.done.recv_timeout(WRITE_DEADLINE) else {
            return Err(Error::Checkpoint {
                path: PathBuf::from(match self.latest {
                    Some(step) => format!("after that of step {step}"),
                    None => "that was to be the first".to_owned(),
                }),
                reason: format!(
                    "not durable after {} s; the disk is stuck or full",
                    WRITE_DEADLINE.as_secs()
                ),
            });
        };
        let (snapshot, written) = outcome?;
        if written {
            self.latest = Some(snapshot.state.position.step);
        }
        self.spare = Some(snapshot);
        Ok(written)
    }

    /// The step of the last checkpoint that was written.
    pub(crate) fn latest(&self) -> Option<u64> {
        self.latest
    }
}

wide! {
    /// Whether all values are numbers. Infinities and NaN have the largest bits; a maximum is vectorised, a search that may
    /// stop is not.
    fn all_finite(values: &[f32]) -> bool {
        values.iter().map(|value| value.to_bits() & !(1 << 31)).fold(0, u32::max) < f32::INFINITY.to_bits()
    }
}

impl Destination {
    fn deliver(&self, snapshot: &Snapshot, tensors: &[Tensor]) -> Result<(), Error> {
        let step = snapshot.state.position.step;
        match self {
            Destination::Agent { socket, scratch } => {
                let staged = scratch.join(format!("checkpoint-{step}"));
                write_folder(&staged, snapshot, tensors)?;
                report::hand_over(socket, step, &staged)?;
                // An agent that could not move it has left it.
                clear(&staged)
            }
            Destination::Folder { path, keep, mode } => {
                let staged = path.join(format!("tmp-{step}"));
                write_folder(&staged, snapshot, tensors)?;
                for name in [MODEL, OPTIMIZER, STATE, CHECKSUMS] {
                    let file = staged.join(name);
                    File::open(&file).and_then(|file| file.sync_all()).map_err(Error::io("sync", file))?;
                }
                sync_folder(&staged)?;
                let place = path.join(format!("step-{step}"));
                clear(&place)?;
                fs::rename(&staged, &place).map_err(Error::io("rename", &place))?;
                sync_folder(path)?;
                prune(path, *keep, *mode)
            }
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", path))
}

fn clear(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes all but the latest of a folder of checkpoints and the best `keep`; without scores the later is the better.
fn prune(path: &Path, keep: usize, mode: MetricMode) -> Result<(), Error> {
    let entries = fs::read_dir(path).map_err(Error::io("read", path))?;
    let step = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("step-")?.parse().ok();
    let mut found: Vec<(u64, f64)> = entries
        .filter_map(|entry| step(&entry.ok()?.file_name()))
        .map(|step| (step, score_of(&path.join(format!("step-{step}"))).unwrap_or(f64::NAN)))
        .collect();
    found.sort_unstable_by_key(|(step, _)| std::cmp::Reverse(*step));
    let mut others = found.split_off(found.len().min(1));
    // Stable: of equals the later stays.
    others.sort_by(|(_, a), (_, b)| mode.is_better(*b, *a).cmp(&mode.is_better(*a, *b)));
    others.iter().skip(keep).try_for_each(|(step, _)| clear(&path.join(format!("step-{step}"))))
}

fn score_of(folder: &Path) -> Option<f64> {
    let state: State = serde_json::from_slice(&fs::read(folder.join(STATE)).ok()?).ok()?;
    state.score
}

fn write_folder(folder: &Path, snapshot: &Snapshot, tensors: &[Tensor]) -> Result<(), Error> {
    clear(folder)?;
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut checksums = String::new();
    let mut file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        let _ = writeln!(checksums, "{}  {name}", blake3::hash(bytes)); // writing to a String cannot fail
        fs::write(&path, bytes).map_err(Error::io("write", path))
    };
    let whole =
        |name: &str, values: &[f32]| pack(tensors.iter().map(|t| (format!("{name}{}", t.name), t, values)));
    file(MODEL, &whole("", &snapshot.parameters))?;
    let slots = snapshot.slots.iter();
    let slots = slots.flat_map(|(slot, values)| {
        tensors.iter().map(move |t| (format!("{slot}.{}", t.name), t, values.as_slice()))
    });
    file(OPTIMIZER, &pack(slots))?;
    let mut state = serde_json::to_vec_pretty(&snapshot.state)
        .map_err(|error| Error::Checkpoint { path: folder.join(STATE), reason: error.to_string() })?;
    state.push(b'\n');
    file(STATE, &state)?;
    let path = folder.join(CHECKSUMS);
    fs::write(&path, checksums).map_err(Error::io("write", path))
}

/// A safetensors file of the tensors, each cut from its flat values.
fn pack<'a>(tensors: impl Iterator<Item = (String, &'a Tensor, &'a [f32])>) -> Vec<u8> {
    pack_with(tensors, None)
}

fn pack_with<'a>(
    tensors: impl Iterator<Item = (String, &'a Tensor, &'a [f32])>,
    about: Option<HashMap<String, String>>,
) -> Vec<u8> {
    let views = tensors.map(|(name, tensor, values)| {
        // The format is little-endian, as every machine that this runs on.
        let bytes = bytemuck::cast_slice(&values[tensor.range.clone()]);
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        (name, view.unwrap_or_else(|error| unreachable!("{error}")))
    });
    let packed = safetensors::serialize(views, about);
    packed.unwrap_or_else(|error| unreachable!("{error}"))
}

/// Writes a trained model to `path`, with what its inputs and outputs mean as JSON in the file's metadata: durable and
/// whole, or not at all.
pub(crate) fn export(
    path: &Path,
    state: &State,
    tensors: &[Tensor],
    parameters: &[f32],
) -> Result<(), Error> {
    let about = [
        ("model", state.model.clone()),
        ("step", state.position.step.to_string()),
        ("features", json(&state.features)),
        ("scaling", json(&state.scaling)),
        ("classes", json(&state.classes)),
        ("vocabulary", json(&state.vocabulary)),
    ];
    let about = about.into_iter().map(|(key, value)| (format!("phalanx.{key}"), value)).collect();
    let tensors = tensors.iter().map(|tensor| (tensor.name.clone(), tensor, parameters));
    let bytes = pack_with(tensors, Some(about));
    let staged = path.with_added_extension("tmp");
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    fs::write(&staged, bytes).map_err(Error::io("write", &staged))?;
    File::open(&staged).and_then(|file| file.sync_all()).map_err(Error::io("sync", &staged))?;
    fs::rename(&staged, path).map_err(Error::io("rename", path))
}

fn json<T: Serialize>(values: &T) -> String {
    serde_json::to_string(values).unwrap_or_else(|error| unreachable!("{error}"))
}

/// A checkpoint that has been read and whose checksums hold.
#[derive(Debug)]
pub(crate) struct Loaded {
    path: PathBuf,
    pub(crate) state: State,
    model: Vec<u8>,
    optimizer: Vec<u8>,
    /// The hash of all of it, for ranks to compare.
    pub(crate) hash: blake3::Hash,
}

impl Loaded {
    /// Reads and verifies a folder, or if it is damaged the latest earlier one beside it that is not: folders of one run
    /// have names that end in `-STEP`.
    pub(crate) fn read_or_earlier(path: &Path) -> Result<Loaded, Error> {
        let first = match Loaded::read(path) {
            Err(error) => error,
            loaded => return loaded,
        };
        for earlier in earlier(path) {
            if let Ok(loaded) = Loaded::read(&earlier) {
                eprintln!("{first}; going on from {}", earlier.display());
                return Ok(loaded);
            }
        }
        Err(first)
    }

    /// Reads and verifies a folder.
    fn read(path: &Path) -> Result<Loaded, Error> {
        let fail = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
        let read = |name: &str| {
            fs::read(path.join(name)).map_err(|error| {
                fail(format!(
                    "{name} cannot be read: {error}; it is damaged, or no checkpoint of the built-in trainer"
                ))
            })
        };
        let checksums = read(CHECKSUMS)?;
        let listed = parse_checksums(&checksums).ok_or_else(|| fail(damaged(CHECKSUMS)))?;
        let manifest = read_manifest(path).map_err(&fail)?;
        let verified = |name: &str| {
            let bytes = read(name)?;
            let hash = blake3::hash(&bytes).to_hex();
            let in_manifest = manifest.as_ref().is_none_or(|manifest| manifest.lists(name, &hash));
            if listed.get(name).map(String::as_str) != Some(hash.as_str()) || !in_manifest {
                return Err(fail(damaged(name)));
            }
            Ok(bytes)
        };
        let (model, optimizer) = (verified(MODEL)?, verified(OPTIMIZER)?);
        let state: State = serde_json::from_slice(&verified(STATE)?)
            .map_err(|error| fail(format!("{STATE}: {error}; it was written by another version")))?;
        if state.format != FORMAT {
            return Err(fail(format!("its format is {}, this Phalanx reads {FORMAT}", state.format)));
        }
        Ok(Loaded { path: path.to_owned(), state, model, optimizer, hash: blake3::hash(&checksums) })
    }

    /// Checks that the checkpoint continues the run that `now` describes.
    pub(crate) fn check(&self, now: &State) -> Result<(), Error> {
        let then = &self.state;
        let differs = |what: &str, was: &str, is: &str| {
            Err(self.fail(format!(
                "it is of another run: {what} was `{was}` and is now `{is}`; put it back, or start a new job"
            )))
        };
        if then.model != now.model {
            return differs("the model", &then.model, &now.model);
        }
        if then.optimizer != now.optimizer {
            return differs("the optimizer", &then.optimizer, &now.optimizer);
        }
        if then.seed != now.seed {
            return differs("`seed`", &then.seed.to_string(), &now.seed.to_string());
        }
        if then.data != now.data {
            return differs("the hash of the data", &then.data, &now.data);
        }
        Ok(())
    }

    /// Puts parameters and optimizer state in place.
    pub(crate) fn restore(
        &self,
        tensors: &[Tensor],
        parameters: &mut [f32],
        optimizer: &mut Optimizer,
    ) -> Result<(), Error> {
        self.unpack(MODEL, &self.model, "", tensors, parameters)?;
        let mut whole = vec![0.0; parameters.len()];
        for (at, slot) in optimizer.slots().into_iter().enumerate() {
            self.unpack(OPTIMIZER, &self.optimizer, &format!("{slot}."), tensors, &mut whole)?;
            optimizer.take(at, &whole);
        }
        Ok(())
    }

    fn unpack(
        &self,
        file: &str,
        bytes: &[u8],
        prefix: &str,
        tensors: &[Tensor],
        into: &mut [f32],
    ) -> Result<(), Error> {
        let parsed =
            SafeTensors::deserialize(bytes).map_err(|error| self.fail(format!("{file}: {error}")))?;
        for tensor in tensors {
            let name = format!("{prefix}{}", tensor.name);
            let view = parsed.tensor(&name).map_err(|error| self.fail(format!("{file}: {error}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
                return Err(self.fail(format!(
                    "{file}: the tensor `{name}` is {:?} of {:?}, the model's is F32 of {:?}; it is of another model",
                    view.dtype(),
                    view.shape(),
                    tensor.shape
                )));
            }
            let (words, _) = view.data().as_chunks::<4>();
            for (value, word) in into[tensor.range.clone()].iter_mut().zip(words) {
                *value = f32::from_le_bytes(*word);
            }
        }
        Ok(())
    }

    fn fail(&self, reason: String) -> Error {
        Error::Checkpoint { path: self.path.clone(), reason }
    }
}

/// Folders beside this one whose names end in the number of an earlier step, the latest first.
fn earlier(path: &Path) -> Vec<PathBuf> {
    let step = |path: &Path| -> Option<u64> { path.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok() };
    let (Some(folder), Some(own)) = (path.parent(), step(path)) else { return Vec::new() };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let finished =
        |path: &PathBuf| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"tmp-"));
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter(finished)
        .filter_map(|path| Some((step(&path)?, path)))
        .filter(|(at, _)| *at < own)
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The part of the agent's list that matters here.
#[derive(Debug, Deserialize)]
struct Manifest {
    files: Vec<ManifestFile>,
}

#[derive(Debug, Deserialize)]
struct ManifestFile {
    path: String,
    blake3: String,
}

impl Manifest {
    fn lists(&self, name: &str, hash: &str) -> bool {
        self.files.iter().any(|file| file.path == name && file.blake3 == hash)
    }
}

/// The agent's list; a checkpoint that no agent has taken has none.
fn read_manifest(path: &Path) -> Result<Option<Manifest>, String> {
    match fs::read(path.join(MANIFEST)) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|_| damaged(MANIFEST)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{MANIFEST} cannot be read: {error}")),
    }
}

fn damaged(name: &str) -> String {
    format!(
        "{name} is damaged (its checksum does not hold), and no earlier checkpoint beside it is whole; start a new job"
    )
}

/// Lines of `HASH  NAME`.
fn parse_checksums(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.lines()
        .map(|line| line.split_once("  ").map(|(hash, name)| (name.to_owned(), hash.to_owned())))
        .collect()
}

impl State {
    /// The version of the layout that is written.
    pub(crate) const FORMAT: u32 = FORMAT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_number_is_seen_wherever_it_is() {
        let values: Vec<f32> = (0..1_003).map(|at| (at as f32 - 500.0) * 1e35).collect();
        assert!(all_finite(&values) && all_finite(&[]));
        for (at, value) in [(0, f32::NAN), (500, f32::INFINITY), (1_002, f32::NEG_INFINITY), (7, -f32::NAN)] {
            let mut values = values.clone();
            values[at] = value;
            assert!(!all_finite(&values), "{value} at {at}");
        }
    }
}
