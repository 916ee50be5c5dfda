//! Whether a gang could ever run on these nodes.

use crate::amounts::Amounts;
use crate::cluster::Cluster;
use crate::explain::{asks, describe_room, describe_rules, plural};
use crate::index::Slot;
use crate::lanes::QueueConfig;
use crate::node::{Ground, Node};
use crate::place::Search;
use crate::reason::{Reason, ReasonCode};
use phalanx_core::quantity::format_milli;
use phalanx_core::spec::{GangSpec, Placement};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the gang could run on these nodes if nothing else ran. The reason says what it asks, what the largest node
/// has and what to change. Nodes that drain and devices in quarantine count as there.
pub fn check(cluster: &Cluster, gang: &GangSpec) -> Result<(), Reason> {
    if feasible(cluster, gang) { Ok(()) } else { Err(infeasible(cluster, gang)) }
}

/// Why a queue's quota can never take the gang, if it cannot.
pub(crate) fn over_quota(config: &QueueConfig, gang: &GangSpec) -> Option<Reason> {
    let (room, kind) = config.quota_room(&Amounts::default(), gang);
    let kind = kind.filter(|_| room < gang.workers.min)?;
    let (asked, quota) =
        (kind.of(&gang.each).saturating_mul(u64::from(gang.workers.min)), config.quota.get(kind));
    let text = format!(
        "{}; that is {} where its queue's quota is {}; ask for less, or raise the quota",
        asks(gang),
        amount(kind.word(), asked),
        amount(kind.word(), quota),
    );
    Some(Reason::new(ReasonCode::Infeasible, text))
}

/// Whether the gang fits into its queue's quota while nothing else is in it.
pub fn check_quota(config: &QueueConfig, gang: &GangSpec) -> Result<(), Reason> {
    over_quota(config, gang).map_or(Ok(()), Err)
}

/// The same without the reason.
pub(crate) fn feasible(cluster: &Cluster, gang: &GangSpec) -> bool {
    let workers = gang.workers.min;
    let rooms = cluster.standing().filter(|(_, node)| node.matches(gang));
    let mut rooms =
        rooms.map(|(slot, node)| (node.room(&gang.each, Ground::Empty), slot)).filter(|&(room, _)| room > 0);
    if !gang.bundles.is_empty() || gang.topology.is_some() {
        let search = Search::new(cluster, gang);
        return search.layout_among(&rooms.collect::<Vec<_>>(), workers).is_some();
    }
    let reaches = |count: u64| count >= u64::from(workers);
    match gang.placement {
        Placement::StrictPack => rooms.any(|(room, _)| room >= workers),
        Placement::StrictSpread => reaches(rooms.take(workers as usize).count() as u64),
        Placement::Pack | Placement::Spread => {
            let sums = rooms.scan(0u64, |sum, (room, _)| {
                *sum += u64::from(room);
                Some(*sum)
            });
            sums.into_iter().any(reaches)
        }
    }
}

fn infeasible(cluster: &Cluster, gang: &GangSpec) -> Reason {
    let (code, text) = no_nodes(cluster)
        .or_else(|| no_label(cluster, gang))
        .or_else(|| no_resource(cluster, gang))
        .or_else(|| no_domain(cluster, gang))
        .unwrap_or_else(|| too_large(cluster, gang));
    Reason::new(code, text)
}

type Finding = (ReasonCode, String);

fn no_nodes(cluster: &Cluster) -> Option<Finding> {
    let none = cluster.standing().next().is_none();
    none.then(|| (ReasonCode::Infeasible, "there are no nodes; start one with `phalanx agent`".to_owned()))
}

fn no_label(cluster: &Cluster, gang: &GangSpec) -> Option<Finding> {
    let sets = std::iter::once(&gang.labels).chain(gang.bundles.iter().map(|bundle| &bundle.labels));
    for (at, rules) in sets.enumerate() {
        let matches = |node: &Node| node.matches_rules(rules) && node.matches_rules(&gang.labels);
        if cluster.standing().any(|(_, node)| matches(node)) {
            continue;
        }
        let who = if at == 0 { "every worker".to_owned() } else { format!("rank {}", at - 1) };
        let keys: BTreeSet<&String> = rules.keys().chain(gang.labels.keys()).collect();
        let there: Vec<String> = keys.into_iter().map(|key| values_of(cluster, key)).collect();
        let text = format!(
            "{who} asks for a node with {}; of {} nodes none matches ({}); change the labels or label a node",
            describe_rules(if at == 0 { &gang.labels } else { rules }),
            cluster.standing().count(),
            there.join("; "),
        );
        return Some((ReasonCode::NoMatchingLabel, text));
    }
    None
}

