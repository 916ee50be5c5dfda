//! The guard's loop: deaths of children, words of the agent, and the passing of time.

use super::{
    FromGuard, Groups, ORDER_BYTES, ORPHANED_GRACE, Plan, ToGuard, WorkerMain, rank, send, signal_name,
};
use crate::agent::containment::{KILL_BOUND, Leaf, Process, descendants, signal_all};
use crate::protocol::KILLED_ABOVE;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, recv};
use phalanx_core::Rank;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Between two looks while processes are being ended; children end with a signal, what only the cgroup holds does not.
const LOOK: Duration = Duration::from_millis(20);
/// Between two rounds of SIGKILL: a process may have been born beside the first.
const AGAIN: Duration = Duration::from_millis(100);

/// Where the end of the attempt is.
#[derive(Clone, Copy, Debug)]
enum End {
    No,
    /// SIGTERM has been sent.
    Asked {
        kill_at: Instant,
    },
    /// SIGKILL has been sent.
    Killed {
        again_at: Instant,
        give_up_at: Instant,
    },
}

struct Rankling {
    rank: Rank,
    memory: Option<Leaf>,
}

pub(super) struct Guard<'a> {
    plan: Plan,
    socket: BorrowedFd<'a>,
    agent_lives: bool,
    deaths: &'a SignalFd,
    worker: WorkerMain,
    leaf: Option<Leaf>,
    ranks: BTreeMap<i32, Rankling>,
    /// Ranks that were killed and may be started again.
    killed: BTreeSet<Rank>,
    /// Groups of ranks, removed when nothing is in them any more.
    memories: Vec<Leaf>,
    end: End,
}

