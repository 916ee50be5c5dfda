//! A standing placement group: bundles that are held without a program, as a small cluster that gangs run in.
//!
//! To the cluster around it a group is a gang like any other: it waits in a queue, with a reason, and holds what it was
//! given. Within, what its bundles have on a node is a node of that name, and the gangs that run in the group wait in a
//! queue of its own; so one [`plan`](crate::plan) decides on both grounds, by the same rules. What the group loses is
//! asked for again as a gang of the lost bundles, ahead of everything that waits.

use crate::bundle::Bundle;
use crate::check::check;
use crate::cluster::Cluster;
use crate::node::NODE_LABEL;
use crate::plan::Policy;
use crate::queue::Queue;
use crate::reason::Reason;
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{BundleSpec, GangSpec, Placement, Workers};
use phalanx_core::{AttemptId, LabelRule, NodeName, Rank};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A group's bundles and the ground that they are. See the module.
#[derive(Clone, Debug)]
pub struct Standing {
    gang: Arc<GangSpec>,
    bundles: BTreeMap<Rank, Bundle>,
    /// Bundles whose node is gone; they stay part of the ground, closed, until they are elsewhere.
    lost: BTreeSet<Rank>,
    /// What its bundles have on each node.
    pub cluster: Cluster,
    /// The gangs that wait for room in it.
    pub queue: Queue,
}

impl Standing {
    /// A group of which nothing is placed yet.
    pub fn new(gang: Arc<GangSpec>, policy: Policy) -> Self {
        let (bundles, lost) = (BTreeMap::new(), BTreeSet::new());
        Standing { gang, bundles, lost, cluster: Cluster::new(), queue: Queue::with_policy(policy) }
    }

    /// Takes bundles in, new ones or lost ones that are elsewhere now; `around` is the cluster they are held in. Returns
    /// the attempts that lost what they held where a node's part has shrunk.
    pub fn seat(&mut self, around: &Cluster, bundles: impl IntoIterator<Item = Bundle>) -> Vec<AttemptId> {
        let mut touched = BTreeSet::new();
        for bundle in bundles {
            self.lost.remove(&bundle.rank);
            touched.insert(bundle.node.clone());
            let before = self.bundles.insert(bundle.rank, bundle);
            touched.extend(before.map(|before| before.node));
        }
        touched.into_iter().flat_map(|node| self.refresh(around, &node)).collect()
    }

    /// A node is gone with all bundles on it: nothing new is placed there. Returns whether there were any.
    pub fn lose(&mut self, node: &NodeName) -> bool {
        let there = self.bundles.values().filter(|bundle| bundle.node == *node).map(|bundle| bundle.rank);
        let before = self.lost.len();
        self.lost.extend(there);
        self.cluster.set_schedulable(node, false);
        self.lost.len() > before
    }

    /// Whether anything new may be placed on a node's part; on one that is lost nothing is.
    pub fn set_schedulable(&mut self, node: &NodeName, yes: bool) {
        let stands = self.standing().any(|bundle| bundle.node == *node);
        self.cluster.set_schedulable(node, yes && stands);
    }

    /// Bundles that are not held anywhere: none has been placed, or its node is gone.
    pub fn missing(&self) -> Vec<Rank> {
        let missing = |rank: &Rank| self.lost.contains(rank) || !self.bundles.contains_key(rank);
        (0..self.gang.workers.max).filter(missing).collect()
    }

    /// Whether any bundle has ever been placed.
    pub fn is_placed(&self) -> bool {
        !self.bundles.is_empty()
    }

    /// The gang that the missing bundles are, which keeps to the group's strategy and topology with what still stands;
    /// its ranks are the missing ones in their order.
    pub fn missing_gang(&self, around: &Cluster) -> GangSpec {
        let missing = self.missing();
        let count = missing.len() as u32;
        let mut gang = GangSpec { workers: Workers { min: count, max: count }, ..(*self.gang).clone() };
        if !gang.bundles.is_empty() {
            let spec = |&rank: &Rank| self.gang.bundles.get(rank as usize).cloned().unwrap_or_default();
            gang.bundles = missing.iter().map(spec).collect();
        }
        let standing: BTreeSet<&NodeName> = self.standing().map(|bundle| &bundle.node).collect();
        let Some(&first) = standing.first() else { return gang };
        if let Some(key) = &gang.topology {
            let node = around.slot(first).and_then(|slot| around.node(slot));
            if let Some(value) = node.and_then(|node| node.label(key)) {
                gang.labels.insert(key.clone(), LabelRule::In(BTreeSet::from([value.to_owned()])));
            }
        }
        if gang.placement == Placement::StrictSpread {
            let taken: BTreeSet<String> = standing.into_iter().map(NodeName::to_string).collect();
            gang.bundles.resize_with(missing.len(), BundleSpec::default);
            for bundle in &mut gang.bundles {
                let rule = bundle.labels.remove(NODE_LABEL);
                bundle.labels.insert(NODE_LABEL.to_owned(), without(rule, &taken));
            }
        }
        gang
    }

