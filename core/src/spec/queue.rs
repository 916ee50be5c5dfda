//! Queues and the settings of scheduling: the same in a scenario and in the service's configuration.

use super::reader::{LATEST_SECONDS, Table, Value, read_amounts, read_seconds_to};
use crate::limits::NAME_BYTES;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toml::de::DeValue;

/// The queue that need not be defined.
pub const DEFAULT_QUEUE: &str = "default";
/// Longest time between asking a gang to end and its end.
const LONGEST_GRACE_SECONDS: f64 = 120.0;
/// What a limit says that is taken away again.
const NO_LIMIT: &str = "none";

/// A queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// Its part of what is free, relative to others.
    pub weight: f64,
    /// What is its own.
    pub guaranteed: Limits,
    /// What it may hold at most.
    pub quota: Limits,
    /// Whether least attained service goes first, rather than submission.
    pub las: bool,
}

impl QueueSpec {
    /// A queue of weight 1 with no guarantee, no quota and the order of submission.
    pub fn new(name: &str) -> Self {
        let (guaranteed, quota) = (Limits::default(), Limits::default());
        QueueSpec { name: name.to_owned(), weight: 1.0, guaranteed, quota, las: false }
    }

    /// The word for its order.
    pub const fn discipline(&self) -> &'static str {
        if self.las { "las" } else { "fifo" }
    }
}

/// Amounts of some kinds of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPUs in thousandths.
    pub cpus: Option<u64>,
    /// GPUs in thousandths.
    pub gpus: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Custom resources in thousandths.
    pub custom: BTreeMap<String, u64>,
}

impl Limits {
    /// All that are set, by the name of their kind.
    pub fn named(&self) -> impl Iterator<Item = (&str, u64)> {
        let fixed = [("cpus", self.cpus), ("gpus", self.gpus), ("memory", self.memory_bytes)];
        let fixed = fixed.into_iter().filter_map(|(name, amount)| Some((name, amount?)));
        fixed.chain(self.custom.iter().map(|(name, &amount)| (name.as_str(), amount)))
    }

    /// The kinds of which these are more than `other` has, where it has them.
    fn above<'a>(&'a self, other: &'a Limits) -> impl Iterator<Item = &'a str> {
        let beyond = |(name, amount): (&'a str, u64)| {
            other.named().any(|(kind, most)| kind == name && amount > most).then_some(name)
        };
        self.named().filter_map(beyond)
    }
}

/// What a site sets of scheduling; what is not said is as the scheduler has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SchedulingSpec {
    /// Between asking a gang to give way and its end; without it the service takes the job's own `grace`, and a scenario
    /// none.
    pub grace: Option<Duration>,
    /// Gangs that may pass a waiting one.
    pub max_bypass: Option<u32>,
    /// An elastic gang grows at most so often.
    pub resize_interval: Option<Duration>,
    /// After so long, what a queue has had counts half.
    pub share_half_life: Option<Duration>,
    /// GPU-seconds after which a gang of a `las` queue goes behind those that have had less, and again after four times as
    /// many, and so on.
    pub las_threshold_seconds: Option<f64>,
    /// How often, for each so many that it has had, such a gang may be preempted for one that goes before it.
    pub las_preemptions: Option<u32>,
}

/// Reads a list of queues; a key that is left out is as in the queue of that name in `base`.
pub(super) fn read_queues(
    table: &Table<'_>,
    names: &mut BTreeSet<String>,
    base: &BTreeMap<String, QueueSpec>,
) -> Vec<QueueSpec> {
    table.tables("queue").into_iter().filter_map(|queue| read_queue(queue, names, base)).collect()
}