impl<'a> Guard<'a> {
    pub(super) fn new(
        plan: Plan,
        socket: BorrowedFd<'a>,
        deaths: &'a SignalFd,
        worker: WorkerMain,
    ) -> Guard<'a> {
        let leaf = plan.leaf.clone().map(Leaf::at);
        Guard {
            plan,
            socket,
            agent_lives: true,
            deaths,
            worker,
            leaf,
            ranks: BTreeMap::new(),
            killed: BTreeSet::new(),
            memories: Vec::new(),
            end: End::No,
        }
    }

    /// Until no process of the attempt is left; whether the guard may be given another one.
    pub(super) fn run(mut self) -> io::Result<bool> {
        self.start();
        loop {
            self.reap();
            let waits_for_word = matches!(self.end, End::No) && !self.killed.is_empty();
            if self.all_gone() && !waits_for_word {
                break;
            }
            if self.ranks.is_empty() && matches!(self.end, End::No) && !waits_for_word {
                // Every rank ended by itself: what it left behind is not wanted.
                self.end_within(self.plan.grace);
            }
            if self.pass_time() {
                break;
            }
            self.wait()?;
        }
        let unreaped = self.all_left().join(", ");
        self.memories.iter().chain(&self.leaf).for_each(Leaf::remove);
        let clean = self.agent_lives && unreaped.is_empty();
        self.tell(&FromGuard::Gone { unreaped });
        Ok(clean)
    }

    /// Those that had to be given up, for people; looks through the process table only where there are any.
    fn all_left(&self) -> Vec<String> {
        if self.all_gone() {
            return Vec::new();
        }
        self.left().into_iter().filter_map(Process::read).map(|process| process.describe()).collect()
    }

    fn tell(&self, message: &FromGuard) {
        send(self.socket, message, &[]);
    }

    fn start(&mut self) {
        (0..self.plan.ranks.len()).for_each(|index| self.start_rank(index));
    }

    fn start_rank(&mut self, index: usize) {
        let number = self.plan.ranks[index].rank;
        let memory = self.memory_group(number);
        self.memories.extend(memory.clone());
        let groups = rank::Groups { leaf: self.leaf.as_ref(), memory };
        match rank::start(&self.plan, &self.plan.ranks[index], groups, self.worker) {
            Ok(running) => {
                let pid = running.pid;
                let message = FromGuard::Started { rank: number, pid: pid.unsigned_abs() };
                let descriptors = [running.stdout.as_raw_fd(), running.stderr.as_raw_fd()];
                send(self.socket, &message, &descriptors);
                self.ranks.insert(pid, Rankling { rank: number, memory: running.memory });
            }
            Err(why) => {
                let message = FromGuard::NotStarted { rank: number, code: why.code, message: why.message };
                self.tell(&message);
            }
        }
    }

    fn restart(&mut self, rank: Rank) {
        let index = self.plan.ranks.iter().position(|plan| plan.rank == rank);
        // Where the end has begun meanwhile there is nothing to start.
        if let Some(index) = index.filter(|_| self.killed.remove(&rank) && matches!(self.end, End::No)) {
            self.start_rank(index);
        }
    }

    fn memory_group(&self, rank: Rank) -> Option<Leaf> {
        if self.plan.memory_bytes == 0 {
            return None;
        }
        let path = match self.plan.memory_groups.as_ref()? {
            Groups::BeneathLeaf => {
                let leaf = self.plan.leaf.as_ref()?;
                std::fs::write(leaf.join("cgroup.subtree_control"), "+memory").ok()?;
                leaf.join(format!("rank-{rank}"))
            }
            Groups::Named(path) => path.with_file_name(format!("{}-{rank}", path.file_name()?.to_str()?)),
        };
        let leaf = Leaf::create(path).ok()?;
        match leaf.limit_memory(self.plan.memory_bytes) {
            Ok(()) => Some(leaf),
            Err(error) => {
                eprintln!("phalanx guard: no cgroup for the memory of rank {rank}: {error}");
                leaf.remove();
                None
            }
        }
    }

    /// Reaps every child that has ended, ranks and orphans alike.
    #[allow(unsafe_code)]
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.deaths.read_signal() {}
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the answer. `nix` cannot tell of real-time signals.
            let pid = unsafe { nix::libc::waitpid(-1, &raw mut status, nix::libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            if let Some(ended) = self.ranks.remove(&pid) {
                let (code, message) = describe(status, ended.memory.as_ref());
                if self.plan.elastic && code > KILLED_ABOVE {
                    self.killed.insert(ended.rank);
                    // Its next life counts anew; where something of this one is left in it, it is removed at the end.
                    ended.memory.iter().for_each(Leaf::remove);
                }
                self.tell(&FromGuard::Exited { rank: ended.rank, code, message });
            }
        }
    }

    /// No child, and nothing in the leaf that escaped being one.
    #[allow(unsafe_code)]
    fn all_gone(&self) -> bool {
        // SAFETY: asks without taking anything; the place for details may be null.
        let children = unsafe {
            let flags = nix::libc::WEXITED | nix::libc::WNOHANG | nix::libc::WNOWAIT;
            nix::libc::waitid(nix::libc::P_ALL, 0, std::ptr::null_mut(), flags)
        };
        let none = children == -1 && Errno::last() == Errno::ECHILD;
        none && self.leaf.as_ref().is_none_or(|leaf| !leaf.is_populated())
    }

    /// What is left of the attempt.
    fn left(&self) -> BTreeSet<i32> {
        let mut left = descendants(std::process::id() as i32);
        left.extend(self.leaf.iter().flat_map(Leaf::processes));
        left
    }

    fn end_within(&mut self, grace: Duration) {
        let kill_at = Instant::now() + grace;
        match self.end {
            End::No => {
                signal_all(self.left(), Signal::SIGTERM);
                self.end = End::Asked { kill_at };
            }
            End::Asked { kill_at: earlier } => self.end = End::Asked { kill_at: kill_at.min(earlier) },
            End::Killed { .. } => {}
        }
    }

    fn kill(&self) {
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
        signal_all(self.left(), Signal::SIGKILL);
    }

    /// True when what is left has to be given up.
    fn pass_time(&mut self) -> bool {
        let now = Instant::now();
        match self.end {
            End::Asked { kill_at } if now >= kill_at => {
                self.kill();
                self.end = End::Killed { again_at: now + AGAIN, give_up_at: now + KILL_BOUND };
                false
            }
            End::Killed { give_up_at, .. } if now >= give_up_at => true,
            End::Killed { again_at, give_up_at } if now >= again_at => {
                self.kill();
                self.end = End::Killed { again_at: now + AGAIN, give_up_at };
                false
            }
            _ => false,
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let timeout = match self.end {
            End::No => PollTimeout::NONE,
            End::Asked { kill_at } => {
                let longest = if self.ranks.is_empty() { LOOK } else { Duration::from_secs(1) };
                poll_timeout(kill_at.saturating_duration_since(now).min(longest))
            }
            End::Killed { again_at, .. } => poll_timeout(again_at.saturating_duration_since(now).min(LOOK)),
        };
        let deaths = PollFd::new(self.deaths.as_fd(), PollFlags::POLLIN);
        let heard = {
            let mut all = [deaths, PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let watched = if self.agent_lives { &mut all[..] } else { &mut all[..1] };
            match poll(watched, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.agent_lives && all[1].revents().is_some_and(|events| !events.is_empty())
        };
        if heard {
            self.listen();
        }
        Ok(())
    }

    fn listen(&mut self) {
        let mut buffer = [0; ORDER_BYTES];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(length) if length > 0 => match serde_json::from_slice(&buffer[..length]) {
                Ok(ToGuard::End { grace }) => self.end_within(grace),
                Ok(ToGuard::Restart { rank }) => self.restart(rank),
                Ok(ToGuard::Run) => eprintln!("phalanx guard: asked for a second attempt beside the first"),
                Err(error) => {
                    eprintln!("phalanx guard: the agent said something that means nothing: {error}")
                }
            },
            // The agent is dead: the ranks end with it.
            _ => {
                self.agent_lives = false;
                self.end_within(self.plan.grace.min(ORPHANED_GRACE));
            }
        }
    }
}

/// Rounded up, so that a wait never ends just before what it waits for.
fn poll_timeout(duration: Duration) -> PollTimeout {
    PollTimeout::try_from(duration + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

fn describe(status: i32, memory: Option<&Leaf>) -> (i32, String) {
    if nix::libc::WIFEXITED(status) {
        let code = nix::libc::WEXITSTATUS(status);
        return (code, format!("exited with code {code}"));
    }
    let signal = nix::libc::WTERMSIG(status);
    let code = 128 + signal;
    if signal == nix::libc::SIGKILL && memory.is_some_and(Leaf::ran_out_of_memory) {
        return (code, "out of memory: killed at the limit that `gang.memory` sets".to_owned());
    }
    (code, format!("killed by signal {}", signal_name(signal)))
}
