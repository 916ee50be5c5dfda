//! Starting one rank: a program, or the built-in trainer in a fork.

use super::{Plan, RankPlan, Work, WorkerMain, title};
use crate::agent::containment::Leaf;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::{ForkResult, fork};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a shell returns for a command that is not there, and for one that it may not run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// What the kernel may hold between a rank and its agent, where it allows so much.
const PIPE_BYTES: i32 = 256 << 10;
/// Signals of the kernel, real-time ones included.
const SIGNALS: nix::libc::c_long = 64;
/// Where programs are looked for without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// What a Rust program that panics ends with.
const PANICKED: i32 = 101;

/// A rank that runs.
pub(super) struct Running {
    pub(super) pid: i32,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) memory: Option<Leaf>,
}

/// Why a rank does not run.
#[derive(Debug)]
pub(super) struct NotStarted {
    pub(super) code: i32,
    pub(super) message: String,
}

impl NotStarted {
    fn new(code: i32, message: String) -> Self {
        NotStarted { code, message }
    }
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> Self {
        NotStarted::new(NOT_EXECUTABLE, format!("not started: {error}"))
    }
}

/// The groups that hold a rank, beside its guard.
pub(super) struct Groups<'a> {
    /// The attempt's.
    pub(super) leaf: Option<&'a Leaf>,
    /// Its own, with the limit of its memory.
    pub(super) memory: Option<Leaf>,
}

/// Starts a rank.
pub(super) fn start(
    plan: &Plan,
    rank: &RankPlan,
    Groups { leaf, memory }: Groups<'_>,
    worker: WorkerMain,
) -> Result<Running, NotStarted> {
    if !plan.workdir.is_dir() {
        let workdir = plan.workdir.display();
        return Err(NotStarted::new(NOT_FOUND, format!("not started: its workdir `{workdir}` is no folder")));
    }
    let (stdout, stdout_writer) = pipe()?;
    let (stderr, stderr_writer) = pipe()?;
    let doors = open_doors(plan, leaf, memory.as_ref());
    let rlimit = (plan.memory_bytes > 0 && memory.is_none()).then_some(plan.memory_bytes);
    let ground = Ground { doors, rlimit };
    let pipes = [stdout_writer, stderr_writer];
    let pid = match &plan.work {
        Work::Program(command) => spawn_program(command, plan, rank, ground, pipes)?,
        Work::Fork(spec) => fork_worker(plan, rank, ground, pipes, || worker(spec))?,
    };
    Ok(Running { pid, stdout, stderr, memory })
}

fn spawn_program(
    arguments: &[OsString],
    plan: &Plan,
    rank: &RankPlan,
    ground: Ground,
    [stdout, stderr]: [OwnedFd; 2],
) -> Result<i32, NotStarted> {
    let name = arguments.first().map(OsString::as_os_str).unwrap_or_default();
    let path = rank.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let program = find_program(name, path.unwrap_or(OsStr::new(DEFAULT_PATH)), &plan.workdir)?;
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments.iter().skip(1)).current_dir(&plan.workdir);
    command.env_clear().envs(rank.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    become_a_rank_at_exec(&mut command, ground);
    let child = command.spawn().map_err(|error| describe(name, &program, &error))?;
    Ok(child.id().cast_signed())
}

/// A process that is this one until now, and then a rank like any other.
#[allow(unsafe_code)]
fn fork_worker(
    plan: &Plan,
    rank: &RankPlan,
    mut ground: Ground,
    pipes: [OwnedFd; 2],
    worker: impl FnOnce() -> i32,
) -> Result<i32, NotStarted> {
    // SAFETY: the guard has one thread, so that no lock is held by another one, and the child may do all that a process may.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            let ready = ground.become_a_rank().and_then(|()| settle_in(plan, rank, &pipes));
            let code = match ready {
                // Nothing of the guard's own stack may run in here.
                Ok(()) => std::panic::catch_unwind(std::panic::AssertUnwindSafe(worker)).unwrap_or(PANICKED),
                Err(error) => {
                    eprintln!("phalanx worker: cannot become a rank: {error}");
                    NOT_EXECUTABLE
                }
            };
            #[allow(clippy::exit)] // The end of the process that a new program's `main` would return from.
            std::process::exit(code)
        }
    }
}

