//! The guard: one process per attempt and node that owns the attempt's processes (`phalanx guard`, hidden).
//!
//! It reads its [`Plan`] from standard input, talks to its agent over a packet socket at standard output, inherits every
//! orphan of the attempt (a child subreaper) and ends when no process of the attempt is left. When its agent dies it ends
//! the attempt by itself. It is synchronous, single-threaded and small, so that it starts in a few milliseconds.

mod rank;
mod watch;

use super::containment::MemoryGroups;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use phalanx_core::Rank;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

/// Longest message between a guard and its agent.
pub(super) const MESSAGE_BYTES: usize = 64 << 10;
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
    /// Memory of each rank in bytes; 0 for no limit.
    pub(super) memory_bytes: u64,
    /// Where they run.
    pub(super) workdir: PathBuf,
    /// What they run.
    pub(super) command: Vec<OsString>,
    /// The ranks.
    pub(super) ranks: Vec<RankPlan>,
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
    /// SIGTERM to all now, SIGKILL after the grace; a repetition only brings the end forward.
    End { grace: Duration },
}

/// The guard's whole life; the exit code of its process.
pub fn guard_main() -> i32 {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("phalanx guard: {error}; it is started by the agent and not by hand");
            1
        }
    }
}

fn run() -> io::Result<()> {
    // A session of its own: no Ctrl-C of a terminal reaches the ranks by another way than the agent.
    let _ = nix::unistd::setsid();
    close_inherited();
    nix::sys::prctl::set_child_subreaper(true)?;
    let plan: Plan = serde_json::from_reader(io::BufReader::new(io::stdin().lock()))?;
    let socket = nix::unistd::dup(io::stdout())?;
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    watch::Guard::new(plan, socket)?.run()
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
