//! Elastic gangs that take what nobody who waits could use.

use crate::decide::{Decision, TENTATIVE};
use crate::index::Slot;
use crate::lanes::Discipline;
use crate::node::{Kept, Node};
use crate::place::{Keeper, Search};
use crate::queue::Class;
use crate::reason::ReasonCode;
use crate::reserve::could_use;
use phalanx_core::spec::{GangSpec, Workers};
use phalanx_core::{AttemptId, Time};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// No alarm is set further ahead, about 30,000 years.
const LONGEST_MICROS: f64 = 1e18;

/// Lets elastic gangs grow, and says when the next one may.
pub(crate) fn grow(decision: &mut Decision<'_>) {
    let mut growing: Vec<(Reverse<i32>, u64, AttemptId)> = Vec::new();
    let mut wake: Option<Time> = next_level(decision);
    for (attempt, holding) in decision.cluster.elastic() {
        let (holder, workers) = (&holding.holder, decision.cluster.bundles(attempt).len() as u32);
        let may = holder.started + decision.policy.resize_interval;
        let full = workers >= holder.gang.workers.max;
        if full || !holder.grows || attempt.number == TENTATIVE || decision.gives_way(attempt) {
            continue;
        }
        if may <= decision.now {
            growing.push((Reverse(holder.priority), holder.sequence, attempt));
        } else {
            wake = Some(wake.map_or(may, |wake| wake.min(may)));
        }
    }
    decision.plan.wake = wake;
    if growing.is_empty() {
        return;
    }
    growing.sort();
    let waiting = waiting(decision);
    for (_, _, attempt) in growing {
        grow_one(decision, attempt, &waiting);
    }
}

/// What those ask for who wait for resources.
fn waiting(decision: &Decision<'_>) -> Vec<Arc<GangSpec>> {
    let waits = |class: &&Class| {
        let code = class.blocked.map(|blocked| blocked.code);
        class.members.iter().any(|key| !decision.starts(key.3))
            && code.is_none_or(|code| !code.is_infeasible() && code != ReasonCode::WaitingQuota)
    };
    let classes = decision.queue.classes().map(|(_, class)| class);
    classes.filter(waits).map(|class| Arc::clone(&class.gang)).collect()
}

fn grow_one(decision: &mut Decision<'_>, attempt: AttemptId, waiting: &[Arc<GangSpec>]) {
    let Some(holding) = decision.cluster.holding(attempt) else { return };
    let (gang, slots) = (Arc::clone(&holding.holder.gang), holding.slots.clone());
    let workers = decision.cluster.bundles(attempt).len() as u32;
    let quota = decision.quota_to_grow(&holding.holder.queue, &gang);
    let most = gang.workers.max.min(workers.saturating_add(quota));
    if most <= workers {
        return;
    }
    let keeper = LeaveToWaiting { waiting, own: BTreeMap::new() };
    let own = slots.iter().filter_map(|&slot| Some((slot, keeper.kept(slot, decision.cluster.node(slot)?)?)));
    let keeper = LeaveToWaiting { waiting, own: own.collect() };
    let larger = GangSpec { workers: Workers { min: workers + 1, max: most }, ..(*gang).clone() };
    let lifted = decision.cluster.lift(attempt);
    let found = Search { keeper: Some(&keeper), ..Search::new(decision.cluster, &larger) }.place();
    let Some(bundles) = found else {
        decision.cluster.put_back(&lifted);
        return;
    };
    decision.replace(lifted, &bundles);
    decision.resize(attempt, bundles, None);
}

/// Keeps all that is free on a node which a waiting gang could use.
struct LeaveToWaiting<'a> {
    waiting: &'a [Arc<GangSpec>],
    /// What was free, before it was lifted, where the growing gang itself runs.
    own: BTreeMap<Slot, Kept>,
}

impl Keeper for LeaveToWaiting<'_> {
    fn kept(&self, slot: Slot, node: &Node) -> Option<Kept> {
        if let Some(kept) = self.own.get(&slot) {
            return Some(kept.clone());
        }
        let wanted = self.waiting.iter().any(|gang| could_use(gang, node));
        wanted.then(|| node.keep_all())
    }
}

/// When time alone next changes who may preempt a gang that runs in a queue of least attained service where others wait.
fn next_level(decision: &Decision<'_>) -> Option<Time> {
    let queues = decision.queue.lanes().filter(|(name, lane)| {
        !lane.is_empty()
            && decision.queue.config_ref(name).is_some_and(|config| config.discipline == Discipline::Las)
    });
    let names: Vec<&str> = queues.map(|(name, _)| name).collect();
    if names.is_empty() {
        return None;
    }
    let times = decision.cluster.preemptible().filter_map(|(attempt, holding)| {
        let holder = &holding.holder;
        if attempt.number == TENTATIVE || !names.contains(&holder.queue.as_str()) {
            return None;
        }
        let next = decision.policy.las_next(holding.served(decision.now), holder.preemptions)?;
        let micros = ((next - holder.attained) / holding.size() * 1e6).ceil();
        (micros < LONGEST_MICROS).then(|| holder.started + Duration::from_micros(micros as u64))
    });
    times.filter(|&at| at > decision.now).min()
}
