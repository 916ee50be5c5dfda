//! Traces of other schedulers as jobs of a scenario, so that a site can ask what it would have had.
//!
//! | format | is | a row becomes |
//! |---|---|---|
//! | [`philly`] | Microsoft's Philly trace (ATC'19) as the simulators of the field pass it on, as CSV | one worker a GPU, packed |
//! | [`openb`] | Alibaba's `openb_pod_list` (cluster-trace-gpu-v2023), CSV | one worker |
//! | [`pai`] | Alibaba's `pai_task_table` (cluster-trace-gpu-v2020), CSV | as many workers as it has instances |
//! | [`sacct`] | what `sacct` prints, with or without `--parsable2` | one worker a node |
//!
//! What a job is given is what it asked for then; how long it works is how long it ran then. Times count from the first
//! submission. Rows that say nothing of work (a job that never started, say) are left out, and counted by their reason; a row
//! that cannot be read is an error with its line.

mod openb;
mod pai;
mod philly;
mod sacct;
mod table;

pub use openb::nodes as openb_nodes;

use phalanx_core::limits::{GANG_WORKERS, NAME_BYTES, TRACE_FILE_BYTES};
use phalanx_core::resources::WHOLE;
use phalanx_core::spec::{DEFAULT_QUEUE, GangSpec, QueueSpec, Scenario, ScenarioJob, Workers};
use phalanx_core::{Cpus, GpuRequest, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Latest second that a trace may name: the year 33658.
const LATEST: f64 = 1e12;

/// Whose trace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// See the module.
    Philly,
    /// See the module.
    Openb,
    /// See the module.
    Pai,
    /// See the module.
    Sacct,
}

impl Format {
    /// Every format by its name.
    pub const NAMES: [(&str, Format); 4] = [
        ("philly", Format::Philly),
        ("openb", Format::Openb),
        ("pai", Format::Pai),
        ("sacct", Format::Sacct),
    ];
}

/// Why a trace cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is larger than any trace.
    #[error("the trace has {bytes} bytes; the limit is {TRACE_FILE_BYTES}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// A column that there has to be.
    #[error("the trace has no column {wanted}; its head says {found}")]
    NoColumn {
        /// By all names that are known for it.
        wanted: String,
        /// What the head has.
        found: String,
    },
    /// A row that cannot be read.
    #[error("line {line}: {message}")]
    Row {
        /// Its line, from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
    /// Nothing of it can be simulated.
    #[error("{0}")]
    Unfit(String),
}

/// A row that says nothing of work, and why.
type LeftOut = &'static str;

/// What a row says.
struct Row {
    name: String,
    /// Seconds, on the trace's own clock.
    submitted: f64,
    seconds: f64,
    queue: Option<String>,
    time_limit: Option<f64>,
    gang: GangSpec,
}

/// The jobs of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Jobs by submission.
    pub jobs: Vec<ScenarioJob>,
    /// How many rows were left out, by the reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Reads a trace.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(format: Format, text: &str) -> Result<Trace, TraceError> {
    if text.len() > TRACE_FILE_BYTES {
        return Err(TraceError::TooLarge { bytes: text.len() });
    }
    let text = text.trim_start_matches('\u{feff}');
    let (mut rows, mut left_out) = (Vec::new(), BTreeMap::new());
    let take = |row: Result<Row, LeftOut>| match row {
        Ok(row) => rows.push(row),
        Err(reason) => *left_out.entry(reason).or_default() += 1,
    };
    match format {
        Format::Philly => philly::read(text, take),
        Format::Openb => openb::read(text, take),
        Format::Pai => pai::read(text, take),
        Format::Sacct => sacct::read(text, take),
    }?;
    if rows.is_empty() {
        let why: Vec<String> = left_out.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(", ")) };
        return Err(TraceError::Unfit(format!("no row of the trace is a job that ran{why}")));
    }
    Ok(Trace { jobs: jobs(rows), left_out })
}

/// Rows as jobs, from the first submission on, each with a name of its own.
fn jobs(mut rows: Vec<Row>) -> Vec<ScenarioJob> {
    rows.sort_by(|a, b| a.submitted.total_cmp(&b.submitted));
    let first = rows.first().map_or(0.0, |row| row.submitted);
    let mut names = BTreeSet::new();
    let jobs = rows.into_iter().map(|row| ScenarioJob {
        name: own_name(&row.name, &mut names),
        at: Time::ZERO + duration(row.submitted - first),
        work: duration(row.seconds),
        queue: row.queue.map_or_else(|| DEFAULT_QUEUE.to_owned(), |queue| legal(&queue)),
        priority: 0,
        preemptible: true,
        time_limit: row.time_limit.map(duration),
        checkpoint_every: None,
        restart: Duration::ZERO,
        gang: row.gang,
        efficiency: 1.0,
    });
    jobs.collect()
}

impl Trace {
    /// Puts the jobs into a scenario; queues that it has not set up are set up as plain ones.
    pub fn into_scenario(self, mut scenario: Scenario) -> Scenario {
        let known: BTreeSet<String> = scenario.queues.iter().map(|queue| queue.name.clone()).collect();
        let named: BTreeSet<&str> = self.jobs.iter().map(|job| job.queue.as_str()).collect();
        let new = named.into_iter().filter(|name| *name != DEFAULT_QUEUE && !known.contains(*name));
        scenario.queues.extend(new.map(QueueSpec::new));
        scenario.jobs.extend(self.jobs);
        scenario
    }
}

fn own_name(wanted: &str, names: &mut BTreeSet<String>) -> String {
    let wanted = legal(wanted);
    let numbered = (2u32..).map(|number| format!("{wanted}#{number}"));
    let mut free = std::iter::once(wanted.clone()).chain(numbered).filter(|name| !names.contains(name));
    let name = free.next().unwrap_or_default();
    names.insert(name.clone());
    name
}

/// A name that a scenario may have.
fn legal(name: &str) -> String {
    const SUFFIX_BYTES: usize = 12;
    let mut name: String = name.chars().filter(|letter| !letter.is_control()).collect();
    while name.len() > NAME_BYTES - SUFFIX_BYTES {
        name.pop();
    }
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

fn duration(seconds: f64) -> Duration {
    Duration::from_micros((seconds.clamp(0.0, LATEST) * 1e6).round() as u64)
}

/// A gang of so many workers with so much each: CPUs and GPUs in thousandths.
fn gang(workers: u64, milli_cpus: u64, milli_gpus: u64, memory_bytes: u64) -> Result<GangSpec, LeftOut> {
    let workers = u32::try_from(workers).ok().filter(|workers| (1..=GANG_WORKERS).contains(workers));
    let workers = workers.ok_or("without workers, or with too many")?;
    let mut gang = GangSpec { workers: Workers { min: workers, max: workers }, ..GangSpec::default() };
    gang.each.cpus = Cpus::from_milli(milli_cpus);
    gang.each.memory_bytes = memory_bytes;
    gang.each.gpus = match milli_gpus {
        0 => GpuRequest::None,
        1..WHOLE => GpuRequest::Share(milli_gpus as u16),
        // Whole devices only from one on, as it is here.
        _ => GpuRequest::Whole(u32::try_from(milli_gpus.div_ceil(WHOLE)).map_err(|_| "with too many GPUs")?),
    };
    Ok(gang)
}

#[cfg(test)]
mod tests;
