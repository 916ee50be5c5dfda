//! `best`: the best trial of a sweep, also as a job file.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep;
use clap::Args;
use clap_complete::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};
use phalanx_core::spec::{ParamValue, Params, SweepSpec};
use serde_json::Value;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx best s1                            the best trial, its value and its parameters
  phalanx best s1 --json | jq .params
  phalanx best s1 --toml > best.toml         a job file with these parameters, ready to run
  phalanx best s1 --trial 12 --toml          the same of another trial")]
pub(crate) struct BestArgs {
    /// The sweep's id
    #[arg(value_name = "SWEEP", add = ArgValueCompleter::new(crate::completions::sweeps))]
    id: String,
    /// Print a job file that runs with its parameters
    #[arg(long)]
    toml: bool,
    /// This trial instead of the best one
    #[arg(long, value_name = "N")]
    trial: Option<u64>,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &BestArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    let mut sweep = sweep::get(&client, &args.id).await?;
    if let Some(number) = args.trial {
        let trials = sweep::trials(&client, &args.id).await?;
        let found = trials.into_iter().find(|trial| trial.number == number);
        let found = found.ok_or_else(|| Failure::failed(format!("{} has no trial {number}", args.id)))?;
        sweep.best = Some(as_best(found));
        sweep.front.clear();
    }
    let none =
        || Failure::failed(format!("{} has no complete trial; `phalanx trials {0}` shows all", args.id));
    let best = sweep.best.as_ref().ok_or_else(none)?;
    match (args.toml, output.json) {
        (true, _) => output.line(job_file(&sweep, best)?.trim_end()),
        (false, true) => output.document(&json::best_trial(best)),
        (false, false) => {
            let lines = sweep::results(&sweep);
            lines.iter().try_for_each(|line| output.line(line))
        }
    }
}

fn as_best(trial: pb::Trial) -> pb::BestTrial {
    pb::BestTrial {
        number: trial.number,
        params: trial.params,
        value: trial.value.unwrap_or(f64::NAN),
        values: trial.values,
        job: trial.job,
    }
}

/// The sweep's file as the job of one trial.
fn job_file(sweep: &pb::Sweep, best: &pb::BestTrial) -> Result<String, Failure> {
    let unread = |problem: String| {
        Failure::failed(format!("the file of {} cannot be read any more: {problem}", sweep.id))
    };
    let spec = SweepSpec::parse(&sweep.toml, &sweep.name).map_err(|problems| unread(problems.to_string()))?;
    let params = params(&json::params(best.params.as_ref()));
    // A number's own type is the parameter's, which JSON does not tell.
    let file = spec.job_file(&spec.canonical(&params)).map_err(|problems| unread(problems.to_string()))?;
    let metric = sweep.objectives.first().map_or("value", |one| one.metric.as_str());
    let value = sweep::shown_value(best.value);
    let head = format!("# Trial {} of {} ({}): {metric} {value}", best.number, sweep.id, sweep.name);
    Ok(format!(
        "{head}\n# Relative paths start at this file's folder; the sweep's was {}\n{file}",
        sweep.base_dir
    ))
}

fn params(document: &Value) -> Params {
    let value = |value: &Value| match value {
        Value::Bool(flag) => Some(ParamValue::Bool(*flag)),
        Value::String(text) => Some(ParamValue::Text(text.clone())),
        Value::Number(number) => {
            number.as_i64().map(ParamValue::Int).or_else(|| number.as_f64().map(ParamValue::Float))
        }
        _ => None,
    };
    let fields = document.as_object().into_iter().flatten();
    fields.filter_map(|(name, found)| Some((name.clone(), value(found)?))).collect()
}
