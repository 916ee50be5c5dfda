//! A scenario for the scheduler: nodes, queues, jobs and events on a virtual clock.

use super::gang::{self, GangSpec};
use super::job::parse_document;
use super::queue::{
    DEFAULT_QUEUE, QueueSpec, SchedulingSpec, read_new_name, read_queues, read_resources, read_scheduling,
};
use super::reader::{Sink, Table, Value, read_positive, read_seconds};
use crate::diagnostic::{Problem, Problems};
use crate::id::NodeName;
use crate::limits::{GANG_WORKERS, SCENARIO_FILE_BYTES};
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
    /// How its GPUs are linked: a row per device.
    pub links: Option<Vec<Vec<Link>>>,
}

/// How two GPUs of a node are linked, the best first, as `nvidia-smi topo -m` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// The device itself.
    Own,
    /// So many bonded NVLinks.
    NvLink(u8),
    /// One PCIe switch.
    Pix,
    /// Several PCIe switches.
    Pxb,
    /// A PCIe host bridge.
    Phb,
    /// Host bridges of one NUMA node.
    Node,
    /// Between NUMA nodes.
    Sys,
}

impl Link {
    /// Reads a cell of the matrix.
    pub fn parse(text: &str) -> Option<Link> {
        match text {
            "X" => Some(Link::Own),
            "PIX" => Some(Link::Pix),
            "PXB" => Some(Link::Pxb),
            "PHB" => Some(Link::Phb),
            "NODE" => Some(Link::Node),
            "SYS" => Some(Link::Sys),
            _ => {
                let count: u8 = text.strip_prefix("NV")?.parse().ok()?;
                (count > 0).then_some(Link::NvLink(count))
            }
        }
    }

    /// Matrices known by name for so many devices: `nvswitch` (every pair by 18 NVLinks), `dgx-a100` (by 12), `pairs`
    /// (neighbours by 4 NVLinks, else across host bridges), `pcie` (groups of four under one switch, else across
    /// sockets).
    pub fn preset(name: &str, devices: usize) -> Option<Vec<Vec<Link>>> {
        let link = |a: usize, b: usize| match name {
            _ if a == b => Some(Link::Own),
            "nvswitch" => Some(Link::NvLink(18)),
            "dgx-a100" => Some(Link::NvLink(12)),
            "pairs" => Some(if a / 2 == b / 2 { Link::NvLink(4) } else { Link::Phb }),
            "pcie" => Some(if a / 4 == b / 4 { Link::Pix } else { Link::Sys }),
            _ => None,
        };
        (0..devices).map(|a| (0..devices).map(|b| link(a, b)).collect()).collect()
    }
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
        check_size(text)?;
        let refuse = |message: String| Problems::one(Problem::of_file(message));
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let serde_json::Value::Object(tables) = value else {
            return Err(refuse("a scenario is a JSON object".to_owned()));
        };
        let mut toml = String::with_capacity(text.len());
        for (name, value) in &tables {
            let _ = write!(toml, "{} = ", quoted(name));
            write_toml(value, &mut toml).map_err(refuse)?;
            toml.push('\n');
        }
        let unplaced = |problem: Problem| Problem { span: None, ..problem };
        Scenario::parse(&toml).map_err(|problems| Problems(problems.0.into_iter().map(unplaced).collect()))
    }
}

