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
use std::path::Path;
use toml_edit::{DocumentMut, Item};

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
    let (base, here) = (Path::new(&sweep.base_dir), std::env::current_dir()?);
    let (paths, file) = match base == here {
        true => ("Relative paths start at this file's folder", file),
        false => ("Its paths start in the folder of the sweep", anchored(&file, base)),
    };
    Ok(format!("{head}\n# {paths}, {}\n{file}", base.display()))
}

/// A job file that runs wherever it lies: paths that started in this folder are absolute.
fn anchored(file: &str, base: &Path) -> String {
    let Ok(mut document) = file.parse::<DocumentMut>() else { return file.to_owned() };
    let anchor = |item: Option<&mut Item>| {
        if let Some((item, path)) =
            item.and_then(|item| item.as_str().map(str::to_owned).map(|path| (item, path)))
        {
            *item = toml_edit::value(base.join(path).to_string_lossy().into_owned());
        }
    };
    if let Some(program) = document.get_mut("program").and_then(Item::as_table_like_mut) {
        program.entry("workdir").or_insert_with(|| toml_edit::value(""));
        anchor(program.get_mut("workdir"));
    }
    if let Some(train) = document.get_mut("train").and_then(Item::as_table_like_mut) {
        anchor(train.get_mut("export"));
        if let Some(data) = train.get_mut("data").and_then(Item::as_table_like_mut) {
            ["path", "validation", "test"].iter().for_each(|key| anchor(data.get_mut(key)));
        }
    }
    document.to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_another_folder_has_absolute_paths() {
        let trained =
            "[train]\nexport = \"out\"\n[train.data]\nkind = \"csv\"\npath = \"a.csv\"\nvalidation = 0.2\n";
        let shown = anchored(trained, Path::new("/s"));
        assert_eq!(shown, trained.replace("\"out\"", "\"/s/out\"").replace("\"a.csv\"", "\"/s/a.csv\""));
        let inline = anchored("[train]\ndata = { path = \"/d/a.csv\", test = \"b.csv\" }\n", Path::new("/s"));
        assert_eq!(
            inline.parse::<DocumentMut>().unwrap()["train"]["data"]["test"].as_str(),
            Some("/s/b.csv")
        );
        assert!(inline.contains("\"/d/a.csv\""), "{inline}");
        for (program, workdir) in [("command = [\"x\"]\n", "/s/"), ("workdir = \"in\"\n", "/s/in")] {
            let shown =
                anchored(&format!("[program]\n{program}"), Path::new("/s")).parse::<DocumentMut>().unwrap();
            assert_eq!(shown["program"]["workdir"].as_str(), Some(workdir));
        }
    }
}
