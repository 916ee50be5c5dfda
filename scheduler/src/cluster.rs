//! The nodes and what is held on them.

use crate::amounts::Amounts;
use crate::bundle::{Bundle, Holder};
use crate::index::{Index, Slot};
use crate::lanes::{Share, ShareClock, Usage};
use crate::node::Node;
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::{AttemptId, Cpus, NodeName, Rank, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Nodes remembered on which something was freed; beyond it a decision looks at all again.
const FREED_NODES: usize = 1024;

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
    pub(crate) amounts: Amounts,
    /// It has been asked to end, for another gang or for a reason of its own.
    pub(crate) ending: bool,
}

impl Holding {
    /// GPUs that the gang holds, or CPUs where it holds no GPU.
    pub(crate) fn size(&self) -> f64 {
        self.amounts.size_milli() as f64 / 1000.0
    }

    /// The service it has had up to now, in GPU-seconds or CPU-seconds.
    pub(crate) fn served(&self, now: Time) -> f64 {
        self.holder.attained + now.since(self.holder.started).as_secs_f64() * self.size()
    }
}

/// Bundles taken off their nodes for the time of a thought.
#[derive(Debug)]
pub(crate) struct Lifted {
    pub(crate) attempt: AttemptId,
    pub(crate) bundles: Vec<(Slot, Vec<Bundle>)>,
}

