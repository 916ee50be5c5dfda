//! Starting one rank.

use super::Plan;
use super::RankPlan;
use crate::agent::containment::Leaf;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a shell returns for a command that is not there, and for one that it may not run.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
/// What the kernel may hold between a rank and its agent, where it allows so much.
const PIPE_BYTES: i32 = 256 << 10;
/// Signals of the kernel, real-time ones included.
const SIGNALS: nix::libc::c_long = 64;
/// Where programs are looked for without a `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A rank that runs.
pub(super) struct Running {
    pub(super) child: Child,
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

/// Starts a rank, held by `leaf` and by a memory group of its own.
pub(super) fn start(
    plan: &Plan,
    rank: &RankPlan,
    leaf: Option<&Leaf>,
    memory: Option<Leaf>,
) -> Result<Running, NotStarted> {
    if !plan.workdir.is_dir() {
        let workdir = plan.workdir.display();
        return Err(NotStarted::new(NOT_FOUND, format!("not started: its workdir `{workdir}` is no folder")));
    }
    let name = plan.command.first().map(OsString::as_os_str).unwrap_or_default();
    let path = rank.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    let program = find_program(name, path.unwrap_or(OsStr::new(DEFAULT_PATH)), &plan.workdir)?;
    let (stdout, stdout_writer) = pipe()?;
    let (stderr, stderr_writer) = pipe()?;
    let doors = open_doors(plan, leaf, memory.as_ref());
    let rlimit = (plan.memory_bytes > 0 && memory.is_none()).then_some(plan.memory_bytes);
    let mut command = Command::new(&program);
    command.arg0(name).args(plan.command.iter().skip(1)).current_dir(&plan.workdir);
    command.env_clear().envs(rank.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(stdout_writer).stderr(stderr_writer);
    become_a_rank(&mut command, doors, rlimit);
    let child = command.spawn().map_err(|error| describe(name, &program, &error))?;
    Ok(Running { child, stdout, stderr, memory })
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

#[allow(unsafe_code)]
fn become_a_rank(command: &mut Command, mut doors: Vec<File>, rlimit: Option<u64>) {
    let prepare = move || {
        for door in &mut doors {
            // A rank that cannot join is still held by its guard, which inherits orphans.
            let _ = door.write_all(b"0");
        }
        nix::unistd::setsid()?;
        // The second line where the guard itself is killed.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if let Some(bytes) = rlimit {
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
        }
        reset_signals();
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
