//! A scenario as the TOML that reads back as it.

use super::json::quoted;
use super::{Happening, Scenario, ScenarioJob, ScenarioNode};
use crate::quantity::format_milli;
use crate::spec::gang::{GangSpec, LabelRule, Placement};
use crate::spec::queue::{DEFAULT_QUEUE, Limits, QueueSpec, SchedulingSpec};
use crate::time::Time;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

impl Scenario {
    /// The file that reads back as this scenario, to be changed by hand.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        write_policy(out, &self.policy)?;
        self.queues.iter().try_for_each(|queue| write_queue(out, queue))?;
        self.nodes.iter().try_for_each(|node| write_node(out, node))?;
        self.jobs.iter().try_for_each(|job| write_job(out, job))?;
        for event in &self.events {
            let (key, name) = match &event.what {
                Happening::NodeLost(name) => ("node_lost", name.as_str()),
                Happening::NodeJoined(name) => ("node_joined", name.as_str()),
                Happening::Cancel(name) => ("cancel", name.as_str()),
            };
            writeln!(out, "[[event]]\nat = {}\n{key} = {}\n", moment(event.at), quoted(name))?;
        }
        Ok(())
    }
}

fn write_policy(out: &mut String, policy: &SchedulingSpec) -> fmt::Result {
    if *policy == SchedulingSpec::default() {
        return Ok(());
    }
    writeln!(out, "[policy]")?;
    let durations = [
        ("grace_seconds", policy.grace),
        ("resize_interval", policy.resize_interval),
        ("share_half_life", policy.share_half_life),
    ];
    for (key, value) in durations.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        writeln!(out, "{key} = {}", seconds(value))?;
    }
    for (key, value) in [("max_bypass", policy.max_bypass), ("las_preemptions", policy.las_preemptions)] {
        value.map_or(Ok(()), |value| writeln!(out, "{key} = {value}"))?;
    }
    policy
        .las_threshold_seconds
        .map_or(Ok(()), |value| writeln!(out, "las_threshold_seconds = {value:?}"))?;
    writeln!(out)
}

fn write_queue(out: &mut String, queue: &QueueSpec) -> fmt::Result {
    writeln!(out, "[[queue]]\nname = {}\nweight = {:?}", quoted(&queue.name), queue.weight)?;
    for (key, limits) in [("guaranteed", &queue.guaranteed), ("quota", &queue.quota)] {
        if limits.named().next().is_some() {
            writeln!(out, "{key} = {{ {} }}", limits_of(limits))?;
        }
    }
    writeln!(out, "discipline = \"{}\"\n", queue.discipline())
}

fn limits_of(limits: &Limits) -> String {
    let mut parts = Vec::new();
    parts.extend(limits.cpus.map(|milli| format!("cpus = {}", format_milli(milli))));
    parts.extend(limits.gpus.map(|milli| format!("gpus = {}", format_milli(milli))));
    parts.extend(limits.memory_bytes.map(|bytes| format!("memory = {}", size(bytes))));
    if !limits.custom.is_empty() {
        parts.push(format!("resources = {}", amounts(&limits.custom)));
    }
    parts.join(", ")
}

fn write_node(out: &mut String, node: &ScenarioNode) -> fmt::Result {
    let capacity = &node.capacity;
    writeln!(out, "[[node]]\nname = {}", quoted(node.name.as_str()))?;
    if node.at > Time::ZERO {
        writeln!(out, "at = {}", moment(node.at))?;
    }
    writeln!(out, "cpus = {}\ngpus = {}", capacity.cpus, capacity.devices.len())?;
    if capacity.memory_bytes > 0 {
        writeln!(out, "memory = {}", size(capacity.memory_bytes))?;
    }
    if !capacity.labels.is_empty() {
        let labels =
            capacity.labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), quoted(value)));
        writeln!(out, "labels = {{ {} }}", labels.collect::<Vec<_>>().join(", "))?;
    }
    if !capacity.custom.is_empty() {
        writeln!(out, "resources = {}", amounts(&capacity.custom))?;
    }
    if !capacity.links.is_empty() {
        writeln!(out, "gpu_links = [")?;
        for row in capacity.links.rows() {
            let cells: Vec<String> = row.iter().map(|link| format!("\"{link}\"")).collect();
            writeln!(out, "  [{}],", cells.join(", "))?;
        }
        writeln!(out, "]")?;
    }
    writeln!(out)
}

