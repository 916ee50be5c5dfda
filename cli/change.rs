//! `cancel`, `pause`, `resume`: what a person wants of a job.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_api::{json, v1 as pb};

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Cancel,
    Pause,
    Resume,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx cancel j12
  phalanx pause j12      a checkpoint is asked for, then its processes end
  phalanx resume j12     it goes on from its checkpoint")]
pub(crate) struct ChangeArgs {
    /// The job's id
    id: String,
}

/// Runs it.
pub(crate) async fn run(
    global: &Global,
    change: Change,
    args: &ChangeArgs,
    output: &Output,
) -> Result<(), Failure> {
    let client = Route::to_live_service(global)?.connect().await?;
    let mut jobs = client.jobs;
    let id = args.id.clone();
    let answer = match change {
        Change::Cancel => jobs.cancel(pb::CancelJobRequest { id }).await,
        Change::Pause => jobs.pause(pb::PauseJobRequest { id }).await,
        Change::Resume => jobs.resume(pb::ResumeJobRequest { id }).await,
    };
    let job = answer?.into_inner();
    if output.json {
        return output.document(&json::job(&job));
    }
    let done = match change {
        _ if job.is_terminal() => format!("{} is {}", job.id, job.state_name()),
        Change::Cancel => format!("{} is being ended", job.id),
        Change::Pause if job.state() == pb::job::State::Paused => format!("{} is paused", job.id),
        Change::Pause => format!("{} is being paused", job.id),
        Change::Resume => format!("{} goes on", job.id),
    };
    output.say(&format!("phalanx: {done}"));
    Ok(())
}
