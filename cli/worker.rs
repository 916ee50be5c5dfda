//! Processes that Phalanx starts itself: a rank of the built-in trainer, and the guard of an attempt.

use crate::failure::Failure;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// What to train, as JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

/// One rank of the built-in trainer.
pub(crate) fn worker(args: &WorkerArgs) -> Result<(), Failure> {
    phalanx_trainer::run_worker(&args.spec).map_err(|error| Failure::failed(error.to_string()))
}

/// The guard; its exit code is the process's.
pub(crate) fn guard() -> u8 {
    u8::try_from(phalanx_runtime::agent::guard_main()).unwrap_or(crate::failure::FAILED)
}
