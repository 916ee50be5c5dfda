//! The nodes and what is held on them.

use crate::bundle::{Bundle, Holder};
use crate::index::{Index, Slot};
use crate::node::Node;
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::{AttemptId, Cpus, NodeName};
use std::collections::{BTreeMap, BTreeSet};

/// A holding that cannot be taken as it was said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// A bundle names a node that does not stand.
    #[error("{attempt} holds a bundle on node `{node}`, which is not there; join the node first")]
    UnknownNode {
        /// Who holds.
        attempt: AttemptId,
        /// The node.
        node: NodeName,
    },
    /// A bundle asks for what is not free.
    #[error(
        "rank {rank} of {attempt} asks for {asked} on node `{node}`, where it is not free; release its holder first"
    )]
    NotFree {
        /// Who holds.
        attempt: AttemptId,
        /// The rank.
        rank: u32,
        /// The node.
        node: NodeName,
        /// What the bundle takes.
        asked: String,
    },
    /// The attempt holds something already.
    #[error("{attempt} holds resources already; release it first")]
    Twice {
        /// Who holds.
        attempt: AttemptId,
    },
}

/// Who holds, and where.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) holder: Holder,
    pub(crate) slots: BTreeSet<Slot>,
}

/// All nodes, their free capacity in order, and the attempts that hold the rest.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    slots: Vec<Option<Node>>,
    by_name: BTreeMap<NodeName, Slot>,
    vacant: BTreeSet<Slot>,
    holdings: BTreeMap<AttemptId, Holding>,
    pub(crate) index: Index,
}

/// A node as people see it.
#[derive(Clone, Debug)]
pub struct NodeView<'a> {
    /// Its name.
    pub name: &'a NodeName,
    /// Whether new work may come to it.
    pub schedulable: bool,
    /// All it has, with its labels.
    pub capacity: &'a Capacity,
    /// CPUs nobody holds.
    pub cpus_free: Cpus,
    /// Memory nobody holds.
    pub memory_free_bytes: u64,
    /// Custom resources nobody holds, in thousandths.
    pub custom_free: &'a BTreeMap<String, u64>,
    /// Its devices, in the order of their index.
    pub devices: Vec<DeviceView<'a>>,
    /// Attempts that hold something here.
    pub holders: Vec<AttemptId>,
}

/// A device as people see it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceView<'a> {
    /// What it is.
    pub device: &'a Device,
    /// Thousandths nobody holds.
    pub free: u16,
    /// Not given out, whatever is free of it.
    pub quarantined: bool,
}

impl Cluster {
    /// No nodes.
    pub fn new() -> Self {
        Cluster::default()
    }

    /// A node joins, or comes back with what it has now. Holdings on a node that stands stay; those that its new
    /// capacity has no room for are dropped there, and their attempts returned.
    pub fn set_node(&mut self, name: NodeName, capacity: Capacity) -> Vec<AttemptId> {
        let Some(slot) = self.slot(&name) else {
            let slot = self.vacant.pop_first().unwrap_or(self.slots.len() as Slot);
            if slot as usize == self.slots.len() {
                self.slots.push(None);
            }
            let node = Node::new(name.clone(), capacity);
            self.by_name.insert(name, slot);
            self.index.insert(slot, &node);
            self.slots[slot as usize] = Some(node);
            return Vec::new();
        };
        let mut dropped = Vec::new();
        self.change(slot, |node| {
            let mut fresh = Node::new(name, capacity);
            fresh.schedulable = node.schedulable;
            for device in node.devices.iter().filter(|device| device.quarantined) {
                fresh.quarantine(device.index, true);
            }
            for (&attempt, bundles) in &node.held {
                let fits = bundles.iter().all(|bundle| {
                    let free = fresh.can_take(bundle);
                    if free {
                        fresh.take(attempt, bundle);
                    }
                    free
                });
                if !fits {
                    fresh.give(attempt);
                    dropped.push(attempt);
                }
            }
            *node = fresh;
        });
        for &attempt in &dropped {
            self.forget(attempt, slot);
        }
        dropped
    }

    /// A node goes, and what is held on it with it; who held is returned. Their holdings elsewhere stay.
    pub fn remove_node(&mut self, name: &NodeName) -> Vec<AttemptId> {
        let Some(slot) = self.by_name.remove(name) else { return Vec::new() };
        let Some(node) = self.slots[slot as usize].take() else { return Vec::new() };
        self.index.remove(slot, &node);
        self.vacant.insert(slot);
        let holders: Vec<AttemptId> = node.held.keys().copied().collect();
        for &attempt in &holders {
            self.forget(attempt, slot);
        }
        holders
    }

