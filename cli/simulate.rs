//! `phalanx simulate`: the production scheduler over a scenario or a trace, on a virtual clock.

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use phalanx_core::limits::{SCENARIO_FILE_BYTES, TRACE_FILE_BYTES};
use phalanx_core::overrides;
use phalanx_core::quantity::{parse_bytes, parse_milli};
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{Scenario, ScenarioNode};
use phalanx_core::{Cpus, Links, NodeName, Problems, Time};
use phalanx_scheduler::simulate::{Outcome, gantt, simulate, svg};
use phalanx_scheduler::trace::{self, Format};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Cells of a text chart: as many as fit beside a name on a narrow terminal.
const CHART_CELLS: usize = 72;
/// Rows of the table of jobs on a terminal; of more the last.
const TABLE_ROWS: usize = 200;
/// Most nodes that one `--add-nodes` may add.
const ADDED_NODES: u32 = 100_000;

/// Run the production scheduler over a scenario on a virtual clock
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  phalanx simulate scenario.toml                        what runs when and where, and why the rest waits
  phalanx simulate scenario.json --json                 the whole outcome as one document
  phalanx simulate scenario.toml --gantt --svg out.svg  also as a picture
  phalanx simulate scenario.toml --add-nodes 1:gpus=8,cpus=64 --set queue.research.weight=3   what if?
  phalanx simulate jobs.txt --from sacct --cluster cluster.toml   what another scheduler ran, on these nodes

A scenario is TOML or JSON, by the file's suffix. docs/scheduling.md has a guide.")]
pub(crate) struct SimulateArgs {
    /// The scenario: nodes, queues, jobs and events; with --from a trace
    #[arg(value_name = "SCENARIO")]
    file: PathBuf,
    /// FILE is a trace: Philly CSV, Alibaba's openb pods or PAI tasks, what Slurm's `sacct` prints
    #[arg(long, value_name = "FORMAT", value_parser = Format::NAMES.map(|(name, _)| name))]
    from: Option<String>,
    /// Nodes, queues and policy for a trace: a scenario, or openb's list of nodes (.csv)
    #[arg(long, value_name = "FILE", requires = "from")]
    cluster: Option<PathBuf>,
    /// More nodes, such as 2:gpus=8,cpus=64,memory=512GiB,gpu_links=nvswitch
    #[arg(long, value_name = "COUNT:KEY=VALUE,…")]
    add_nodes: Vec<Added>,
    /// Also write what is simulated as a scenario, to be changed by hand
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Also draw nodes and time as text
    #[arg(long)]
    gantt: bool,
    /// Also draw nodes and time as an SVG picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Also measure what a decision takes; these figures differ from run to run
    #[arg(long)]
    timings: bool,
}

