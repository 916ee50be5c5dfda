//! Where a gang goes: the four strategies over the free capacity, all of its ranks or none.

use crate::assign;
use crate::bundle::Bundle;
use crate::cluster::Cluster;
use crate::devices::Linkage;
use crate::index::Slot;
use crate::node::{Ground, Kept, NOTHING, Node};
use phalanx_core::spec::{GangSpec, Placement};
use phalanx_core::{GpuRequest, Rank};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Nodes that are as tight as the first whose links are looked at too.
const LINKED_NODES: usize = 8;

/// Ranks by node.
pub(crate) type Layout = Vec<(Slot, Vec<Rank>)>;

/// What is kept from a gang on a node because another one is to have it.
pub(crate) trait Keeper {
    /// What is kept of this node, if anything.
    fn kept(&self, slot: Slot, node: &Node) -> Option<Kept>;
}

/// A search for room for one gang.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) gang: &'a GangSpec,
    /// Without one everything free may be used.
    pub(crate) keeper: Option<&'a dyn Keeper>,
}

impl<'a> Search<'a> {
    /// A search over everything free.
    pub(crate) fn new(cluster: &'a Cluster, gang: &'a GangSpec) -> Self {
        Search { cluster, gang, keeper: None }
    }

    /// Whether the least number of workers fits.
    pub(crate) fn fits(&self) -> bool {
        self.layout(self.gang.workers.min).is_some()
    }

    /// The most workers within the gang's bounds that fit, and where.
    pub(crate) fn place(&self) -> Option<Vec<Bundle>> {
        self.place_at_most(u32::MAX)
    }

