//! `metrics`: what a job's ranks reported.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, INTERRUPTED};
use crate::follow::{Points, Rows, follow};
use crate::output::Output;
use crate::run::Interrupts;
use crate::sweep;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx metrics j12                          a line a report
  phalanx metrics j12 -f                       until the job is over
  phalanx metrics s3/7                         trial 7 of a sweep; s3 shows all its trials
  phalanx metrics j12 --json | jq .metrics.loss

Where stdout is no terminal every line is a JSON object.")]
pub(crate) struct MetricsArgs {
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
pub(crate) async fn run(global: &Global, args: &MetricsArgs, output: &Output) -> Result<(), Failure> {
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
        () = interrupts.next() => Err(Failure::new(INTERRUPTED, "")),
    }
}

/// Shows what one job reported.
async fn show(route: &Route, id: &str, args: &MetricsArgs, output: &Output) -> Result<(), Failure> {
    let rows = Rows {
        id: id.to_owned(),
        follow: args.follow && route.is_live(),
        rank: args.rank,
        attempt: args.attempt,
    };
    let objects = output.json || !output.stdout_is_terminal;
    let hear = async |point: pb::MetricPoint| match objects {
        true => output.document(&json::metric_point(&point)),
        false => output.line(&in_words(&point)),
    };
    follow(route, output, &mut Points { rows, hear }).await.map(drop)
}

fn in_words(point: &pb::MetricPoint) -> String {
    let values = point.metrics.iter().map(|(name, value)| format!("{name}={value}"));
    let values: Vec<String> = values.collect();
    format!("step {:<8} rank {:<3} {}", point.step, point.rank, values.join("  "))
}
