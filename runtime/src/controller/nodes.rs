//! Nodes: their agents come, fall silent, come back or are replaced.

use super::{Controller, FENCE_MARGIN, Refusal};
use crate::protocol::{Command, Hello};
use phalanx_core::event::{AGENT, SERVICE};
use phalanx_core::id::AttemptId;
use phalanx_core::resources::Capacity;
use phalanx_core::{Ending, JobId, NewEvent, NodeName, NodeState, Time};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the store keeps of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// The latest process of its agent.
    pub incarnation: String,
    /// What it has.
    pub capacity: Capacity,
    /// Where other ranks reach it.
    pub address: String,
    /// Somebody wants it to finish what it runs and to be given nothing new.
    #[serde(default)]
    pub draining: bool,
}

/// A node and whether its agent is there.
#[derive(Clone, Debug)]
pub struct Node {
    /// What the store keeps.
    pub record: NodeRecord,
    /// `None` while its agent is connected.
    pub silent_since: Option<Time>,
    /// It has been silent for the node timeout.
    pub lost: bool,
}

impl Node {
    /// The latest process of its agent.
    pub fn incarnation(&self) -> &str {
        &self.record.incarnation
    }

    /// Whether it takes work.
    pub fn state(&self) -> NodeState {
        match (self.lost, self.record.draining) {
            (true, _) => NodeState::Lost,
            (false, true) => NodeState::Draining,
            (false, false) => NodeState::Ready,
        }
    }
}

impl Controller {
    pub(super) fn restore_node(&mut self, now: Time, record: NodeRecord) {
        let name = record.name.clone();
        // Nothing is held yet that could be displaced.
        let _ = self.cluster.set_node(name.clone(), record.capacity.clone());
        self.cluster.set_schedulable(&name, false);
        self.nodes.insert(name, Node { record, silent_since: Some(now), lost: false });
    }

    /// An agent's session begins: what both sides know of each other is made to agree.
    pub fn joined(&mut self, now: Time, hello: &Hello) {
        self.note_time(now);
        let record = NodeRecord {
            name: hello.node.clone(),
            incarnation: hello.incarnation.clone(),
            capacity: hello.capacity.clone(),
            address: hello.address.clone(),
            draining: self.nodes.get(&hello.node).is_some_and(|node| node.record.draining),
        };
        let known = self.nodes.get(&hello.node);
        if known.is_none_or(|node| node.lost || node.record.incarnation != record.incarnation) {
            let text = format!("an agent at {} joined as this node", record.address);
            self.effects.events.push(NewEvent::new(AGENT, "node.join", &hello.node, text));
        }
        if known.is_none_or(|node| node.record != record) {
            self.effects.nodes.push(record.clone());
        }
        if known.is_none_or(|node| node.record.capacity != record.capacity) {
            let displaced = self.cluster.set_node(hello.node.clone(), record.capacity.clone());
            for attempt in displaced {
                if self.displace_seat(now, attempt, &hello.node) {
                    continue;
                }
                self.end_attempt(
                    attempt.job,
                    Ending::Lost,
                    &format!("{} came back with less than it held", hello.node),
                );
            }
        }
        let open = !record.draining;
        self.cluster.set_schedulable(&hello.node, open);
        self.nodes.insert(hello.node.clone(), Node { record, silent_since: None, lost: false });
        self.replan = true;
        self.reconcile(now, hello);
        self.open_parts(&hello.node, open);
    }

    fn reconcile(&mut self, now: Time, hello: &Hello) {
        for (id, asked) in self.attempts_on(&hello.node) {
            let attempt = self.jobs[&id].job.attempt_id();
            let listed = hello.attempts.contains(&attempt);
            match (asked == hello.incarnation, listed) {
                // The same process: whatever it has not received is sent again.
                (true, _) => self.remind(id, &hello.node),
                // Another process that still has news of the attempt: they follow, and end with its `Gone`.
                (false, true) => {}
                // Another process: the ranks ended with the old one.
                (false, false) => {
                    if !self.outlives_node(id, &hello.node) {
                        let text = format!("the agent on {} was restarted", hello.node);
                        self.end_attempt(id, Ending::Lost, &text);
                    }
                    self.gone(now, now, id, &hello.node, "");
                }
            }
        }
        self.reconcile_groups(now, hello);
        for &attempt in &hello.attempts {
            if !self.expects(attempt, &hello.node) {
                let grace = Duration::from_secs(1);
                self.send(&hello.node, Command::Stop { attempt, ask_first: false, grace });
            }
        }
    }

