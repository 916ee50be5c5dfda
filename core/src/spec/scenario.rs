//! A scenario for the scheduler: nodes, queues, jobs and events on a virtual clock.

mod json;
mod write;

use super::gang::{self, GangSpec};
use super::job::parse_document;
use super::queue::{
    DEFAULT_QUEUE, QueueSpec, SchedulingSpec, read_new_name, read_queues, read_resources, read_scheduling,
};
use super::reader::{Sink, Table, read_positive, read_seconds};
use crate::diagnostic::{Problem, Problems};
use crate::id::NodeName;
use crate::limits::{NODE_GPUS, SCENARIO_FILE_BYTES, SCENARIO_GPUS, SCENARIO_RANKS};
use crate::link::{Link, Links};
use crate::resources::{Capacity, Cpus, Device, WHOLE};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use toml::de::DeValue;

/// A valid scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// Nodes, in the order of the file.
    pub nodes: Vec<ScenarioNode>,
    /// Queues that are set up.
    pub queues: Vec<QueueSpec>,
    /// Jobs, in the order of the file.
    pub jobs: Vec<ScenarioJob>,
    /// Events, in the order of the file.
    pub events: Vec<ScenarioEvent>,
    /// What the site sets.
    pub policy: SchedulingSpec,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenarioNode {
    /// Its name.
    pub name: NodeName,
    /// What it has.
    pub capacity: Capacity,
    /// When it first joins.
    pub at: Time,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenarioJob {
    /// Its name.
    pub name: String,
    /// When it is submitted.
    pub at: Time,
    /// How long it works, with all its workers.
    pub work: Duration,
    /// Its queue.
    pub queue: String,
    /// Higher goes first.
    pub priority: i32,
    /// Whether it may be asked to give way.
    pub preemptible: bool,
    /// It fails when it runs longer.
    pub time_limit: Option<Duration>,
    /// It saves its work so often.
    pub checkpoint_every: Option<Duration>,
    /// What every attempt after the first spends before it works.
    pub restart: Duration,
    /// What it asks.
    pub gang: GangSpec,
    /// Its speed is proportional to its workers to this power.
    pub efficiency: f64,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioEvent {
    /// When.
    pub at: Time,
    /// What.
    pub what: Happening,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A node goes.
    NodeLost(NodeName),
    /// A node comes back.
    NodeJoined(NodeName),
    /// A job is cancelled.
    Cancel(String),
}

impl Scenario {
    /// Reads and checks a scenario in TOML. On failure every problem is told.
    pub fn parse(text: &str) -> Result<Scenario, Problems> {
        let document = parse_document(text, SCENARIO_FILE_BYTES)?;
        let sink = Sink::default();
        let scenario = read(Table::root(&document, &sink));
        sink.into_problems().into_result(Some(scenario))
    }

    /// Reads and checks a scenario in JSON, whose keys are the names of the tables. Problems name the key.
    pub fn parse_json(text: &str) -> Result<Scenario, Problems> {
        check_text(text)?;
        let refuse = |message: String| Problems::one(Problem::of_file(message));
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let serde_json::Value::Object(tables) = value else {
            return Err(refuse("a scenario is a JSON object".to_owned()));
        };
        let mut toml = String::with_capacity(text.len());
        for (name, value) in &tables {
            let _ = write!(toml, "{} = ", json::quoted(name));
            json::to_toml(value, &mut toml).map_err(refuse)?;
            toml.push('\n');
        }
        let unplaced = |problem: Problem| Problem { span: None, ..problem };
        Scenario::parse(&toml).map_err(|problems| Problems(problems.0.into_iter().map(unplaced).collect()))
    }

    /// Whether it keeps to the bounds of a simulation; the message says which it does not.
    pub fn check_bounds(&self) -> Result<(), String> {
        let gpus: usize = self.nodes.iter().map(|node| node.capacity.devices.len()).sum();
        let ranks: u64 = self.jobs.iter().map(|job| u64::from(job.gang.workers.max)).sum();
        if gpus > SCENARIO_GPUS {
            return Err(too_many_gpus(gpus));
        }
        if ranks > SCENARIO_RANKS {
            return Err(format!("the jobs have {ranks} workers; a scenario has at most {SCENARIO_RANKS}"));
        }
        Ok(())
    }
}

fn too_many_gpus(gpus: usize) -> String {
    format!("the nodes have {gpus} GPUs; a scenario has at most {SCENARIO_GPUS}")
}

fn check_text(text: &str) -> Result<(), Problems> {
    if text.len() <= SCENARIO_FILE_BYTES {
        return Ok(());
    }
    let message = format!("the file has {} bytes; the limit is {SCENARIO_FILE_BYTES}", text.len());
    Err(Problems::one(Problem::of_file(message)))
}

fn read(table: Table<'_>) -> Scenario {
    let mut names = Names::default();
    let nodes: Vec<ScenarioNode> =
        table.tables("node").into_iter().filter_map(|node| read_node(node, &mut names)).collect();
    let queues = read_queues(&table, &mut names.queues, &BTreeMap::new());
    let jobs: Vec<ScenarioJob> =
        table.tables("job").into_iter().filter_map(|job| read_job(job, &mut names)).collect();
    let events = table.tables("event").into_iter().filter_map(|event| read_event(event, &names)).collect();
    let policy = table.table("policy").map(read_scheduling).unwrap_or_default();
    table.note_unknown();
    let scenario = Scenario { nodes, queues, jobs, events, policy };
    if let Err(message) = scenario.check_bounds() {
        table.note(Problem::of_file(message));
    }
    scenario
}

/// Names in use, to refuse those that come twice and those that nothing has, and what many nodes have in common.
#[derive(Default)]
struct Names {
    nodes: BTreeSet<String>,
    queues: BTreeSet<String>,
    jobs: BTreeSet<String>,
    gpus: usize,
    presets: BTreeMap<(String, usize), Links>,
}

fn read_node(table: Table<'_>, names: &mut Names) -> Option<ScenarioNode> {
    let name = read_new_name(&table, "node", &mut names.nodes);
    let name = name.and_then(|name| match name.parse::<NodeName>() {
        Ok(name) => Some(name),
        Err(error) => {
            table.problem(table.span_of("name"), error.to_string());
            None
        }
    });
    let mut gpus = table.integer("gpus", 0..=i64::from(NODE_GPUS)).unwrap_or(0) as u32;
    names.gpus += gpus as usize;
    if names.gpus > SCENARIO_GPUS {
        // Nothing is made of these, and they are told once.
        if names.gpus - gpus as usize <= SCENARIO_GPUS {
            table.problem(table.span_of("gpus"), too_many_gpus(names.gpus));
        }
        gpus = 0;
    }
    let device =
        |index: u32| Device { index, uuid: index.to_string(), name: "GPU".to_owned(), memory_bytes: 0 };
    let capacity = Capacity {
        cpus: Cpus::from_milli(table.milli("cpus").unwrap_or(0)),
        memory_bytes: table.bytes("memory").unwrap_or(0),
        devices: (0..gpus).map(device).collect(),
        custom: read_resources(&table),
        labels: table.text_map("labels"),
        links: read_links(&table, gpus as usize, &mut names.presets),
    };
    let at = read_time(&table, "at");
    table.finish();
    Some(ScenarioNode { name: name?, capacity, at: at.unwrap_or_default() })
}

/// A matrix, the table that `nvidia-smi topo -m` prints, or the name of a preset; nothing is known without it.
fn read_links(table: &Table<'_>, devices: usize, presets: &mut BTreeMap<(String, usize), Links>) -> Links {
    let Some(value) = table.value("gpu_links") else { return Links::default() };
    let read = match value.get_ref() {
        DeValue::String(text) if text.trim().contains('\n') => Links::parse_table(text),
        DeValue::String(name) => match presets.get(&(name.to_string(), devices)) {
            Some(known) => Ok(known.clone()),
            None => read_preset(name, devices)
                .inspect(|links| drop(presets.insert((name.to_string(), devices), links.clone()))),
        },
        DeValue::Array(rows) => read_matrix(rows),
        _ => Err("it is a matrix, or the name of a preset".to_owned()),
    };
    let read = read.and_then(|links| match links.len() == devices {
        true => Ok(links),
        false => Err(format!("it must be {devices} rows of {devices}, one a GPU")),
    });
    read.unwrap_or_else(|message| {
        table.problem(value.span(), format!("`{}`: {message}", table.path_of("gpu_links")));
        Links::default()
    })
}

fn read_preset(name: &str, devices: usize) -> Result<Links, String> {
    Links::preset(name, devices).ok_or_else(|| {
        let presets = Links::PRESETS.join(", ");
        format!("no preset is called \"{name}\" for {devices} GPUs; there are {presets} (dgx-1 for eight)")
    })
}

fn read_matrix(rows: &[toml::Spanned<DeValue<'_>>]) -> Result<Links, String> {
    let cell = |cell: &toml::Spanned<DeValue<'_>>| match cell.get_ref() {
        DeValue::String(text) => Link::parse(text),
        _ => None,
    };
    let row = |row: &toml::Spanned<DeValue<'_>>| match row.get_ref() {
        DeValue::Array(cells) => cells.iter().map(cell).collect::<Option<Vec<Link>>>(),
        _ => None,
    };
    let rows: Option<Vec<Vec<Link>>> = rows.iter().map(row).collect();
    Links::new(rows.ok_or("it is a matrix of X, NV1…, PIX, PXB, PHB, NODE and SYS")?)
}

fn read_time(table: &Table<'_>, key: &'static str) -> Option<Time> {
    read_seconds(table, key).map(|seconds| Time::ZERO + seconds)
}

fn read_job(table: Table<'_>, names: &mut Names) -> Option<ScenarioJob> {
    let name = read_new_name(&table, "job", &mut names.jobs);
    table.require("seconds", "seconds = 60");
    let queue = table.text("queue").unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
    if queue != DEFAULT_QUEUE && !names.queues.contains(&queue) {
        table.problem(
            table.span_of("queue"),
            format!("there is no queue `{queue}`; define it with [[queue]]"),
        );
    }
    let gang = table.table("gang");
    let efficiency = gang
        .as_ref()
        .and_then(|gang| gang.number("efficiency", "a number from 0 to 1", |e| (0.0..=1.0).contains(&e)));
    let job = ScenarioJob {
        name: name.unwrap_or_default(),
        at: read_time(&table, "at").unwrap_or_default(),
        work: read_seconds(&table, "seconds").unwrap_or_default(),
        queue,
        priority: table.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX)).unwrap_or(0) as i32,
        preemptible: table.boolean("preemptible").unwrap_or(true),
        time_limit: read_positive(&table, "time_limit"),
        checkpoint_every: read_positive(&table, "checkpoint_every"),
        restart: read_seconds(&table, "restart_seconds").unwrap_or_default(),
        gang: gang.map(read_gang).unwrap_or_default(),
        efficiency: efficiency.unwrap_or(1.0),
    };
    table.finish();
    (!job.name.is_empty()).then_some(job)
}

