//! One attempt on this node: its folder, its guard, the pipes and sockets of its ranks.

mod guards;
mod link;
mod plan;

use super::checkpoint::Checkpoints;
use super::containment::{Containment, KILL_BOUND, Leaf, MemoryGroups, Process, end_processes, processes};
use super::guard::{FromGuard, ToGuard};
use super::logs::{LogReader, Source};
use super::machine::Input;
use super::outbox::Outbox;
use super::places::AttemptPlaces;
use super::redact::Redactor;
use super::socket::Sockets;
use super::sweep;
use crate::launch::Launch;
use crate::protocol::{Group, Happening, RankExit};
pub(super) use guards::Guards;
use link::GuardLink;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use phalanx_core::Rank;
use phalanx_core::flight::{self, LastWords};
use phalanx_core::id::AttemptId;
use phalanx_core::job::Member;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How much longer than its own bounds a guard may take before it is taken for stuck.
const GUARD_MARGIN: Duration = Duration::from_secs(5);
/// The code of a rank whose guard was killed under it.
const KILLED_CODE: i32 = 137;

/// What all attempts of an agent share.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) data_dir: PathBuf,
    /// The binary that has the subcommands `guard` and `worker`.
    pub(super) program: PathBuf,
    pub(super) containment: Containment,
    pub(super) memory_groups: MemoryGroups,
    pub(super) outbox: Arc<Outbox>,
    pub(super) checkpoints: Checkpoints,
    pub(super) guards: Guards,
}

#[derive(Debug)]
enum Order {
    Ask(Duration),
    End(Duration),
    Judged(u64),
    Restart(Member),
    Group(Group),
}

/// The way to an attempt under way.
#[derive(Debug)]
pub(super) struct Supervisor {
    orders: mpsc::UnboundedSender<Order>,
}

impl Supervisor {
    /// Starts an attempt's ranks. What comes of it is told to `inputs`; the last of it is `Gone` or `LaunchFailed`.
    pub(super) fn start(
        ground: Arc<Ground>,
        launch: Box<Launch>,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Supervisor {
        let (orders, inbox) = mpsc::unbounded_channel();
        tokio::spawn(supervise(ground, launch, inputs, inbox));
        Supervisor { orders }
    }

    /// Tells the ranks over their sockets to end.
    pub(super) fn ask(&self, grace: Duration) {
        // One that is done needs no asking.
        let _ = self.orders.send(Order::Ask(grace));
    }

    /// What rank 0 has reported up to a step is answered.
    pub(super) fn judged(&self, step: u64) {
        let _ = self.orders.send(Order::Judged(step));
    }

    /// Starts a rank again that was killed.
    pub(super) fn restart(&self, who: Member) {
        let _ = self.orders.send(Order::Restart(who));
    }

    /// Who trains with whom.
    pub(super) fn group(&self, group: Group) {
        let _ = self.orders.send(Order::Group(group));
    }

    /// SIGTERM, and SIGKILL after the grace.
    pub(super) fn end(&self, grace: Duration) {
        let _ = self.orders.send(Order::End(grace));
    }
}

/// Cancel: never; an attempt ends by its orders. Error: told as `LaunchFailed`, or as exits with a message.
async fn supervise(
    ground: Arc<Ground>,
    launch: Box<Launch>,
    inputs: mpsc::UnboundedSender<Input>,
    orders: mpsc::UnboundedReceiver<Order>,
) {
    let attempt = launch.attempt;
    let places = AttemptPlaces::of(&ground.data_dir, attempt);
    let prepared = Attempt::prepare(&ground, &launch, &places, inputs.clone());
    let outcome = match prepared {
        Ok(running) => {
            let unreaped = running.run(orders).await;
            Input::Gone { attempt, unreaped }
        }
        Err(error) => Input::LaunchFailed { attempt, message: format!("cannot prepare its start: {error}") },
    };
    let removed = tokio::task::spawn_blocking(move || places.remove()).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, %attempt, "cannot remove an attempt's folder; the next start of the agent tries again");
    }
    // An agent that is going away asks nobody.
    let _ = inputs.send(outcome);
}

struct Attempt {
    ground: Arc<Ground>,
    attempt: AttemptId,
    grace: Duration,
    inputs: mpsc::UnboundedSender<Input>,
    guard: GuardLink,
    leaf: Option<Leaf>,
    sockets: Sockets,
    redactor: Arc<Redactor>,
    readers: Vec<LogReader>,
    ranks: Vec<Rank>,
    /// Those of them that have not ended.
    open: BTreeSet<Rank>,
    /// Those that were killed and may be started again.
    killed: BTreeSet<Rank>,
    elastic: bool,
    unreaped: Option<String>,
}