/// The values that nodes have for a label, a few of them.
fn values_of(cluster: &Cluster, key: &str) -> String {
    const SHOWN: usize = 5;
    let values: BTreeSet<&str> = cluster
        .standing()
        .filter_map(|(_, node)| node.capacity.labels.get(key))
        .map(String::as_str)
        .collect();
    if values.is_empty() {
        return format!("no node has `{key}`");
    }
    let more = if values.len() > SHOWN { ", …" } else { "" };
    format!("`{key}` is {}{more}", values.into_iter().take(SHOWN).collect::<Vec<_>>().join(", "))
}

fn no_resource(cluster: &Cluster, gang: &GangSpec) -> Option<Finding> {
    let unknown =
        |name: &&String| !cluster.standing().any(|(_, node)| node.capacity.custom.contains_key(*name));
    let name = gang.each.custom.keys().find(unknown)?;
    let text =
        format!("{}; no node has the resource `{name}`; declare it on a node or take it out", asks(gang));
    Some((ReasonCode::Infeasible, text))
}

fn no_domain(cluster: &Cluster, gang: &GangSpec) -> Option<Finding> {
    let key = gang.topology.as_ref()?;
    let anywhere = GangSpec { topology: None, ..gang.clone() };
    let mut rooms: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, node) in cluster.standing().filter(|(_, node)| node.matches(gang)) {
        let value = node.capacity.labels.get(key).map_or("", String::as_str);
        *rooms.entry(value).or_default() += u64::from(node.room(&gang.each, Ground::Empty));
    }
    let Some((value, room)) = rooms.iter().max_by_key(|(value, room)| (**room, std::cmp::Reverse(**value)))
    else {
        let text = format!(
            "{} within one `{key}`; no node has the label `{key}`; label nodes or take it out",
            asks(gang)
        );
        return Some((ReasonCode::NoTopologyDomain, text));
    };
    if !feasible(cluster, &anywhere) {
        return None;
    }
    let text = format!(
        "{} within one `{key}`; the largest of {}, `{key} = {value}`, has room for {room} in all; \
         ask for fewer workers or take `topology` out",
        asks(gang),
        plural(rooms.len() as u64, "domain"),
    );
    Some((ReasonCode::NoTopologyDomain, text))
}

fn too_large(cluster: &Cluster, gang: &GangSpec) -> Finding {
    let matching: Vec<(Slot, &Node)> = cluster.standing().filter(|(_, node)| node.matches(gang)).collect();
    let room = |node: &Node| node.room(&gang.each, Ground::Empty);
    let size = |node: &Node| (room(node), node.devices.len(), node.capacity.cpus, node.capacity.memory_bytes);
    let largest = matching.iter().max_by_key(|(slot, node)| (size(node), std::cmp::Reverse(*slot)));
    let total: u64 = matching.iter().map(|(_, node)| u64::from(room(node))).sum();
    let has = largest.map_or_else(
        || "no node matches".to_owned(),
        |(_, node)| format!("the largest node, {}, has {}", node.name, describe_capacity(node, gang)),
    );
    let most = largest.map_or(0, |(_, node)| room(node));
    let instances = gang.each.gpus.devices() > 1 && matching.iter().any(|(_, node)| node.is_split());
    let advice = match gang.placement {
        _ if most == 0 && instances => {
            "MIG instances are used one a worker: ask for `gpus = 1` and more workers".to_owned()
        }
        _ if most == 0 => "ask for less per worker or add a larger node".to_owned(),
        Placement::StrictPack => {
            let most = plural(u64::from(most), "worker");
            format!("it takes {most}; ask for fewer, or `placement = \"pack\"`, or add a larger node")
        }
        Placement::StrictSpread => {
            let nodes = matching.iter().filter(|(_, node)| room(node) > 0).count() as u64;
            format!(
                "{} can take one each; ask for fewer workers, or `placement = \"spread\"`",
                plural(nodes, "node")
            )
        }
        _ => format!("all nodes together take {}; ask for fewer or add nodes", plural(total, "worker")),
    };
    (ReasonCode::Infeasible, format!("{}; {has}; {advice}", asks(gang)))
}

fn describe_capacity(node: &Node, gang: &GangSpec) -> String {
    describe_room(gang, |kind| match kind {
        "CPU" => node.capacity.cpus.milli(),
        "GPU" => node.shares(),
        "memory" => node.capacity.memory_bytes,
        name => node.capacity.custom.get(name).copied().unwrap_or(0),
    })
}

/// An amount of a kind as people write it.
pub(crate) fn amount(kind: &str, value: u64) -> String {
    match kind {
        "memory" => format!("{} memory", phalanx_core::quantity::format_bytes(value)),
        _ => format!("{} {kind}", format_milli(value)),
    }
}
