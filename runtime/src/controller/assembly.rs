//! Elastic gangs outlive a rank that is killed: who of an attempt trains with whom.
//!
//! Its ranks stand in *groups*, one after the other. A rank asks for its place at its start, and again when its group has
//! lost one. As soon as all that live have asked, they stand in the next group, which retries the step that was in flight;
//! the killed rank is started again where it was, asks too, and is let in after the step under way. So a death costs a
//! step, and nobody reads a checkpoint.
//!
//! What a rank says may come twice and late; a process is told from the one before it by its [life](RankRun::life), and
//! what it says of an old group by the group's number.

use super::{Controller, Live};
use crate::protocol::{Command, Group, RankExit};
use phalanx_core::event::AGENT;
use phalanx_core::job::{Assembly, Member};
use phalanx_core::{Attempt, Ending, Job, JobId, NewEvent, NodeName, Rank, RankRun, Reason};
use std::collections::BTreeSet;

/// Whether the gang goes on without a rank that is killed. A trial is judged by what its rank 0 reports, so it does not.
pub(super) fn is_elastic(job: &Job) -> bool {
    let workers = &job.spec.gang.workers;
    job.trial.is_none() && workers.min < workers.max
}

/// The training is over: a rank has come to its end.
fn is_over(attempt: &Attempt) -> bool {
    attempt.ranks.iter().any(|rank| rank.exit_code == Some(0))
}

/// Whether this process of a rank is the one that runs, or is about to.
fn lives(attempt: &Attempt, who: Member) -> bool {
    let is = |rank: &RankRun| rank.life == who.life && rank.exit_code.is_none() && !rank.lost;
    attempt.ranks.get(who.rank as usize).is_some_and(is)
}

/// Whether an attempt goes on without what ran on a node.
pub(super) fn is_written_off(attempt: &Attempt, node: &NodeName) -> bool {
    attempt.ranks.iter().any(|rank| rank.lost && rank.node == *node)
}

/// Takes ranks out that are gone. The members that are left leave the group: they may wait for one of them, and between hosts
/// nobody may have noticed.
fn strike_off(assembly: &mut Assembly, gone: impl Fn(Rank) -> bool) {
    let before = assembly.members.len();
    assembly.members.retain(|member| !gone(member.rank));
    assembly.callers.retain(|&rank, _| !gone(rank));
    if assembly.members.len() < before {
        (assembly.broken, assembly.leave) = (true, true);
    }
}

