//! Who gives way to a waiting gang: elastic gangs shrink first, then whole gangs end, those that lose the least work.

use crate::amounts::Amounts;
use crate::cluster::{Cluster, Holding, Lifted};
use crate::decide::Decision;
use crate::lanes::{Discipline, QueueConfig};
use crate::outlook::Outlook;
use crate::place::{Keeper, Search};
use crate::queue::{Pending, Queue};
use crate::reserve::{could_use, shadow};
use phalanx_core::{AttemptId, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Gangs that are weighed against one another; of more, those that lose least.
const CANDIDATES: usize = 256;
/// Up to so many are weighed in every combination, as far as the next bound allows.
const EXACT_CANDIDATES: usize = 24;
/// Combinations tried before the best found so far is taken.
const COMBINATIONS: usize = 4000;
/// Nodes on which shrinking is tried one by one.
const SHRINK_NODES: usize = 64;

/// What ending an attempt loses, the least first; of equals the one that started last.
type Weighed = (f64, Reverse<Time>, Reverse<AttemptId>);

/// A gang that may end for another.
struct Candidate {
    attempt: AttemptId,
    queue: String,
    /// GPU-seconds (CPU-seconds) of work that would be lost, in thousandths.
    lost: f64,
}

/// When a gang has the room that others make for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomMade {
    /// Never: nobody who may give way would let it in.
    None,
    /// At once: gangs that start in this very plan start with fewer workers.
    Now,
    /// Once those who run have given way.
    Later,
}

/// Finds who gives way so that a gang fits, and notes it in the plan.
pub(crate) fn make_room(decision: &mut Decision<'_>, pending: &Pending) -> RoomMade {
    let shrinkable = shrinkable(decision, pending);
    let candidates = candidates(decision, pending);
    if shrinkable.is_empty() && candidates.is_empty() {
        return RoomMade::None;
    }
    let keepers = decision.keepers_against(pending);
    let shadows: Vec<_> = keepers.shadows.into_iter().cloned().collect();
    let owned = crate::reserve::Keepers { shadows: shadows.iter().collect(), head: keepers.head };
    let mut room = Room {
        cluster: &mut *decision.cluster,
        pending,
        config: decision.queue.config_ref(&pending.queue),
        keepers: &owned,
        shrunk: Vec::new(),
        ended: Vec::new(),
    };
    let found = room.shrink(&shrinkable) || room.end(&candidates, decision.queue, &shrinkable);
    if found {
        room.give_back_spare();
    }
    let (shrunk, ended) = (std::mem::take(&mut room.shrunk), std::mem::take(&mut room.ended));
    // What only starts in this plan gives its part back at once.
    let running = shrunk.iter().chain(&ended).filter(|lifted| is_real(lifted.attempt));
    let lifted: Vec<&Lifted> = running.collect();
    let keeper = (!owned.keep_nothing()).then_some(&owned as &dyn Keeper);
    let kept = found.then(|| shadow(decision.cluster, pending.job, &pending.gang, &lifted, keeper)).flatten();
    let gone: BTreeSet<AttemptId> = ended.iter().map(|lifted| lifted.attempt).collect();
    let smaller: Vec<(AttemptId, Vec<_>)> = shrunk
        .iter()
        .filter(|lifted| {
            !gone.contains(&lifted.attempt) && lifted.bundles.iter().any(|(_, bundles)| !bundles.is_empty())
        })
        .map(|lifted| (lifted.attempt, remaining(decision.cluster, lifted.attempt)))
        .collect();
    for lifted in ended.iter().rev().chain(shrunk.iter().rev()) {
        decision.cluster.put_back(lifted);
    }
    let Some(kept) = kept else { return RoomMade::None };
    let (running, starting): (Vec<_>, Vec<_>) =
        smaller.into_iter().partition(|(attempt, _)| is_real(*attempt));
    for (attempt, bundles) in starting {
        decision.start_smaller(attempt, bundles);
    }
    if running.is_empty() && gone.is_empty() {
        return RoomMade::Now;
    }
    decision.promised.push(kept);
    for (attempt, bundles) in running {
        decision.resize(attempt, bundles, Some(pending.job));
    }
    for attempt in gone {
        decision.evict(attempt, pending.job);
    }
    RoomMade::Later
}