impl Attempt {
    fn prepare(
        ground: &Arc<Ground>,
        launch: &Launch,
        places: &AttemptPlaces,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> io::Result<Attempt> {
        if let Some(name) = launch.secret_names.iter().find(|name| !launch.secrets.contains_key(*name)) {
            return Err(io::Error::other(format!("the service has no secret `{name}` any more")));
        }
        places.make()?;
        if let Some(params) = &launch.params {
            std::fs::write(places.params(), serde_json::to_vec(params)?)?;
        }
        let judged = launch.trial.as_ref().and_then(|trial| trial.judged.clone());
        let (outbox, checkpoints) = (ground.outbox.clone(), ground.checkpoints.clone());
        let sockets = Sockets::new(launch.attempt, judged, launch.elastic, outbox, checkpoints);
        for rank in &launch.ranks {
            sockets.open(rank.rank, &places.socket(rank.rank))?;
        }
        let plan = plan::plan(ground, launch, places)?;
        let leaf = plan.leaf.clone().map(Leaf::at);
        let guard = ground.guards.run(&ground.program, &plan)?;
        Ok(Attempt {
            ground: ground.clone(),
            attempt: launch.attempt,
            grace: launch.grace,
            inputs,
            guard,
            leaf,
            sockets,
            redactor: Arc::new(Redactor::new(&launch.secrets)),
            readers: Vec::new(),
            ranks: launch.ranks.iter().map(|rank| rank.rank).collect(),
            open: launch.ranks.iter().map(|rank| rank.rank).collect(),
            killed: BTreeSet::new(),
            elastic: launch.elastic,
            unreaped: None,
        })
    }

    fn tell(&self, input: Input) {
        // An agent that is going away asks nobody.
        let _ = self.inputs.send(input);
    }

    /// Until no process is left; what could not be ended.
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> String {
        let never = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let (mut asked_until, mut stuck_at) = (never, never);
        loop {
            tokio::select! {
                heard = self.guard.receive() => match heard {
                    Ok(Some((message, pipes))) => self.heard(message, pipes).await,
                    Ok(None) => break,
                    // It has ended with an order of ours unread.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                    Err(error) => {
                        tracing::error!(%error, attempt = %self.attempt, "cannot hear a guard; it is ended");
                        self.guard.kill();
                        break;
                    }
                },
                Some(order) = orders.recv() => match order {
                    Order::Ask(grace) if self.sockets.ask_to_stop() => asked_until = Instant::now() + grace,
                    Order::Ask(_) => self.tell(Input::AskedLongEnough(self.attempt)),
                    Order::Judged(step) => self.sockets.judged(step),
                    Order::Group(group) => self.sockets.group(group),
                    Order::Restart(who) => self.restart(who),
                    Order::End(grace) => {
                        // Whoever waits to meet others learns that there will be none.
                        self.sockets.ask_to_stop();
                        self.guard.say(ToGuard::End { grace });
                        stuck_at = stuck_at.min(Instant::now() + grace + KILL_BOUND + GUARD_MARGIN);
                    }
                },
                () = sleep_until(asked_until) => {
                    asked_until = never;
                    self.tell(Input::AskedLongEnough(self.attempt));
                }
                () = sleep_until(stuck_at) => {
                    tracing::error!(attempt = %self.attempt, "a guard is stuck; it is killed");
                    self.guard.kill();
                    stuck_at = never;
                }
            }
            if self.unreaped.is_some() {
                break;
            }
            if self.open.is_empty() && self.killed.is_empty() && stuck_at == never {
                stuck_at = Instant::now() + self.grace + KILL_BOUND + GUARD_MARGIN;
            }
        }
        self.finish().await
    }

    async fn heard(&mut self, message: FromGuard, pipes: Vec<OwnedFd>) {
        let attempt = self.attempt;
        match message {
            FromGuard::Started { rank, pid } => {
                for (pipe, stderr) in pipes.into_iter().zip([false, true]) {
                    let source = Source { attempt, rank, stderr };
                    match LogReader::start(source, pipe, self.ground.outbox.clone(), self.redactor.clone()) {
                        Ok(reader) => self.readers.push(reader),
                        Err(error) => tracing::error!(%error, ?source, "cannot read what a rank writes"),
                    }
                }
                self.tell(Input::Started { attempt, rank, pid });
            }
            FromGuard::NotStarted { rank, code, message } => {
                self.exited(RankExit { rank, code, message, asked: false, not_started: true, life: 0 }).await;
            }
            FromGuard::Exited { rank, code, message } => {
                self.exited(RankExit { rank, code, message, asked: false, not_started: false, life: 0 })
                    .await;
            }
            FromGuard::Gone { unreaped } => self.unreaped = Some(unreaped),
        }
    }

