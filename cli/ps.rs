//! `ps`: sweeps and jobs.

use crate::args::Global;
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep;
use crate::table;
use clap::Args;
use phalanx_api::{json, v1 as pb};
use serde_json::Value;

/// Jobs asked for at a time.
const PAGE: i32 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx ps            jobs that are not over, the newest first
  phalanx ps -a         all jobs
  phalanx ps --sweeps   sweeps alone
  phalanx ps --json | jq -r '.[].id'")]
pub(crate) struct PsArgs {
    /// Those that are over, too
    #[arg(short, long)]
    all: bool,
    /// Only sweeps
    #[arg(long)]
    sweeps: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &PsArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    let mut sweeps = Vec::new();
    if args.sweeps || !output.json {
        sweeps = sweep::all(&client).await?;
        sweeps.retain(|sweep| args.all || !sweep.is_terminal());
    }
    if args.sweeps {
        return match output.json {
            true => output.document(&Value::Array(sweeps.iter().map(json::sweep).collect())),
            false => output.line(&table::list(sweep_table(&sweeps, output))),
        };
    }
    let mut jobs = all(&client, args.all).await?;
    jobs.retain(|job| args.all || !job.is_terminal());
    if output.json {
        return output.document(&Value::Array(jobs.iter().map(json::job).collect()));
    }
    if !sweeps.is_empty() {
        output.line(&format!("{}\n", table::list(sweep_table(&sweeps, output))))?;
    }
    let mut rows =
        table::new(output, &["ID", "NAME", "STATE", "RANKS", "ATTEMPT", "EXIT", "SUBMITTED", "REASON"]);
    for job in &jobs {
        let reason = job.reason.as_ref().map_or("", |reason| reason.text.as_str());
        rows.add_row([
            job.id.clone(),
            job.name.clone(),
            job.state_name().to_owned(),
            job.gang.as_ref().map_or(0, |gang| gang.max_workers).to_string(),
            job.attempt.to_string(),
            job.exit_code.map(|code| code.to_string()).unwrap_or_default(),
            table::time(job.submit_time.as_ref()),
            reason.lines().next().unwrap_or("").to_owned(),
        ]);
    }
    output.line(&table::list(rows))
}

fn sweep_table(sweeps: &[pb::Sweep], output: &Output) -> comfy_table::Table {
    let mut rows =
        table::new(output, &["SWEEP", "NAME", "STATE", "TRIALS", "RUNNING", "BEST", "SUBMITTED", "REASON"]);
    for sweep in sweeps {
        let counts = sweep.counts.unwrap_or_default();
        let ended = counts.complete + counts.stopped + counts.failed + counts.cancelled;
        let most = if sweep.trials > 0 { format!("/{}", sweep.trials) } else { String::new() };
        let best = sweep.best.as_ref().map(|best| sweep::shown_value(best.value));
        let reason = sweep.reason.as_ref().map_or("", |reason| reason.text.as_str());
        rows.add_row([
            sweep.id.clone(),
            sweep.name.clone(),
            sweep.state_name().to_owned(),
            format!("{ended}{most}"),
            counts.running.to_string(),
            best.unwrap_or_default(),
            table::time(sweep.submit_time.as_ref()),
            reason.lines().next().unwrap_or("").to_owned(),
        ]);
    }
    rows
}

async fn all(client: &Client, over_too: bool) -> Result<Vec<pb::Job>, Failure> {
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListJobsRequest { page_size: PAGE, page_token, unfinished: !over_too };
        let page = client.jobs.clone().list(request).await?.into_inner();
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(jobs);
        }
        page_token = page.next_page_token;
    }
}
