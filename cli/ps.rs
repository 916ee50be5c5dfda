//! `ps`: jobs.

use crate::args::Global;
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::output::Output;
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
  phalanx ps --json | jq -r '.[].id'")]
pub(crate) struct PsArgs {
    /// Those that are over, too
    #[arg(short, long)]
    all: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &PsArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    let mut jobs = all(&client, args.all).await?;
    jobs.retain(|job| args.all || !job.is_terminal());
    if output.json {
        return output.document(&Value::Array(jobs.iter().map(json::job).collect()));
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
