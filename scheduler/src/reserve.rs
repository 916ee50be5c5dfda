//! What is kept for gangs that wait, so that others may pass them only where they do no harm.
//!
//! The first gang that does not fit gets a reservation at the earliest time by the running gangs' time limits (EASY
//! backfill: Lifka, JSSPP'95). Where these give no time, what it could use is kept for it once enough have passed.

use crate::bundle::Bundle;
use crate::cluster::{Cluster, Lifted};
use crate::decide::TENTATIVE;
use crate::index::Slot;
use crate::node::{Ground, Kept, NOTHING, Node};
use crate::outlook::Outlook;
use crate::place::{Keeper, Search};
use crate::queue::Pending;
use phalanx_core::spec::{BundleSpec, GangSpec};
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
    pub(crate) kept: BTreeMap<Slot, Kept>,
}

/// The reservation of a gang by the time limits of those that run; `None` where these give no time.
pub(crate) fn reservation(now: Time, cluster: &Cluster, job: JobId, gang: &GangSpec) -> Option<Shadow> {
    let gang = least(gang);
    let asked = cluster.ending().map(|attempt| (now, attempt));
    let limits =
        cluster.ends().filter(|(_, attempt)| cluster.holding(*attempt).is_some_and(|held| !held.ending));
    let mut outlook = Outlook::new(Search::new(cluster, &gang));
    for (at, attempt) in asked.chain(limits).take(RESERVATION_ENDS) {
        if outlook.give_back(attempt)
            && let Some(kept) = outlook.kept()
        {
            return Some(Shadow { job, at: Some(at.max(now)), kept });
        }
    }
    None
}

/// What is kept of what is free now, where the gang goes once `lifted` (off their nodes at this moment) are gone.
pub(crate) fn shadow(
    cluster: &Cluster,
    job: JobId,
    gang: &GangSpec,
    lifted: &[&Lifted],
    keeper: Option<&dyn Keeper>,
) -> Option<Shadow> {
    let bundles = Search { cluster, gang: &least(gang), keeper }.place()?;
    Some(Shadow { job, at: None, kept: keep(cluster, &bundles, &given_back(cluster, lifted)) })
}

fn least(gang: &GangSpec) -> GangSpec {
    let workers = phalanx_core::spec::Workers { max: gang.workers.min, ..gang.workers };
    GangSpec { workers, ..gang.clone() }
}

/// By node: what bundles off their nodes held there.
fn given_back(cluster: &Cluster, lifted: &[&Lifted]) -> BTreeMap<Slot, Kept> {
    let mut given: BTreeMap<Slot, Kept> = BTreeMap::new();
    for (slot, bundles) in lifted.iter().flat_map(|lifted| &lifted.bundles) {
        if let Some(node) = cluster.node(*slot) {
            let sum = given.entry(*slot).or_default();
            bundles.iter().for_each(|bundle| node.add_to(sum, bundle));
        }
    }
    given
}

pub(crate) fn keep(
    cluster: &Cluster,
    bundles: &[Bundle],
    given: &BTreeMap<Slot, Kept>,
) -> BTreeMap<Slot, Kept> {
    let mut wanted: BTreeMap<Slot, Vec<&Bundle>> = BTreeMap::new();
    for bundle in bundles {
        if let Some(slot) = cluster.slot(&bundle.node) {
            wanted.entry(slot).or_default().push(bundle);
        }
    }
    let kept = wanted.into_iter().filter_map(|(slot, wanted)| {
        let given = given.get(&slot).unwrap_or(&NOTHING);
        Some((slot, cluster.node(slot)?.keep_bundles(&wanted, given)))
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
    let kept = keep(cluster, &all, &given_back(cluster, &lifted.iter().collect::<Vec<_>>()));
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
        let head = self.head.as_ref().filter(|gang| could_use(gang, node));
        let for_head = head.map(|gang| {
            let ranks = node.room(&gang.each, Ground::Empty).min(gang.workers.max);
            node.keep_for(&gang.each, u64::from(ranks))
        });
        for kept in shadows.chain(for_head) {
            match &mut all {
                Some(all) => all.add(kept),
                None => all = Some(kept),
            }
        }
        all
    }
}

/// Whether a rank of a gang could run on a node once all that runs there is gone.
pub(crate) fn could_use(gang: &GangSpec, node: &Node) -> bool {
    let allows = |own: &BundleSpec| node.matches_rules(&own.labels);
    node.room(&gang.each, Ground::Empty) > 0
        && node.matches(gang)
        && (gang.bundles.is_empty() || gang.bundles.iter().any(allows))
}
