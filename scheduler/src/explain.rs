//! The words of a reason: what is asked, what is free where, what binds, who holds it.

use crate::amounts::Kind;
use crate::check::amount;
use crate::cluster::Cluster;
use crate::node::{Ground, Node};
use crate::queue::{Blocked, Pending, Queue};
use crate::reason::{Reason, ReasonCode};
use crate::reserve::Shadow;
use phalanx_core::spec::{GangSpec, LabelRule, Placement};
use phalanx_core::{AttemptId, GpuRequest, JobId, Resources};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Nodes, and holders, that a reason names before it says how many more there are.
const NAMED: usize = 3;
/// Up to so many nodes are all looked at; of more, only those with most room.
const SURVEYED: usize = 256;
/// So many of them.
const SAMPLED: usize = 64;

/// `2 workers`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What a gang asks, as the start of a sentence.
pub(crate) fn asks(gang: &GangSpec) -> String {
    let workers = u64::from(gang.workers.min);
    let strategy = match gang.placement {
        Placement::Pack | Placement::Spread => "",
        Placement::StrictPack => " on one node",
        Placement::StrictSpread => " on different nodes",
    };
    let at_least = if gang.workers.min < gang.workers.max { "at least " } else { "" };
    let each = &gang.each;
    if workers == 1 {
        return format!("asks for {at_least}1 worker with {each}");
    }
    let all = kinds(each).into_iter().map(|kind| amount(kind, each_of(each, kind).saturating_mul(workers)));
    let all = all.collect::<Vec<_>>().join(", ");
    format!("asks for {at_least}{workers} workers with {each} each ({all} in all){strategy}")
}

/// The kinds of resources that a request names.
pub(crate) fn kinds(each: &Resources) -> Vec<&str> {
    let mut kinds = Vec::new();
    if each.gpus != GpuRequest::None {
        kinds.push("GPU");
    }
    if each.cpus.milli() > 0 {
        kinds.push("CPU");
    }
    if each.memory_bytes > 0 {
        kinds.push("memory");
    }
    kinds.extend(each.custom.keys().map(String::as_str));
    kinds
}

fn each_of(each: &Resources, kind: &str) -> u64 {
    match kind {
        "CPU" => each.cpus.milli(),
        "GPU" => each.gpus.shares(),
        "memory" => each.memory_bytes,
        name => each.custom.get(name).copied().unwrap_or(0),
    }
}

/// Amounts of the kinds that a gang asks for.
pub(crate) fn describe_room(gang: &GangSpec, of: impl Fn(&str) -> u64) -> String {
    let kinds = kinds(&gang.each);
    let words: Vec<String> = kinds.into_iter().map(|kind| amount(kind, of(kind))).collect();
    if words.is_empty() { "room".to_owned() } else { words.join(", ") }
}