fn check_size(text: &str) -> Result<(), Problems> {
    if text.len() <= SCENARIO_FILE_BYTES {
        return Ok(());
    }
    let message = format!("the file has {} bytes; the limit is {SCENARIO_FILE_BYTES}", text.len());
    Err(Problems::one(Problem::of_file(message)))
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            _ if letter.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

fn write_toml(value: &serde_json::Value, out: &mut String) -> Result<(), String> {
    use serde_json::Value as Json;
    match value {
        Json::Null => return Err("null is no value here; leave the key out".to_owned()),
        Json::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Json::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Json::String(text) => out.push_str(&quoted(text)),
        Json::Array(items) => {
            out.push('[');
            for item in items {
                write_toml(item, out)?;
                out.push(',');
            }
            out.push(']');
        }
        Json::Object(fields) => {
            out.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                let comma = if at > 0 { ", " } else { "" };
                let _ = write!(out, "{comma}{} = ", quoted(name));
                write_toml(field, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn read(table: Table<'_>) -> Scenario {
    let mut names = Names::default();
    let nodes = table.tables("node").into_iter().filter_map(|node| read_node(node, &mut names)).collect();
    let queues = read_queues(&table, &mut names.queues, &BTreeMap::new());
    let jobs = table.tables("job").into_iter().filter_map(|job| read_job(job, &mut names)).collect();
    let events = table.tables("event").into_iter().filter_map(|event| read_event(event, &names)).collect();
    let policy = table.table("policy").map(read_scheduling).unwrap_or_default();
    table.finish();
    Scenario { nodes, queues, jobs, events, policy }
}

/// Names in use, to refuse those that come twice and those that nothing has.
#[derive(Default)]
struct Names {
    nodes: BTreeSet<String>,
    queues: BTreeSet<String>,
    jobs: BTreeSet<String>,
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
    let gpus = table.integer("gpus", 0..=i64::from(GANG_WORKERS)).unwrap_or(0) as u32;
    let device =
        |index: u32| Device { index, uuid: index.to_string(), name: "GPU".to_owned(), memory_bytes: 0 };
    let capacity = Capacity {
        cpus: Cpus::from_milli(table.milli("cpus").unwrap_or(0)),
        memory_bytes: table.bytes("memory").unwrap_or(0),
        devices: (0..gpus).map(device).collect(),
        custom: read_resources(&table),
        labels: table.text_map("labels"),
    };
    let (at, links) = (read_time(&table, "at"), read_links(&table, gpus as usize));
    table.finish();
    Some(ScenarioNode { name: name?, capacity, at: at.unwrap_or_default(), links })
}

fn read_links(table: &Table<'_>, devices: usize) -> Option<Vec<Vec<Link>>> {
    let value = table.value("gpu_links")?;
    let problem = |message: String| {
        table.problem(value.span(), message);
        None
    };
    match value.get_ref() {
        DeValue::String(name) => Link::preset(name, devices).or_else(|| {
            problem(format!(
                "`gpu_links` knows no preset \"{name}\"; there are nvswitch, dgx-a100, pairs and pcie"
            ))
        }),
        DeValue::Array(rows) => {
            let cell = |cell: Value<'_>| match cell.get_ref() {
                DeValue::String(text) => Link::parse(text),
                _ => None,
            };
            let row = |row: Value<'_>| match row.get_ref() {
                DeValue::Array(cells) => cells.iter().map(cell).collect::<Option<Vec<Link>>>(),
                _ => None,
            };
            let Some(links) = rows.iter().map(row).collect::<Option<Vec<Vec<Link>>>>() else {
                return problem("`gpu_links` is a matrix of X, NV1…, PIX, PXB, PHB, NODE and SYS".to_owned());
            };
            let square = links.len() == devices && links.iter().all(|row| row.len() == devices);
            let mirrored = square
                && (0..devices).all(|a| {
                    (0..devices).all(|b| links[a][b] == links[b][a] && (links[a][b] == Link::Own) == (a == b))
                });
            if mirrored {
                Some(links)
            } else {
                problem(format!(
                    "`gpu_links` must be {devices} rows of {devices}, the same both ways, with X between a device and itself"
                ))
            }
        }
        _ => problem("`gpu_links` is a matrix or the name of a preset".to_owned()),
    }
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
mod tests {
    use super::*;

    const SMALL: &str = r#"
        [[node]]
        name = "a"
        cpus = 8
        gpus = 2
        memory = "1GiB"
        labels = { zone = "x" }
        resources = { license = 1.5 }
        gpu_links = [["X", "NV4"], ["NV4", "X"]]
        [[queue]]
        name = "q"
        weight = 2.5
        guaranteed = { gpus = 1 }
        discipline = "las"
        [[job]]
        name = "j"
        at = 0.5
        seconds = 10
        queue = "q"
        gang = { workers = { min = 1, max = 2 }, gpus = 1, efficiency = 0.9 }
        [[event]]
        at = 3
        cancel = "j"
        [policy]
        grace_seconds = 30
        max_bypass = 3
    "#;

    fn problems(text: &str) -> String {
        let problems = Scenario::parse(text).unwrap_err();
        problems.0.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn reads_what_the_format_has() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!(scenario.nodes[0].capacity.custom["license"], 1500);
        assert_eq!(scenario.nodes[0].gpu_shares(), 2000);
        assert_eq!(scenario.nodes[0].links.as_ref().unwrap()[0][1], Link::NvLink(4));
        assert!(scenario.queues[0].las && scenario.queues[0].guaranteed.gpus == Some(1000));
        assert_eq!(scenario.jobs[0].at.as_micros(), 500_000);
        assert_eq!((scenario.jobs[0].efficiency, scenario.jobs[0].gang.workers.max), (0.9, 2));
        assert_eq!(scenario.events[0].what, Happening::Cancel("j".into()));
        assert_eq!(
            (scenario.policy.grace, scenario.policy.max_bypass),
            (Some(Duration::from_secs(30)), Some(3))
        );
    }

    #[test]
    fn json_says_the_same() {
        let json = r#"{"node":[{"name":"a","cpus":8,"gpus":2,"memory":1073741824,"labels":{"zone":"x"},
            "resources":{"license":1.5},"gpu_links":[["X","NV4"],["NV4","X"]]}],
            "queue":[{"name":"q","weight":2.5,"guaranteed":{"gpus":1},"discipline":"las"}],
            "job":[{"name":"j","at":0.5,"seconds":10,"queue":"q",
                    "gang":{"workers":{"min":1,"max":2},"gpus":1,"efficiency":0.9}}],
            "event":[{"at":3,"cancel":"j"}],"policy":{"grace_seconds":30,"max_bypass":3}}"#;
        assert_eq!(Scenario::parse_json(json), Scenario::parse(SMALL));
        for bad in ["", "[]", "{\"job\":[{\"name\":null}]}", "{\"jobs\":[]}", "{\"a\\u0000\":1}"] {
            assert!(Scenario::parse_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let text = problems(
            r#"
            [[node]]
            name = "a"
            cpus = -1
            [[node]]
            name = "a"
            colour = "red"
            [[job]]
            name = "j"
            seconds = -5
            queue = "nope"
            gang = { workers = { min = 3, max = 2 } }
            [[job]]
            name = "k"
            seconds = 1
            gang = { workers = 0 }
            [[event]]
            at = 1
            node_lost = "b"
            [[event]]
            at = 1
            [policy]
            grace_seconds = 121
        "#,
        );
        for part in [
            "cpus",
            "two nodes are named `a`",
            "unknown key `colour`",
            "`job.seconds` is -5",
            "no queue `nope`",
            "min 3 above max 2",
            "`job.gang.workers` is 0",
            "no node `b`",
            "exactly one of",
            "grace_seconds",
        ] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    }

    #[test]
    fn links_are_a_whole_matrix_or_a_known_preset() {
        let with =
            |links: &str| Scenario::parse(&format!("[[node]]\nname = \"a\"\ngpus = 2\ngpu_links = {links}"));
        assert!(with("\"nvswitch\"").is_ok() && with("\"pcie\"").is_ok());
        for bad in [
            "\"web\"",
            "1",
            "[[\"X\"]]",
            "[[\"X\",\"NV0\"],[\"NV0\",\"X\"]]",
            "[[\"X\",\"SYS\"],[\"PIX\",\"X\"]]",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