impl Controller {
    /// A rank asks with whom it trains.
    pub(super) fn rank_meets(&mut self, id: JobId, who: Member, epoch: u32, port: u16) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let elastic = is_elastic(job);
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last()) else { return };
        if !elastic || run.ending.is_some() || !lives(attempt, who) {
            return;
        }
        let assembly = run.assembly.get_or_insert_default();
        let left = if assembly.members.contains(&who) { assembly.epoch } else { 0 };
        if epoch == left {
            assembly.callers.insert(who.rank, port);
            self.assemble(id);
        }
    }

    /// Makes the next group of those who have asked, once all have that can.
    fn assemble(&mut self, id: JobId) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last()) else { return };
        let Some(assembly) = &mut run.assembly else { return };
        if is_over(attempt) {
            return self.say_group(id);
        }
        let called = |rank: Rank| assembly.callers.contains_key(&rank);
        let all_called = match assembly.epoch {
            0 => (0..attempt.ranks.len() as Rank).all(called),
            _ => assembly.members.iter().all(|member| called(member.rank)),
        };
        let newcomer = |&rank: &Rank| assembly.members.iter().all(|member| member.rank != rank);
        let newcomers: Vec<Rank> = assembly.callers.keys().copied().filter(newcomer).collect();
        if !all_called {
            if assembly.epoch > 0 && !newcomers.is_empty() && !assembly.leave {
                assembly.leave = true;
                self.say_group(id);
            }
            return;
        }
        // One for whom they were asked to leave may have been killed since.
        if newcomers.is_empty() && !assembly.broken && !assembly.leave {
            let ending = Ending::Failure { code: 1, for_good: false };
            return self.end_attempt(id, ending, "its ranks lost one another though none of them has ended");
        }
        // Who has the state goes first, so that the one that speaks for the gang stays the same while it lives.
        let life = |rank| Member { rank, life: attempt.ranks[rank as usize].life };
        assembly.members.extend(newcomers.into_iter().map(life));
        let port = assembly.members.first().and_then(|first| assembly.callers.get(&first.rank)).copied();
        *assembly = Assembly {
            epoch: assembly.epoch + 1,
            members: std::mem::take(&mut assembly.members),
            port: port.unwrap_or_default(),
            ..Assembly::default()
        };
        let (together, all) = (assembly.members.len(), attempt.ranks.len());
        let text = if together == all {
            format!("{all} ranks run")
        } else {
            format!("{together} of {all} ranks train; the others are started again")
        };
        job.reason = Reason::new("running", text);
        self.say_group(id);
        self.go_on_smaller(id);
    }

    /// Tells the nodes of the gang who trains with whom.
    pub(super) fn say_group(&mut self, id: JobId) {
        let Some((attempt, group, nodes)) = self.group_word(id) else { return };
        nodes.iter().for_each(|node| self.send(node, Command::Group { attempt, group: group.clone() }));
    }

    /// The latest group as its ranks are told of it, and the nodes of the gang.
    fn group_word(&self, id: JobId) -> Option<(phalanx_core::AttemptId, Group, BTreeSet<NodeName>)> {
        let job = self.job(id)?;
        let (run, attempt) = (job.run.as_ref()?, job.attempts.last()?);
        let assembly = run.assembly.as_ref().filter(|assembly| assembly.epoch > 0)?;
        let mut group = Group { epoch: assembly.epoch, ..Group::default() };
        if !is_over(attempt) {
            let first = attempt.ranks.get(assembly.members.first()?.rank as usize)?;
            group.members.clone_from(&assembly.members);
            group.master_addr = self.nodes.get(&first.node)?.record.address.clone();
            (group.master_port, group.leave) = (assembly.port, assembly.leave);
            group.lost = assembly.broken;
        }
        let nodes = run.nodes.iter().filter(|(_, node)| !node.gone).map(|(name, _)| name.clone()).collect();
        Some((job.attempt_id(), group, nodes))
    }

    /// Says again to one node what a cut may have lost.
    pub(super) fn remind_of_group(&mut self, id: JobId, node: &NodeName) {
        let Some(job) = self.job(id) else { return };
        let (attempt, ranks) = (job.attempt_id(), job.attempts.last().map(|attempt| attempt.ranks.clone()));
        for (rank, run) in ranks.into_iter().flatten().enumerate() {
            if run.node == *node && run.life > 0 && !run.running && run.exit_code.is_none() && !run.lost {
                let who = Member { rank: rank as Rank, life: run.life };
                self.send(node, Command::Restart { attempt, who });
            }
        }
        if let Some((attempt, group, _)) = self.group_word(id) {
            self.send(node, Command::Group { attempt, group });
        }
    }

    /// Whether an attempt goes on though a rank was killed; if so the rank is started again, which counts as a failure.
    pub(super) fn outlives(&mut self, id: JobId, exit: &RankExit) -> bool {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return false };
        let may_fail = job.failures < job.spec.max_failures;
        let min = job.spec.gang.workers.min as usize;
        let attempt_id = job.attempt_id();
        let elastic = is_elastic(job);
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last_mut()) else { return false };
        let Some(assembly) = run.assembly.as_mut().filter(|assembly| assembly.epoch > 0) else {
            return false;
        };
        let left = assembly.members.iter().filter(|member| member.rank != exit.rank).count();
        if !elastic || !exit.was_killed() || !may_fail || left < min || is_over(attempt) {
            return false;
        }
        strike_off(assembly, |rank| rank == exit.rank);
        let Some(rank) = attempt.ranks.get_mut(exit.rank as usize) else { return false };
        (rank.running, rank.exit_code, rank.life) = (false, None, rank.life + 1);
        let (node, who) = (rank.node.clone(), Member { rank: exit.rank, life: rank.life });
        attempt.failed_rank = Some(exit.rank);
        attempt.message = format!("rank {} {}; the others went on", exit.rank, exit.message);
        job.failures += 1;
        let text = format!(
            "{left} of {} ranks train; rank {} {} and is started again (failure {} of {} allowed)",
            attempt.ranks.len(),
            exit.rank,
            exit.message,
            job.failures,
            job.spec.max_failures
        );
        self.effects.events.push(NewEvent::new(AGENT, "rank.restart", id, &text));
        job.reason = Reason::new("running", text);
        self.send(&node, Command::Restart { attempt: attempt_id, who });
        self.say_group(id);
        self.assemble(id);
        true
    }

    /// Whether an attempt goes on though a node of it is lost, or has ended its ranks unasked: with those on other nodes.
    pub(super) fn outlives_node(&mut self, id: JobId, name: &NodeName) -> bool {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return false };
        let (elastic, min) = (is_elastic(job), job.spec.gang.workers.min as usize);
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last_mut()) else { return false };
        if is_written_off(attempt, name) {
            return true;
        }
        let Some(assembly) = run.assembly.as_mut().filter(|assembly| assembly.epoch > 0) else {
            return false;
        };
        let elsewhere = |rank: Rank| attempt.ranks.get(rank as usize).is_none_or(|run| run.node != *name);
        let left = assembly.members.iter().filter(|member| elsewhere(member.rank)).count();
        if !elastic || run.ending.is_some() || left < min || is_over(attempt) {
            return false;
        }
        strike_off(assembly, |rank| !elsewhere(rank));
        let all = attempt.ranks.len();
        attempt.ranks.iter_mut().filter(|rank| rank.node == *name).for_each(|rank| rank.lost = true);
        attempt.message = format!("{name} was lost; the ranks on other nodes went on");
        let text = format!("{left} of {all} ranks train; {name} was lost with the others");
        self.effects.events.push(NewEvent::new(AGENT, "rank.lost", id, &text));
        job.reason = Reason::new("running", text);
        self.dirty.insert(id);
        self.say_group(id);
        self.assemble(id);
        true
    }

    /// Those that are left after the loss of a node have found together, and nothing is held there any more: they go on as
    /// a gang of their number, from where they are, so that it can grow again.
    pub(super) fn go_on_smaller(&mut self, id: JobId) {
        let Some(Live { job, .. }) = self.jobs.get_mut(&id) else { return };
        let attempt_id = job.attempt_id();
        let (Some(run), Some(attempt)) = (&mut job.run, job.attempts.last()) else { return };
        let together = run.assembly.as_ref().is_some_and(|assembly| !assembly.broken);
        let held = |rank: &RankRun| run.nodes.get(&rank.node).is_some_and(|node| !node.gone);
        let mut lost = attempt.ranks.iter().filter(|rank| rank.lost).peekable();
        if lost.peek().is_none() || lost.any(held) || !together || run.ending.is_some() || is_over(attempt) {
            return;
        }
        let left = attempt.ranks.iter().filter(|rank| !rank.lost);
        let anew = |rank: &RankRun| RankRun { running: false, exit_code: None, life: 0, ..rank.clone() };
        run.next = left.map(anew).collect();
        let (next, all) = (run.next.len(), attempt.ranks.len());
        let message = format!("resized: goes on with {next} of {all} workers after the loss of a node");
        self.make_way(attempt_id, Ending::Resized, None, &message);
    }
}
