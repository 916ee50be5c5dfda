//! The cluster as it will be when gangs have ended, one after the other.
//!
//! Nothing is taken off its node for it: what each end gives back is added up beside the nodes it touches, so that looking
//! ahead costs the ends looked at and not the nodes there are.

use crate::bundle::Bundle;
use crate::index::Slot;
use crate::node::{Ground, Kept, NOTHING};
use crate::place::Search;
use crate::reserve::keep;
use phalanx_core::AttemptId;
use phalanx_core::spec::{GangSpec, Placement};
use std::collections::BTreeMap;

/// Room for a gang's workers on some nodes.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    workers: u64,
    nodes: u32,
    most: u32,
}

impl Tally {
    fn change(&mut self, before: u32, after: u32) {
        self.workers += u64::from(after - before);
        self.nodes += u32::from(before == 0 && after > 0);
        self.most = self.most.max(after);
    }

    fn suffices(&self, gang: &GangSpec) -> bool {
        let workers = gang.workers.min;
        match gang.placement {
            Placement::StrictPack => self.most >= workers,
            Placement::StrictSpread => self.nodes >= workers,
            Placement::Pack | Placement::Spread => self.workers >= u64::from(workers),
        }
    }
}

/// The room for one gang, growing.
pub(crate) struct Outlook<'a> {
    search: Search<'a>,
    given: BTreeMap<Slot, Kept>,
    /// Nodes with room for a worker.
    rooms: BTreeMap<Slot, u32>,
    /// By topology domain, or for all nodes under the empty name.
    tallies: BTreeMap<&'a str, Tally>,
}

impl<'a> Outlook<'a> {
    /// The room there is now, for the least number of workers.
    pub(crate) fn new(search: Search<'a>) -> Self {
        let (given, rooms, tallies) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut outlook = Outlook { search, given, rooms, tallies };
        for (bound, slot) in search.cluster.index.roomiest(&search.gang.each, false) {
            if bound == 0 {
                break;
            }
            outlook.count(slot, search.room(slot));
        }
        outlook
    }

    /// Whether there is room, but for what ranks' own labels may rule out.
    pub(crate) fn suffices(&self) -> bool {
        self.tallies.values().any(|tally| tally.suffices(self.search.gang))
    }

    /// Adds what an attempt gives back when it ends; whether the gang may fit now that did not before.
    pub(crate) fn give_back(&mut self, attempt: AttemptId) -> bool {
        let (cluster, gang) = (self.search.cluster, self.search.gang);
        let Some(holding) = cluster.holding(attempt) else { return false };
        let mut suffices = false;
        for &slot in &holding.slots {
            let Some(node) = cluster.node(slot).filter(|node| node.schedulable && node.matches(gang)) else {
                continue;
            };
            let given = self.given.entry(slot).or_default();
            node.held.get(&attempt).into_iter().flatten().for_each(|bundle| node.add_to(given, bundle));
            let kept = self.search.keeper.and_then(|keeper| keeper.kept(slot, node));
            let room = node.room(&gang.each, Ground::With { given, kept: kept.as_ref().unwrap_or(&NOTHING) });
            suffices |= self.count(slot, room);
        }
        suffices
    }

    /// Notes a node's room; whether its domain suffices.
    fn count(&mut self, slot: Slot, room: u32) -> bool {
        let before = self.rooms.get(&slot).copied().unwrap_or(0);
        if room <= before {
            return false;
        }
        self.rooms.insert(slot, room);
        let key = self.search.gang.topology.as_ref();
        let value = key.and_then(|key| self.search.cluster.node(slot)?.capacity.labels.get(key));
        let tally = self.tallies.entry(value.map_or("", String::as_str)).or_default();
        tally.change(before, room);
        tally.suffices(self.search.gang)
    }

    /// What is to be kept of what is free now so that the gang runs once all this has been given back; `None` where it
    /// still does not fit. Nothing is kept from the gang itself.
    pub(crate) fn kept(&self) -> Option<BTreeMap<Slot, Kept>> {
        let (cluster, gang) = (self.search.cluster, self.search.gang);
        let mut nodes: Vec<(u32, Slot)> = self.rooms.iter().map(|(&slot, &room)| (room, slot)).collect();
        nodes.sort_unstable();
        let layout = self.search.layout_among(&nodes, gang.workers.min)?;
        let on_node = |(slot, ranks): (Slot, Vec<_>)| {
            let given = self.given.get(&slot).unwrap_or(&NOTHING);
            let ground = Ground::With { given, kept: &NOTHING };
            Some(cluster.node(slot)?.bundles(&ranks, &gang.each, ground))
        };
        let bundles: Vec<Bundle> = layout.into_iter().filter_map(on_node).flatten().collect();
        Some(keep(cluster, &bundles, &self.given))
    }
}
