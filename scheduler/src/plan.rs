//! One decision: which waiting gangs start now and where, and why the others wait.

use crate::bundle::{Bundle, Holder};
use crate::check::{check, feasible};
use crate::cluster::Cluster;
use crate::explain::{fits_now, plural, shortage};
use crate::index::Slot;
use crate::node::{Ground, Kept, Node};
use crate::place::{Keeper, Search};
use crate::queue::{Pending, Queue};
use crate::reason::{Reason, ReasonCode};
use phalanx_core::spec::GangSpec;
use phalanx_core::{AttemptId, JobId, Time};

/// The attempt number under which a plan tries placements out; no real attempt gets so far.
const TENTATIVE: u32 = u32::MAX;

/// What a site may set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// After so many gangs that were submitted later have started, what the first waiting gang could use is kept for it.
    pub max_bypass: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { max_bypass: 64 }
    }
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Gangs that start now, in order, with a bundle a rank.
    pub placements: Vec<(JobId, Vec<Bundle>)>,
    /// Why gangs wait that do not start; one that is not named waits for what it was last told.
    pub reasons: Vec<(JobId, Reason)>,
}

/// Decides what starts now. The cluster and the queue are afterwards as they were: the caller carries the plan out with
/// [`Queue::start`] and [`Cluster::hold`], and a plan on the state that results places nothing.
pub fn plan(now: Time, cluster: &mut Cluster, queue: &mut Queue) -> Plan {
    let mut plan = Plan::default();
    let mut head: Option<Head<'_>> = None;
    let mut tentative = Vec::new();
    let policy = queue.policy();
    for (place, pending) in queue.iter().enumerate() {
        if !feasible(cluster, &pending.gang) {
            plan.reasons.extend(check(cluster, &pending.gang).err().map(|reason| (pending.job, reason)));
            continue;
        }
        let keeper = head.as_ref().filter(|head| head.passed >= policy.max_bypass);
        let keeper: Option<&dyn Keeper> = keeper.map(|head| head as &dyn Keeper);
        let Some(bundles) = (Search { cluster, gang: &pending.gang, keeper }).place() else {
            let reason = why_waiting(cluster, pending, place, head.as_ref().map(|head| head.pending));
            plan.reasons.push((pending.job, reason));
            if head.is_none() {
                head = Some(Head { pending, passed: queue.passed(pending, policy.max_bypass) });
            }
            continue;
        };
        let attempt = AttemptId { job: pending.job, number: TENTATIVE };
        match cluster.hold(attempt, Holder::new(pending, now), &bundles) {
            Ok(()) => tentative.push(attempt),
            Err(problem) => unreachable!("a placement over what is free: {problem}"),
        }
        if let Some(head) = head.as_mut().filter(|head| head.pending.sequence < pending.sequence) {
            head.passed += 1;
        }
        plan.placements.push((pending.job, bundles));
    }
    for attempt in tentative {
        cluster.release(attempt);
    }
    name_winners(cluster, queue, &mut plan);
    plan
}

/// A gang that would fit had others not started in this very decision waits for their priority, not for resources.
fn name_winners(cluster: &Cluster, queue: &Queue, plan: &mut Plan) {
    if plan.placements.is_empty() {
        return;
    }
    for (job, reason) in &mut plan.reasons {
        let fits = |pending: &Pending| fits_now(cluster, &pending.gang);
        if reason.code == ReasonCode::WaitingResources && queue.get(*job).is_some_and(fits) {
            reason.code = ReasonCode::WaitingPriority;
        }
    }
}

/// Why a job waits, with the numbers of this moment; `None` when it is not in the queue or would start now.
pub fn explain(cluster: &Cluster, queue: &Queue, job: JobId) -> Option<Reason> {
    let pending = queue.get(job)?;
    if let Err(reason) = check(cluster, &pending.gang) {
        return Some(reason);
    }
    let mut ahead = queue.iter().take_while(|other| other.job != job);
    let head = ahead.find(|other| feasible(cluster, &other.gang) && !fits_now(cluster, &other.gang));
    let place = queue.iter().position(|other| other.job == job)?;
    if head.is_none() && fits_now(cluster, &pending.gang) {
        return None;
    }
    Some(why_waiting(cluster, pending, place, head))
}

/// The first gang that waits for resources; what it could use is kept for it once enough others have passed.
struct Head<'a> {
    pending: &'a Pending,
    passed: usize,
}

impl Keeper for Head<'_> {
    fn kept(&self, _: Slot, node: &Node) -> Option<Kept> {
        let gang: &GangSpec = &self.pending.gang;
        let could = node.matches(gang) && (gang.bundles.is_empty() || some_rank_matches(gang, node));
        let ranks = if could { node.room(&gang.each, Ground::Empty).min(gang.workers.max) } else { 0 };
        (ranks > 0).then(|| node.keep_for(&gang.each, u64::from(ranks)))
    }
}

fn some_rank_matches(gang: &GangSpec, node: &Node) -> bool {
    gang.bundles.iter().any(|bundle| node.matches_rules(&bundle.labels))
}

fn why_waiting(cluster: &Cluster, pending: &Pending, place: usize, head: Option<&Pending>) -> Reason {
    let kept_for = head.filter(|_| fits_now(cluster, &pending.gang));
    let (code, text, holders) = match kept_for {
        Some(head) => {
            let asks = crate::explain::asks(&pending.gang);
            let text = format!("{asks}; that is free, but kept for {}, which has waited longer", head.label);
            (ReasonCode::HeldForReservation, text, vec![head.job])
        }
        None => {
            let (text, holders) = shortage(cluster, &pending.gang);
            (ReasonCode::WaitingResources, text, holders)
        }
    };
    let before = match place {
        0 => "first in the queue".to_owned(),
        _ => format!("{} in the queue before it", plural(place as u64, "gang")),
    };
    let place = Some(place as u32 + 1);
    Reason { place, holders, ..Reason::new(code, format!("{text}; {before}")) }
}
