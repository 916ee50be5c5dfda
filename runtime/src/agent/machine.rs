//! The agent's decisions: which attempts exist on this node and what is to be done about them.
//!
//! Pure: commands and what processes do go in, outputs come out, in the order in which they are to be carried out. So
//! every command is idempotent whatever is lost, repeated or delayed, and a simulator drives the same machine.

use crate::launch::Launch;
use crate::protocol::{Command, Group, Happening, RankExit};
use phalanx_core::Rank;
use phalanx_core::id::AttemptId;
use phalanx_core::job::Member;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

/// Attempts that are remembered as over, so that a late `Reserve` or `Start` does not bring one back.
const TOMBSTONES: usize = 4096;

/// What the machine is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The service wants something.
    Command(Command),
    /// The answer to [`Output::FindPort`]: a port, or why there is none.
    Port {
        /// The attempt.
        attempt: AttemptId,
        /// The port.
        port: Result<u16, String>,
    },
    /// A rank's process started.
    Started {
        /// The attempt.
        attempt: AttemptId,
        /// The rank.
        rank: Rank,
        /// Its process.
        pid: u32,
    },
    /// A rank's process ended, and its lines so far have been said.
    Exited {
        /// The attempt.
        attempt: AttemptId,
        /// How; the machine fills in whether it was asked to, and in which life.
        exit: RankExit,
    },
    /// The ranks could not be started by no fault of the job. Nothing runs.
    LaunchFailed {
        /// The attempt.
        attempt: AttemptId,
        /// Why, for people.
        message: String,
    },
    /// No process of the attempt is left and all it wrote has been said.
    Gone {
        /// The attempt.
        attempt: AttemptId,
        /// What could not be ended, for people.
        unreaped: String,
    },
    /// The time to end by itself is over, or nobody of the attempt listens.
    AskedLongEnough(AttemptId),
    /// The service has committed the attempt's `Gone`.
    GoneAcked(AttemptId),
    /// The service has not been reached for the node timeout, or the agent is told to end.
    EndAll,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tell the service, by way of the outbox.
    Say(AttemptId, Happening),
    /// Find a free port and keep it until the launch or the end; answered by [`Input::Port`].
    FindPort(AttemptId),
    /// Start the ranks; answered by `Started`, `Exited` and in the end `Gone`, or by `LaunchFailed`.
    Launch(Box<Launch>),
    /// Tell the ranks over their sockets to end; answered by [`Input::AskedLongEnough`] after `grace`, or at once where
    /// none of them has spoken there.
    Ask {
        /// The attempt.
        attempt: AttemptId,
        /// How long they have.
        grace: Duration,
    },
    /// Start a rank again, in its place.
    Restart {
        /// The attempt.
        attempt: AttemptId,
        /// The rank, and how often it has been started before.
        who: Member,
    },
    /// Answer the ranks that have asked to meet others.
    Group {
        /// The attempt.
        attempt: AttemptId,
        /// The latest group.
        group: Group,
    },
    /// Answer what rank 0 has reported up to a step.
    Judged {
        /// The attempt.
        attempt: AttemptId,
        /// The step.
        step: u64,
    },
    /// SIGTERM to every process of the attempt, and SIGKILL after `grace`; a repetition only brings the end forward.
    End {
        /// The attempt.
        attempt: AttemptId,
        /// How long they have.
        grace: Duration,
    },
    /// Give back what is kept for an attempt that runs nothing: its port and its folder.
    Release(AttemptId),
    /// Delete a checkpoint's folder.
    DropCheckpoint(PathBuf),
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Its place is kept; the port is known, being looked for, or not wanted.
    Reserved { port: Option<u16> },
    /// Its place stands, for a placement group, with nothing to run in it.
    Kept,
    /// Its ranks have been started.
    Launched(Launched),
    /// It is over, and the service does not know yet.
    Gone,
}

#[derive(Clone, Debug, PartialEq)]
struct Launched {
    grace: Duration,
    stop: Stop,
    started: BTreeSet<Rank>,
    exited: BTreeSet<Rank>,
    /// Ranks that have been started again, and how often.
    lives: BTreeMap<Rank, u32>,
}

