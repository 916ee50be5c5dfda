//! `trials`: the trials of a sweep.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep::{self, shown_value};
use crate::table;
use clap::Args;
use clap_complete::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};
use serde_json::Value;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx trials s1                                    by number, with their parameters
  phalanx trials s1 --json | jq 'max_by(.value).params'
  phalanx logs s1/3                                    what trial 3 of it wrote")]
pub(crate) struct TrialsArgs {
    /// The sweep's id
    #[arg(value_name = "SWEEP", add = ArgValueCompleter::new(crate::completions::sweeps))]
    id: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &TrialsArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    let trials = sweep::trials(&client, &args.id).await?;
    if output.json {
        return output.document(&Value::Array(trials.iter().map(json::trial).collect()));
    }
    let sweep = sweep::get(&client, &args.id).await?;
    output.line(&in_words(&sweep, &trials, output))
}

fn in_words(sweep: &pb::Sweep, trials: &[pb::Trial], output: &Output) -> String {
    let metrics = sweep.objectives.iter().map(|one| one.metric.as_str());
    let heads: Vec<&str> = ["TRIAL", "STATE"]
        .into_iter()
        .chain(metrics)
        .chain(["STEP", "JOB"])
        .chain(sweep.params.iter().map(String::as_str))
        .chain(["MESSAGE"])
        .collect();
    let mut rows = table::new(output, &heads);
    for trial in trials {
        let params = json::params(trial.params.as_ref());
        let param = |name: &String| match &params[name.as_str()] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        let value = |at: usize| trial.values.get(at).copied().map(shown_value).unwrap_or_default();
        let mut row = vec![trial.number.to_string(), trial.state_name().to_owned()];
        row.extend((0..sweep.objectives.len()).map(value));
        row.push(trial.step.map(|step| step.to_string()).unwrap_or_default());
        row.push(trial.job.clone());
        row.extend(sweep.params.iter().map(param));
        row.push(trial.message.lines().next().unwrap_or("").to_owned());
        rows.add_row(row);
    }
    table::list(rows)
}
