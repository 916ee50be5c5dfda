//! What is kept for gangs that wait, so that others may pass them only where they do no harm.
//!
//! The first gang that does not fit gets a reservation at the earliest time by the running gangs' time limits (EASY
//! backfill: Lifka, JSSPP'95). Where these give no time, what it could use is kept for it once enough have passed.

use crate::bundle::Bundle;
use crate::cluster::{Cluster, Lifted};
use crate::decide::TENTATIVE;
use crate::index::Slot;
use crate::node::{Ground, Kept, Node};
use crate::place::{Keeper, Search};
use crate::queue::Pending;
use phalanx_core::spec::GangSpec;
use phalanx_core::{AttemptId, JobId, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gangs whose ends a reservation looks ahead over; beyond it no time is known.
const RESERVATION_ENDS: usize = 4096;

/// What a waiting gang is to have, and when at the latest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shadow {
    pub(crate) job: JobId,
    /// Absent for a promise: what others were asked to give up is its own at once.
    pub(crate) at: Option<Time>,
    kept: BTreeMap<Slot, Kept>,
}

/// The reservation of a gang by the time limits of those that run; `None` where these give no time.
pub(crate) fn reservation(now: Time, cluster: &mut Cluster, job: JobId, gang: &GangSpec) -> Option<Shadow> {
    let asked: Vec<(Time, AttemptId)> = cluster.ending().map(|attempt| (now, attempt)).collect();
    let limits =
        cluster.ends().filter(|(_, attempt)| cluster.holding(*attempt).is_some_and(|held| !held.ending));
    let ends: Vec<(Time, AttemptId)> = asked.into_iter().chain(limits).take(RESERVATION_ENDS).collect();
    let mut lifted: Vec<Lifted> = Vec::new();
    let fits = |cluster: &Cluster| Search { cluster, gang, keeper: None }.fits();
    // Twice as many each time until it fits, then back to the first that suffices.
    let mut enough = false;
    while !enough && lifted.len() < ends.len() {
        let until = (lifted.len() * 2).max(1).min(ends.len());
        for &(_, attempt) in &ends[lifted.len()..until] {
            lifted.push(cluster.lift(attempt));
        }
        enough = fits(cluster);
    }
    if enough {
        let (mut low, mut high) = (lifted.len() / 2, lifted.len());
        while low < high {
            let middle = low + (high - low) / 2;
            lift_until(cluster, &mut lifted, &ends, middle);
            if fits(cluster) { high = middle } else { low = middle + 1 }
        }
        lift_until(cluster, &mut lifted, &ends, high);
    }
    let shadow = enough.then(|| {
        let at = lifted.len().checked_sub(1).map_or(now, |last| ends[last].0);
        shadow(cluster, job, gang, Some(at.max(now)), &lifted.iter().collect::<Vec<_>>(), None)
    });
    lifted.iter().rev().for_each(|lifted| cluster.put_back(lifted));
    shadow.flatten()
}

fn lift_until(cluster: &mut Cluster, lifted: &mut Vec<Lifted>, ends: &[(Time, AttemptId)], count: usize) {
    while lifted.len() > count {
        if let Some(last) = lifted.pop() {
            cluster.put_back(&last);
        }
    }
    while lifted.len() < count {
        lifted.push(cluster.lift(ends[lifted.len()].1));
    }
}

/// What is kept of what is free now, where the gang goes once `lifted` (off their nodes at this moment) are gone.
pub(crate) fn shadow(
    cluster: &Cluster,
    job: JobId,
    gang: &GangSpec,
    at: Option<Time>,
    lifted: &[&Lifted],
    keeper: Option<&dyn Keeper>,
) -> Option<Shadow> {
    let bundles = Search { cluster, gang: &least(gang), keeper }.place()?;
    Some(Shadow { job, at, kept: keep(cluster, &bundles, lifted) })
}