    /// The same with no more workers than `most`.
    pub(crate) fn place_at_most(&self, most: u32) -> Option<Vec<Bundle>> {
        let (mut low, mut high) = (self.gang.workers.min, self.gang.workers.max.min(most));
        if low > high {
            return None;
        }
        if let Some(layout) = self.layout(high) {
            return Some(self.bundles(layout));
        }
        if low == high {
            return None;
        }
        let mut best = self.layout(low)?;
        // `low` fits and `high` does not.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.layout(middle) {
                Some(layout) => (low, best) = (middle, layout),
                None => high = middle,
            }
        }
        Some(self.bundles(best))
    }

    fn bundles(&self, layout: Layout) -> Vec<Bundle> {
        let on_node = |(slot, ranks): (Slot, Vec<Rank>)| {
            let node = self.cluster.node(slot)?;
            let kept = self.keeper.and_then(|keeper| keeper.kept(slot, node));
            let ground = kept.as_ref().map_or(Ground::Free, |kept| Ground::With { given: &NOTHING, kept });
            Some(node.bundles(&ranks, &self.gang.each, ground))
        };
        let mut bundles: Vec<Bundle> = layout.into_iter().filter_map(on_node).flatten().collect();
        bundles.sort_by_key(|bundle| bundle.rank);
        bundles
    }

    /// Where so many workers fit.
    pub(crate) fn layout(&self, workers: u32) -> Option<Layout> {
        if self.gang.topology.is_some() || !self.gang.bundles.is_empty() {
            return self.layout_among(&self.listed(self.cluster.index.all()), workers);
        }
        match self.gang.placement {
            Placement::StrictPack => {
                self.one_node(workers, false, &BTreeSet::new()).map(|slot| deal([(slot, workers)]))
            }
            Placement::Pack => self.packed(workers).map(deal),
            Placement::Spread | Placement::StrictSpread => {
                let tightest = self.cluster.index.tightest(&self.gang.each, 1, false);
                let strict = self.gang.placement == Placement::StrictSpread;
                spread(tightest.map(|slot| (self.room(slot), slot)), workers, strict).map(deal)
            }
        }
    }

    /// How many ranks have room on a node whose labels match.
    pub(crate) fn room(&self, slot: Slot) -> u32 {
        let Some(node) = self.cluster.node(slot).filter(|node| node.schedulable) else { return 0 };
        // The cheapest question first: most nodes of a busy cluster are full.
        let free = node.room(&self.gang.each, Ground::Free);
        if free == 0 || !node.matches(self.gang) {
            return 0;
        }
        match self.keeper.and_then(|keeper| keeper.kept(slot, node)) {
            Some(kept) => node.room(&self.gang.each, Ground::With { given: &NOTHING, kept: &kept }),
            None => free,
        }
    }

    /// Nodes with room for at least one rank, the tightest first.
    fn listed(&self, slots: impl Iterator<Item = Slot>) -> Vec<(u32, Slot)> {
        let rooms = slots.map(|slot| (self.room(slot), slot));
        rooms.filter(|&(room, _)| room > 0).collect()
    }

    /// The node that so many ranks fill best; of those that are as tight, one whose devices are linked best.
    fn one_node(&self, workers: u32, bare_only: bool, but: &BTreeSet<Slot>) -> Option<Slot> {
        let fits = |slot: &Slot| !but.contains(slot) && self.room(*slot) >= workers;
        let mut tightest = self.cluster.index.tightest(&self.gang.each, workers, bare_only);
        let first = tightest.find(fits)?;
        let node = self.cluster.node(first)?;
        let GpuRequest::Whole(devices) = self.gang.each.gpus else { return Some(first) };
        if devices.saturating_mul(workers) < 2 || node.capacity.links.is_empty() {
            return Some(first);
        }
        let is_as_tight =
            |slot: &Slot| self.cluster.node(*slot).is_some_and(|other| other.whole_free == node.whole_free);
        let others = tightest.take(LINKED_NODES).take_while(is_as_tight).filter(fits);
        std::iter::once(first).chain(others).min_by_key(|&slot| self.linkage(slot, workers))
    }

    /// How the devices are linked that so many ranks would get on a node.
    fn linkage(&self, slot: Slot, workers: u32) -> Linkage {
        let Some(node) = self.cluster.node(slot) else { return Linkage::default() };
        let kept = self.keeper.and_then(|keeper| keeper.kept(slot, node));
        let ground = kept.as_ref().map_or(Ground::Free, |kept| Ground::With { given: &NOTHING, kept });
        node.linkage(self.gang.each.gpus, workers, ground)
    }

    /// Work without GPUs had rather have several nodes without than one with.
    fn packed(&self, workers: u32) -> Option<Vec<(Slot, u32)>> {
        let bare_first = self.gang.each.gpus == GpuRequest::None;
        bare_first.then(|| self.packed_on(workers, true)).flatten().or_else(|| self.packed_on(workers, false))
    }

    fn packed_on(&self, workers: u32, bare_only: bool) -> Option<Vec<(Slot, u32)>> {
        let tightest = |rest: u32, taken: &BTreeSet<Slot>| self.one_node(rest, bare_only, taken);
        if let Some(slot) = tightest(workers, &BTreeSet::new()) {
            return Some(vec![(slot, workers)]);
        }
        if workers == 1 {
            return None;
        }
        fill(self.roomiest(workers, bare_only), workers, tightest)
    }

    /// Nodes by room, most first: as many as so many workers can need.
    fn roomiest(&self, workers: u32, bare_only: bool) -> Vec<(u32, Slot)> {
        let mut sure: Vec<(u32, Slot)> = Vec::new();
        let mut unsure: BinaryHeap<(u32, Reverse<Slot>)> = BinaryHeap::new();
        let mut total = 0u64;
        for (bound, slot) in self.cluster.index.roomiest(&self.gang.each, bare_only) {
            while let Some(&(room, Reverse(slot))) =
                unsure.peek().filter(|(room, _)| u64::from(*room) >= bound)
            {
                unsure.pop();
                sure.push((room, slot));
                total += u64::from(room);
            }
            if total >= u64::from(workers) {
                return sure;
            }
            if bound == 0 {
                break;
            }
            let room = self.room(slot);
            if room > 0 {
                unsure.push((room, Reverse(slot)));
            }
        }
        sure.extend(std::iter::from_fn(|| unsure.pop()).map(|(room, Reverse(slot))| (room, slot)));
        sure
    }

    /// Where so many workers fit among these nodes, given with their room, the tightest first.
    pub(crate) fn layout_among(&self, nodes: &[(u32, Slot)], workers: u32) -> Option<Layout> {
        match &self.gang.topology {
            Some(key) => self.in_a_domain(key, nodes, workers),
            None => self.among(nodes, workers),
        }
    }

    /// The domain with the least room that has room enough, so that the largest stays free.
    fn in_a_domain(&self, key: &str, nodes: &[(u32, Slot)], workers: u32) -> Option<Layout> {
        let mut domains: BTreeMap<&str, Vec<(u32, Slot)>> = BTreeMap::new();
        for &(room, slot) in nodes {
            let value = self.cluster.node(slot).and_then(|node| node.capacity.labels.get(key));
            domains.entry(value.map_or("", String::as_str)).or_default().push((room, slot));
        }
        let total = |nodes: &[(u32, Slot)]| nodes.iter().map(|&(room, _)| u64::from(room)).sum::<u64>();
        let mut by_room: Vec<(u64, Vec<(u32, Slot)>)> =
            domains.into_values().map(|nodes| (total(&nodes), nodes)).collect();
        by_room.sort_by_key(|&(total, _)| total);
        let enough = by_room.iter().filter(|&&(total, _)| total >= u64::from(workers));
        enough.map(|(_, nodes)| self.among(nodes, workers)).find(Option::is_some).flatten()
    }

    /// The strategies over a list of nodes in the order of tightness.
    fn among(&self, nodes: &[(u32, Slot)], workers: u32) -> Option<Layout> {
        if !self.gang.bundles.is_empty() {
            return assign::layout(self, nodes, workers);
        }
        let tightest = |rest: u32, taken: &BTreeSet<Slot>| {
            let fitting = nodes.iter().filter(|(room, slot)| *room >= rest && !taken.contains(slot));
            fitting.min_by_key(|&&(room, _)| room).map(|&(_, slot)| slot)
        };
        match self.gang.placement {
            Placement::StrictPack => tightest(workers, &BTreeSet::new()).map(|slot| deal([(slot, workers)])),
            Placement::Pack => {
                let mut roomiest = nodes.to_vec();
                roomiest.sort_by_key(|&(room, _)| Reverse(room));
                fill(roomiest, workers, tightest).map(deal)
            }
            Placement::Spread => spread(nodes.iter().copied(), workers, false).map(deal),
            Placement::StrictSpread => spread(nodes.iter().copied(), workers, true).map(deal),
        }
    }
}