    /// Whether new work may come to a node; what runs there stays.
    pub fn set_schedulable(&mut self, name: &NodeName, yes: bool) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.schedulable = yes);
        }
    }

    /// Keeps a device from being given out; who holds it keeps it.
    pub fn quarantine(&mut self, name: &NodeName, device: u32) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.quarantine(device, true));
        }
    }

    /// Gives a quarantined device out again.
    pub fn unquarantine(&mut self, name: &NodeName, device: u32) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.quarantine(device, false));
        }
    }

    /// Takes an attempt's bundles, all or none of them.
    pub fn hold(&mut self, attempt: AttemptId, holder: Holder, bundles: &[Bundle]) -> Result<(), HoldError> {
        if self.holdings.contains_key(&attempt) {
            return Err(HoldError::Twice { attempt });
        }
        let slots = self.take(attempt, bundles)?;
        self.holdings.insert(attempt, Holding { holder, slots });
        Ok(())
    }

    /// Takes bundles without a holder's facts; gives everything back where one cannot be taken.
    pub(crate) fn take(
        &mut self,
        attempt: AttemptId,
        bundles: &[Bundle],
    ) -> Result<BTreeSet<Slot>, HoldError> {
        let mut slots = BTreeSet::new();
        for bundle in bundles {
            let problem = match self.slot(&bundle.node).and_then(|slot| Some((slot, self.node(slot)?))) {
                Some((slot, node)) if node.can_take(bundle) => {
                    self.change(slot, |node| node.take(attempt, bundle));
                    slots.insert(slot);
                    continue;
                }
                Some(_) => HoldError::NotFree {
                    attempt,
                    rank: bundle.rank,
                    node: bundle.node.clone(),
                    asked: bundle.takes.to_string(),
                },
                None => HoldError::UnknownNode { attempt, node: bundle.node.clone() },
            };
            self.give(attempt, &slots);
            return Err(problem);
        }
        Ok(slots)
    }

    pub(crate) fn give(&mut self, attempt: AttemptId, slots: &BTreeSet<Slot>) {
        for &slot in slots {
            self.change(slot, |node| {
                node.give(attempt);
            });
        }
    }

    /// Gives back all that an attempt holds; nothing where it holds nothing.
    pub fn release(&mut self, attempt: AttemptId) {
        if let Some(holding) = self.holdings.remove(&attempt) {
            self.give(attempt, &holding.slots);
        }
    }

    /// Gives back what an attempt holds on one node, once its last process there is gone.
    pub fn release_on(&mut self, attempt: AttemptId, name: &NodeName) {
        let Some(slot) = self.slot(name) else { return };
        if self.forget(attempt, slot) {
            self.give(attempt, &BTreeSet::from([slot]));
        }
    }

    /// Strikes a node off an attempt's holding; whether it was there.
    fn forget(&mut self, attempt: AttemptId, slot: Slot) -> bool {
        let Some(holding) = self.holdings.get_mut(&attempt) else { return false };
        let was = holding.slots.remove(&slot);
        if holding.slots.is_empty() {
            self.holdings.remove(&attempt);
        }
        was
    }

    /// All nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        self.by_name.values().filter_map(|&slot| self.node(slot)).map(view)
    }

    /// The facts of an attempt that holds something.
    pub fn holder(&self, attempt: AttemptId) -> Option<&Holder> {
        self.holdings.get(&attempt).map(|holding| &holding.holder)
    }

    /// The same to change them, such as when work was last saved.
    pub fn holder_mut(&mut self, attempt: AttemptId) -> Option<&mut Holder> {
        self.holdings.get_mut(&attempt).map(|holding| &mut holding.holder)
    }

    /// What an attempt holds, by rank.
    pub fn bundles(&self, attempt: AttemptId) -> Vec<&Bundle> {
        let Some(holding) = self.holdings.get(&attempt) else { return Vec::new() };
        let nodes = holding.slots.iter().filter_map(|&slot| self.node(slot));
        let mut bundles: Vec<&Bundle> = nodes.filter_map(|node| node.held.get(&attempt)).flatten().collect();
        bundles.sort_by_key(|bundle| bundle.rank);
        bundles
    }

    fn slot(&self, name: &NodeName) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn node(&self, slot: Slot) -> Option<&Node> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// Every node that stands, schedulable or not, in the order of joining.
    pub(crate) fn standing(&self) -> impl Iterator<Item = (Slot, &Node)> {
        self.slots.iter().enumerate().filter_map(|(slot, node)| Some((slot as Slot, node.as_ref()?)))
    }

    /// Changes a node and its entries in the index, and asserts that nothing got lost or was made.
    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Node)) {
        let Some(node) = self.slots[slot as usize].as_mut() else { return };
        self.index.remove(slot, node);
        change(node);
        node.assert_conserved();
        self.index.insert(slot, node);
    }
}

fn view(node: &Node) -> NodeView<'_> {
    let devices = node.capacity.devices.iter().zip(&node.devices);
    let devices = devices.map(|(device, state)| DeviceView {
        device,
        free: state.free,
        quarantined: state.quarantined,
    });
    NodeView {
        name: &node.name,
        schedulable: node.schedulable,
        capacity: &node.capacity,
        cpus_free: Cpus::from_milli(node.cpus_free),
        memory_free_bytes: node.memory_free,
        custom_free: &node.custom_free,
        devices: devices.collect(),
        holders: node.held.keys().copied().collect(),
    }
}
