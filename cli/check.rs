//! `check`: a file's problems, all at once, without running anything.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, USAGE};
use crate::file::JobFile;
use crate::output::Output;
use crate::submit;
use clap::Args;
use phalanx_core::{JobSpec, Problems};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx check job.toml                          every problem, with its line
  phalanx check job.toml --set gang.workers=64    as it would be with a key changed
  phalanx check job.toml --plan                   and whether the cluster could ever place it")]
pub(crate) struct CheckArgs {
    /// The job or sweep file; `-` is stdin
    file: PathBuf,
    /// Ask the service too: what would be placed where
    #[arg(long)]
    plan: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &CheckArgs, output: &Output) -> Result<(), Failure> {
    let file = JobFile::read(&args.file, global)?;
    let checked = match file.is_sweep() {
        true => file.problems_of_sweep().map(|_| None),
        false => file.problems_of_job().map(Some),
    };
    let spec = match checked {
        Ok(spec) => spec,
        Err(problems) if output.json => {
            output.document(&document(false, &problems, &file))?;
            return Err(Failure::new(USAGE, ""));
        }
        Err(problems) => return Err(file.refused(&problems)),
    };
    let planned = match (&spec, args.plan) {
        (Some(spec), true) => Some(plan(global, &file, spec).await?),
        _ => None,
    };
    if output.json {
        let mut valid = document(true, &Problems::default(), &file);
        if let Some(planned) = planned {
            valid["plan"] = Value::from(planned);
        }
        return output.document(&valid);
    }
    let kind = if spec.is_some() { "job" } else { "sweep" };
    output.line(&format!(
        "{} is a valid {kind}{}",
        file.shown,
        spec.as_ref().map(summary).unwrap_or_default()
    ))?;
    planned.map_or(Ok(()), |planned| output.line(&planned))
}

fn summary(spec: &JobSpec) -> String {
    let workers = spec.gang.workers;
    let count = if workers.min == workers.max {
        workers.max.to_string()
    } else {
        format!("{} to {}", workers.min, workers.max)
    };
    let noun = if workers.max == 1 { "worker" } else { "workers" };
    format!(": {}, {count} {noun} of {}", spec.name, spec.gang.each)
}

/// Asks the service whether its cluster could ever place it.
async fn plan(global: &Global, file: &JobFile, spec: &JobSpec) -> Result<String, Failure> {
    let client = Route::to_live_service(global)?.connect().await?;
    submit::validate(&client, file).await?;
    let (workers, nodes) =
        (spec.gang.workers.min, client.cluster.clone().nodes(phalanx_api::v1::NodesRequest {}).await?);
    Ok(format!(
        "{workers} × ({}) can be placed on {} node(s)",
        spec.gang.each,
        nodes.into_inner().nodes.len()
    ))
}

fn document(valid: bool, problems: &Problems, file: &JobFile) -> Value {
    let problems = problems.0.iter().map(|problem| {
        let place = problem.place(&file.text);
        json!({
            "message": problem.message,
            "line": place.map(|(line, _)| line),
            "column": place.map(|(_, column)| column),
            "help": problem.help,
        })
    });
    json!({ "file": file.shown, "valid": valid, "problems": problems.collect::<Vec<_>>() })
}
