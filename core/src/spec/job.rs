//! A job: what runs, as which gang, and what happens when it fails.

use super::gang::{self, GangSpec};
use super::params::{self, Params};
use super::reader::{Sink, Table};
use super::sweep;
use super::train::{self, TrainSpec};
use crate::diagnostic::{Problem, Problems};
use crate::limits::{NAME_BYTES, SECRETS_PER_JOB, SPEC_FILE_BYTES};
use crate::secret::check_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeTable;

/// The time between SIGTERM and SIGKILL where a job names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Longest grace a job may ask for.
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);
/// The queue of a job that names none.
const DEFAULT_QUEUE: &str = "default";

/// A valid job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What people call it; need not be unique.
    pub name: String,
    /// The queue it waits in.
    pub queue: String,
    /// Higher goes first.
    pub priority: i32,
    /// Whether it may be asked to give way to a gang that goes before it.
    #[serde(default = "preemptible_by_default")]
    pub preemptible: bool,
    /// It fails with code 124 when it runs longer.
    pub time_limit: Option<Duration>,
    /// How many failures of its gang are answered by another attempt.
    pub max_failures: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// More environment for every rank.
    pub env: BTreeMap<String, String>,
    /// Names of secrets that come into the environment.
    pub secrets: Vec<String>,
    /// The gang.
    pub gang: GangSpec,
    /// What every rank runs.
    pub work: Work,
    /// Which checkpoints are made and kept.
    pub checkpoint: CheckpointPolicy,
    /// What its processes find at `$PHALANX_PARAMS`; a sweep's trials have their own.
    #[serde(default, skip_serializing_if = "Params::is_empty")]
    pub params: Params,
}

fn preemptible_by_default() -> bool {
    true
}

/// What the ranks of a job run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// The user's own program.
    Program(ProgramSpec),
    /// The built-in trainer.
    Train(Box<TrainSpec>),
}

/// A program under the torchrun contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramSpec {
    /// The program and its arguments; never a shell line.
    pub command: Vec<String>,
    /// Where it runs, relative to the file's folder.
    pub workdir: Option<String>,
}

/// Whether a metric is better when lower or higher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricMode {
    /// Lower is better.
    #[default]
    Min,
    /// Higher is better.
    Max,
}

impl MetricMode {
    /// Whether `a` is better than `b`; what is not a number is never better.
    pub fn is_better(self, a: f64, b: f64) -> bool {
        match self {
            _ if a.is_nan() => false,
            _ if b.is_nan() => true,
            MetricMode::Min => a < b,
            MetricMode::Max => a > b,
        }
    }
}

/// Which checkpoints are made and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// The built-in trainer makes one every so many steps; without it at the end of every epoch.
    pub every_steps: Option<u64>,
    /// The best so many are kept, and the latest.
    pub keep: u32,
    /// What makes one better; without it the later is the better.
    pub metric: Option<String>,
    /// Which direction of the metric is better.
    pub mode: MetricMode,
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        CheckpointPolicy { every_steps: None, keep: 1, metric: None, mode: MetricMode::default() }
    }
}

impl JobSpec {
    /// Reads and checks a job file; `default_name` is used where it names none. On failure every problem is told.
    pub fn parse(text: &str, default_name: &str) -> Result<JobSpec, Problems> {
        let document = parse_document(text, SPEC_FILE_BYTES)?;
        if let Some(sweep) = sweep::sweep_table(&document) {
            let problem = Problem::at(sweep.span(), "this file is a sweep, and a single job is wanted here");
            return Err(Problems::one(
                problem.help("take [sweep] and what belongs to it out, or run it as the sweep it is"),
            ));
        }
        let sink = Sink::default();
        let spec = read(&Table::root(&document, &sink), default_name, &[]);
        sink.into_problems().into_result(spec)
    }
}

/// The document of a file within the size limit, or what is wrong with its TOML.
pub(super) fn parse_document(text: &str, limit_bytes: usize) -> Result<Spanned<DeTable<'_>>, Problems> {
    if text.len() > limit_bytes {
        let message = format!("the file has {} bytes; the limit is {limit_bytes}", text.len());
        return Err(Problems::one(Problem::of_file(message)));
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(document);
    }
    let problem = |error: &toml::de::Error| Problem {
        message: error.message().to_owned(),
        span: error.span(),
        help: None,
    };
    Err(Problems(errors.iter().map(problem).collect()).in_order())
}

/// Reads a job; `others` are keys of the file that are read elsewhere.
pub(super) fn read(table: &Table<'_>, default_name: &str, others: &[&'static str]) -> Option<JobSpec> {
    let work = read_work(table);
    let mut spec = read_job(table, default_name, work);
    if others.is_empty() {
        let params = table.table("params").map(|params| params::read_fixed(&params)).unwrap_or_default();
        if let Some(spec) = &mut spec {
            spec.params = params;
        }
    }
    for key in others {
        table.has(key);
    }
    table.note_unknown();
    spec
}

/// Checks all of a sweep file but for its work, which is not there.
pub(super) fn read_frame(table: &Table<'_>, default_name: &str) {
    read_job(table, default_name, Some(no_work()));
    for key in sweep::SWEEP_KEYS {
        table.has(key);
    }
    table.note_unknown();
}