impl Launched {
    fn life(&self, rank: Rank) -> u32 {
        self.lives.get(&rank).copied().unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stop {
    /// Nobody has asked.
    No,
    /// Asked over the sockets; signals with this grace follow.
    Asked(Duration),
    /// Being ended with signals within this grace.
    Ending(Duration),
}

/// The agent's decisions. See the module.
#[derive(Clone, Debug, Default)]
pub struct AgentMachine {
    attempts: BTreeMap<AttemptId, Phase>,
    over: VecDeque<AttemptId>,
}

impl AgentMachine {
    /// A machine that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on after an earlier agent of the same folder: `said` are attempts whose `Gone` is in the outbox, `cut` those
    /// that were under way; nothing of them runs any more, and the outputs say so.
    pub fn restore(said: BTreeSet<AttemptId>, cut: BTreeSet<AttemptId>) -> (Self, Vec<Output>) {
        let mut machine = AgentMachine::default();
        let mut outputs = Vec::new();
        machine.attempts.extend(said.into_iter().map(|attempt| (attempt, Phase::Gone)));
        for attempt in cut {
            if machine.attempts.insert(attempt, Phase::Gone).is_none() {
                outputs.push(Output::Say(attempt, Happening::Gone { unreaped: String::new() }));
            }
        }
        (machine, outputs)
    }

    /// Attempts taken in whose `Gone` is not yet acknowledged, as the `Hello` of a session lists them.
    pub fn attempts(&self) -> Vec<AttemptId> {
        self.attempts.keys().copied().collect()
    }

    /// Whether any attempt keeps a place or runs here.
    pub fn is_busy(&self) -> bool {
        self.attempts.values().any(|phase| *phase != Phase::Gone)
    }

    /// Takes one input.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Command(Command::Reserve { attempt, wants_master_port }) => {
                self.reserve(attempt, wants_master_port)
            }
            Input::Command(Command::Keep { attempt }) => self.keep(attempt),
            Input::Command(Command::Start(launch)) => self.start(launch),
            Input::Command(Command::Stop { attempt, ask_first, grace }) => {
                self.stop(attempt, ask_first, grace)
            }
            Input::Command(Command::Judged { attempt, step }) => {
                self.launched(attempt).map(|_| Output::Judged { attempt, step }).into_iter().collect()
            }
            Input::Command(Command::Restart { attempt, who }) => self.restart(attempt, who),
            Input::Command(Command::Group { attempt, group }) => {
                let output = |_: &mut Launched| Output::Group { attempt, group };
                self.launched(attempt).map(output).into_iter().collect()
            }
            Input::Command(Command::DropCheckpoint { path }) => vec![Output::DropCheckpoint(path)],
            Input::Port { attempt, port } => self.port(attempt, port),
            Input::Started { attempt, rank, pid } => {
                let Some(launched) = self.launched(attempt) else { return Vec::new() };
                let life = launched.life(rank);
                let started = Output::Say(attempt, Happening::RankStarted { rank, pid, life });
                if launched.started.insert(rank) { vec![started] } else { Vec::new() }
            }
            Input::Exited { attempt, exit } => self.exited(attempt, exit),
            Input::LaunchFailed { attempt, message } => {
                let refused = Output::Say(attempt, Happening::Refused { message });
                let outputs = self.finish(attempt, String::new());
                if outputs.is_empty() { outputs } else { [vec![refused], outputs].concat() }
            }
            Input::Gone { attempt, unreaped } => self.finish(attempt, unreaped),
            Input::AskedLongEnough(attempt) => match self.launched(attempt).map(|launched| launched.stop) {
                Some(Stop::Asked(grace)) => self.end(attempt, grace),
                _ => Vec::new(),
            },
            Input::GoneAcked(attempt) => {
                if self.attempts.get(&attempt) == Some(&Phase::Gone) {
                    self.attempts.remove(&attempt);
                    self.over.push_back(attempt);
                    if self.over.len() > TOMBSTONES {
                        self.over.pop_front();
                    }
                }
                Vec::new()
            }
            Input::EndAll => self.end_all(),
        }
    }

    fn launched(&mut self, attempt: AttemptId) -> Option<&mut Launched> {
        match self.attempts.get_mut(&attempt) {
            Some(Phase::Launched(launched)) => Some(launched),
            _ => None,
        }
    }

    fn reserve(&mut self, attempt: AttemptId, wants_master_port: bool) -> Vec<Output> {
        if self.over.contains(&attempt) {
            return Vec::new();
        }
        let reserved = |port| vec![Output::Say(attempt, Happening::Reserved { master_port: port })];
        match self.attempts.get(&attempt) {
            Some(Phase::Reserved { port: Some(port) }) => reserved(*port),
            Some(_) => Vec::new(),
            None if wants_master_port => {
                self.attempts.insert(attempt, Phase::Reserved { port: None });
                vec![Output::FindPort(attempt)]
            }
            None => {
                self.attempts.insert(attempt, Phase::Reserved { port: Some(0) });
                reserved(0)
            }
        }
    }

    fn keep(&mut self, attempt: AttemptId) -> Vec<Output> {
        match self.attempts.get_mut(&attempt) {
            Some(phase @ Phase::Reserved { .. }) => {
                *phase = Phase::Kept;
                Vec::new()
            }
            Some(_) => Vec::new(),
            None if self.over.contains(&attempt) => Vec::new(),
            None => vec![no_place(attempt)],
        }
    }

    fn port(&mut self, attempt: AttemptId, found: Result<u16, String>) -> Vec<Output> {
        match (self.attempts.get_mut(&attempt), found) {
            (Some(Phase::Reserved { port }), Ok(found)) => {
                *port = Some(found);
                vec![Output::Say(attempt, Happening::Reserved { master_port: found })]
            }
            (Some(Phase::Reserved { .. }), Err(message)) => {
                self.attempts.remove(&attempt);
                vec![Output::Release(attempt), Output::Say(attempt, Happening::Refused { message })]
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self, launch: Box<Launch>) -> Vec<Output> {
        let attempt = launch.attempt;
        match self.attempts.get(&attempt) {
            Some(Phase::Reserved { .. }) => {
                let launched = Launched {
                    grace: launch.grace,
                    stop: Stop::No,
                    started: BTreeSet::new(),
                    exited: BTreeSet::new(),
                    lives: BTreeMap::new(),
                };
                self.attempts.insert(attempt, Phase::Launched(launched));
                vec![Output::Launch(launch)]
            }
            Some(_) => Vec::new(),
            None if self.over.contains(&attempt) => Vec::new(),
            // Not what a service that has seen `Reserved` asks of this process: it must not run a second copy.
            None => vec![no_place(attempt)],
        }
    }

    fn stop(&mut self, attempt: AttemptId, ask_first: bool, grace: Duration) -> Vec<Output> {
        let Some(launched) = self.launched(attempt) else {
            return match self.attempts.get(&attempt) {
                // Its `Gone` is in the outbox and will arrive.
                Some(Phase::Gone) => Vec::new(),
                _ => self.finish_unlaunched(attempt),
            };
        };
        match launched.stop {
            Stop::No if ask_first => {
                launched.stop = Stop::Asked(grace);
                vec![Output::Ask { attempt, grace }]
            }
            Stop::Asked(_) if ask_first => Vec::new(),
            Stop::Ending(earlier) if grace >= earlier => Vec::new(),
            _ => self.end(attempt, grace),
        }
    }

    fn restart(&mut self, attempt: AttemptId, who: Member) -> Vec<Output> {
        let Some(launched) = self.launched(attempt) else { return Vec::new() };
        let next = who.life == launched.life(who.rank) + 1;
        if launched.stop != Stop::No || !next || !launched.exited.remove(&who.rank) {
            return Vec::new();
        }
        launched.started.remove(&who.rank);
        launched.lives.insert(who.rank, who.life);
        vec![Output::Restart { attempt, who }]
    }

    fn end(&mut self, attempt: AttemptId, grace: Duration) -> Vec<Output> {
        if let Some(launched) = self.launched(attempt) {
            launched.stop = Stop::Ending(grace);
        }
        vec![Output::End { attempt, grace }]
    }

    fn exited(&mut self, attempt: AttemptId, mut exit: RankExit) -> Vec<Output> {
        let Some(launched) = self.launched(attempt) else { return Vec::new() };
        if !launched.exited.insert(exit.rank) {
            return Vec::new();
        }
        exit.asked = launched.stop != Stop::No;
        exit.life = launched.life(exit.rank);
        vec![Output::Say(attempt, Happening::RankExited(exit))]
    }

    /// The end of an attempt whose ranks were started.
    fn finish(&mut self, attempt: AttemptId, unreaped: String) -> Vec<Output> {
        if self.launched(attempt).is_none() {
            return Vec::new();
        }
        self.attempts.insert(attempt, Phase::Gone);
        vec![Output::Release(attempt), Output::Say(attempt, Happening::Gone { unreaped })]
    }

    /// The end of an attempt that runs nothing, known or not.
    fn finish_unlaunched(&mut self, attempt: AttemptId) -> Vec<Output> {
        let known = self.attempts.insert(attempt, Phase::Gone).is_some();
        let release = known.then_some(Output::Release(attempt));
        let gone = Output::Say(attempt, Happening::Gone { unreaped: String::new() });
        release.into_iter().chain([gone]).collect()
    }

    fn end_all(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        for attempt in self.attempts() {
            match &self.attempts[&attempt] {
                Phase::Reserved { .. } | Phase::Kept => outputs.extend(self.finish_unlaunched(attempt)),
                Phase::Launched(launched) => {
                    let grace = launched.grace;
                    if !matches!(launched.stop, Stop::Ending(earlier) if earlier <= grace) {
                        outputs.extend(self.end(attempt, grace));
                    }
                }
                Phase::Gone => {}
            }
        }
        outputs
    }
}

fn no_place(attempt: AttemptId) -> Output {
    let message = "this agent keeps no place for it; it was restarted meanwhile".to_owned();
    Output::Say(attempt, Happening::Refused { message })
}

#[cfg(test)]
mod tests;
