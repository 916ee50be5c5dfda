//! The places of groups by node: agents come back, fall silent, and are lost with what they keep.

use super::groups::stop;
use super::{Controller, FENCE_MARGIN};
use crate::protocol::{Command, Hello};
use phalanx_core::{AttemptId, JobId, NodeName, SeatPhase, Time};

impl Controller {
    /// An agent is there (again): what it keeps for groups is made to agree.
    pub(super) fn reconcile_groups(&mut self, now: Time, hello: &Hello) {
        for (id, round, incarnation, phase) in self.seats_on(&hello.node) {
            let attempt = AttemptId { job: id, number: round };
            match (incarnation == hello.incarnation, hello.attempts.contains(&attempt)) {
                (true, _) => match phase {
                    SeatPhase::Asked => {
                        self.send(&hello.node, Command::Reserve { attempt, wants_master_port: false });
                    }
                    SeatPhase::Kept => self.send(&hello.node, Command::Keep { attempt }),
                    SeatPhase::Ending => self.send(&hello.node, stop(attempt)),
                    SeatPhase::Reserved | SeatPhase::Gone => {}
                },
                // Another process that still has news of it: they follow.
                (false, true) => {}
                (false, false) => self.seat_gone(now, id, round, &hello.node),
            }
        }
    }

    /// A node came back with less than a group held there: that place is lost. Whether it was a group's.
    pub(super) fn displace_seat(&mut self, now: Time, attempt: AttemptId, node: &NodeName) -> bool {
        if self.groups.get(attempt.job).is_none() {
            return false;
        }
        let why = format!("{node} came back with less than was held on it");
        self.lose(now, attempt.job, attempt.number, node, &why);
        true
    }

    /// Whether an agent may keep a place under this name.
    pub(super) fn expects_seat(&self, attempt: AttemptId, node: &NodeName) -> bool {
        self.seat(attempt.job, attempt.number, node).is_some_and(|seat| seat.phase != SeatPhase::Gone)
    }

    fn seats_on(&self, node: &NodeName) -> Vec<(JobId, u32, String, SeatPhase)> {
        let seats = self
            .groups
            .live
            .values()
            .flat_map(|live| live.group.seats.iter().map(move |seat| (live.group.id, seat)));
        let here = seats.filter(|(_, seat)| seat.node == *node && seat.phase != SeatPhase::Gone);
        here.map(|(id, seat)| (id, seat.round, seat.incarnation.clone(), seat.phase)).collect()
    }

    /// Whether gangs may be placed on a node's parts.
    pub(super) fn open_parts(&mut self, node: &NodeName, yes: bool) {
        let here: Vec<JobId> = self.seats_on(node).into_iter().map(|(id, ..)| id).collect();
        for id in here {
            if let Some(live) = self.groups.live.get_mut(&id) {
                live.ground.set_schedulable(node, yes);
                self.groups.replan.insert(id);
                self.replan = true;
            }
        }
    }

    /// A node is lost: so are the places on it. They count as given back when its agent must have ended what ran there.
    pub(super) fn lose_seats(&mut self, now: Time, node: &NodeName, lost_at: Time) {
        for (id, round, _, phase) in self.seats_on(node) {
            if phase.holds() {
                self.lose(now, id, round, node, &format!("{node} was lost"));
            }
            if now >= lost_at + FENCE_MARGIN {
                self.seat_gone(now, id, round, node);
            }
        }
    }

    /// When `lose_seats` has something to do next on a silent node.
    pub(super) fn seats_timer(&self, node: &NodeName, lost_at: Time) -> Option<Time> {
        (!self.seats_on(node).is_empty()).then_some(lost_at + FENCE_MARGIN)
    }
}