fn read_job(table: &Table<'_>, default_name: &str, work: Option<Work>) -> Option<JobSpec> {
    read_version(table);
    let gang = table.table("gang").map(gang::read).unwrap_or_default();
    if let Some(Work::Train(train)) = &work {
        train::check_gang(table, train, gang.workers);
    }
    // Everything else is read where there is no work too, so that all problems are told at once.
    let has_work = work.is_some();
    let spec = JobSpec {
        name: table.name().unwrap_or_else(|| default_name.to_owned()),
        queue: read_queue(table).unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
        priority: table.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX)).unwrap_or(0) as i32,
        preemptible: table.boolean("preemptible").unwrap_or(true),
        time_limit: read_time_limit(table),
        max_failures: table.integer("max_failures", 0..=i64::from(u32::MAX)).unwrap_or(0) as u32,
        grace: read_grace(table).unwrap_or(DEFAULT_GRACE),
        env: read_env(table),
        secrets: read_secrets(table),
        gang,
        work: work.unwrap_or_else(no_work),
        checkpoint: table.table("checkpoint").map(read_checkpoint).unwrap_or_default(),
        params: Params::new(),
    };
    has_work.then_some(spec)
}

/// Names of secrets, each of which becomes a variable.
fn read_secrets(table: &Table<'_>) -> Vec<String> {
    let mut names = table.texts("secrets").unwrap_or_default();
    let problem = |message: String| table.problem(table.span_of("secrets"), message);
    if names.len() > SECRETS_PER_JOB {
        problem(format!("a job has at most {SECRETS_PER_JOB} secrets; this one names {}", names.len()));
    }
    for name in &names {
        if let Err(error) = check_name(name) {
            problem(error.to_string());
        }
    }
    names.sort();
    names.dedup();
    names
}

fn no_work() -> Work {
    Work::Program(ProgramSpec { command: Vec::new(), workdir: None })
}

pub(super) fn read_version(table: &Table<'_>) {
    match table.integer("version", 0..=i64::MAX) {
        Some(1) => {}
        Some(other) => {
            let message = format!("`version` is {other}; this Phalanx reads version 1");
            table.problem(table.span_of("version"), message);
        }
        None => table.require("version", "version = 1"),
    }
}

pub(super) fn read_queue(table: &Table<'_>) -> Option<String> {
    let queue = table.text("queue")?;
    if queue.is_empty() || queue.len() > NAME_BYTES {
        table.problem(table.span_of("queue"), format!("`queue` must have 1 to {NAME_BYTES} bytes"));
        return None;
    }
    Some(queue)
}

fn read_time_limit(table: &Table<'_>) -> Option<Duration> {
    let limit = table.duration("time_limit")?;
    if limit.is_zero() {
        table.problem(table.span_of("time_limit"), "`time_limit` must be longer than nothing");
        return None;
    }
    Some(limit)
}

fn read_grace(table: &Table<'_>) -> Option<Duration> {
    let grace = table.duration("grace")?;
    if grace > MAX_GRACE {
        table.problem(table.span_of("grace"), "`grace` must be at most 24h");
        return None;
    }
    Some(grace)
}

fn read_env(table: &Table<'_>) -> BTreeMap<String, String> {
    let env = table.text_map("env");
    for (name, value) in &env {
        let problem = match name.as_str() {
            "" => Some("has no name".to_owned()),
            _ if name.contains(['=', '\0']) || value.contains('\0') => {
                Some("contains `=` or a zero byte".to_owned())
            }
            _ if name.starts_with("PHALANX_") => Some("is set by Phalanx itself".to_owned()),
            _ => None,
        };
        if let Some(problem) = problem {
            table.problem(table.span_of("env"), format!("the variable `{name}` in `env` {problem}"));
        }
    }
    env
}

fn read_work(table: &Table<'_>) -> Option<Work> {
    let (program, train) = (table.table("program"), table.table("train"));
    match (program, train) {
        (Some(program), None) => read_program(program).map(Work::Program),
        (None, Some(train)) => train::read(train).map(|train| Work::Train(Box::new(train))),
        (Some(program), Some(train)) => {
            let message = "a job has either [program] or [train], not both";
            table.problem(train.span(), message);
            read_program(program).map(Work::Program)
        }
        (None, None) if table.has("program") || table.has("train") => None,
        (None, None) => {
            let help = "add [program] with `command = [..]`, or [train] for the built-in trainer";
            table.problem_with_help(table.span(), "the file says nothing to run", help);
            None
        }
    }
}

fn read_program(table: Table<'_>) -> Option<ProgramSpec> {
    table.require("command", "command = [\"python\", \"train.py\"]");
    let command = table.texts("command");
    let workdir = table.text("workdir");
    let problem = match command.as_deref() {
        Some([]) => Some("`program.command` is empty".to_owned()),
        Some([program, ..]) if program.is_empty() => Some("`program.command` names no program".to_owned()),
        Some(words) if words.iter().any(|word| word.contains('\0')) => {
            Some("`program.command` has a zero byte".to_owned())
        }
        _ => None,
    };
    if let Some(message) = problem {
        table.problem(table.span_of("command"), message);
    }
    table.finish();
    Some(ProgramSpec { command: command?, workdir })
}

pub(super) fn read_checkpoint(table: Table<'_>) -> CheckpointPolicy {
    let default = CheckpointPolicy::default();
    let policy = CheckpointPolicy {
        every_steps: table.integer("every_steps", 1..=i64::MAX).map(|steps| steps as u64),
        keep: table.integer("keep", 0..=i64::from(u32::MAX)).map_or(default.keep, |keep| keep as u32),
        metric: table.text("metric"),
        mode: table.word("mode", &[("min", MetricMode::Min), ("max", MetricMode::Max)]).unwrap_or_default(),
    };
    if table.has("mode") && policy.metric.is_none() {
        table.problem(table.span_of("mode"), "`checkpoint.mode` says nothing without `checkpoint.metric`");
    }
    table.finish();
    policy
}