pub(crate) fn run(global: &Global, args: &SimulateArgs, output: &Output) -> Result<(), Failure> {
    let mut scenario = match &args.from {
        Some(format) => read_trace(format, args, &global.set, output)?,
        None => read_scenario(&args.file, &global.set)?,
    };
    for added in &args.add_nodes {
        added.to(&mut scenario);
    }
    scenario.check_bounds().map_err(Failure::usage)?;
    if scenario.nodes.is_empty() && args.from.is_some() {
        return Err(Failure::usage(
            "a trace has no nodes; name some with --cluster FILE or --add-nodes 8:gpus=8,cpus=64",
        ));
    }
    if let Some(path) = &args.write {
        write(path, &scenario.to_toml())?;
    }
    let started = Instant::now();
    let clock = || started.elapsed().as_secs_f64() * 1e6;
    let outcome = simulate(&scenario, args.timings.then_some(&clock as &dyn Fn() -> f64));
    if let Some(path) = &args.svg {
        write(path, &svg(&scenario, &outcome).map_err(Failure::failed)?)?;
    }
    if output.json {
        let document = serde_json::to_value(&outcome).map_err(|error| Failure::failed(error.to_string()))?;
        return output.document(&document);
    }
    print(&outcome, output)?;
    match args.gantt {
        true => output.line(&format!("\n{}", gantt(&scenario, &outcome, CHART_CELLS))),
        false => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", path.display())))
}

/// A file that is not larger than it may be.
fn read_text(path: &Path, limit: usize) -> Result<String, Failure> {
    let shown = path.display();
    let wrong = |error: std::io::Error| Failure::usage(format!("{shown}: cannot be read: {error}"));
    let bytes = std::fs::metadata(path).map_err(wrong)?.len();
    if bytes > limit as u64 {
        return Err(Failure::usage(format!("{shown}: the file has {bytes} bytes; the limit is {limit}")));
    }
    std::fs::read_to_string(path).map_err(wrong)
}

fn read_scenario(path: &Path, settings: &[String]) -> Result<Scenario, Failure> {
    let shown = path.display().to_string();
    let refused = |problems: Problems, text: &str| Failure::usage(problems.render(&shown, text));
    let suffix = path.extension().and_then(|suffix| suffix.to_str());
    if !matches!(suffix, Some("json" | "toml")) {
        return Err(Failure::usage(format!(
            "{shown}: a scenario is a .toml or a .json file; of a trace say with --from whose it is"
        )));
    }
    let text = read_text(path, SCENARIO_FILE_BYTES)?;
    if suffix == Some("json") {
        if !settings.is_empty() {
            return Err(Failure::usage("`--set` changes TOML files only"));
        }
        return Scenario::parse_json(&text).map_err(|problems| refused(problems, &text));
    }
    let text = overrides::apply(&text, settings).map_err(|problems| refused(problems, &text))?;
    Scenario::parse(&text).map_err(|problems| refused(problems, &text))
}

/// The jobs of a trace on the nodes of `--cluster`, and what was left out of it.
fn read_trace(
    format: &str,
    args: &SimulateArgs,
    settings: &[String],
    output: &Output,
) -> Result<Scenario, Failure> {
    let shown = args.file.display();
    let format = Format::NAMES.iter().find(|(name, _)| *name == format).map(|&(_, format)| format);
    let format = format.ok_or_else(|| Failure::usage("`--from` knows no such format"))?;
    let refused = |error: trace::TraceError| Failure::usage(format!("{shown}: {error}"));
    let trace = trace::read(format, &read_text(&args.file, TRACE_FILE_BYTES)?).map_err(refused)?;
    if !trace.left_out.is_empty() {
        let rows = trace.left_out.iter().map(|(reason, count)| format!("{count} {reason}"));
        let rows = rows.collect::<Vec<_>>().join(", ");
        output.say(&format!("{} jobs of {shown}; left out: {rows}", trace.jobs.len()));
    }
    let cluster = match &args.cluster {
        None => Scenario::default(),
        Some(path) if path.extension().is_some_and(|suffix| suffix == "csv") => {
            let text = read_text(path, SCENARIO_FILE_BYTES)?;
            let nodes = trace::openb_nodes(&text);
            let nodes = nodes.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            Scenario { nodes, ..Scenario::default() }
        }
        Some(path) => read_scenario(path, settings)?,
    };
    if !cluster.jobs.is_empty() {
        return Err(Failure::usage("--cluster has jobs of its own; take them out, the trace has the jobs"));
    }
    Ok(trace.into_scenario(cluster))
}

/// Nodes to be added, all alike.
#[derive(Clone, Debug)]
struct Added {
    count: u32,
    capacity: Capacity,
}

impl std::str::FromStr for Added {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not of the form COUNT:gpus=8,cpus=64,memory=512GiB,label.zone=x");
        let (count, keys) = text.split_once(':').ok_or_else(shape)?;
        let count = count.parse().ok().filter(|count| (1..=ADDED_NODES).contains(count)).ok_or_else(shape)?;
        let (mut capacity, mut gpus, mut links) = (Capacity::default(), 0, None);
        for (key, value) in keys
            .split(',')
            .map(|pair| pair.split_once('=').ok_or_else(shape))
            .collect::<Result<Vec<_>, _>>()?
        {
            match key.trim() {
                "cpus" => capacity.cpus = Cpus::from_milli(parse_milli(value)?),
                "memory" => capacity.memory_bytes = parse_bytes(value)?,
                "gpus" => {
                    let most = phalanx_core::limits::NODE_GPUS;
                    gpus = value
                        .parse()
                        .ok()
                        .filter(|gpus| *gpus <= most)
                        .ok_or_else(|| format!("`gpus={value}`: a node has 0 to {most} GPUs"))?;
                }
                "gpu_links" => links = Some(value.to_owned()),
                key => match key.strip_prefix("label.") {
                    Some(label) => drop(capacity.labels.insert(label.to_owned(), value.to_owned())),
                    None => {
                        return Err(format!(
                            "`{key}` is none of cpus, gpus, memory, gpu_links and label.NAME"
                        ));
                    }
                },
            }
        }
        if let Some(name) = links {
            let presets =
                || format!("`gpu_links={name}`: for {gpus} GPUs there are {}", Links::PRESETS.join(", "));
            capacity.links = Links::preset(&name, gpus as usize).ok_or_else(presets)?;
        }
        let device =
            |index: u32| Device { index, uuid: index.to_string(), name: "GPU".to_owned(), memory_bytes: 0 };
        capacity.devices = (0..gpus).map(device).collect();
        Ok(Added { count, capacity })
    }
}