    /// Gives placed bundles of [`Standing::missing_gang`] the ranks that they have in the group.
    pub fn as_missing(&self, mut placed: Vec<Bundle>) -> Vec<Bundle> {
        let missing = self.missing();
        placed.retain(|bundle| (bundle.rank as usize) < missing.len());
        placed.iter_mut().for_each(|bundle| bundle.rank = missing[bundle.rank as usize]);
        placed
    }

    /// Whether a gang could ever run in the group. What is known before it is placed is only how much it will have.
    pub fn check(&self, gang: &GangSpec) -> Result<(), Reason> {
        if self.is_placed() {
            return check(&self.cluster, gang);
        }
        let Ok(name) = "group".parse::<NodeName>() else { return Ok(()) };
        let count = u64::from(self.gang.workers.max);
        let each = &self.gang.each;
        let (devices, parts) = self.likely_devices();
        let capacity = Capacity {
            cpus: phalanx_core::Cpus::from_milli(each.cpus.milli().saturating_mul(count)),
            memory_bytes: each.memory_bytes.saturating_mul(count),
            devices,
            custom: each
                .custom
                .iter()
                .map(|(name, milli)| (name.clone(), milli.saturating_mul(count)))
                .collect(),
            ..Capacity::default()
        };
        let mut whole = Cluster::new();
        whole.set_part(name, capacity, &parts);
        let anywhere = GangSpec {
            labels: BTreeMap::new(),
            bundles: Vec::new(),
            placement: Placement::Pack,
            topology: None,
            ..gang.clone()
        };
        check(&whole, &anywhere)
    }

    /// The devices that its bundles will have at best, each of them another one.
    fn likely_devices(&self) -> (Vec<Device>, BTreeMap<u32, u16>) {
        let each = self.gang.each.gpus;
        let count = each.devices().saturating_mul(self.gang.workers.max);
        let shares = each.shares().checked_div(u64::from(each.devices())).unwrap_or(0) as u16;
        let device = |index| Device { index, uuid: String::new(), name: String::new(), memory_bytes: 0 };
        ((0..count).map(device).collect(), (0..count).map(|index| (index, shares)).collect())
    }

    fn standing(&self) -> impl Iterator<Item = &Bundle> {
        self.bundles.values().filter(|bundle| !self.lost.contains(&bundle.rank))
    }

    /// Makes the ground's node what the bundles on it are: those that stand, or else the lost ones, closed.
    fn refresh(&mut self, around: &Cluster, name: &NodeName) -> Vec<AttemptId> {
        let here = |bundle: &&Bundle| bundle.node == *name;
        let mut bundles: Vec<&Bundle> = self.standing().filter(here).collect();
        let stands = !bundles.is_empty();
        if !stands {
            bundles = self.bundles.values().filter(here).collect();
        }
        let Some(node) = around.slot(name).and_then(|slot| around.node(slot)) else {
            return self.cluster.remove_node(name);
        };
        if bundles.is_empty() {
            return self.cluster.remove_node(name);
        }
        let (capacity, parts) = part_of(&node.capacity, &bundles);
        let displaced = self.cluster.set_part(name.clone(), capacity, &parts);
        self.cluster.set_schedulable(name, stands && node.schedulable);
        for device in node.devices.iter().filter(|device| device.quarantined) {
            self.cluster.quarantine(name, device.index);
        }
        displaced
    }
}

/// What bundles have of a node, as a node's capacity and the shares of its devices.
fn part_of(whole: &Capacity, bundles: &[&Bundle]) -> (Capacity, BTreeMap<u32, u16>) {
    let mut part = Capacity { labels: whole.labels.clone(), ..Capacity::default() };
    let (mut cpus, mut shares) = (0, BTreeMap::<u32, u16>::new());
    for bundle in bundles {
        cpus += bundle.takes.cpus.milli();
        part.memory_bytes += bundle.takes.memory_bytes;
        for (name, milli) in &bundle.takes.custom {
            *part.custom.entry(name.clone()).or_default() += milli;
        }
        for share in &bundle.gpus {
            *shares.entry(share.index).or_default() += share.shares;
        }
    }
    part.cpus = phalanx_core::Cpus::from_milli(cpus);
    let own: Vec<usize> =
        (0..whole.devices.len()).filter(|&at| shares.contains_key(&whole.devices[at].index)).collect();
    part.devices = own.iter().map(|&at| whole.devices[at].clone()).collect();
    part.links = whole.links.among(&own);
    (part, shares)
}

/// The rule on a node's name, and none of these.
fn without(rule: Option<LabelRule>, taken: &BTreeSet<String>) -> LabelRule {
    match rule {
        Some(LabelRule::In(names)) => LabelRule::In(names.difference(taken).cloned().collect()),
        Some(LabelRule::NotIn(names)) => LabelRule::NotIn(names.union(taken).cloned().collect()),
        Some(LabelRule::Exists(false)) => LabelRule::Exists(false),
        Some(LabelRule::Exists(true)) | None => LabelRule::NotIn(taken.clone()),
    }
}
