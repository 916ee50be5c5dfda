//! `why`: why a job or a sweep waits, or how it ended.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};
use serde_json::{Value, json};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx why j12
  phalanx why s3
  phalanx why j12 --json | jq -r .reason.code")]
pub(crate) struct WhyArgs {
    /// The id of a job, a sweep or a trial
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &WhyArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    if sweep::is_sweep_id(&args.id) {
        let sweep = sweep::get(&client, &args.id).await?;
        return match output.json {
            true => output.document(&short(&json::sweep(&sweep))),
            false => output.line(&in_words(&sweep.id, sweep.state_name(), sweep.reason.as_ref())),
        };
    }
    let job = client.job(&args.id).await?;
    if output.json {
        return output.document(&short(&json::job(&job)));
    }
    output.line(&in_words(&job.id, job.state_name(), job.reason.as_ref()))
}

fn short(document: &Value) -> Value {
    json!({ "id": document["id"], "state": document["state"], "reason": document["reason"] })
}

fn in_words(id: &str, state: &str, reason: Option<&pb::Reason>) -> String {
    match reason {
        Some(reason) if !reason.text.is_empty() => format!("{id} is {state}: {}", reason.text),
        _ => format!("{id} is {state}"),
    }
}