fn read_queue(
    table: Table<'_>,
    names: &mut BTreeSet<String>,
    base: &BTreeMap<String, QueueSpec>,
) -> Option<QueueSpec> {
    let name = read_new_name(&table, "queue", names);
    let mut queue = name
        .as_ref()
        .map(|name| base.get(name).cloned().unwrap_or_else(|| QueueSpec::new(name)))
        .unwrap_or_else(|| QueueSpec::new(""));
    queue.weight = table.number("weight", "a number above 0", |weight| weight > 0.0).unwrap_or(queue.weight);
    read_limits(&table, "guaranteed", &mut queue.guaranteed);
    read_limits(&table, "quota", &mut queue.quota);
    queue.las = table.word("discipline", &[("fifo", false), ("las", true)]).unwrap_or(queue.las);
    let beyond: Vec<&str> = queue.guaranteed.above(&queue.quota).collect();
    if !beyond.is_empty() {
        let kinds = beyond.join(", ");
        let key = if table.has("guaranteed") { "guaranteed" } else { "quota" };
        table.problem(
            table.span_of(key),
            format!("the queue's guarantee is above its quota in {kinds}; it could never use all of it"),
        );
    }
    table.finish();
    name.map(|_| queue)
}

fn read_limits(table: &Table<'_>, key: &'static str, limits: &mut Limits) {
    let Some(table) = table.table(key) else { return };
    let removed = |key: &'static str| table.value(key).is_some_and(says_none);
    for (key, limit) in [("cpus", &mut limits.cpus), ("gpus", &mut limits.gpus)] {
        if removed(key) {
            *limit = None;
        } else if let Some(amount) = table.milli(key) {
            *limit = Some(amount);
        }
    }
    if removed("memory") {
        limits.memory_bytes = None;
    } else if let Some(bytes) = table.bytes("memory") {
        limits.memory_bytes = Some(bytes);
    }
    if let Some(custom) = table.table("resources") {
        for (name, _, value) in custom.entries() {
            if says_none(value) {
                limits.custom.remove(name);
            } else if let Some(amount) = custom.milli_value(name, value) {
                limits.custom.insert(name.to_owned(), amount);
            }
        }
    }
    table.finish();
}

fn says_none(value: Value<'_>) -> bool {
    matches!(value.get_ref(), DeValue::String(text) if text == NO_LIMIT)
}

/// Reads the settings of scheduling.
pub(super) fn read_scheduling(table: Table<'_>) -> SchedulingSpec {
    let count = |key| table.integer(key, 0..=i64::from(u32::MAX)).map(|count| count as u32);
    let wanted = "a number of seconds, 0 to 120";
    let scheduling = SchedulingSpec {
        grace: read_seconds_to(&table, "grace_seconds", LONGEST_GRACE_SECONDS, wanted),
        max_bypass: count("max_bypass"),
        resize_interval: read_duration(&table, "resize_interval", Duration::ZERO),
        share_half_life: read_duration(&table, "share_half_life", Duration::from_micros(1)),
        las_threshold_seconds: table.number("las_threshold_seconds", "0 or more", |seconds| seconds >= 0.0),
        las_preemptions: count("las_preemptions"),
    };
    table.finish();
    scheduling
}

/// Reads a duration, with its unit or in seconds, within the virtual clock's reach.
fn read_duration(table: &Table<'_>, key: &'static str, least: Duration) -> Option<Duration> {
    let duration = table.duration(key)?;
    if duration >= least && duration.as_secs_f64() <= LATEST_SECONDS {
        return Some(duration);
    }
    let wanted = if least.is_zero() { "at most 1e12 s" } else { "longer than nothing and at most 1e12 s" };
    table.problem(table.span_of(key), format!("`{}` must be {wanted}", table.path_of(key)));
    None
}

/// Reads a name that is not taken yet.
pub(super) fn read_new_name(table: &Table<'_>, kind: &str, names: &mut BTreeSet<String>) -> Option<String> {
    table.require("name", &format!("name = \"{kind}-1\""));
    let name = table.text("name")?;
    if name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        table.problem(
            table.span_of("name"),
            format!("a {kind}'s name has 1 to {NAME_BYTES} bytes, none of them control"),
        );
        return None;
    }
    if !names.insert(name.clone()) {
        table.problem(table.span_of("name"), format!("two {kind}s are named `{name}`; names are unique"));
    }
    Some(name)
}

/// Reads the amounts of custom resources.
pub(super) fn read_resources(table: &Table<'_>) -> BTreeMap<String, u64> {
    table.table("resources").map(|resources| read_amounts(&resources)).unwrap_or_default()
}