    fn expects(&self, attempt: AttemptId, node: &NodeName) -> bool {
        if self.expects_seat(attempt, node) {
            return true;
        }
        let run = self.current_attempt(attempt).and_then(|job| job.run.as_ref());
        run.is_some_and(|run| run.nodes.get(node).is_some_and(|node| !node.gone))
    }

    /// Jobs with an attempt that is not over on a node, and the agent's process it was given to.
    fn attempts_on(&self, node: &NodeName) -> Vec<(JobId, String)> {
        let runs = self.jobs.iter().filter_map(|(&id, live)| Some((id, live.job.run.as_ref()?)));
        let here = runs.filter_map(|(id, run)| Some((id, run.nodes.get(node).filter(|at| !at.gone)?)));
        here.map(|(id, at)| (id, at.incarnation.clone())).collect()
    }

    /// An agent's session ended. It may come back: nothing new is placed there meanwhile.
    pub fn left(&mut self, now: Time, name: &NodeName) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.silent_since.get_or_insert(now);
            self.cluster.set_schedulable(name, false);
            self.open_parts(name, false);
        }
    }

    /// A silent node is lost after the node timeout. Its agent ends its ranks by the same clock, so their devices are
    /// free once the longest grace of them has passed too.
    pub(super) fn check_nodes(&mut self, now: Time) {
        self.note_time(now);
        let silent: Vec<(NodeName, Time)> =
            self.nodes.iter().filter_map(|(name, node)| Some((name.clone(), node.silent_since?))).collect();
        for (name, since) in silent {
            let lost_at = since + self.config.node_timeout;
            if now < lost_at {
                continue;
            }
            if let Some(node) = self.nodes.get_mut(&name).filter(|node| !node.lost) {
                node.lost = true;
                self.replan = true;
                let text = format!("its agent has been silent for {:?}", self.config.node_timeout);
                self.effects.events.push(NewEvent::new(SERVICE, "node.lost", &name, text));
            }
            for (id, _) in self.attempts_on(&name) {
                if !self.outlives_node(id, &name) {
                    self.end_attempt(id, Ending::Lost, &format!("{name} was lost"));
                }
                if now >= lost_at + self.fence(id) {
                    self.gone(now, now, id, &name, "");
                }
            }
            self.lose_seats(now, &name, lost_at);
        }
    }

    /// Lets a node finish what it runs and gives it nothing new, or takes that back. The record is to be stored; where
    /// that fails, it is to be again as it was, which comes along.
    pub fn drain(&mut self, name: &str, drain: bool) -> Result<(NodeRecord, bool), Refusal> {
        let unknown = || Refusal::UnknownNode(name.chars().take(64).collect());
        let name: NodeName = name.parse().map_err(|_| unknown())?;
        let node = self.nodes.get_mut(&name).ok_or_else(unknown)?;
        let before = std::mem::replace(&mut node.record.draining, drain);
        let (record, here) = (node.record.clone(), node.silent_since.is_none());
        self.cluster.set_schedulable(&name, here && !drain);
        self.open_parts(&name, here && !drain);
        self.replan = true;
        Ok((record, before))
    }

    fn fence(&self, id: JobId) -> Duration {
        self.job(id).map_or(Duration::ZERO, |job| job.spec.grace) + FENCE_MARGIN
    }

    /// When `check_nodes` has something to do next.
    pub(super) fn node_timer(&self) -> Option<Time> {
        let silent = self.nodes.iter().filter_map(|(name, node)| Some((name, node, node.silent_since?)));
        let timers = silent.filter_map(|(name, node, since)| {
            let lost_at = since + self.config.node_timeout;
            let fenced = self.attempts_on(name).into_iter().map(|(id, _)| lost_at + self.fence(id));
            fenced.chain((!node.lost).then_some(lost_at)).chain(self.seats_timer(name, lost_at)).min()
        });
        timers.min()
    }
}
