//! Standing placement groups: made, reserved in two phases, repaired when a node is lost, removed with what runs in them.
//!
//! A round of reservation asks for what is missing of a group. Phase one asks every node of the round to keep its place
//! (`Reserve`); once all have said so the second phase makes the places stand (`Keep`). A refusal, a removal or a death in
//! either phase gives every place of an unfinished round back (`Stop`, answered by `Gone`), and the round is asked for
//! anew. A place that stands is lost alone.

use super::{Controller, RETRY_FIRST, RETRY_LONGEST, Refusal};
use crate::protocol::{AgentEvent, Command, Happening};
use phalanx_core::{
    AttemptId, Ending, Group, GroupBundle, GroupName, GroupSpec, GroupState, Job, JobId, NodeName, Reason,
    Seat, SeatPhase, Time,
};
use phalanx_scheduler::{Bundle, Cluster, Holder, Pending, Queue, Standing};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A group that is not removed yet, with what need not outlive the process.
#[derive(Clone, Debug)]
pub(super) struct LiveGroup {
    pub(super) group: Group,
    pub(super) ground: Standing,
    /// Not placed again before this time.
    retry_at: Option<Time>,
    /// Rounds in a row that failed.
    fruitless: u32,
    /// Jobs of it that are not terminal.
    pub(super) jobs: BTreeSet<JobId>,
}

impl LiveGroup {
    fn new(group: Group, queue: &Queue) -> Self {
        let ground = Standing::new(Arc::new(group.spec.gang.clone()), queue.policy());
        LiveGroup { group, ground, retry_at: None, fruitless: 0, jobs: BTreeSet::new() }
    }

    /// A round is under way.
    fn is_reserving(&self) -> bool {
        self.group.seats.iter().any(|seat| matches!(seat.phase, SeatPhase::Asked | SeatPhase::Reserved))
    }

    fn bundles(&self, seat: &Seat) -> Vec<Bundle> {
        let bundle = |bundle: &GroupBundle| Bundle {
            rank: bundle.rank,
            node: seat.node.clone(),
            gpus: bundle.gpus.clone(),
            takes: self.group.spec.gang.each.clone(),
        };
        seat.bundles.iter().map(bundle).collect()
    }

    /// What the scheduler knows of it while it waits.
    fn pending(&self, around: &Cluster) -> Pending {
        let group = &self.group;
        let gang = self.ground.missing_gang(around);
        let mut pending = Pending::new(group.id, group.created, group.id.0, gang);
        pending.label = format!("placement group `{}`", group.spec.name);
        pending.queue = group.spec.queue.clone();
        pending.priority = group.spec.priority;
        pending.preemptible = false;
        pending.first = group.state == GroupState::Repairing;
        pending
    }
}

/// All groups, and their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub(super) live: BTreeMap<JobId, LiveGroup>,
    names: BTreeMap<GroupName, JobId>,
    /// Groups in which something changed that may let a waiting gang start.
    pub(super) replan: BTreeSet<JobId>,
    /// Groups as they were before the requests that are not committed yet.
    undo: Vec<(JobId, Option<LiveGroup>)>,
}

impl Groups {
    pub(super) fn get(&self, id: JobId) -> Option<&LiveGroup> {
        self.live.get(&id)
    }

    fn named(&self, name: &GroupName) -> Option<&LiveGroup> {
        self.live.get(self.names.get(name)?)
    }

    pub(super) fn accept(&mut self) {
        self.undo.clear();
    }
}

impl Controller {
    /// Goes on with a group from the store: it holds what it held until its agents have spoken.
    pub(super) fn restore_group(&mut self, group: Group) {
        let id = group.id;
        if group.state != GroupState::Removing {
            self.groups.names.insert(group.spec.name.clone(), id);
        }
        let mut live = LiveGroup::new(group, &self.queue);
        let pending = live.pending(&self.cluster);
        let rounds: BTreeSet<u32> = live.group.seats.iter().map(|seat| seat.round).collect();
        for round in rounds {
            let seats = live.group.seats.iter().filter(|seat| seat.round == round);
            let bundles: Vec<Bundle> = seats.flat_map(|seat| live.bundles(seat)).collect();
            let holder = Holder::new(&pending, live.group.created);
            let held = self.cluster.hold(live.group.reservation(round), holder, &bundles);
            // The node records are stored with the placements, so what was held then fits now.
            assert!(held.is_ok(), "{id} does not fit where it was placed: {held:?}");
        }
        let kept = live.group.seats.iter().filter(|seat| seat.phase == SeatPhase::Kept);
        let kept: Vec<Bundle> = kept.flat_map(|seat| live.bundles(seat)).collect();
        let displaced = live.ground.seat(&self.cluster, kept);
        assert!(displaced.is_empty(), "nothing runs in {id} yet");
        let unfinished = live.group.state != GroupState::Ready;
        if unfinished {
            // There may have been a round that is not stored.
            live.group.rounds += 1;
            self.effects.groups.push(live.group.clone());
        }
        self.groups.live.insert(id, live);
        self.sync_group(id);
    }

