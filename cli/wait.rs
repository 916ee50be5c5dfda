//! `wait`: until a job or a sweep is over; its exit code becomes ours.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{FAILED, Failure, INTERRUPTED};
use crate::follow::{Changes, follow};
use crate::output::Output;
use crate::run::{Interrupts, took};
use crate::sweep;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx wait j12            exits with the job's own code
  phalanx wait j12 --json     prints the finished job
  phalanx wait s3             0 if the sweep ended with a complete trial, else 1
  phalanx wait s3/7           the job of trial 7

It goes on waiting while the service restarts; one that stays away for a minute is exit 125.")]
pub(crate) struct WaitArgs {
    /// The id of a job, a sweep or a trial
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: String,
}

/// Runs it; the answer is the job's own code.
pub(crate) async fn run(global: &Global, args: &WaitArgs, output: &Output) -> Result<u8, Failure> {
    let mut interrupts = Interrupts::listen()?;
    let route = Route::to_records(global).await.map_err(Failure::for_job)?;
    if sweep::is_sweep_id(&args.id) {
        return wait_for_sweep(&route, &args.id, interrupts, output).await;
    }
    let ended = tokio::select! {
        ended = until_over(&route, &args.id, output) => ended.map_err(Failure::for_job)?,
        () = interrupts.next() => {
            let (id, flags) = (&args.id, route.flags());
            output.say(&format!("phalanx: {id} goes on; `phalanx cancel {id}{flags}` to end it"));
            return Err(Failure::new(INTERRUPTED, ""));
        }
    };
    if output.json {
        output.document(&json::job(&ended))?;
    }
    output.say(&format!("phalanx: {}", outcome(&ended)));
    Ok(exit_code(&ended))
}

async fn wait_for_sweep(
    route: &Route,
    id: &str,
    mut interrupts: Interrupts,
    output: &Output,
) -> Result<u8, Failure> {
    let ended = tokio::select! {
        ended = sweep::until_over(route, id, output) => ended.map_err(Failure::for_job)?,
        () = interrupts.next() => {
            let flags = route.flags();
            output.say(&format!("phalanx: {id} goes on; `phalanx cancel {id}{flags}` to end it"));
            return Err(Failure::new(INTERRUPTED, ""));
        }
    };
    if output.json {
        output.document(&json::sweep(&ended))?;
    }
    output.say(&format!("phalanx: {}", sweep::outcome(&ended)));
    Ok(sweep::exit_code(&ended))
}

async fn until_over(route: &Route, id: &str, output: &Output) -> Result<pb::Job, Failure> {
    if !route.is_live() {
        let job = route.connect().await?.job(id).await?;
        let waits_for_nobody = || {
            Failure::trouble(format!(
                "{id} is {} in the records, and no service runs to go on with it",
                job.state_name()
            ))
        };
        return job.is_terminal().then(|| job.clone()).ok_or_else(waits_for_nobody);
    }
    let mut changes = Changes { id: id.to_owned(), hear: async |_: &pb::Job| Ok(()) };
    let ended = follow(route, output, &mut changes).await?;
    ended.ok_or_else(|| Failure::trouble(format!("the service stopped telling of {id} before it was over")))
}

/// The code of a job that is over.
pub(crate) fn exit_code(job: &pb::Job) -> u8 {
    let fallback = if job.state() == pb::job::State::Succeeded { 0 } else { FAILED };
    job.exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(fallback)
}

/// How a job ended, in a line.
pub(crate) fn outcome(job: &pb::Job) -> String {
    let reason = job.reason.as_ref().map_or("", |reason| reason.text.trim());
    let told = match job.state() {
        pb::job::State::Succeeded => String::new(),
        _ if reason.is_empty() => String::new(),
        _ => format!(": {reason}"),
    };
    format!("{} {} after {}{told}", job.id, job.state_name(), took(job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_code_is_ours() {
        let job = |state: pb::job::State, exit_code| pb::Job {
            state: state as i32,
            exit_code,
            ..pb::Job::default()
        };
        assert_eq!(exit_code(&job(pb::job::State::Failed, Some(137))), 137);
        assert_eq!(exit_code(&job(pb::job::State::Failed, None)), FAILED);
        assert_eq!(exit_code(&job(pb::job::State::Succeeded, Some(0))), 0);
        assert_eq!(exit_code(&job(pb::job::State::Cancelled, Some(0))), 0);
    }
}
