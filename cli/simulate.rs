//! `phalanx simulate`: the production scheduler over a scenario, on a virtual clock.

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use phalanx_core::Problems;
use phalanx_core::overrides;
use phalanx_core::spec::Scenario;
use phalanx_scheduler::simulate::{Outcome, simulate};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run the production scheduler over a scenario on a virtual clock
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  phalanx simulate scenario.toml                what runs when and where, and why the rest waits
  phalanx simulate scenario.json --json         the whole outcome as one document
  phalanx simulate scenario.toml --timings      also what a decision takes

The format is TOML or JSON, by the file's suffix.")]
pub(crate) struct SimulateArgs {
    /// The scenario: nodes, queues, jobs and events
    #[arg(value_name = "SCENARIO")]
    file: PathBuf,
    /// Also measure what a decision takes; these figures differ from run to run
    #[arg(long)]
    timings: bool,
}

pub(crate) fn run(global: &Global, args: &SimulateArgs, output: &Output) -> Result<(), Failure> {
    let scenario = read(&args.file, &global.set)?;
    let started = Instant::now();
    let clock = || started.elapsed().as_secs_f64() * 1e6;
    let outcome = simulate(&scenario, args.timings.then_some(&clock as &dyn Fn() -> f64));
    if output.json {
        let document = serde_json::to_value(&outcome).map_err(|error| Failure::failed(error.to_string()))?;
        return output.document(&document);
    }
    print(&outcome, output)
}

fn read(path: &Path, settings: &[String]) -> Result<Scenario, Failure> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{shown}: cannot be read: {error}")))?;
    let refused = |problems: Problems, text: &str| Failure::usage(problems.render(&shown, text));
    match path.extension().and_then(|suffix| suffix.to_str()) {
        Some("json") if !settings.is_empty() => Err(Failure::usage("`--set` changes TOML files only")),
        Some("json") => Scenario::parse_json(&text).map_err(|problems| refused(problems, &text)),
        Some("toml") => {
            let text = overrides::apply(&text, settings).map_err(|problems| refused(problems, &text))?;
            Scenario::parse(&text).map_err(|problems| refused(problems, &text))
        }
        _ => Err(Failure::usage(format!("{shown}: a scenario is a .toml or a .json file"))),
    }
}

fn print(outcome: &Outcome, output: &Output) -> Result<(), Failure> {
    let seconds = |time: Option<phalanx_core::Time>| {
        time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_micros() as f64 / 1e6))
    };
    let mut rows = table::new(output, &["JOB", "STATE", "SUBMITTED", "START", "END", "ATTEMPTS", "REASON"]);
    for job in &outcome.jobs {
        let ended = job.end.is_some();
        let reason = job.reasons.last().filter(|_| !ended).map(|told| told.text.clone()).unwrap_or_default();
        rows.add_row([
            job.name.clone(),
            job.state.to_owned(),
            seconds(Some(job.submitted)),
            seconds(job.start),
            seconds(job.end),
            job.attempts.len().to_string(),
            reason,
        ]);
    }
    let summary = &outcome.summary;
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    let percent =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value));
    let mut text = format!(
        "{}\n\nmakespan {} s, completion mean {} s, p95 {} s; GPUs used {}, CPUs used {}, fragmentation {}; \
         {} preemptions, {} decisions",
        table::text(&rows),
        figure(summary.makespan),
        figure(summary.mean_jct),
        figure(summary.p95_jct),
        percent(summary.gpu_utilization),
        percent(summary.cpu_utilization),
        percent(summary.fragmentation),
        summary.preemptions,
        summary.decisions,
    );
    if summary.decide_us_p50.is_some() {
        let (p50, p99) = (figure(summary.decide_us_p50), figure(summary.decide_us_p99));
        text.push_str(&format!("; a decision takes {p50} µs (median), {p99} µs (p99)"));
    }
    output.line(&text)
}
