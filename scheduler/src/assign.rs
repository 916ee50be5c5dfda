//! Gangs whose ranks have label rules of their own: an exact assignment by augmenting paths.
//!
//! All ranks of a gang ask for the same resources, so that a node has room for a number of them whichever they are, and
//! a placement is a flow from kinds of ranks to nodes (Ford and Fulkerson, 1956).

use crate::index::Slot;
use crate::place::{Layout, Search};
use phalanx_core::Rank;
use phalanx_core::spec::{BundleSpec, Placement};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Ranks with the same rules, and the nodes (by their place in the list) that these allow.
struct Kind {
    ranks: Vec<Rank>,
    allowed: Vec<usize>,
    unplaced: u32,
}

/// How many ranks of each kind run on each node.
struct Flow {
    kinds: Vec<Kind>,
    /// What each node may take in all.
    room: Vec<u32>,
    /// By node: ranks of each kind.
    placed: Vec<BTreeMap<usize, u32>>,
}

/// Where so many workers fit among these nodes, given with their room, the tightest first.
pub(crate) fn layout(search: &Search<'_>, nodes: &[(u32, Slot)], workers: u32) -> Option<Layout> {
    let kinds = kinds(search, nodes, workers);
    let rooms = || nodes.iter().map(|&(room, _)| room.min(workers));
    let flow = match search.gang.placement {
        Placement::StrictPack => {
            let takes_all =
                |at: &usize| nodes[*at].0 >= workers && kinds.iter().all(|kind| kind.allowed.contains(at));
            let at = (0..nodes.len()).filter(takes_all).min_by_key(|&at| nodes[at].0)?;
            let only = |other: usize| if other == at { workers } else { 0 };
            Flow::new(kinds, (0..nodes.len()).map(only).collect()).filled()?
        }
        Placement::StrictSpread => Flow::new(kinds, nodes.iter().map(|_| 1).collect()).filled()?,
        Placement::Spread => {
            let mut flow = Flow::new(kinds, nodes.iter().map(|_| 0).collect());
            let full: Vec<u32> = rooms().collect();
            // A node that has a rank never loses its last one on an augmenting path, so the first round counts.
            while !flow.fill() {
                let wider: Vec<u32> =
                    flow.room.iter().zip(&full).map(|(now, full)| (now + 1).min(*full)).collect();
                if wider == flow.room {
                    return None;
                }
                flow.room = wider;
            }
            flow
        }
        Placement::Pack => packed(kinds, rooms().collect())?,
    };
    Some(flow.layout(nodes))
}

fn kinds(search: &Search<'_>, nodes: &[(u32, Slot)], workers: u32) -> Vec<Kind> {
    let none = BundleSpec::default();
    let mut by_rules: BTreeMap<String, (Vec<Rank>, &BundleSpec)> = BTreeMap::new();
    for rank in 0..workers {
        let spec = search.gang.bundles.get(rank as usize).unwrap_or(&none);
        by_rules.entry(format!("{:?}", spec.labels)).or_insert_with(|| (Vec::new(), spec)).0.push(rank);
    }
    let kind = |(ranks, spec): (Vec<Rank>, &BundleSpec)| {
        let allows = |at: &usize| {
            search.cluster.node(nodes[*at].1).is_some_and(|node| node.matches_rules(&spec.labels))
        };
        let unplaced = ranks.len() as u32;
        Kind { ranks, allowed: (0..nodes.len()).filter(allows).collect(), unplaced }
    };
    by_rules.into_values().map(kind).collect()
}

/// Opens the nodes that take most until all fit, then closes those that are not needed.
fn packed(kinds: Vec<Kind>, rooms: Vec<u32>) -> Option<Flow> {
    let takes = |at: usize| {
        let ranks =
            kinds.iter().filter(|kind| kind.allowed.contains(&at)).map(|kind| kind.ranks.len() as u32);
        rooms[at].min(ranks.sum())
    };
    let mut order: Vec<(u32, usize)> = (0..rooms.len()).map(|at| (takes(at), at)).collect();
    order.sort_by_key(|&(takes, at)| (std::cmp::Reverse(takes), at));
    let mut flow = Flow::new(kinds, vec![0; rooms.len()]);
    let mut open = Vec::new();
    for (_, at) in order {
        flow.room[at] = rooms[at];
        open.push(at);
        if flow.fill() {
            break;
        }
    }
    if !flow.fill() {
        return None;
    }
    for at in open.into_iter().rev() {
        let mut without = Flow::new(flow.kinds, flow.room.clone());
        without.room[at] = 0;
        if !without.fill() {
            without = Flow::new(without.kinds, flow.room).filled()?;
        }
        flow = without;
    }
    Some(flow)
}

impl Flow {
    fn new(mut kinds: Vec<Kind>, room: Vec<u32>) -> Self {
        for kind in &mut kinds {
            kind.unplaced = kind.ranks.len() as u32;
        }
        let placed = vec![BTreeMap::new(); room.len()];
        Flow { kinds, room, placed }
    }

    fn filled(mut self) -> Option<Self> {
        self.fill().then_some(self)
    }

    /// Places as many more ranks as there is room for; whether all are placed.
    fn fill(&mut self) -> bool {
        for kind in 0..self.kinds.len() {
            while self.kinds[kind].unplaced > 0 && self.augment(kind) {}
        }
        self.kinds.iter().all(|kind| kind.unplaced == 0)
    }

    fn load(&self, at: usize) -> u32 {
        self.placed[at].values().sum()
    }

    /// Places one more rank of a kind, moving others where that makes room.
    fn augment(&mut self, start: usize) -> bool {
        // For each node reached: the kind that would come to it; for each kind: the node that it would leave.
        let mut comes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut leaves: BTreeMap<usize, usize> = BTreeMap::new();
        let mut seen = BTreeSet::from([start]);
        let mut waiting = VecDeque::from([start]);
        while let Some(kind) = waiting.pop_front() {
            for &at in &self.kinds[kind].allowed {
                if self.room[at] == 0 || comes.contains_key(&at) {
                    continue;
                }
                comes.insert(at, kind);
                if self.load(at) < self.room[at] {
                    self.shift(start, at, &comes, &leaves);
                    return true;
                }
                for &other in self.placed[at].keys() {
                    if seen.insert(other) {
                        leaves.insert(other, at);
                        waiting.push_back(other);
                    }
                }
            }
        }
        false
    }

    fn shift(
        &mut self,
        start: usize,
        end: usize,
        comes: &BTreeMap<usize, usize>,
        leaves: &BTreeMap<usize, usize>,
    ) {
        let mut at = end;
        loop {
            let kind = comes[&at];
            *self.placed[at].entry(kind).or_insert(0) += 1;
            if kind == start {
                self.kinds[start].unplaced -= 1;
                return;
            }
            at = leaves[&kind];
            if let Some(count) = self.placed[at].get_mut(&kind) {
                *count -= 1;
            }
            self.placed[at].retain(|_, count| *count > 0);
        }
    }

    fn layout(&self, nodes: &[(u32, Slot)]) -> Layout {
        let mut next: Vec<_> = self.kinds.iter().map(|kind| kind.ranks.iter().copied()).collect();
        let on_node = self.placed.iter().zip(nodes).filter(|(placed, _)| !placed.is_empty());
        let layout = on_node.map(|(placed, &(_, slot))| {
            let ranks = placed
                .iter()
                .flat_map(|(&kind, &count)| next[kind].by_ref().take(count as usize).collect::<Vec<_>>());
            (slot, ranks.collect())
        });
        layout.collect()
    }
}
