//! `logs`: what a job's ranks wrote.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, INTERRUPTED};
use crate::follow::{Lines as LineFeed, Rows, follow};
use crate::lines::{Lines, Target};
use crate::output::Output;
use crate::run::Interrupts;
use crate::sweep;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::v1 as pb;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx logs j12               what was written so far; stdout to stdout, stderr to stderr
  phalanx logs j12 -f            and what follows, until the job is over
  phalanx logs j12 --rank 0      one rank
  phalanx logs s3/7              trial 7 of a sweep; s3 shows all its trials, one after the other
  phalanx logs j12 --json        one object a line, with seq, time and rank")]
pub(crate) struct LogsArgs {
    /// The id of a job, a sweep or a trial
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: String,
    /// Go on until the job is over
    #[arg(short, long)]
    follow: bool,
    /// Only this rank
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i32).range(0..))]
    rank: Option<i32>,
    /// Only this attempt
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    attempt: Option<i32>,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &LogsArgs, output: &Output) -> Result<(), Failure> {
    let mut interrupts = Interrupts::listen()?;
    let route = Route::to_records(global).await?;
    let shown = async {
        match sweep::is_sweep_id(&args.id) {
            true => {
                sweep::each_job(&route, &args.id, args.follow, output, async |job| {
                    show(&route, job, args, output).await
                })
                .await
            }
            false => show(&route, &args.id, args, output).await,
        }
    };
    tokio::select! {
        shown = shown => shown,
        () = interrupts.next() => {
            let (id, flags) = (&args.id, route.flags());
            if args.follow {
                output.say(&format!("phalanx: {id} goes on; `phalanx cancel {id}{flags}` to end it"));
            }
            Err(Failure::new(INTERRUPTED, ""))
        }
    }
}

/// Shows the log of one job.
async fn show(route: &Route, id: &str, args: &LogsArgs, output: &Output) -> Result<(), Failure> {
    let job = route.connect().await?.job(id).await?;
    let workers = if args.rank.is_some() { 1 } else { job.gang.map_or(1, |gang| gang.max_workers) };
    let target = if output.json { Target::Json } else { Target::Streams };
    // No live line here: what is shown is what was written.
    let mut lines = Lines::new(target, workers, &output.silent());
    let rows = Rows {
        id: id.to_owned(),
        follow: args.follow && route.is_live(),
        rank: args.rank,
        attempt: args.attempt,
    };
    let mut feed = LineFeed { rows, hear: async |line: pb::LogLine| lines.write(&line) };
    follow(route, output, &mut feed).await?;
    lines.finish()
}
