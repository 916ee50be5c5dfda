//! Free capacity, kept in order, so that a decision looks at few nodes however many there are.

use crate::node::Node;
use phalanx_core::resources::WHOLE;
use phalanx_core::{GpuRequest, Resources};
use std::collections::BTreeSet;
use std::ops::Bound;

/// The place of a node in the cluster's table.
pub(crate) type Slot = u32;

/// Schedulable nodes by what is free on them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// Nodes without devices by free CPUs.
    bare: BTreeSet<(u64, Slot)>,
    /// Nodes with devices: by wholly free devices, then by free CPUs.
    whole: Vec<BTreeSet<(u64, Slot)>>,
    /// Devices that are partly free, the fullest first: free shares, node, position.
    partial: BTreeSet<(u16, Slot, usize)>,
}

impl Index {
    pub(crate) fn insert(&mut self, slot: Slot, node: &Node) {
        if !node.schedulable {
            return;
        }
        self.set_of(node).insert((node.cpus_free, slot));
        self.partial.extend(partial(slot, node));
    }

    pub(crate) fn remove(&mut self, slot: Slot, node: &Node) {
        if !node.schedulable {
            return;
        }
        self.set_of(node).remove(&(node.cpus_free, slot));
        for entry in partial(slot, node) {
            self.partial.remove(&entry);
        }
    }

    fn set_of(&mut self, node: &Node) -> &mut BTreeSet<(u64, Slot)> {
        if node.devices.is_empty() {
            return &mut self.bare;
        }
        let whole = node.whole_free as usize;
        if self.whole.len() <= whole {
            self.whole.resize_with(whole + 1, BTreeSet::new);
        }
        &mut self.whole[whole]
    }

    /// Nodes on which so many ranks may have room, the tightest fit first: a superset of those that do, in which one
    /// may come twice.
    pub(crate) fn tightest(
        &self,
        each: &Resources,
        ranks: u32,
        bare_only: bool,
    ) -> Box<dyn Iterator<Item = Slot> + '_> {
        let cpus = each.cpus.milli().saturating_mul(u64::from(ranks));
        let buckets = move |devices: u64| {
            let from = usize::try_from(devices).unwrap_or(usize::MAX).min(self.whole.len());
            self.whole[from..].iter().flat_map(move |set| from_cpus(set, cpus))
        };
        match each.gpus {
            GpuRequest::None if bare_only => Box::new(from_cpus(&self.bare, cpus)),
            GpuRequest::None => Box::new(from_cpus(&self.bare, cpus).chain(buckets(0))),
            GpuRequest::Whole(devices) => Box::new(buckets(u64::from(devices) * u64::from(ranks))),
            GpuRequest::Share(shares) => {
                let partial = self.partial.range((shares, 0, 0)..).map(|&(_, slot, _)| slot);
                Box::new(partial.chain(buckets(1)))
            }
        }
    }

    /// Nodes with the most room first, each with a bound that neither it nor any later one exceeds.
    pub(crate) fn roomiest(
        &self,
        each: &Resources,
        bare_only: bool,
    ) -> Box<dyn Iterator<Item = (u64, Slot)> + '_> {
        let whole = self.whole.iter().enumerate().rev();
        match each.gpus {
            GpuRequest::None => {
                let cpus = each.cpus.milli();
                let bound = move |free: u64| free.checked_div(cpus).unwrap_or(u64::MAX);
                let with_devices = if bare_only { &[][..] } else { &self.whole };
                let sets = std::iter::once(&self.bare).chain(with_devices);
                Box::new(most_cpus(sets).map(move |(free, slot)| (bound(free), slot)))
            }
            GpuRequest::Whole(devices) => {
                let per_rank = u64::from(devices);
                Box::new(whole.flat_map(move |(count, set)| {
                    set.iter().rev().map(move |&(_, slot)| (count as u64 / per_rank, slot))
                }))
            }
            GpuRequest::Share(shares) => {
                let partial = self.partial.range((shares, 0, 0)..).map(|&(_, slot, _)| slot);
                let partial: BTreeSet<Slot> = partial.collect();
                let whole = self.whole.iter().skip(1).flatten().map(|&(_, slot)| slot);
                let whole: Vec<Slot> = whole.filter(|slot| !partial.contains(slot)).collect();
                Box::new(partial.into_iter().chain(whole).map(|slot| (u64::MAX, slot)))
            }
        }
    }

    /// Schedulable nodes on which some part of a GPU is free.
    pub(crate) fn with_free_gpus(&self) -> impl Iterator<Item = Slot> + '_ {
        let whole = self.whole.iter().skip(1).flatten().map(|&(_, slot)| slot);
        let partial: BTreeSet<Slot> = self.partial.iter().map(|&(_, slot, _)| slot).collect();
        let none_whole = self.whole.first().into_iter().flatten().map(|&(_, slot)| slot);
        let only_partial = if partial.is_empty() { 0 } else { usize::MAX };
        whole.chain(none_whole.take(only_partial).filter(move |slot| partial.contains(slot)))
    }

    /// Every schedulable node, those without devices first, then those with the fewest free.
    pub(crate) fn all(&self) -> impl Iterator<Item = Slot> + '_ {
        self.bare.iter().chain(self.whole.iter().flatten()).map(|&(_, slot)| slot)
    }
}

/// All entries of several sets, those with the most CPUs first.
fn most_cpus<'a>(
    sets: impl Iterator<Item = &'a BTreeSet<(u64, Slot)>>,
) -> impl Iterator<Item = (u64, Slot)> + 'a {
    let mut sets: Vec<_> = sets.map(|set| set.iter().rev().copied().peekable()).collect();
    std::iter::from_fn(move || {
        let (_, at) = sets.iter_mut().enumerate().filter_map(|(at, set)| Some((*set.peek()?, at))).max()?;
        sets[at].next()
    })
}

fn from_cpus(set: &BTreeSet<(u64, Slot)>, cpus: u64) -> impl Iterator<Item = Slot> + '_ {
    set.range((Bound::Included((cpus, 0)), Bound::Unbounded)).map(|&(_, slot)| slot)
}

fn partial(slot: Slot, node: &Node) -> impl Iterator<Item = (u16, Slot, usize)> + '_ {
    let devices = node.devices.iter().enumerate();
    let partly =
        devices.filter(|(_, device)| !device.quarantined && (1..WHOLE as u16).contains(&device.free));
    partly.map(move |(position, device)| (device.free, slot, position))
}