/// What an attempt still holds, its ranks counted anew.
fn remaining(cluster: &Cluster, attempt: AttemptId) -> Vec<crate::Bundle> {
    let mut bundles: Vec<crate::Bundle> = cluster.bundles(attempt).into_iter().cloned().collect();
    for (rank, bundle) in bundles.iter_mut().enumerate() {
        bundle.rank = rank as u32;
    }
    bundles
}

/// Gangs of lower priority, running or about to, above their least number of workers, and how many they can spare.
fn shrinkable(decision: &Decision<'_>, pending: &Pending) -> Vec<(AttemptId, u32)> {
    let running = decision.cluster.elastic();
    let lower = running.filter(|(attempt, holding)| {
        holding.holder.priority < pending.priority && !decision.gives_way(*attempt)
    });
    let mut spare: Vec<(i32, Reverse<Time>, AttemptId, u32)> = lower
        .filter_map(|(attempt, holding)| {
            let workers = decision.cluster.bundles(attempt).len() as u32;
            let spare = workers.checked_sub(holding.holder.gang.workers.min).filter(|&spare| spare > 0)?;
            Some((holding.holder.priority, Reverse(holding.holder.started), attempt, spare))
        })
        .collect();
    spare.sort();
    spare.into_iter().map(|(_, _, attempt, spare)| (attempt, spare)).collect()
}

fn is_real(attempt: AttemptId) -> bool {
    attempt.number != crate::decide::TENTATIVE
}

/// Gangs that may end for this one, those that lose the least work first.
fn candidates(decision: &Decision<'_>, pending: &Pending) -> Vec<Candidate> {
    let queue = &*decision.queue;
    let own = queue.config_ref(&pending.queue);
    let las = own.is_some_and(|config| config.discipline == Discipline::Las);
    let reclaims = own.is_some_and(|config| {
        let held = decision.cluster.held_by(&pending.queue);
        config.within_guarantee(&held, &pending.gang, pending.gang.workers.min)
    });
    if !las && !reclaims && decision.cluster.lowest_priority().is_none_or(|lowest| lowest >= pending.priority)
    {
        return Vec::new();
    }
    let level = queue.level(pending);
    let may = |holding: &Holding| {
        let (holder, same_queue) = (&holding.holder, holding.holder.queue == pending.queue);
        let served = || holding.served(decision.now);
        holder.priority < pending.priority
            || (reclaims && !same_queue)
            || (las
                && same_queue
                && holder.priority == pending.priority
                && decision.policy.las_may_preempt(served(), holder.preemptions)
                && decision.policy.las_level(served()) > level)
    };
    let running = decision.cluster.preemptible();
    let weighed = running
        .filter(|(attempt, holding)| is_real(*attempt) && may(holding) && !decision.gives_way(*attempt));
    let lost = |holding: &Holding| holding.holder.unsaved_seconds(decision.now) * holding.size();
    let mut weighed: Vec<Weighed> = weighed
        .map(|(attempt, holding)| (lost(holding), Reverse(holding.holder.started), Reverse(attempt)))
        .collect();
    weighed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    // What ends must be able to help: it holds something where the gang could run.
    let helps = |slot: &u32| decision.cluster.node(*slot).is_some_and(|node| could_use(&pending.gang, node));
    let candidate = |(lost, _, Reverse(attempt)): Weighed| {
        let holding = decision.cluster.holding(attempt).filter(|holding| holding.slots.iter().any(helps))?;
        Some(Candidate { attempt, queue: holding.holder.queue.clone(), lost })
    };
    weighed.into_iter().filter_map(candidate).take(CANDIDATES).collect()
}

/// A cluster from which gangs are lifted until another one fits.
struct Room<'a> {
    cluster: &'a mut Cluster,
    pending: &'a Pending,
    config: Option<&'a QueueConfig>,
    keepers: &'a crate::reserve::Keepers<'a>,
    shrunk: Vec<Lifted>,
    ended: Vec<Lifted>,
}

