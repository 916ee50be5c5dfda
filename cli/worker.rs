//! Processes that Phalanx starts itself: a rank of the built-in trainer, and the guard of an attempt.

use crate::failure::{DONE, FAILED, Failure};
use crate::output::Output;
use clap::Args;
use phalanx_trainer::Environment;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// What to train, as JSON
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
}

/// One rank of the built-in trainer, as a program.
pub(crate) fn worker(args: &WorkerArgs) -> Result<(), Failure> {
    phalanx_trainer::run_worker(&args.spec).map_err(|error| Failure::failed(error.to_string()))
}

/// The guard; its exit code is the process's.
pub(crate) fn guard() -> u8 {
    phalanx_trainer::know_processor();
    u8::try_from(phalanx_runtime::agent::guard_main(forked_worker)).unwrap_or(FAILED)
}

/// One rank of the built-in trainer, as a fork of its guard.
fn forked_worker(spec: &str) -> i32 {
    let train = || {
        let spec = serde_json::from_str(spec)?;
        anyhow::Ok(phalanx_trainer::run(&spec, &Environment::read()?)?)
    };
    match train() {
        Ok(_outcome) => DONE.into(),
        Err(error) => {
            Output::new(false, false).failure(&Failure::failed(error.to_string()));
            FAILED.into()
        }
    }
}
