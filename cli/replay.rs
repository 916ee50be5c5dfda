//! `phalanx replay`: what early stopping would have done with recorded learning curves.

use crate::args::Global;
use crate::failure::Failure;
use crate::file::JobFile;
use crate::output::Output;
use crate::table;
use phalanx_tuner::replay::{MAX_TRIAL, Replay, Row, replay};
use std::path::{Path, PathBuf};

/// Run the early stopping of a sweep over recorded learning curves
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  phalanx replay sweep.toml curves.csv                              what was stopped where, and what it saved
  phalanx replay sweep.toml curves.csv --set stopping.eta=4 --json

The CSV has the columns trial, step and value, in the order in which values were reported.")]
pub(crate) struct ReplayArgs {
    /// The sweep; it need not say what to run
    #[arg(value_name = "SWEEP.toml")]
    file: PathBuf,
    /// The curves
    #[arg(value_name = "CURVES.csv")]
    curves: PathBuf,
}

pub(crate) fn run(global: &Global, args: &ReplayArgs, output: &Output) -> Result<(), Failure> {
    let file = JobFile::read(&args.file, global)?;
    let spec = file.problems_of_sweep().map_err(|problems| file.refused(&problems))?;
    let shown = args.curves.display();
    let (rows, lines) =
        read_rows(&args.curves).map_err(|problem| Failure::usage(format!("{shown}{problem}")))?;
    let done = replay(&spec, &rows);
    let done = done.map_err(|(row, error)| Failure::usage(format!("{shown}:{}: {error}", lines[row])))?;
    if output.json {
        let document = serde_json::to_value(&done).map_err(|error| Failure::failed(error.to_string()))?;
        return output.document(&document);
    }
    print(&done, output)
}

fn print(done: &Replay, output: &Output) -> Result<(), Failure> {
    let mut rows = table::new(output, &["TRIAL", "DECISION", "AT STEP"]);
    for trial in &done.trials {
        let decision = format!("{:?}", trial.decision).to_lowercase();
        rows.add_row([trial.trial.to_string(), decision, trial.at_step.to_string()]);
    }
    let summary = &done.summary;
    let shown = |value: Option<phalanx_core::report::Metric>| {
        value.map_or("none".to_owned(), |value| value.0.to_string())
    };
    let all = (summary.steps_run + summary.steps_saved).max(1);
    output.line(&format!(
        "{}\n\n{} steps run, {} saved ({:.1} %); best kept {}, best overall {}",
        table::text(&rows),
        summary.steps_run,
        summary.steps_saved,
        100.0 * summary.steps_saved as f64 / all as f64,
        shown(summary.best_kept),
        shown(summary.best_overall),
    ))
}

/// The rows, and the line of the file each stands on.
fn read_rows(path: &Path) -> Result<(Vec<Row>, Vec<u64>), String> {
    let text = std::fs::read(path).map_err(|error| format!(": cannot be read: {error}"))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_slice());
    let header = reader.headers().map_err(|error| format!(": {error}"))?.clone();
    let column = |name: &str| {
        let named: Vec<usize> = (0..header.len()).filter(|index| header.get(*index) == Some(name)).collect();
        match named[..] {
            [index] => Ok(index),
            [] => Err(format!(":1: there is no column `{name}`; the columns are trial, step and value")),
            _ => Err(format!(":1: the column `{name}` is there twice")),
        }
    };
    let (trial, step, value) = (column("trial")?, column("step")?, column("value")?);
    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(|error| format!(": {error}"))?;
        let line = record.position().map_or(0, |start| line_of(&text, start));
        let field = |index: usize| record.get(index).unwrap_or_default();
        let count = |index: usize, name: &str| {
            let text = field(index);
            text.parse::<u64>().map_err(|_| format!(":{line}: the {name} `{text}` is no integer, 0 or more"))
        };
        let number = count(trial, "trial")?;
        if number > MAX_TRIAL {
            return Err(format!(":{line}: trial {number} is above {MAX_TRIAL}"));
        }
        let text = field(value);
        let value = text
            .parse::<f64>()
            .map_err(|_| format!(":{line}: the value `{text}` is no number, nan, inf or -inf"))?;
        rows.push(Row { trial: number, step: count(step, "step")?, value });
        lines.push(line);
    }
    Ok((rows, lines))
}

/// The line a record stands on: the reader counts blank lines before it to the record.
fn line_of(text: &[u8], start: &csv::Position) -> u64 {
    let ahead = text.iter().skip(start.byte() as usize).take_while(|byte| matches!(byte, b'\n' | b'\r'));
    start.line() + ahead.filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<Row>, Vec<u64>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.csv");
        std::fs::write(&path, text).unwrap();
        read_rows(&path)
    }

    #[test]
    fn columns_are_found_by_name_and_values_may_be_infinite() {
        let (rows, lines) = read("step, value,note,trial\n1,-inf,x,3\n\n2, nan ,y,3\n").unwrap();
        assert_eq!(rows[0], Row { trial: 3, step: 1, value: f64::NEG_INFINITY });
        assert!(rows[1].value.is_nan() && lines == [2, 4]);
    }

    #[test]
    fn a_bad_cell_is_named_by_its_line() {
        for (text, expected) in [
            ("trial,step\n", ":1: there is no column `value`"),
            ("trial,trial,step,value\n", "twice"),
            ("trial,step,value\n0,1,1\n0,-2,1\n", ":3: the step `-2`"),
            ("trial,step,value\n0,1,\n", ":2: the value ``"),
            ("trial,step,value\nx,1,1\n", ":2: the trial `x`"),
            ("trial,step,value\n99999999999,1,1\n", "is above"),
            ("trial,step,value\n0,1\n", "record"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