impl Room<'_> {
    fn fits(&self) -> bool {
        let (queue, gang) = (&self.pending.queue, &self.pending.gang);
        let within = |config: &QueueConfig| {
            config.quota.is_empty() || config.has_room(&self.cluster.held_by(queue), gang, gang.workers.min)
        };
        if !self.config.is_none_or(within) {
            return false;
        }
        let keeper = (!self.keepers.keep_nothing()).then_some(self.keepers as &dyn Keeper);
        Search { keeper, ..Search::new(self.cluster, &self.pending.gang) }.fits()
    }

    /// Takes spare workers of elastic gangs: their last ranks, or else those on one node after the other.
    fn shrink(&mut self, shrinkable: &[(AttemptId, u32)]) -> bool {
        if shrinkable.is_empty() {
            return false;
        }
        self.lift_spare(shrinkable, None);
        if self.fits() {
            return true;
        }
        let mut nodes: BTreeSet<u32> = BTreeSet::new();
        for (attempt, _) in shrinkable {
            nodes.extend(
                self.cluster.holding(*attempt).into_iter().flat_map(|holding| holding.slots.iter().copied()),
            );
        }
        for slot in nodes.into_iter().take(SHRINK_NODES) {
            self.put_back_spare();
            self.lift_spare(shrinkable, Some(slot));
            if self.fits() {
                return true;
            }
        }
        self.put_back_spare();
        false
    }

    fn lift_spare(&mut self, shrinkable: &[(AttemptId, u32)], first: Option<u32>) {
        for &(attempt, spare) in shrinkable {
            let name = first.and_then(|slot| self.cluster.node(slot)).map(|node| node.name.clone());
            let own_labels =
                self.cluster.holder(attempt).is_some_and(|holder| !holder.gang.bundles.is_empty());
            let mut ranks: Vec<(bool, Reverse<u32>)> = self
                .cluster
                .bundles(attempt)
                .into_iter()
                .map(|bundle| (own_labels || Some(&bundle.node) != name.as_ref(), Reverse(bundle.rank)))
                .collect();
            ranks.sort();
            let ranks = ranks.into_iter().take(spare as usize).map(|(_, Reverse(rank))| rank).collect();
            let lifted = self.cluster.lift_ranks(attempt, &ranks);
            self.shrunk.push(lifted);
        }
    }

    fn put_back_spare(&mut self) {
        for lifted in std::mem::take(&mut self.shrunk).iter().rev() {
            self.cluster.put_back(lifted);
        }
    }

    /// Ends whole gangs besides.
    fn end(&mut self, candidates: &[Candidate], queue: &Queue, shrinkable: &[(AttemptId, u32)]) -> bool {
        self.lift_spare(shrinkable, None);
        let Some(mut best) = self.greedy(candidates, queue) else { return false };
        if candidates.len() <= EXACT_CANDIDATES {
            let cost = best.iter().map(|&at| candidates[at].lost).sum();
            let mut search = Exact { candidates, queue, best: (cost, best), tried: 0 };
            search.go(self, 0, 0.0, &mut Vec::new());
            best = search.best.1;
        } else if let Some(single) = self.single(candidates, queue, &best) {
            best = vec![single];
        }
        for at in best {
            let lifted = self.cluster.lift(candidates[at].attempt);
            self.ended.push(lifted);
        }
        true
    }

    /// The first candidate with which all before it leave room enough; without it nobody need be moved to see that no
    /// number of them helps.
    fn enough(&self, candidates: &[Candidate]) -> Option<usize> {
        let keeper = (!self.keepers.keep_nothing()).then_some(self.keepers as &dyn Keeper);
        let mut outlook = Outlook::new(Search { keeper, ..Search::new(self.cluster, &self.pending.gang) });
        // It may be the quota alone that is short.
        if outlook.suffices() {
            return Some(0);
        }
        candidates.iter().position(|candidate| outlook.give_back(candidate.attempt))
    }

    /// The cheapest one after the other until the gang fits, less those that prove needless, the dearest first.
    fn greedy(&mut self, candidates: &[Candidate], queue: &Queue) -> Option<Vec<usize>> {
        let mut chosen: Vec<usize> = Vec::new();
        let mut lifted: BTreeMap<usize, Lifted> = BTreeMap::new();
        let mut fits = false;
        let enough = self.enough(candidates)?;
        for (at, candidate) in candidates.iter().enumerate() {
            if !allowed(self.cluster, self.pending, queue, candidate) {
                continue;
            }
            lifted.insert(at, self.cluster.lift(candidate.attempt));
            chosen.push(at);
            fits = at >= enough && self.fits();
            if fits {
                break;
            }
        }
        for at in chosen.clone().into_iter().rev().filter(|_| fits) {
            if let Some(back) = lifted.get(&at) {
                self.cluster.put_back(back);
                if self.fits() {
                    lifted.remove(&at);
                    chosen.retain(|&other| other != at);
                } else {
                    let again = self.cluster.lift(candidates[at].attempt);
                    lifted.insert(at, again);
                }
            }
        }
        lifted.values().rev().for_each(|lifted| self.cluster.put_back(lifted));
        fits.then_some(chosen)
    }

    /// One gang alone that is cheaper than the several found.
    fn single(&mut self, candidates: &[Candidate], queue: &Queue, found: &[usize]) -> Option<usize> {
        let cost: f64 = found.iter().map(|&at| candidates[at].lost).sum();
        let cheaper = (0..candidates.len()).filter(|&at| found.len() > 1 && candidates[at].lost < cost);
        cheaper.into_iter().find(|&at| {
            allowed(self.cluster, self.pending, queue, &candidates[at]) && {
                let lifted = self.cluster.lift(candidates[at].attempt);
                let fits = self.fits();
                self.cluster.put_back(&lifted);
                fits
            }
        })
    }

    /// Gives back, rank by rank, what shrinking took too much.
    fn give_back_spare(&mut self) {
        for at in (0..self.shrunk.len()).rev() {
            for place in (0..self.shrunk[at].bundles.len()).rev() {
                while let Some(bundle) = self.shrunk[at].bundles[place].1.pop() {
                    let attempt = self.shrunk[at].attempt;
                    let (slot, rank) = (self.shrunk[at].bundles[place].0, bundle.rank);
                    let one = Lifted { attempt, bundles: vec![(slot, vec![bundle.clone()])] };
                    if !self.ended.iter().any(|ended| ended.attempt == attempt) {
                        self.cluster.put_back(&one);
                        if self.fits() {
                            continue;
                        }
                        self.cluster.lift_ranks(attempt, &BTreeSet::from([rank]));
                    }
                    self.shrunk[at].bundles[place].1.push(bundle);
                    break;
                }
            }
        }
    }
}