    /// Every group that is not removed.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.live.values().map(|live| &live.group)
    }

    /// Whether a group could be made here at all; an equal one of the same name is answered.
    pub fn validate_group(&self, spec: &GroupSpec) -> Result<Option<Group>, Refusal> {
        if self.stopping {
            return Err(Refusal::ShuttingDown);
        }
        if let Some(LiveGroup { group, .. }) = self.groups.named(&spec.name) {
            let same = group.spec == *spec;
            return if same { Ok(Some(group.clone())) } else { Err(Refusal::GroupExists(spec.name.clone())) };
        }
        self.check_queue(&spec.queue, &spec.gang)?;
        if !self.nodes.is_empty() {
            let check = phalanx_scheduler::check(&self.cluster, &spec.gang);
            check.map_err(|reason| Refusal::Infeasible(Reason::new(reason.code.as_str(), reason.text)))?;
        }
        Ok(None)
    }

    /// The group that a request would make, with the id 0.
    pub fn preview_group(now: Time, spec: GroupSpec) -> Group {
        Group {
            id: JobId(0),
            spec,
            state: GroupState::Pending,
            reason: Reason::new("submitted", "waits for the scheduler's next decision"),
            created: now,
            ready: None,
            rounds: 0,
            seats: Vec::new(),
        }
    }

    /// Makes a group; one of the same name and content is answered as it is.
    pub fn create_group(&mut self, now: Time, spec: GroupSpec) -> Result<Group, Refusal> {
        if let Some(same) = self.validate_group(&spec)? {
            return Ok(same);
        }
        let group = Group { id: JobId(self.next_job), ..Controller::preview_group(now, spec) };
        let id = group.id;
        self.next_job += 1;
        self.groups.undo.push((id, None));
        self.groups.names.insert(group.spec.name.clone(), id);
        self.groups.live.insert(id, LiveGroup::new(group.clone(), &self.queue));
        self.save_group(id);
        self.sync_group(id);
        Ok(group)
    }

    /// Removes a group and ends what runs in it; `None` where there is none (any more).
    pub fn remove_group(&mut self, now: Time, name: &GroupName) -> Result<Option<Group>, Refusal> {
        let Some(id) = self.groups.names.get(name).copied() else { return Ok(None) };
        let Some(before) = self.groups.get(id).cloned() else { return Ok(None) };
        self.groups.undo.push((id, Some(before)));
        self.groups.names.remove(name);
        let jobs: Vec<JobId> = self.jobs_in(id).map(|job| job.id).collect();
        for job in jobs {
            self.cancel_because(now, job, &format!("its placement group `{name}` was removed"))?;
        }
        self.group_state(id, GroupState::Removing, Reason::new("removing", "what runs in it is being ended"));
        let removed = self.groups.get(id).map(|live| live.group.clone());
        self.wind_down(id);
        Ok(removed)
    }

    /// The requests could not be committed.
    pub(super) fn roll_back_groups(&mut self) {
        while let Some((id, before)) = self.groups.undo.pop() {
            match before {
                Some(live) => {
                    self.groups.names.insert(live.group.spec.name.clone(), id);
                    self.groups.live.insert(id, live);
                    self.sync_group(id);
                }
                None => {
                    if let Some(live) = self.groups.live.remove(&id) {
                        self.groups.names.remove(&live.group.spec.name);
                    }
                    self.queue.remove(id);
                }
            }
        }
    }

    /// The group that a job of this specification would run in.
    pub(super) fn group_for(&self, name: &GroupName) -> Result<&LiveGroup, Refusal> {
        self.groups.named(name).ok_or_else(|| Refusal::UnknownGroup(name.clone()))
    }

    pub(super) fn jobs_in(&self, group: JobId) -> impl Iterator<Item = &Job> {
        let jobs = self.groups.get(group).into_iter().flat_map(|live| &live.jobs);
        jobs.filter_map(|id| Some(&self.jobs.get(id)?.job))
    }

    /// The ground that a job's gang is placed on; none where its group is gone.
    pub(super) fn ground(&mut self, group: Option<JobId>) -> Option<(&mut Cluster, &mut Queue)> {
        match group {
            None => Some((&mut self.cluster, &mut self.queue)),
            Some(id) => {
                let live = self.groups.live.get_mut(&id)?;
                Some((&mut live.ground.cluster, &mut live.ground.queue))
            }
        }
    }

    /// The same, to be looked at.
    pub(super) fn ground_seen(&self, group: Option<JobId>) -> Option<(&Cluster, &Queue)> {
        match group {
            None => Some((&self.cluster, &self.queue)),
            Some(id) => self.groups.get(id).map(|live| (&live.ground.cluster, &live.ground.queue)),
        }
    }

    /// Why a job waits that waits for its group; none where the group stands.
    pub(super) fn waits_for_group(&self, group: Option<JobId>) -> Option<Reason> {
        let LiveGroup { group, ground, .. } = self.groups.get(group?)?;
        if ground.is_placed() {
            return None;
        }
        let (name, why) = (&group.spec.name, &group.reason.text);
        let text = format!("waits for its placement group `{name}`, which is {}: {why}", group.state);
        Some(Reason::new(
            if group.reason.code.is_empty() { "waiting_resources" } else { &group.reason.code },
            text,
        ))
    }

    fn save_group(&mut self, id: JobId) {
        if let Some(live) = self.groups.get(id) {
            self.effects.groups.push(live.group.clone());
        }
    }

    fn group_state(&mut self, id: JobId, state: GroupState, reason: Reason) {
        if let Some(LiveGroup { group, .. }) = self.groups.live.get_mut(&id) {
            (group.state, group.reason) = (state, reason);
            self.save_group(id);
        }
    }

    pub(super) fn group_reason(&mut self, id: JobId, reason: &Reason) {
        if let Some(LiveGroup { group, .. }) = self.groups.live.get_mut(&id) {
            group.reason = reason.clone();
        }
        let waiting = self.jobs_in(id).filter(|job| job.state.is_waiting()).map(|job| job.id);
        for job in waiting.collect::<Vec<_>>() {
            self.say_group_waits(job);
        }
    }

    /// Tells a job that it waits for its group, where that is so.
    pub(super) fn say_group_waits(&mut self, id: JobId) {
        let Some(reason) = self.jobs.get(&id).and_then(|live| self.waits_for_group(live.job.group)) else {
            return;
        };
        if let Some(live) = self.jobs.get_mut(&id) {
            live.job.reason = reason.clone();
            self.effects.reasons.push((id, reason));
        }
    }

    /// Makes the queue say what the group says: one with something missing is in it, unless a round is under way.
    fn sync_group(&mut self, id: JobId) {
        self.queue.remove(id);
        let Some(live) = self.groups.get(id) else { return };
        let asks = matches!(live.group.state, GroupState::Pending | GroupState::Repairing);
        if asks && live.retry_at.is_none() && !live.is_reserving() && !live.ground.missing().is_empty() {
            let pending = live.pending(&self.cluster);
            self.queue.insert(pending);
        }
        self.replan = true;
    }

    /// A decision for a group: its bundles are held, and every node is asked to keep its place.
    pub(super) fn place_group(&mut self, now: Time, id: JobId, bundles: Vec<Bundle>) {
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        let bundles = live.ground.as_missing(bundles);
        let mut seats: BTreeMap<NodeName, Vec<GroupBundle>> = BTreeMap::new();
        for Bundle { rank, node, gpus, .. } in &bundles {
            seats.entry(node.clone()).or_default().push(GroupBundle { rank: *rank, gpus: gpus.clone() });
        }
        live.group.rounds += 1;
        let round = live.group.rounds;
        let attempt = live.group.reservation(round);
        let nodes: Vec<NodeName> = seats.keys().cloned().collect();
        for (node, bundles) in seats {
            let incarnation =
                self.nodes.get(&node).map(|node| node.incarnation().to_owned()).unwrap_or_default();
            live.group.seats.push(Seat { round, node, incarnation, phase: SeatPhase::Asked, bundles });
        }
        let Some(pending) = self.queue.start(id) else { return };
        let held = self.cluster.hold(attempt, Holder::new(&pending, now), &bundles);
        assert!(held.is_ok(), "the scheduler placed {attempt} over what is free: {held:?}");
        let (state, count) = (live.group.state, nodes.len());
        let state = if state == GroupState::Pending { GroupState::Reserving } else { state };
        let text = format!(
            "placed; {count} node{} asked to keep the places",
            if count == 1 { " is" } else { "s are" }
        );
        // Not stored by itself: a place that is asked for promises nothing. A service that starts again gives back what it
        // finds kept without a record, and asks under another number.
        (live.group.state, live.group.reason) = (state, Reason::new("reserving", text));
        for node in nodes {
            self.send(&node, Command::Reserve { attempt, wants_master_port: false });
        }
    }

    /// What an agent says of a group's place.
    pub(super) fn group_happened(&mut self, node: &NodeName, event: &AgentEvent) {
        let (id, round) = (event.attempt.job, event.attempt.number);
        let Some(phase) = self.seat(id, round, node).map(|seat| seat.phase) else { return };
        match (&event.what, phase) {
            (Happening::Reserved { .. }, SeatPhase::Asked) => {
                self.set_phase(id, round, node, SeatPhase::Reserved);
                self.conclude(event.time, id, round);
            }
            (Happening::Refused { message }, phase) if phase.holds() => {
                self.lose(
                    event.time,
                    id,
                    round,
                    node,
                    &format!("{node} could not keep its place: {message}"),
                );
            }
            (Happening::Gone { .. }, _) => self.seat_gone(event.time, id, round, node),
            _ => {}
        }
    }

    /// The agent has nothing of a place (any more).
    pub(super) fn seat_gone(&mut self, at: Time, id: JobId, round: u32, node: &NodeName) {
        self.lose(at, id, round, node, &format!("{node} gave its place up"));
        self.set_phase(id, round, node, SeatPhase::Gone);
        self.save_group(id);
        self.sweep_group(id);
    }

    pub(super) fn seat(&self, id: JobId, round: u32, node: &NodeName) -> Option<&Seat> {
        self.groups.get(id)?.group.seats.iter().find(|seat| seat.round == round && seat.node == *node)
    }

    fn set_phase(&mut self, id: JobId, round: u32, node: &NodeName, phase: SeatPhase) {
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        let seats = live.group.seats.iter_mut();
        seats.filter(|seat| seat.round == round && seat.node == *node).for_each(|seat| seat.phase = phase);
    }

    /// The second phase, once every node of the round keeps its place.
    fn conclude(&mut self, at: Time, id: JobId, round: u32) {
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        let of_round = |seat: &&Seat| seat.round == round;
        if !live.group.seats.iter().filter(of_round).all(|seat| seat.phase == SeatPhase::Reserved) {
            return;
        }
        let attempt = live.group.reservation(round);
        let bundles: Vec<Bundle> =
            live.group.seats.iter().filter(of_round).flat_map(|seat| live.bundles(seat)).collect();
        let mut nodes = Vec::new();
        for seat in live.group.seats.iter_mut().filter(|seat| seat.round == round) {
            seat.phase = SeatPhase::Kept;
            nodes.push(seat.node.clone());
        }
        live.fruitless = 0;
        let displaced = live.ground.seat(&self.cluster, bundles);
        let whole = live.ground.missing().is_empty();
        let count = live.group.spec.gang.workers.max;
        if whole {
            live.group.ready.get_or_insert(at);
            let text = format!("{count} bundle{} kept", if count == 1 { " is" } else { "s are" });
            self.group_state(id, GroupState::Ready, Reason::new("ready", text));
        } else {
            self.save_group(id);
            self.sync_group(id);
        }
        for node in nodes {
            self.send(&node, Command::Keep { attempt });
        }
        self.end_displaced(displaced, "its placement group has less on its node than before");
        self.reopen(id);
    }

    /// Lets the gangs that wait for room in a group be looked at again.
    fn reopen(&mut self, id: JobId) {
        let waiting: Vec<JobId> =
            self.jobs_in(id).filter(|job| job.state.is_waiting()).map(|job| job.id).collect();
        waiting.into_iter().for_each(|job| self.sync_queue(job));
        self.groups.replan.insert(id);
    }

    fn end_displaced(&mut self, displaced: Vec<AttemptId>, why: &str) {
        for attempt in displaced {
            self.end_attempt(attempt.job, Ending::Lost, why);
        }
    }

    /// A place is lost. An unfinished round gives all its places back; of a standing group only this node's are missing.
    pub(super) fn lose(&mut self, at: Time, id: JobId, round: u32, node: &NodeName, why: &str) {
        let Some(phase) = self.seat(id, round, node).map(|seat| seat.phase).filter(|phase| phase.holds())
        else {
            return;
        };
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        let attempt = live.group.reservation(round);
        let kept = phase == SeatPhase::Kept;
        if kept {
            live.ground.lose(node);
        } else {
            let wait = RETRY_FIRST * 2_u32.saturating_pow(live.fruitless.min(16));
            live.fruitless += 1;
            live.retry_at = Some(at + wait.min(RETRY_LONGEST));
        }
        let mut stops = Vec::new();
        for seat in &mut live.group.seats {
            let lost = if kept { seat.node == *node } else { seat.round == round };
            if lost && seat.phase.holds() && (!kept || seat.phase == SeatPhase::Kept) {
                seat.phase = SeatPhase::Ending;
                stops.push((seat.node.clone(), AttemptId { number: seat.round, ..attempt }));
            }
        }
        let state = match live.group.state {
            GroupState::Ready | GroupState::Repairing => GroupState::Repairing,
            GroupState::Removing => GroupState::Removing,
            _ => GroupState::Pending,
        };
        let text = format!("{why}; {} to be placed again", plural(live.ground.missing().len()));
        for (node, attempt) in stops {
            self.send(&node, stop(attempt));
        }
        self.group_state(id, state, Reason::new("bundles_lost", text));
        self.sync_group(id);
    }

    /// Gives free what agents have given back, unless a job of the group still ends there; and goes on with a removal.
    pub(super) fn sweep_group(&mut self, id: JobId) {
        let busy: BTreeSet<NodeName> = self
            .jobs_in(id)
            .filter_map(|job| job.run.as_ref())
            .flat_map(|run| run.nodes.iter().filter(|(_, node)| !node.gone).map(|(name, _)| name.clone()))
            .collect();
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        let free = |seat: &mut Seat| seat.phase == SeatPhase::Gone && !busy.contains(&seat.node);
        let freed: Vec<Seat> = live.group.seats.extract_if(.., free).collect();
        if !freed.is_empty() {
            for seat in &freed {
                self.cluster.release_on(AttemptId { job: id, number: seat.round }, &seat.node);
            }
            self.replan = true;
            self.save_group(id);
        }
        self.wind_down(id);
    }

    /// Gives the places of a removed group back once nothing runs in it, and forgets it once they are back.
    fn wind_down(&mut self, id: JobId) {
        self.queue.remove(id);
        let runs = self.jobs_in(id).next().is_some();
        let Some(live) = self.groups.live.get_mut(&id) else { return };
        if live.group.state != GroupState::Removing {
            return self.sync_group(id);
        }
        if runs {
            return;
        }
        if live.group.seats.is_empty() {
            live.group.state = GroupState::Removed;
            live.group.reason = Reason::new("removed", "nothing of it is left");
            self.save_group(id);
            self.groups.live.remove(&id);
            self.groups.replan.remove(&id);
            return;
        }
        let mut stops = Vec::new();
        for seat in live.group.seats.iter_mut().filter(|seat| seat.phase.holds()) {
            seat.phase = SeatPhase::Ending;
            stops.push((seat.node.clone(), AttemptId { job: id, number: seat.round }));
        }
        if !stops.is_empty() {
            self.save_group(id);
        }
        for (node, attempt) in stops {
            self.send(&node, stop(attempt));
        }
    }

    /// Lets groups be placed again whose wait after a failed round is over.
    pub(super) fn tick_groups(&mut self, now: Time) {
        let due = |live: &&LiveGroup| live.retry_at.is_some_and(|at| at <= now);
        let due: Vec<JobId> = self.groups.live.values().filter(due).map(|live| live.group.id).collect();
        for id in due {
            if let Some(live) = self.groups.live.get_mut(&id) {
                live.retry_at = None;
            }
            self.sync_group(id);
        }
    }

    pub(super) fn groups_timer(&self) -> Option<Time> {
        self.groups.live.values().filter_map(|live| live.retry_at).min()
    }
}

pub(super) fn stop(attempt: AttemptId) -> Command {
    Command::Stop { attempt, ask_first: false, grace: Duration::ZERO }
}

fn plural(bundles: usize) -> String {
    if bundles == 1 { "1 bundle has".to_owned() } else { format!("{bundles} bundles have") }
}