/// All nodes, their free capacity in order, and the attempts that hold the rest.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    slots: Vec<Option<Node>>,
    by_name: BTreeMap<NodeName, Slot>,
    vacant: BTreeSet<Slot>,
    holdings: BTreeMap<AttemptId, Holding>,
    pub(crate) index: Index,
    /// All that the nodes have.
    pub(crate) total: Amounts,
    usage: BTreeMap<String, Usage>,
    clock: ShareClock,
    /// Holders with a time limit by when it ends them.
    ends: BTreeSet<(Time, AttemptId)>,
    /// Holders that may be asked to give way, by priority.
    preemptible: BTreeMap<i32, BTreeSet<AttemptId>>,
    /// Holders whose gang is elastic.
    elastic: BTreeSet<AttemptId>,
    /// Holders that were asked to end.
    ending: BTreeSet<AttemptId>,
    /// Counts changes of the nodes themselves.
    pub(crate) nodes_version: u64,
    /// Counts what was freed, and the nodes it was freed on, the latest last.
    pub(crate) freed_version: u64,
    freed: VecDeque<Slot>,
    /// Counts what was taken.
    pub(crate) taken_version: u64,
    /// A plan tries something out: nothing of it counts.
    quiet: bool,
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
        self.set_part(name, capacity, &BTreeMap::new())
    }

    /// The same for a node that is part of another: of its devices it has the shares that are given by index.
    pub(crate) fn set_part(
        &mut self,
        name: NodeName,
        capacity: Capacity,
        parts: &BTreeMap<u32, u16>,
    ) -> Vec<AttemptId> {
        let Some(slot) = self.slot(&name) else {
            let slot = self.vacant.pop_first().unwrap_or(self.slots.len() as Slot);
            if slot as usize == self.slots.len() {
                self.slots.push(None);
            }
            self.total.add(&Amounts::of_capacity(&capacity));
            let node = Node::new(name.clone(), capacity, parts);
            self.by_name.insert(name, slot);
            self.index.insert(slot, &node);
            self.slots[slot as usize] = Some(node);
            self.note_node(slot);
            return Vec::new();
        };
        let mut dropped = Vec::new();
        if let Some(node) = self.node(slot) {
            let before = Amounts::of_capacity(&node.capacity);
            self.total.subtract(&before);
            self.total.add(&Amounts::of_capacity(&capacity));
        }
        self.change(slot, |node| {
            let mut fresh = Node::new(name, capacity, parts);
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
                    dropped.push((attempt, bundles.clone()));
                }
            }
            *node = fresh;
        });
        self.note_node(slot);
        for (attempt, bundles) in &dropped {
            self.forget(*attempt, slot, bundles);
        }
        dropped.into_iter().map(|(attempt, _)| attempt).collect()
    }

    /// A node goes, and what is held on it with it; who held is returned. Their holdings elsewhere stay.
    pub fn remove_node(&mut self, name: &NodeName) -> Vec<AttemptId> {
        let Some(slot) = self.by_name.remove(name) else { return Vec::new() };
        let Some(node) = self.slots[slot as usize].take() else { return Vec::new() };
        self.index.remove(slot, &node);
        self.vacant.insert(slot);
        self.total.subtract(&Amounts::of_capacity(&node.capacity));
        self.note_node(slot);
        for (&attempt, bundles) in &node.held {
            self.forget(attempt, slot, bundles);
        }
        node.held.into_keys().collect()
    }

    /// Whether new work may come to a node; what runs there stays.
    pub fn set_schedulable(&mut self, name: &NodeName, yes: bool) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.schedulable = yes);
            self.note_node(slot);
        }
    }

    /// Keeps a device from being given out; who holds it keeps it.
    pub fn quarantine(&mut self, name: &NodeName, device: u32) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.quarantine(device, true));
            self.note_node(slot);
        }
    }

    /// Gives a quarantined device out again.
    pub fn unquarantine(&mut self, name: &NodeName, device: u32) {
        if let Some(slot) = self.slot(name) {
            self.change(slot, |node| node.quarantine(device, false));
            self.note_node(slot);
        }
    }

    /// Takes an attempt's bundles, all or none of them.
    pub fn hold(&mut self, attempt: AttemptId, holder: Holder, bundles: &[Bundle]) -> Result<(), HoldError> {
        if self.holdings.contains_key(&attempt) {
            return Err(HoldError::Twice { attempt });
        }
        let slots = self.take(attempt, bundles)?;
        let amounts = Amounts::of_bundles(bundles);
        let clock = self.clock;
        let usage = self.usage.entry(holder.queue.clone()).or_default();
        if !self.quiet {
            usage.settle(clock);
            usage.really.add(&amounts);
        }
        usage.held.add(&amounts);
        self.ends.extend(holder.ends_by().map(|end| (end, attempt)));
        if holder.preemptible {
            self.preemptible.entry(holder.priority).or_default().insert(attempt);
        }
        if holder.gang.workers.min < holder.gang.workers.max {
            self.elastic.insert(attempt);
        }
        self.taken_version += u64::from(!self.quiet);
        self.holdings.insert(attempt, Holding { holder, slots, amounts, ending: false });
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
        let slots = self.holdings.get(&attempt).map(|holding| holding.slots.clone());
        for slot in slots.into_iter().flatten() {
            self.release_slot(attempt, slot);
        }
    }

    /// Gives back what an attempt holds on one node, once its last process there is gone.
    pub fn release_on(&mut self, attempt: AttemptId, name: &NodeName) {
        if let Some(slot) = self.slot(name) {
            self.release_slot(attempt, slot);
        }
    }

    fn release_slot(&mut self, attempt: AttemptId, slot: Slot) {
        let mut given = Vec::new();
        self.change(slot, |node| given = node.give(attempt));
        self.note_freed(slot);
        self.forget(attempt, slot, &given);
    }

    /// Strikes bundles on a node off an attempt's holding; the attempt holds nothing once all are gone.
    fn forget(&mut self, attempt: AttemptId, slot: Slot, bundles: &[Bundle]) {
        let Some(holding) = self.holdings.get_mut(&attempt) else { return };
        let given = Amounts::of_bundles(bundles);
        holding.amounts.subtract(&given);
        holding.slots.remove(&slot);
        if let Some(usage) = self.usage.get_mut(&holding.holder.queue) {
            if !self.quiet {
                usage.settle(self.clock);
                usage.really.subtract(&given);
            }
            usage.held.subtract(&given);
        }
        // Where a part is done the rest is not resized: it would start all over.
        self.elastic.remove(&attempt);
        if !holding.slots.is_empty() {
            return;
        }
        let holder = &holding.holder;
        if let Some(end) = holder.ends_by() {
            self.ends.remove(&(end, attempt));
        }
        if let Some(peers) = self.preemptible.get_mut(&holder.priority) {
            peers.remove(&attempt);
            if peers.is_empty() {
                self.preemptible.remove(&holder.priority);
            }
        }
        self.ending.remove(&attempt);
        self.holdings.remove(&attempt);
    }

    /// Marks an attempt that has been asked to end: what it holds counts as soon free, and nobody asks it again.
    pub fn set_ending(&mut self, attempt: AttemptId) {
        if let Some(holding) = self.holdings.get_mut(&attempt) {
            holding.ending = true;
            self.ending.insert(attempt);
        }
    }

    /// Marks an attempt that has given back a part of what it held: it is not resized any more.
    pub fn set_rigid(&mut self, attempt: AttemptId) {
        self.elastic.remove(&attempt);
    }

    /// Lets the decayed shares of the queues run up to `now`; to be called before holdings change at `now`, and by every
    /// plan. Another half-life counts from now on.
    pub fn settle(&mut self, now: Time, half_life: Duration) {
        if self.clock.half_life != half_life {
            let until = ShareClock { now, ..self.clock };
            self.usage.values_mut().for_each(|usage| usage.settle(until));
        }
        self.clock = ShareClock { now: now.max(self.clock.now), half_life };
        self.usage.values_mut().for_each(|usage| usage.note(self.clock));
    }

    /// What every queue has had, to be stored whenever holdings have changed.
    pub fn shares(&self) -> impl Iterator<Item = (&str, &Share)> {
        self.usage.iter().map(|(queue, usage)| (queue.as_str(), &usage.had))
    }

    /// Puts back what a queue has had; before anything is held for it.
    pub fn restore_share(&mut self, queue: impl Into<String>, share: Share) {
        self.usage.entry(queue.into()).or_default().had = share;
    }

    /// A queue's share of its dominant resource, of what it holds and has held, as the last plan saw it: 0 to 2.
    pub fn share(&self, queue: &str) -> f64 {
        self.usage.get(queue).map_or(0.0, |usage| usage.share(&self.total))
    }

    /// What a queue holds, by kind.
    pub fn held(&self, queue: &str) -> Amounts {
        self.held_by(queue)
    }

    /// Queues that have held something.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &str> {
        self.usage.keys().map(String::as_str)
    }

    pub(crate) fn usage(&self, queue: &str) -> Option<&Usage> {
        self.usage.get(queue)
    }

    /// What a queue holds.
    pub(crate) fn held_by(&self, queue: &str) -> Amounts {
        self.usage.get(queue).map(|usage| usage.held.clone()).unwrap_or_default()
    }

    pub(crate) fn holding(&self, attempt: AttemptId) -> Option<&Holding> {
        self.holdings.get(&attempt)
    }

    /// Holders by when their time limit ends them.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (Time, AttemptId)> + '_ {
        self.ends.iter().copied()
    }

    /// Holders that were asked to end.
    pub(crate) fn ending(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.ending.iter().copied()
    }

    /// Holders that may be asked to give way and were not, the lowest priority first.
    pub(crate) fn preemptible(&self) -> impl Iterator<Item = (AttemptId, &Holding)> {
        let attempts = self.preemptible.values().flatten();
        let holdings = attempts.filter_map(|&attempt| Some((attempt, self.holdings.get(&attempt)?)));
        holdings.filter(|(_, holding)| !holding.ending)
    }

    /// The lowest priority of a holder that may be asked to give way.
    pub(crate) fn lowest_priority(&self) -> Option<i32> {
        self.preemptible.keys().next().copied()
    }

    /// Holders whose gang is elastic and that were not asked to end.
    pub(crate) fn elastic(&self) -> impl Iterator<Item = (AttemptId, &Holding)> {
        let holdings =
            self.elastic.iter().filter_map(|&attempt| Some((attempt, self.holdings.get(&attempt)?)));
        holdings.filter(|(_, holding)| !holding.ending)
    }

    /// Takes an attempt's bundles off their nodes without anybody being told; [`Cluster::put_back`] undoes it.
    pub(crate) fn lift(&mut self, attempt: AttemptId) -> Lifted {
        let slots = self.holdings.get(&attempt).map(|holding| holding.slots.clone()).unwrap_or_default();
        let mut bundles = Vec::with_capacity(slots.len());
        for slot in slots {
            self.change(slot, |node| bundles.push((slot, node.give(attempt))));
        }
        let lifted = Lifted { attempt, bundles };
        self.count_lifted(&lifted, Amounts::subtract);
        lifted
    }

    /// The same for some of its ranks.
    pub(crate) fn lift_ranks(&mut self, attempt: AttemptId, ranks: &BTreeSet<Rank>) -> Lifted {
        let mut lifted = self.lift(attempt);
        let mut rest = Lifted { attempt, bundles: Vec::new() };
        for (slot, bundles) in &mut lifted.bundles {
            let (taken, kept) = bundles.drain(..).partition(|bundle| ranks.contains(&bundle.rank));
            *bundles = taken;
            rest.bundles.push((*slot, kept));
        }
        self.put_back(&rest);
        lifted.bundles.retain(|(_, bundles)| !bundles.is_empty());
        lifted
    }

    /// Puts lifted bundles back.
    pub(crate) fn put_back(&mut self, lifted: &Lifted) {
        for (slot, bundles) in &lifted.bundles {
            self.change(*slot, |node| bundles.iter().for_each(|bundle| node.take(lifted.attempt, bundle)));
        }
        self.count_lifted(lifted, Amounts::add);
    }

    /// What is lifted its queue does not hold meanwhile: its quota has that room.
    fn count_lifted(&mut self, lifted: &Lifted, count: impl FnOnce(&mut Amounts, &Amounts)) {
        let Some(holding) = self.holdings.get(&lifted.attempt) else { return };
        let amounts = Amounts::of_bundles(lifted.bundles.iter().flat_map(|(_, bundles)| bundles));
        if let Some(usage) = self.usage.get_mut(&holding.holder.queue) {
            count(&mut usage.held, &amounts);
        }
    }

    /// Nodes on which something was freed since a version; `None` when there were too many to remember.
    pub(crate) fn freed_since(&self, version: u64) -> Option<impl Iterator<Item = Slot> + '_> {
        let count = usize::try_from(self.freed_version - version).unwrap_or(usize::MAX);
        (count <= self.freed.len()).then(|| self.freed.iter().rev().take(count).copied())
    }

    pub(crate) fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    fn note_freed(&mut self, slot: Slot) {
        if self.quiet {
            return;
        }
        self.freed_version += 1;
        self.freed.push_back(slot);
        if self.freed.len() > FREED_NODES {
            self.freed.pop_front();
        }
    }

    fn note_node(&mut self, slot: Slot) {
        self.nodes_version += 1;
        self.note_freed(slot);
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

    pub(crate) fn slot(&self, name: &NodeName) -> Option<Slot> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn node(&self, slot: Slot) -> Option<&Node> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// How many nodes stand.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
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
