//! `why`: why a job waits, or how it ended.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use clap::Args;
use phalanx_api::{json, v1 as pb};
use serde_json::json;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx why j12
  phalanx why j12 --json | jq -r .reason.code")]
pub(crate) struct WhyArgs {
    /// The job's id
    id: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &WhyArgs, output: &Output) -> Result<(), Failure> {
    let job = Route::to_records(global).await?.connect().await?.job(&args.id).await?;
    if output.json {
        let document = json::job(&job);
        return output.document(
            &json!({ "id": document["id"], "state": document["state"], "reason": document["reason"] }),
        );
    }
    output.line(&in_words(&job))
}

fn in_words(job: &pb::Job) -> String {
    let (id, state) = (&job.id, job.state_name());
    match &job.reason {
        Some(reason) if !reason.text.is_empty() => format!("{id} is {state}: {}", reason.text),
        _ => format!("{id} is {state}"),
    }
}
