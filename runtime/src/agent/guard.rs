//! The guard: a process that owns the processes of one attempt on its node at a time (`phalanx guard`, hidden).
//!
//! It talks to its agent over a packet socket at standard output, is handed the [`Plan`] of an attempt there, inherits
//! every orphan of it (a child subreaper), and is done when no process of the attempt is left: then it waits for the next
//! one. When its agent dies it ends the attempt by itself. It is synchronous, single-threaded and small, so that it starts
//! in a few milliseconds, and so that a rank of the built-in trainer may be a fork of it, which costs much less than a new
//! program: nothing of an attempt stays in the guard, so that no rank sees anything of one before it.

mod rank;
mod text;
mod title;
mod watch;

use super::containment::MemoryGroups;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use phalanx_core::Rank;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;
use text::{variables, words};
pub(super) use title::{ROOM, ROOM_BYTES, has_room_for};

/// Longest message of a guard to its agent.
pub(super) const MESSAGE_BYTES: usize = 64 << 10;
/// Longest order of an agent to its guard.
const ORDER_BYTES: usize = 1 << 10;
/// After the death of its agent a guard ends the ranks within at most this, whatever grace the job asked for.
const ORPHANED_GRACE: Duration = Duration::from_secs(5);

/// What a guard is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// The attempt's own cgroup v2 leaf, if it has one; the guard removes it at the end.
    pub(super) leaf: Option<PathBuf>,
    /// Groups of single ranks with a memory limit, named after this.
    pub(super) memory_groups: Option<Groups>,
    /// Between SIGTERM and SIGKILL when nobody says otherwise.
    pub(super) grace: Duration,
    /// A rank that is killed may be started again, even if no other is left here.
    pub(super) elastic: bool,
    /// Memory of each rank in bytes; 0 for no limit.
    pub(super) memory_bytes: u64,
    /// Where they run.
    pub(super) workdir: PathBuf,
    /// What they run.
    pub(super) work: Work,
    /// The ranks.
    pub(super) ranks: Vec<RankPlan>,
}

/// What ranks run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    /// A program and its arguments.
    Program(#[serde(with = "words")] Vec<OsString>),
    /// The built-in trainer in a fork of the guard; its specification as JSON.
    Fork(String),
}

/// Where groups for memory limits are made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Groups {
    /// `rank-N` beneath the attempt's leaf.
    BeneathLeaf,
    /// `NAME-N` in this folder of a v1 hierarchy.
    Named(PathBuf),
}

impl Groups {
    pub(super) fn of(groups: &MemoryGroups, name: &str) -> Option<Groups> {
        match groups {
            MemoryGroups::V2 => Some(Groups::BeneathLeaf),
            MemoryGroups::V1(parent) => Some(Groups::Named(parent.join(name))),
            MemoryGroups::Rlimit => None,
        }
    }
}

/// One rank of a plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RankPlan {
    pub(super) rank: Rank,
    #[serde(with = "variables")]
    pub(super) env: Vec<(OsString, OsString)>,
}

/// What a guard says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromGuard {
    /// A rank runs; the read ends of its stdout and stderr come along.
    Started { rank: Rank, pid: u32 },
    /// A rank could not be started: no other attempt would fare better.
    NotStarted { rank: Rank, code: i32, message: String },
    /// A rank's process ended.
    Exited { rank: Rank, code: i32, message: String },
    /// No process is left; what could not be ended is named.
    Gone { unreaped: String },
}

/// What an agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToGuard {
    /// Run an attempt; the file of its plan comes along. Said only to a guard that has none.
    Run,
    /// Start a rank again that was killed.
    Restart { rank: Rank },
    /// SIGTERM to all now, SIGKILL after the grace; a repetition only brings the end forward.
    End { grace: Duration },
}

/// A rank of the built-in trainer: trains what the JSON specifies, with the rest in the environment; its exit code.
pub type WorkerMain = fn(&str) -> i32;

/// The guard's whole life; the exit code of its process. It must be the only thread.
pub fn guard_main(worker: WorkerMain) -> i32 {
    match run(worker) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("phalanx guard: {error}; it is started by the agent and not by hand");
            1
        }
    }
}

fn run(worker: WorkerMain) -> io::Result<()> {
    // A session of its own: no Ctrl-C of a terminal reaches the ranks by another way than the agent.
    let _ = nix::unistd::setsid();
    close_inherited();
    title::show_guard();
    nix::sys::prctl::set_child_subreaper(true)?;
    let socket = nix::unistd::dup(io::stdout())?;
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    drop(null);
    ignore_requests_to_end();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let deaths = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    while let Some(plan) = next_plan(&socket)? {
        if !watch::Guard::new(plan, socket.as_fd(), &deaths, worker).run()? {
            break;
        }
    }
    Ok(())
}

/// Only the agent ends an attempt; whoever signals whole groups or cgroups reaches the agent too.
#[allow(unsafe_code)]
fn ignore_requests_to_end() {
    for each in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: an ignored signal runs no code of ours; ranks get the default back before they are any.
        let _ = unsafe { signal(each, SigHandler::SigIgn) };
    }
}

/// Waits for an attempt to run; `None` once the agent wants no more.
fn next_plan(socket: &OwnedFd) -> io::Result<Option<Plan>> {
    loop {
        let mut order = [0; ORDER_BYTES];
        let (length, file) = receive(socket, &mut order)?;
        if length == 0 {
            return Ok(None);
        }
        match (serde_json::from_slice(&order[..length])?, file) {
            (ToGuard::Run, Some(mut file)) => {
                let mut plan = Vec::new();
                file.read_to_end(&mut plan)?;
                return Ok(Some(serde_json::from_slice(&plan)?));
            }
            // For the attempt before, whose end has crossed it.
            (ToGuard::End { .. } | ToGuard::Restart { .. }, _) => {}
            (ToGuard::Run, None) => return Err(io::Error::other("a plan has come without its file")),
        }
    }
}

#[allow(unsafe_code)]
fn receive(socket: &OwnedFd, order: &mut [u8]) -> io::Result<(usize, Option<File>)> {
    let mut space = cmsg_space!(RawFd);
    loop {
        let mut parts = [IoSliceMut::new(order)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            // The agent has died with something of ours unread.
            Err(Errno::ECONNRESET) => return Ok((0, None)),
            other => other?,
        };
        let rights = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        return Ok((received.bytes, rights.map(|descriptor| unsafe { File::from_raw_fd(descriptor) })));
    }
}

/// What a careless parent of the agent left open must not reach the ranks.
#[allow(unsafe_code)]
fn close_inherited() {
    // SAFETY: called first of all, when this process has opened no descriptor above 2 that anything here relies on.
    unsafe {
        nix::libc::close_range(3, nix::libc::c_uint::MAX, 0);
    }
}

/// Sends one message whole; waits where the agent is slow. An agent that is gone is found out by reading.
fn send(socket: BorrowedFd<'_>, message: &FromGuard, descriptors: &[RawFd]) {
    let Ok(text) = serde_json::to_vec(message) else { return };
    let parts = [IoSlice::new(&text)];
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

/// `Killed` and the like for every signal, real-time ones included.
fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => format!("{signal} ({})", known.as_str()),
        Err(_) => signal.to_string(),
    }
}
