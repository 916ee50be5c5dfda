//! `cancel`, `pause`, `resume`: what a person wants of a job, a sweep or a trial.

use crate::args::Global;
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
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
  phalanx cancel s3      a sweep with all its trials; s3/7 is its trial 7 alone
  phalanx pause j12      a checkpoint is asked for, then its processes end
  phalanx resume j12     it goes on from its checkpoint")]
pub(crate) struct ChangeArgs {
    /// The id of a job, a sweep or a trial
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
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
    if sweep::is_sweep_id(&args.id) {
        return change_sweep(client, change, args.id.clone(), output).await;
    }
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

async fn change_sweep(client: Client, change: Change, id: String, output: &Output) -> Result<(), Failure> {
    let mut sweeps = client.sweeps;
    let answer = match change {
        Change::Cancel => sweeps.cancel(pb::CancelSweepRequest { id }).await,
        Change::Pause => sweeps.pause(pb::PauseSweepRequest { id }).await,
        Change::Resume => sweeps.resume(pb::ResumeSweepRequest { id }).await,
    };
    let sweep = answer?.into_inner();
    if output.json {
        return output.document(&json::sweep(&sweep));
    }
    let done = match change {
        _ if sweep.is_terminal() => format!("{} is {}", sweep.id, sweep.state_name()),
        Change::Cancel => format!("{} and its trials are being ended", sweep.id),
        Change::Pause => format!("{} is paused, and its trials are being paused", sweep.id),
        Change::Resume => format!("{} goes on", sweep.id),
    };
    output.say(&format!("phalanx: {done}"));
    Ok(())
}