fn read_gang(table: Table<'_>) -> GangSpec {
    if table.has("group") {
        table.problem(table.span_of("group"), "a scenario has no placement groups; take `group` out");
    }
    gang::read(table)
}

fn read_event(table: Table<'_>, names: &Names) -> Option<ScenarioEvent> {
    table.require("at", "at = 60");
    let at = read_time(&table, "at");
    let known = |key: &'static str, kind: &str, names: &BTreeSet<String>| {
        let name = table.text(key)?;
        if !names.contains(&name) {
            table.problem(table.span_of(key), format!("there is no {kind} `{name}`"));
            return None;
        }
        Some(name)
    };
    let lost =
        known("node_lost", "node", &names.nodes).and_then(|name| name.parse().ok()).map(Happening::NodeLost);
    let joined = known("node_joined", "node", &names.nodes)
        .and_then(|name| name.parse().ok())
        .map(Happening::NodeJoined);
    let cancelled = known("cancel", "job", &names.jobs).map(Happening::Cancel);
    let said = ["node_lost", "node_joined", "cancel"].into_iter().filter(|key| table.has(key)).count();
    if said != 1 {
        table.problem(table.span(), "an event has exactly one of `node_lost`, `node_joined` and `cancel`");
    }
    table.finish();
    Some(ScenarioEvent { at: at?, what: lost.or(joined).or(cancelled)? })
}

impl ScenarioNode {
    /// Thousandths of all its GPUs.
    pub fn gpu_shares(&self) -> u64 {
        self.capacity.devices.len() as u64 * WHOLE
    }
}

#[cfg(test)]
mod tests;
