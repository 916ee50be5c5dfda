//! Data-parallel training in a rank: data, models, optimizers, checkpoints, metrics.
//!
//! [`run_worker`] is a rank of the built-in trainer, [`main`] one of a program with a model of its own, which implements
//! [`Model`]. Every rank reads the data, computes its part of each global batch, sums gradients with the others through
//! [`phalanx_collective`], and moves its own copy of the parameters by the same sum, so that all copies stay equal bit for
//! bit.
//!
//! # What is promised
//!
//! - One seed gives one run, bit for bit, whenever it is run with the same gang.
//! - Any number of workers takes the same global batches: losses agree to 1e-4 relative, and bit for bit with
//!   `deterministic = "logical-shards"`.
//! - A run that was stopped, or died, goes on from its checkpoint bit for bit as if it had not.
//! - The ranks of an elastic gang go on without one that is killed, at the cost of the step in flight, and take it in again once it
//!   is started anew; with logical shards, bit for bit as if nothing had happened.
//!
//! The last batch of an epoch holds what is left; its loss and gradient are means over the samples it has, so that it
//! weighs as much as any other step and nothing depends on how workers share it.
//!
//! Architecture invariant: this crate is a rank. It knows its environment, its files and its peers, and nothing of the
//! service.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(any(feature = "burn", feature = "candle", feature = "tch"))]
pub mod adapter;
mod bucket;
mod check;
mod checkpoint;
mod data;
mod environment;
mod error;
mod evaluate;
mod gang;
mod gradient;
mod layer;
mod model;
mod optimizer;
mod place;
mod progress;
mod random;
mod regroup;
mod report;
mod run;
mod sampler;
mod schedule;
mod terminated;
mod usage;

pub use data::{Batch, CellProblem, DataError, Dataset, Sample, Targets};
pub use environment::Environment;
pub use error::Error;
pub use evaluate::Judgement;
pub use model::{Cnn, DeviceGradient, Gradient, Mlp, Model, Tensor, Transformer, Write};
pub use phalanx_collective::DeviceMemory;
pub use phalanx_core::spec::{Activation, CnnSpec, Loss, Norm, TransformerSpec, WorkerSpec};
pub use run::{Outcome, run, run_model, run_on};

use std::path::Path;
use std::process::ExitCode;

/// Has the libraries find out what this processor can do, so that forks of this process need not: each of these questions
/// takes a virtual machine tens of microseconds. Starts no thread.
pub fn know_processor() {
    use layer::product::{Hands, View, product_into};
    let (one, mut out) = ([1.0], [0.0]);
    product_into(&mut out, 1, View::rows(&one, 1), View::rows(&one, 1), 1.0, Write::Set, Hands::One);
    blake3::hash(&[]);
}

/// Runs one rank of the built-in trainer to its end: `spec_file` is the JSON of a [`WorkerSpec`], the rest is in the
/// environment. Rank 0 prints progress on stdout, and at the end the score on held-out data.
///
/// # Errors
/// See [`Error`]; the process should end with code 1 and the message on stderr.
pub fn run_worker(spec_file: &Path) -> Result<(), Error> {
    let fail = |reason: String| Error::Spec { path: spec_file.to_owned(), reason };
    let text = std::fs::read(spec_file).map_err(|error| fail(error.to_string()))?;
    let spec: WorkerSpec = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    run(&spec, &Environment::read()?).map(|_outcome| ())
}

/// The whole `main` of a program that trains a model of its own as a rank of a gang: reads the `[train]` and
/// `[checkpoint]` tables of `file` (`train.model` is left out), builds the model for the data by `build`, which is given
/// the seed of its first parameters, and trains it. Rank 0 prints progress; an error ends it with code 1 and a message.
pub fn main(
    file: impl AsRef<Path>,
    build: impl FnOnce(&Dataset, u64) -> Result<Box<dyn Model>, Error> + Send,
) -> ExitCode {
    let train = || {
        let spec = read_custom(file.as_ref())?;
        run_model(&spec, &Environment::read()?, build)
    };
    match train() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The specification of a model of the caller's own, as [`main`] reads it; relative paths start at the file's folder.
///
/// # Errors
/// [`Error::Spec`] with every problem of the file.
pub fn read_custom(file: &Path) -> Result<WorkerSpec, Error> {
    let fail = |reason: String| Error::Spec { path: file.to_owned(), reason };
    let text = std::fs::read_to_string(file).map_err(|error| fail(error.to_string()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    WorkerSpec::parse_custom(&text, folder)
        .map_err(|problems| fail(problems.render(&file.to_string_lossy(), &text)))
}