    fn restart(&mut self, who: Member) {
        self.killed.remove(&who.rank);
        self.open.insert(who.rank);
        self.sockets.reborn(who);
        self.guard.say(ToGuard::Restart { rank: who.rank });
    }

    async fn exited(&mut self, exit: RankExit) {
        for reader in self.readers.iter().filter(|reader| reader.rank == exit.rank) {
            reader.drain().await;
        }
        self.open.remove(&exit.rank);
        if self.elastic && exit.was_killed() {
            self.killed.insert(exit.rank);
        }
        self.tell(Input::Exited { attempt: self.attempt, exit });
    }

    async fn finish(mut self) -> String {
        // One that has said so has nothing left of the attempt.
        let clean = self.unreaped.as_deref() == Some("");
        if !clean {
            self.ground.guards.end(&mut self.guard).await;
        }
        let unreaped = match self.unreaped.take() {
            Some(unreaped) => unreaped,
            None => self.avenge().await,
        };
        self.say_flight_record();
        for reader in std::mem::take(&mut self.readers) {
            reader.finish().await;
        }
        self.sockets.finish().await;
        for rank in self.open {
            let message = "killed by signal 9 (SIGKILL): the process that guarded it was killed".to_owned();
            let exit =
                RankExit { rank, code: KILLED_CODE, message, asked: false, not_started: false, life: 0 };
            // An agent that is going away asks nobody.
            let _ = self.inputs.send(Input::Exited { attempt: self.attempt, exit });
        }
        if clean {
            self.ground.guards.take_back(self.guard);
        }
        unreaped
    }

    /// What the ranks were doing, from the pages that they left behind; most programs leave none.
    fn say_flight_record(&self) {
        let scratch = AttemptPlaces::of(&self.ground.data_dir, self.attempt).scratch().to_owned();
        let words = |&rank: &Rank| {
            // A rank may have put anything there: a pipe, a link to elsewhere, more than memory holds.
            let mut options = std::fs::OpenOptions::new();
            options.read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW);
            let file = options.open(scratch.join(flight::page_name(rank.into()))).ok()?;
            let mut page = Vec::new();
            file.take(flight::PAGE_BYTES as u64).read_to_end(&mut page).ok()?;
            LastWords::read(rank, &page)
        };
        let ranks: Vec<LastWords> = self.ranks.iter().filter_map(words).collect();
        if !ranks.is_empty() {
            self.ground.outbox.say(self.attempt, &Happening::Flight { ranks });
        }
    }

    /// The guard was killed: this process inherits its orphans, and ends them.
    async fn avenge(&self) -> String {
        let (ground, leaf, since) = (self.ground.clone(), self.leaf.clone(), self.guard.started());
        let name = AttemptPlaces::of(&ground.data_dir, self.attempt).group_name();
        let ended = tokio::task::spawn_blocking(move || {
            let left = match leaf {
                Some(leaf) => {
                    let left = leaf.clear();
                    reap_adopted(&ground, since);
                    left
                }
                None => end_processes(|| adopted(&ground, since)),
            };
            if let MemoryGroups::V1(parent) = &ground.memory_groups {
                sweep::remove_groups(parent, &format!("{name}-"));
            }
            left
        });
        let left = ended.await.unwrap_or_default();
        left.into_iter().filter_map(Process::read).map(|left| left.describe()).collect::<Vec<_>>().join(", ")
    }
}

/// Children of this process that are no guards and younger than the one that died.
fn adopted(ground: &Ground, since: u64) -> BTreeSet<i32> {
    let me = std::process::id() as i32;
    let guards = ground.guards.pids();
    let all = processes();
    let mut found: BTreeSet<i32> = BTreeSet::new();
    let mut open: Vec<i32> = all
        .iter()
        .filter(|one| one.parent == me && one.started >= since && !guards.contains(&one.pid))
        .map(|one| one.pid)
        .collect();
    while let Some(pid) = open.pop() {
        if found.insert(pid) {
            open.extend(all.iter().filter(|one| one.parent == pid).map(|one| one.pid));
        }
    }
    found
}

/// Where the cgroup has ended them all, their remains are still this process' to take.
fn reap_adopted(ground: &Ground, since: u64) {
    let adopted = adopted(ground, since);
    for dead in processes().into_iter().filter(|one| one.state == 'Z' && adopted.contains(&one.pid)) {
        // Taken by somebody else is as good.
        let _ = waitpid(Pid::from_raw(dead.pid), Some(WaitPidFlag::WNOHANG));
    }
}