impl Added {
    /// Adds them, by names that nothing has.
    fn to(&self, scenario: &mut Scenario) {
        let taken: BTreeSet<String> = scenario.nodes.iter().map(|node| node.name.to_string()).collect();
        let names = (1u32..).map(|number| format!("added-{number}")).filter(|name| !taken.contains(name));
        let names = names.filter_map(|name| name.parse::<NodeName>().ok());
        let node = |name| ScenarioNode { name, capacity: self.capacity.clone(), at: Time::ZERO };
        scenario.nodes.extend(names.take(self.count as usize).map(node));
    }
}

fn print(outcome: &Outcome, output: &Output) -> Result<(), Failure> {
    let seconds = |time: Option<Time>| {
        time.map_or_else(|| "-".to_owned(), |time| format!("{:.1}", time.as_micros() as f64 / 1e6))
    };
    let mut rows = table::new(output, &["JOB", "STATE", "SUBMITTED", "START", "END", "ATTEMPTS", "REASON"]);
    let hidden = if output.stdout_is_terminal { outcome.jobs.len().saturating_sub(TABLE_ROWS) } else { 0 };
    for job in outcome.jobs.iter().skip(hidden) {
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
    let more =
        if hidden > 0 { format!("{hidden} jobs before these; --json has all\n") } else { String::new() };
    output.line(&format!("{more}{}\n\n{}", table::text(&rows), summary(outcome)))
}

/// The figures in a few words.
fn summary(outcome: &Outcome) -> String {
    let summary = &outcome.summary;
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    let percent =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value));
    let mut text = format!(
        "makespan {} s, completion mean {} s, p95 {} s; GPUs used {}, CPUs used {}, fragmentation {}; \
         {} preemptions, {} decisions",
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
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_nodes_are_what_is_said_and_have_names_of_their_own() {
        let added: Added = "2:gpus=4,cpus=1.5,memory=8GiB,gpu_links=pairs,label.zone=x".parse().unwrap();
        let mut scenario = Scenario::parse("[[node]]\nname = \"added-1\"\n").unwrap();
        added.to(&mut scenario);
        let names: Vec<&str> = scenario.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["added-1", "added-2", "added-3"]);
        let capacity = &scenario.nodes[2].capacity;
        assert_eq!(
            (capacity.devices.len(), capacity.cpus, capacity.memory_bytes),
            (4, Cpus::from_milli(1500), 8 << 30)
        );
        assert_eq!((capacity.links.len(), capacity.labels["zone"].as_str()), (4, "x"));
        for bad in [
            "",
            "2",
            "0:gpus=1",
            "1:gpus=9999",
            "1:gpus",
            "1:colour=red",
            "1:gpus=4,gpu_links=dgx-1",
            "1:cpus=-1",
        ] {
            assert!(bad.parse::<Added>().is_err(), "{bad}");
        }
    }
}