/// What an exec would do for a program: its descriptors, its folder, its environment.
#[allow(unsafe_code)]
fn settle_in(plan: &Plan, rank: &RankPlan, [stdout, stderr]: &[OwnedFd; 2]) -> io::Result<()> {
    // Standard input is the guard's, which is empty.
    nix::unistd::dup2_stdout(stdout)?;
    nix::unistd::dup2_stderr(stderr)?;
    std::env::set_current_dir(&plan.workdir)?;
    // SAFETY: this process has one thread; the signal is ignored as in every Rust program; descriptors above 2 are the
    // guard's, and whoever holds one of them here runs no more.
    unsafe {
        signal(Signal::SIGPIPE, SigHandler::SigIgn)?;
        for (name, _) in std::env::vars_os() {
            std::env::remove_var(name);
        }
        for (name, value) in &rank.env {
            std::env::set_var(name, value);
        }
        nix::libc::close_range(3, nix::libc::c_uint::MAX, 0);
    }
    title::show(&rank.env);
    Ok(())
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // A user with very many pipes gets smaller ones, which is slower and nothing else.
    let _ = fcntl(&reader, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((reader, writer))
}

/// Opened here: the groups that the rank is to join, the memory group last so that it is beneath the leaf in v2.
fn open_doors(plan: &Plan, leaf: Option<&Leaf>, memory: Option<&Leaf>) -> Vec<File> {
    let beneath_leaf = matches!(plan.memory_groups, Some(super::Groups::BeneathLeaf));
    let leaf = leaf.filter(|_| memory.is_none() || !beneath_leaf);
    let open = |leaf: &Leaf| File::options().write(true).open(leaf.door());
    leaf.into_iter().chain(memory).filter_map(|leaf| open(leaf).ok()).collect()
}

/// Where a rank stands: the doors of its groups, and the limit of its memory where no group has it.
struct Ground {
    doors: Vec<File>,
    rlimit: Option<u64>,
}

impl Ground {
    /// In the process of the rank; makes system calls and nothing else.
    fn become_a_rank(&mut self) -> io::Result<()> {
        for door in &mut self.doors {
            // A rank that cannot join is still held by its guard, which inherits orphans.
            let _ = door.write_all(b"0");
        }
        nix::unistd::setsid()?;
        // The second line where the guard itself is killed.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if let Some(bytes) = self.rlimit {
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
        }
        reset_signals();
        Ok(())
    }
}

#[allow(unsafe_code)]
fn become_a_rank_at_exec(command: &mut Command, mut ground: Ground) {
    let prepare = move || {
        ground.become_a_rank()?;
        close_on_exec();
        Ok(())
    };
    // SAFETY: the guard has one thread, so that no lock is held by another one at the fork; the closure only makes
    // system calls on values made before.
    unsafe {
        command.pre_exec(prepare);
    }
}

#[allow(unsafe_code)]
fn reset_signals() {
    // The kernel's own structure, all zero: the default disposition. The C library does not touch the two signals that
    // it keeps for itself, which a careless parent may have left ignored.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: reads the structure and writes nothing; SIGKILL and SIGSTOP are refused, which is right.
        unsafe {
            let none = std::ptr::null_mut::<u64>();
            nix::libc::syscall(nix::libc::SYS_rt_sigaction, signal, default.as_ptr(), none, SIGNALS / 8);
        }
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Every descriptor above 2 closes with the exec; the one by which `Command` learns of a failure must live until then.
#[allow(unsafe_code)]
fn close_on_exec() {
    // SAFETY: only sets a flag.
    unsafe {
        nix::libc::close_range(3, nix::libc::c_uint::MAX, nix::libc::CLOSE_RANGE_CLOEXEC as i32);
    }
}

/// As `execvp` looks for a program, but in the rank's own `PATH`.
fn find_program(name: &OsStr, path: &OsStr, workdir: &Path) -> Result<PathBuf, NotStarted> {
    let shown = name.display();
    if name.as_encoded_bytes().contains(&b'/') {
        let program = workdir.join(name);
        return match check(&program) {
            Check::Runs => Ok(program),
            Check::Missing => {
                Err(NotStarted::new(NOT_FOUND, format!("not started: `{shown}` does not exist")))
            }
            Check::Refused(why) => {
                Err(NotStarted::new(NOT_EXECUTABLE, format!("not started: `{shown}` {why}")))
            }
        };
    }
    let mut refused = None;
    for folder in std::env::split_paths(path) {
        let program = workdir.join(folder).join(name);
        match check(&program) {
            Check::Runs => return Ok(program),
            Check::Missing => {}
            Check::Refused(why) => {
                refused.get_or_insert_with(|| format!("not started: `{}` {why}", program.display()));
            }
        }
    }
    Err(match refused {
        Some(message) => NotStarted::new(NOT_EXECUTABLE, message),
        None => {
            let message = format!("not started: command `{shown}` not found in PATH ({})", path.display());
            NotStarted::new(NOT_FOUND, message)
        }
    })
}

enum Check {
    Runs,
    Missing,
    Refused(&'static str),
}

fn check(program: &Path) -> Check {
    match std::fs::metadata(program) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Check::Refused("may not be read"),
        Err(_) => Check::Missing,
        Ok(found) if found.is_dir() => Check::Refused("is a folder"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Check::Refused("is not executable; `chmod +x` it, or name its interpreter in the command")
        }
        Ok(_) => Check::Runs,
    }
}

fn describe(name: &OsStr, program: &Path, error: &io::Error) -> NotStarted {
    let name = name.display();
    let because = |code, why: &str| NotStarted::new(code, format!("not started: `{name}` {why}"));
    match error.raw_os_error() {
        Some(nix::libc::ENOENT) if program.exists() => {
            because(NOT_FOUND, "names an interpreter that does not exist")
        }
        Some(nix::libc::ENOENT) => because(NOT_FOUND, "does not exist"),
        Some(nix::libc::ENOEXEC) => because(
            NOT_EXECUTABLE,
            "is no program for this machine; a script needs a first line such as `#!/bin/sh`",
        ),
        Some(nix::libc::E2BIG) => {
            because(NOT_EXECUTABLE, "got more arguments and environment than the system takes")
        }
        _ => because(NOT_EXECUTABLE, &format!("failed: {error}")),
    }
}