/// The fewest nodes: the roomiest are filled, and what is left over goes where it fits best.
fn fill(
    roomiest: Vec<(u32, Slot)>,
    workers: u32,
    tightest: impl Fn(u32, &BTreeSet<Slot>) -> Option<Slot>,
) -> Option<Vec<(Slot, u32)>> {
    let (mut counts, mut taken, mut rest) = (Vec::new(), BTreeSet::new(), workers);
    for (room, slot) in roomiest {
        if room >= rest {
            counts.push((tightest(rest, &taken).unwrap_or(slot), rest));
            return Some(counts);
        }
        counts.push((slot, room));
        taken.insert(slot);
        rest -= room;
    }
    None
}

/// The most nodes: one rank each, and only then, unless it is strict, more of them round after round.
fn spread(rooms: impl Iterator<Item = (u32, Slot)>, workers: u32, strict: bool) -> Option<Vec<(Slot, u32)>> {
    let mut seen = BTreeSet::new();
    let fresh = rooms.filter(|&(room, slot)| room > 0 && seen.insert(slot));
    let rooms: Vec<(u32, Slot)> = fresh.take(workers as usize).collect();
    let mut counts: Vec<(Slot, u32)> = rooms.iter().map(|&(_, slot)| (slot, 1)).collect();
    let mut rest = workers - rooms.len() as u32;
    if strict && rest > 0 {
        return None;
    }
    while rest > 0 {
        let before = rest;
        for (&(room, _), (_, count)) in rooms.iter().zip(&mut counts) {
            if rest > 0 && *count < room {
                *count += 1;
                rest -= 1;
            }
        }
        if rest == before {
            return None;
        }
    }
    Some(counts)
}

/// Gives each node its ranks, one node after the other, those with most first.
fn deal(counts: impl IntoIterator<Item = (Slot, u32)>) -> Layout {
    let mut counts: Vec<(Slot, u32)> = counts.into_iter().collect();
    counts.sort_by_key(|&(slot, count)| (Reverse(count), slot));
    let mut next = 0;
    let ranks = counts.into_iter().map(|(slot, count)| {
        let first = next;
        next += count;
        (slot, (first..next).collect())
    });
    ranks.collect()
}
