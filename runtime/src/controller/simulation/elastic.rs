//! Gangs that outlive a rank in the simulated world: what their ranks do.

use super::*;
use crate::protocol::Group;
use phalanx_core::job::Member;

/// A process of an elastic gang.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    life: u32,
    /// The group it stands in, or has left; 0 for none.
    epoch: u32,
    /// It has asked whom to meet, and is not answered.
    waits: bool,
}

impl Process {
    pub(super) fn life(&self) -> u32 {
        self.life
    }
}

impl World {
    /// A rank of an elastic gang begins a life: it asks whom to meet, and is killed or ends in its time.
    pub(super) fn elastic_begins(&mut self, node: &NodeName, attempt: AttemptId, who: Member) {
        let process = Process { life: who.life, ..Process::default() };
        let host = self.hosts.get_mut(node).unwrap();
        host.elastic.insert((attempt, who.rank), process);
        host.killed.remove(&(attempt, who.rank));
        let asks = Duration::from_millis(60);
        self.after(asks, Step::Meets { node: node.clone(), attempt, who, epoch: 0 });
    }

    /// A killed rank is started again.
    pub(super) fn restart(&mut self, node: &NodeName, attempt: AttemptId, who: Member) {
        let incarnation = self.hosts[node].incarnation;
        self.hosts.get_mut(node).unwrap().ranks.insert((attempt, who.rank), incarnation);
        self.elastic_begins(node, attempt, who);
        self.rank_lives(node, attempt, who, true);
    }

    pub(super) fn meets(&mut self, node: &NodeName, attempt: AttemptId, who: Member, epoch: u32) {
        let host = self.hosts.get_mut(node).unwrap();
        let Some(process) = host.elastic.get_mut(&(attempt, who.rank)) else { return };
        if process.life != who.life || process.epoch != epoch || process.waits {
            return;
        }
        process.waits = true;
        self.say(node, attempt, Happening::RankMeets { who, epoch, port: 4000 });
        // A rank may ask again over another connection.
        if self.dice.chance(10) {
            self.say(node, attempt, Happening::RankMeets { who, epoch, port: 4000 });
        }
    }

    /// The ranks of a node are told who trains with whom.
    pub(super) fn grouped(&mut self, node: &NodeName, attempt: AttemptId, group: &Group) {
        let host = self.hosts.get_mut(node).unwrap();
        let here = host.elastic.iter_mut().filter(|((other, _), _)| *other == attempt);
        let (mut over, mut leave) = (Vec::new(), Vec::new());
        for (&(_, rank), process) in here {
            let who = Member { rank, life: process.life };
            if process.waits && group.is_over() {
                over.push(who);
            } else if process.waits && group.place_of(who, process.epoch).is_some() {
                self.let_in += usize::from(process.life > 0 && process.epoch == 0);
                (process.waits, process.epoch) = (false, group.epoch);
            }
            if !process.waits && process.epoch > 0 && group.leaves(process.epoch) {
                leave.push((who, process.epoch));
            }
        }
        let incarnation = self.hosts[node].incarnation;
        for Member { rank, life } in over {
            let end = Step::RankEnds { node: node.clone(), incarnation, attempt, rank, life, code: 0 };
            self.after(Duration::from_millis(5), end);
        }
        for (who, epoch) in leave {
            let delay = self.dice.up_to(Duration::from_millis(200));
            self.after(delay, Step::Meets { node: node.clone(), attempt, who, epoch });
        }
    }

    /// A process of an elastic gang is gone.
    pub(super) fn elastic_ended(&mut self, node: &NodeName, attempt: AttemptId, rank: Rank, code: i32) {
        let host = self.hosts.get_mut(node).unwrap();
        let Some(process) = host.elastic.remove(&(attempt, rank)) else { return };
        if code <= 128 {
            return;
        }
        host.killed.insert((attempt, rank));
        self.peers_lose(attempt, process);
    }

    /// The processes on a node whose agent was killed are gone.
    pub(super) fn elastic_cut(&mut self, node: &NodeName) {
        let host = self.hosts.get_mut(node).unwrap();
        let gone = host.elastic.extract_if(.., |key, _| !host.ranks.contains_key(key));
        let gone: Vec<_> = gone.collect();
        gone.into_iter().for_each(|((attempt, _), process)| self.peers_lose(attempt, process));
    }

    /// Whoever stood with a process that is gone asks for another group.
    fn peers_lose(&mut self, attempt: AttemptId, process: Process) {
        let mut lost = Vec::new();
        for (name, host) in &self.hosts {
            let stood = host.elastic.iter().filter(|(key, other)| {
                key.0 == attempt && process.epoch > 0 && other.epoch == process.epoch && !other.waits
            });
            lost.extend(stood.map(|(&(_, rank), other)| (name.clone(), rank, *other)));
        }
        for (node, rank, Process { life, epoch, .. }) in lost {
            let delay = self.dice.up_to(Duration::from_millis(20));
            self.after(delay, Step::Meets { node, attempt, who: Member { rank, life }, epoch });
        }
    }

    /// Whether a guard holds its place though no rank of it runs: one was killed and may be started again.
    pub(super) fn awaits_word(&self, node: &NodeName, attempt: AttemptId) -> bool {
        let host = &self.hosts[node];
        !host.ended.contains(&attempt) && host.killed.iter().any(|(other, _)| *other == attempt)
    }
}