fn least(gang: &GangSpec) -> GangSpec {
    let workers = phalanx_core::spec::Workers { max: gang.workers.min, ..gang.workers };
    GangSpec { workers, ..gang.clone() }
}

fn keep(cluster: &Cluster, bundles: &[Bundle], lifted: &[&Lifted]) -> BTreeMap<Slot, Kept> {
    let mut wanted: BTreeMap<Slot, Vec<&Bundle>> = BTreeMap::new();
    for bundle in bundles {
        if let Some(slot) = cluster.slot(&bundle.node) {
            wanted.entry(slot).or_default().push(bundle);
        }
    }
    let mut freed: BTreeMap<Slot, Vec<Bundle>> = BTreeMap::new();
    for (slot, bundles) in lifted.iter().flat_map(|lifted| &lifted.bundles) {
        if wanted.contains_key(slot) {
            freed.entry(*slot).or_default().extend(bundles.iter().cloned());
        }
    }
    let kept = wanted.into_iter().filter_map(|(slot, wanted)| {
        let freed = freed.get(&slot).map_or(&[][..], Vec::as_slice);
        Some((slot, cluster.node(slot)?.keep_bundles(&wanted, freed)))
    });
    kept.collect()
}

/// What is kept for gangs that others were asked to end for, as far as those that end make room for them.
pub(crate) fn promises(cluster: &mut Cluster, waiting: &[Pending], ending: &[AttemptId]) -> Vec<Shadow> {
    let lifted: Vec<Lifted> = ending.iter().map(|&attempt| cluster.lift(attempt)).collect();
    let (mut taken, mut all, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
    for pending in waiting {
        let Some(bundles) = Search::new(cluster, &least(&pending.gang)).place() else { continue };
        let attempt = AttemptId { job: pending.job, number: TENTATIVE };
        if let Ok(slots) = cluster.take(attempt, &bundles) {
            taken.push((attempt, slots));
        }
        all.extend(bundles);
        jobs.push(pending.job);
    }
    for (attempt, slots) in taken.iter().rev() {
        cluster.give(*attempt, slots);
    }
    let kept = keep(cluster, &all, &lifted.iter().collect::<Vec<_>>());
    lifted.iter().rev().for_each(|lifted| cluster.put_back(lifted));
    // One list for all of them: what is freed is counted once. The others stand in it by name only.
    let mut kept = Some(kept);
    let shadows = jobs.into_iter().map(|job| Shadow { job, at: None, kept: kept.take().unwrap_or_default() });
    shadows.collect()
}

/// All that is kept from a gang.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keepers<'a> {
    pub(crate) shadows: Vec<&'a Shadow>,
    /// A gang that enough have passed: all it could use is kept.
    pub(crate) head: Option<Arc<GangSpec>>,
}

impl Keepers<'_> {
    pub(crate) fn keep_nothing(&self) -> bool {
        self.shadows.is_empty() && self.head.is_none()
    }
}

impl Keeper for Keepers<'_> {
    fn kept(&self, slot: Slot, node: &Node) -> Option<Kept> {
        let mut all: Option<Kept> = None;
        let shadows = self.shadows.iter().filter_map(|shadow| shadow.kept.get(&slot).cloned());
        for kept in shadows.chain(self.head.as_ref().and_then(|gang| could_use(gang, node))) {
            match &mut all {
                Some(all) => all.add(kept),
                None => all = Some(kept),
            }
        }
        all
    }
}

/// What a gang could use of a node once all that runs there is gone.
pub(crate) fn could_use(gang: &GangSpec, node: &Node) -> Option<Kept> {
    let some_rank = gang.bundles.is_empty() || gang.bundles.iter().any(|own| node.matches_rules(&own.labels));
    if !some_rank || !node.matches(gang) {
        return None;
    }
    let ranks = node.room(&gang.each, Ground::Empty).min(gang.workers.max);
    (ranks > 0).then(|| node.keep_for(&gang.each, u64::from(ranks)))
}