fn write_job(out: &mut String, job: &ScenarioJob) -> fmt::Result {
    let (at, work) = (moment(job.at), seconds(job.work));
    writeln!(out, "[[job]]\nname = {}\nat = {at}\nseconds = {work}", quoted(&job.name))?;
    if job.queue != DEFAULT_QUEUE {
        writeln!(out, "queue = {}", quoted(&job.queue))?;
    }
    if job.priority != 0 {
        writeln!(out, "priority = {}", job.priority)?;
    }
    if !job.preemptible {
        writeln!(out, "preemptible = false")?;
    }
    for (key, value) in [("time_limit", job.time_limit), ("checkpoint_every", job.checkpoint_every)] {
        value.map_or(Ok(()), |value| writeln!(out, "{key} = {}", seconds(value)))?;
    }
    if !job.restart.is_zero() {
        writeln!(out, "restart_seconds = {}", seconds(job.restart))?;
    }
    writeln!(out, "gang = {{ {} }}\n", gang_of(&job.gang, job.efficiency))
}

fn gang_of(gang: &GangSpec, efficiency: f64) -> String {
    let each = &gang.each;
    let mut parts = vec![match gang.workers.min == gang.workers.max {
        true => format!("workers = {}", gang.workers.max),
        false => format!("workers = {{ min = {}, max = {} }}", gang.workers.min, gang.workers.max),
    }];
    parts.push(format!("cpus = {}, gpus = {}", each.cpus, each.gpus));
    if each.memory_bytes > 0 {
        parts.push(format!("memory = {}", size(each.memory_bytes)));
    }
    if !each.custom.is_empty() {
        parts.push(format!("resources = {}", amounts(&each.custom)));
    }
    if !gang.labels.is_empty() {
        parts.push(format!("labels = {}", rules(&gang.labels)));
    }
    if !gang.bundles.is_empty() {
        let bundles = gang.bundles.iter().map(|own| match own.labels.is_empty() {
            true => "{}".to_owned(),
            false => format!("{{ labels = {} }}", rules(&own.labels)),
        });
        parts.push(format!("bundles = [{}]", bundles.collect::<Vec<_>>().join(", ")));
    }
    if gang.placement != Placement::default() {
        parts.push(format!("placement = \"{}\"", gang.placement.as_str()));
    }
    parts.extend(gang.topology.as_ref().map(|key| format!("topology = {}", quoted(key))));
    if efficiency != 1.0 {
        parts.push(format!("efficiency = {efficiency:?}"));
    }
    parts.join(", ")
}

fn rules(labels: &BTreeMap<String, LabelRule>) -> String {
    let rule = |rule: &LabelRule| match rule {
        LabelRule::In(values) if values.len() == 1 => values.iter().map(|value| quoted(value)).collect(),
        LabelRule::In(values) => format!("{{ in = [{}] }}", texts(values)),
        LabelRule::NotIn(values) => format!("{{ not_in = [{}] }}", texts(values)),
        LabelRule::Exists(there) => format!("{{ exists = {there} }}"),
    };
    let pairs = labels.iter().map(|(key, value)| format!("{} = {}", quoted(key), rule(value)));
    format!("{{ {} }}", pairs.collect::<Vec<String>>().join(", "))
}

fn texts(values: &std::collections::BTreeSet<String>) -> String {
    values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", ")
}

fn amounts(custom: &BTreeMap<String, u64>) -> String {
    let pairs = custom.iter().map(|(name, &milli)| format!("{} = {}", quoted(name), format_milli(milli)));
    format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
}

/// A size by the largest unit that says it exactly.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let exact = units.into_iter().find(|&(_, shift)| bytes > 0 && bytes.trailing_zeros() >= shift);
    exact.map_or_else(|| format!("\"{bytes}B\""), |(unit, shift)| format!("\"{}{unit}\"", bytes >> shift))
}

fn moment(time: Time) -> String {
    seconds(time.since(Time::ZERO))
}

/// A number of seconds, to the microsecond.
fn seconds(duration: Duration) -> String {
    let micros = duration.as_micros();
    let (whole, part) = (micros / 1_000_000, micros % 1_000_000);
    match part {
        0 => whole.to_string(),
        _ => format!("{whole}.{part:06}").trim_end_matches('0').to_owned(),
    }
}
