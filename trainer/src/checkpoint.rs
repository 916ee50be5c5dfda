//! Checkpoints: `model.safetensors`, `optimizer.safetensors`, `trainer.json` and `checksums.b3` in one folder.
//!
//! The folder is staged in the attempt's scratch folder and handed to the agent, which copies it, makes it durable and
//! renames it into place. Outside a job it is renamed into place here. `checksums.b3` has the form of `b3sum`'s output
//! and covers the other three, so that a damaged checkpoint is told from a good one wherever it has travelled.

use crate::Error;
use crate::model::{Engine, Tensor};
use crate::optimizer::Optimizer;
use crate::report;
use crate::sampler::Position;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
const FORMAT: u32 = 1;
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
    /// Kept in this folder, one `step-N` each, the latest so many.
    Folder {
        /// The folder.
        path: PathBuf,
        /// How many stay.
        keep: usize,
    },
}

/// Writes checkpoints from a thread of its own while training goes on.
pub(crate) struct Writer {
    tensors: Vec<Tensor>,
    jobs: SyncSender<Snapshot>,
    done: Receiver<Result<Snapshot, Error>>,
    /// The buffers, when no checkpoint is under way.
    spare: Option<Snapshot>,
    latest: Option<u64>,
}

impl Writer {
    pub(crate) fn new(destination: Destination, tensors: &[Tensor]) -> Writer {
        let (jobs, queue) = mpsc::sync_channel::<Snapshot>(1);
        let (report, done) = mpsc::sync_channel(1);
        let layout = tensors.to_vec();
        thread::spawn(move || {
            for snapshot in queue {
                let outcome = destination.deliver(&snapshot, &layout).map(|()| snapshot);
                if report.send(outcome).is_err() {
                    return;
                }
            }
        });
        Writer { tensors: tensors.to_vec(), jobs, done, spare: None, latest: None }
    }

    /// Copies the run and has the copy written. Waits first for a checkpoint still under way.
    pub(crate) fn write(
        &mut self,
        state: State,
        engine: &dyn Engine,
        optimizer: &Optimizer,
    ) -> Result<(), Error> {
        self.finish()?;
        let mut snapshot = self.spare.take().unwrap_or_else(|| Snapshot {
            state: state.clone(),
            parameters: Vec::new(),
            slots: optimizer.state().map(|(name, _)| (name, Vec::new())).collect(),
        });
        copy(&mut snapshot.parameters, engine.parameters());
        for ((_, slot), (_, values)) in snapshot.slots.iter_mut().zip(optimizer.state()) {
            copy(slot, values);
        }
        snapshot.state = state;
        self.latest = Some(snapshot.state.position.step);
        debug_assert!(self.tensors.last().is_none_or(|last| last.range.end == snapshot.parameters.len()));
        // The thread only ends when this writer is gone.
        let sent = self.jobs.send(snapshot);
        assert!(sent.is_ok(), "the checkpoint thread ended early");
        Ok(())
    }

    /// Waits until the checkpoint under way, if any, is durable.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if self.latest.is_none() || self.spare.is_some() {
            return Ok(());
        }
        match self.done.recv_timeout(WRITE_DEADLINE) {
            Ok(outcome) => {
                self.spare = Some(outcome?);
                Ok(())
            }
            Err(_) => Err(Error::Checkpoint {
                path: PathBuf::from(format!("of step {}", self.latest.unwrap_or(0))),
                reason: format!(
                    "not durable after {} s; the disk is stuck or full",
                    WRITE_DEADLINE.as_secs()
                ),
            }),
        }
    }

    /// The step of the last checkpoint.
    pub(crate) fn latest(&self) -> Option<u64> {
        self.latest
    }
}

fn copy(to: &mut Vec<f32>, from: &[f32]) {
    to.clear();
    to.extend_from_slice(from);
}

impl Destination {
    fn deliver(&self, snapshot: &Snapshot, tensors: &[Tensor]) -> Result<(), Error> {
        let step = snapshot.state.position.step;
        match self {
            Destination::Agent { socket, scratch } => {
                let staged = scratch.join(format!("checkpoint-{step}"));
                write_folder(&staged, snapshot, tensors)?;
                report::hand_over(socket, step, &staged)?;
                fs::remove_dir_all(&staged).map_err(Error::io("remove", &staged))
            }
            Destination::Folder { path, keep } => {
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
                prune(path, *keep)
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

/// Removes all but the latest `keep` of a folder of checkpoints.
fn prune(path: &Path, keep: usize) -> Result<(), Error> {
    let entries = fs::read_dir(path).map_err(Error::io("read", path))?;
    let mut steps: Vec<u64> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    steps.iter().skip(keep).try_for_each(|step| clear(&path.join(format!("step-{step}"))))
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
    let bytes: Vec<(String, &Tensor, Vec<u8>)> = tensors
        .map(|(name, tensor, values)| {
            let values = &values[tensor.range.clone()];
            let mut bytes = vec![0; size_of_val(values)];
            for (word, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *word = value.to_le_bytes();
            }
            (name, tensor, bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        (name, view.unwrap_or_else(|error| unreachable!("{name}: {error}")))
    });
    let packed = safetensors::serialize(views, None);
    packed.unwrap_or_else(|error| unreachable!("{error}"))
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
    /// Reads and verifies a folder.
    pub(crate) fn read(path: &Path) -> Result<Loaded, Error> {
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
    pub(crate) fn restore(&self, engine: &mut dyn Engine, optimizer: &mut Optimizer) -> Result<(), Error> {
        let tensors = engine.tensors().to_vec();
        self.unpack(MODEL, &self.model, "", &tensors, engine.parameters_mut())?;
        for (slot, values) in optimizer.state_mut() {
            self.unpack(OPTIMIZER, &self.optimizer, &format!("{slot}."), &tensors, values)?;
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
        "{name} is damaged (its checksum does not hold); remove the checkpoint and go on from an earlier one"
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