/// Whether a gang may end besides those that are lifted: another queue keeps its guarantee.
fn allowed(cluster: &Cluster, pending: &Pending, queue: &Queue, candidate: &Candidate) -> bool {
    if candidate.queue == pending.queue {
        return true;
    }
    let Some(config) = queue.config_ref(&candidate.queue).filter(|config| !config.guaranteed.is_empty())
    else {
        return true;
    };
    let lost = Amounts::of_bundles(cluster.bundles(candidate.attempt));
    config.keeps_guarantee(&cluster.held_by(&candidate.queue), &lost)
}

/// Every combination that could lose less than the best known, within a bound.
struct Exact<'a> {
    candidates: &'a [Candidate],
    queue: &'a Queue,
    best: (f64, Vec<usize>),
    tried: usize,
}

impl Exact<'_> {
    fn go(&mut self, room: &mut Room<'_>, from: usize, cost: f64, chosen: &mut Vec<usize>) {
        for at in from..self.candidates.len() {
            self.tried += 1;
            let cost = cost + self.candidates[at].lost;
            let fewer = cost == self.best.0 && chosen.len() + 1 < self.best.1.len();
            if self.tried > COMBINATIONS || !(cost < self.best.0 || fewer) {
                return;
            }
            if !allowed(room.cluster, room.pending, self.queue, &self.candidates[at]) {
                continue;
            }
            let lifted = room.cluster.lift(self.candidates[at].attempt);
            chosen.push(at);
            if room.fits() {
                self.best = (cost, chosen.clone());
            } else {
                self.go(room, at + 1, cost, chosen);
            }
            chosen.pop();
            room.cluster.put_back(&lifted);
        }
    }
}