/// `zone = x, disk not in a|b`.
pub(crate) fn describe_rules(rules: &BTreeMap<String, LabelRule>) -> String {
    let words = rules.iter().map(|(key, rule)| {
        let join = |values: &std::collections::BTreeSet<String>| {
            values.iter().map(String::as_str).collect::<Vec<_>>().join("|")
        };
        match rule {
            LabelRule::In(values) if values.len() == 1 => format!("{key} = {}", join(values)),
            LabelRule::In(values) => format!("{key} in {}", join(values)),
            LabelRule::NotIn(values) => format!("{key} not in {}", join(values)),
            LabelRule::Exists(true) => format!("a label {key}"),
            LabelRule::Exists(false) => format!("no label {key}"),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

fn kind_of(word: &str) -> Kind {
    match word {
        "GPU" => Kind::Gpu,
        "CPU" => Kind::Cpu,
        "memory" => Kind::Memory,
        name => Kind::Custom(name.to_owned()),
    }
}

fn free_of(node: &Node, kind: &str) -> u64 {
    match kind {
        "CPU" => node.cpus_free,
        "GPU" => node.devices.iter().filter(|d| !d.quarantined).map(|d| u64::from(d.free)).sum(),
        "memory" => node.memory_free,
        name => node.custom_in(name, Ground::Free),
    }
}

fn total_of(node: &Node, kind: &str) -> u64 {
    match kind {
        "CPU" => node.capacity.cpus.milli(),
        "GPU" => node.shares(),
        "memory" => node.capacity.memory_bytes,
        name => node.capacity.custom.get(name).copied().unwrap_or(0),
    }
}

/// A sum that ends at the largest amount there is.
fn total(amounts: impl Iterator<Item = u64>) -> u64 {
    amounts.fold(0, u64::saturating_add)
}

fn held_of(node: &Node, attempt: AttemptId, kind: &str) -> u64 {
    let bundles = node.held.get(&attempt).into_iter().flatten();
    bundles.map(|bundle| each_of(&bundle.takes, kind)).sum()
}

/// Why a gang that could run on these nodes cannot run now, and the jobs that hold what it lacks.
pub(crate) fn shortage(cluster: &Cluster, gang: &GangSpec) -> (String, Vec<JobId>) {
    let sampled = cluster.len() > SURVEYED;
    let mut nodes: Vec<&Node> = if sampled {
        let roomiest = cluster.index.roomiest(&gang.each, false).take(SAMPLED);
        roomiest.filter_map(|(_, slot)| cluster.node(slot)).filter(|node| node.matches(gang)).collect()
    } else {
        cluster.standing().map(|(_, node)| node).filter(|node| node.matches(gang)).collect()
    };
    let kinds = kinds(&gang.each);
    let room = |node: &Node| if node.schedulable { node.room(&gang.each, Ground::Free) } else { 0 };
    let fits: u64 = nodes.iter().map(|node| u64::from(room(node))).sum();
    let most = nodes.iter().map(|node| room(node)).max().unwrap_or(0);
    // What binds is the kind of which the fewest workers find enough, were it the only one asked for.
    let alone = |kind: &&str| -> u64 {
        let times = |node: &&Node| free_of(node, kind).checked_div(each_of(&gang.each, kind)).unwrap_or(0);
        total(nodes.iter().filter(|node| node.schedulable).map(times))
    };
    let Some(&binding) = kinds.iter().min_by_key(|kind| alone(kind)) else {
        return (format!("{}; no node takes new work", asks(gang)), Vec::new());
    };
    nodes.sort_by_key(|node| Reverse((free_of(node, binding), total_of(node, binding))));
    let on_node = |node: &&Node| {
        let words = kinds.iter().map(|kind| {
            let (free, total) = (free_of(node, kind), amount(kind, total_of(node, kind)));
            format!("{} of {total}", amount(kind, free).split(' ').next().unwrap_or_default())
        });
        let drains = if node.schedulable { "" } else { " (takes no new work)" };
        format!("{} {}{drains}", node.name, words.collect::<Vec<_>>().join(", "))
    };
    let mut free: Vec<String> = nodes.iter().take(NAMED).map(on_node).collect();
    let standing = if sampled { cluster.len() } else { nodes.len() };
    if standing > NAMED {
        free.push(format!("{} with no more", plural((standing - NAMED) as u64, "node")));
    }
    let workers = gang.workers.min;
    let binds = match gang.placement {
        Placement::StrictPack if fits >= u64::from(workers) => {
            format!("no single node has room for more than {most} of {workers} workers")
        }
        Placement::StrictSpread if fits >= u64::from(workers) => {
            let some = nodes.iter().filter(|node| room(node) > 0).count();
            format!("only {some} of {workers} different nodes have room")
        }
        _ if gang.topology.is_some() && fits >= u64::from(workers) => {
            format!("no single {} has room for all", gang.topology.as_deref().unwrap_or_default())
        }
        _ if fits >= u64::from(workers) => "the labels leave no assignment of ranks to nodes".to_owned(),
        _ => {
            let anywhere = sampled && gang.labels.is_empty() && gang.topology.is_none();
            let free = if anywhere {
                let kind = kind_of(binding);
                let held = cluster
                    .queues()
                    .map(|queue| cluster.usage(queue).map_or(0, |usage| usage.held.get(&kind)));
                cluster.total.get(&kind).saturating_sub(total(held))
            } else {
                total(nodes.iter().map(|node| free_of(node, binding)))
            };
            let wanted = each_of(&gang.each, binding);
            let all = amount(binding, wanted.saturating_mul(u64::from(workers)));
            format!(
                "{binding} binds: {all} asked, {} free, room for {fits} of {workers} workers",
                amount(binding, free)
            )
        }
    };
    let holders = holders(cluster, &nodes, binding);
    let jobs = holders.iter().map(|&(attempt, _)| attempt.job).collect();
    let held = describe_holders(cluster, &holders, binding);
    (format!("{}; free: {}; {binds}{held}", asks(gang), free.join("; ")), jobs)
}

/// Attempts by what they hold of a kind on these nodes, most first.
fn holders(cluster: &Cluster, nodes: &[&Node], kind: &str) -> Vec<(AttemptId, u64)> {
    let mut held: BTreeMap<AttemptId, u64> = BTreeMap::new();
    for node in nodes {
        for &attempt in node.held.keys().filter(|&&attempt| cluster.holder(attempt).is_some()) {
            let sum = held.entry(attempt).or_default();
            *sum = sum.saturating_add(held_of(node, attempt, kind));
        }
    }
    let mut held: Vec<(AttemptId, u64)> = held.into_iter().filter(|&(_, amount)| amount > 0).collect();
    held.sort_by_key(|&(attempt, amount)| (Reverse(amount), attempt));
    held
}

fn describe_holders(cluster: &Cluster, holders: &[(AttemptId, u64)], kind: &str) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let words = holders.iter().take(NAMED).map(|&(attempt, held)| {
        let label = cluster.holder(attempt).map_or_else(String::new, |holder| holder.label.clone());
        format!("{label} ({})", amount(kind, held))
    });
    let more =
        if holders.len() > NAMED { format!(" and {} more", holders.len() - NAMED) } else { String::new() };
    format!("; held by {}{more}", words.collect::<Vec<_>>().join(", "))
}

/// Why a blocked gang waits, in words and numbers.
pub(crate) fn why(
    cluster: &Cluster,
    queue: &Queue,
    pending: &Pending,
    blocked: Blocked,
    shadow: Option<&Shadow>,
) -> Reason {
    let label = |job: JobId| queue.get(job).map_or_else(|| job.to_string(), |other| other.label.clone());
    let (text, holders) = match (blocked.code, blocked.kept_for) {
        (ReasonCode::HeldForReservation, Some(job)) => {
            (format!("{}; that is free, but kept for {}", asks(&pending.gang), label(job)), vec![job])
        }
        (ReasonCode::WaitingQuota, _) => (at_quota(cluster, queue, pending), Vec::new()),
        (ReasonCode::WaitingPriority, _) => {
            let (text, holders) = shortage(cluster, &pending.gang);
            (format!("{text}; that is free until gangs before it start now"), holders)
        }
        _ => shortage(cluster, &pending.gang),
    };
    let own = shadow.filter(|shadow| shadow.job == pending.job).and_then(|shadow| shadow.at);
    let place = queue.place(pending.job);
    let before = match place {
        0 => "first in the queue".to_owned(),
        _ => format!("{} before it", plural(place as u64, "gang")),
    };
    let place = Some(place as u32 + 1);
    let text = format!("{text}; {before}");
    Reason { place, holders, starts_by: own, ..Reason::new(blocked.code, text) }
}

fn at_quota(cluster: &Cluster, queue: &Queue, pending: &Pending) -> String {
    let config = queue.config(&pending.queue);
    let held = cluster.held_by(&pending.queue);
    let binding = config.quota_room(&held, &pending.gang).1;
    let words = binding.map(|kind| {
        let (held, quota) =
            (amount(kind.word(), held.get(kind)), amount(kind.word(), config.quota.get(kind)));
        format!("queue {} holds {held} of its quota of {quota}", pending.queue)
    });
    format!("{}; {}", asks(&pending.gang), words.unwrap_or_default())
}
