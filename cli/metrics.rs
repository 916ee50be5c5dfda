//! `metrics`: what a job's ranks reported.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, INTERRUPTED};
use crate::follow::{Points, Rows, follow};
use crate::output::Output;
use crate::run::Interrupts;
use clap::Args;
use phalanx_api::{json, v1 as pb};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx metrics j12                          a line a report
  phalanx metrics j12 -f                       until the job is over
  phalanx metrics j12 --json | jq .metrics.loss

Where stdout is no terminal every line is a JSON object.")]
pub(crate) struct MetricsArgs {
    /// The job's id
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
    let rows = Rows {
        id: args.id.clone(),
        follow: args.follow && route.is_live(),
        rank: args.rank,
        attempt: args.attempt,
    };
    let objects = output.json || !output.stdout_is_terminal;
    let hear = async |point: pb::MetricPoint| match objects {
        true => output.document(&json::metric_point(&point)),
        false => output.line(&in_words(&point)),
    };
    let mut feed = Points { rows, hear };
    tokio::select! {
        ended = follow(&route, output, &mut feed) => ended.map(drop),
        () = interrupts.next() => Err(Failure::new(INTERRUPTED, "")),
    }
}

fn in_words(point: &pb::MetricPoint) -> String {
    let values = point.metrics.iter().map(|(name, value)| format!("{name}={value}"));
    let values: Vec<String> = values.collect();
    format!("step {:<8} rank {:<3} {}", point.step, point.rank, values.join("  "))
}
