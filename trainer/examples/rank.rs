//! One rank of a job file's `[train]` table, without the service: `rank JOB.toml`, the rest from the environment.

use phalanx_core::JobSpec;
use phalanx_core::spec::{Work, WorkerSpec};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match rank() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn rank() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: rank JOB.toml")?;
    let text = std::fs::read_to_string(&file)?;
    let job = JobSpec::parse(&text, "rank").map_err(|problems| problems.render(&file, &text))?;
    let Work::Train(train) = job.work else { return Err("the job has no [train] table".into()) };
    let base_dir = Path::new(&file).parent().unwrap_or(Path::new("")).to_owned();
    let spec = WorkerSpec { name: job.name, train: *train, checkpoint: job.checkpoint, base_dir };
    phalanx_trainer::run(&spec, &phalanx_trainer::Environment::read()?)?;
    Ok(())
}
