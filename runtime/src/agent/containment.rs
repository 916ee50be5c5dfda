//! What holds the processes of an attempt together, so that all of them can be ended: a cgroup v2 leaf of their own
//! where one can be made, and always a guard process that inherits the orphans among them (a child subreaper).
//!
//! No PID namespaces: they change the process ids that users see, and CUDA IPC and NCCL do not work across them.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes may take to vanish after SIGKILL before they are given up and named.
pub(super) const KILL_BOUND: Duration = Duration::from_secs(10);
/// Between two looks at processes that are to vanish.
const LOOK: Duration = Duration::from_millis(5);

/// How the processes of an attempt are held together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Containment {
    /// A cgroup v2 leaf for each attempt beneath this folder, and a subreaper.
    Cgroup(PathBuf),
    /// A subreaper alone: a process that escapes it must take on another's identity as its parent.
    Subreaper,
}

/// What this machine allows this process; makes a leaf to find out and removes it again.
pub fn containment() -> Containment {
    let Some(parent) = own_cgroup("cgroup2", None) else { return Containment::Subreaper };
    let probe = parent.join(format!("phalanx-probe-{}", std::process::id()));
    if fs::create_dir(&probe).is_err() {
        return Containment::Subreaper;
    }
    let writable = [probe.join("cgroup.procs"), probe.join("cgroup.kill"), parent.join("cgroup.procs")];
    let usable = writable.iter().all(|file| fs::OpenOptions::new().write(true).open(file).is_ok());
    let removed = fs::remove_dir(&probe).is_ok();
    if usable && removed { Containment::Cgroup(parent) } else { Containment::Subreaper }
}

/// The folder of this process' own cgroup in a hierarchy: `cgroup2`, or `cgroup` with a controller.
fn own_cgroup(kind: &str, controller: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match controller {
            None => controllers.is_empty(),
            Some(controller) => controllers.split(',').any(|name| name == controller),
        };
        fits.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (root, point) = (fields.get(3)?, fields.get(4)?);
        let mut source = source.split(' ');
        let (fstype, options) = (source.next()?, source.nth(1)?);
        let fits =
            fstype == kind && controller.is_none_or(|name| options.split(',').any(|option| option == name));
        // A mount may show a part of the hierarchy only.
        let below = if *root == "/" { own } else { own.strip_prefix(root)? };
        fits.then(|| Path::new(point).join(below.trim_start_matches('/')))
    })
}

/// A memory limit by cgroup, one group a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MemoryGroups {
    /// v2: a group beneath the attempt's leaf.
    V2,
    /// v1: a group beneath this folder.
    V1(PathBuf),
    /// No cgroup can be had: `RLIMIT_DATA`.
    Rlimit,
}

impl MemoryGroups {
    /// What this machine allows.
    pub(super) fn detect(containment: &Containment) -> MemoryGroups {
        if let Containment::Cgroup(parent) = containment {
            let control = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
            if control.split_whitespace().any(|name| name == "memory") {
                return MemoryGroups::V2;
            }
        }
        let Some(parent) = own_cgroup("cgroup", Some("memory")) else { return MemoryGroups::Rlimit };
        let probe = parent.join(format!("phalanx-probe-{}", std::process::id()));
        if fs::create_dir(&probe).is_err() {
            return MemoryGroups::Rlimit;
        }
        let limit = probe.join("memory.limit_in_bytes");
        let usable = fs::OpenOptions::new().write(true).open(limit).is_ok();
        let removed = fs::remove_dir(&probe).is_ok();
        if usable && removed { MemoryGroups::V1(parent) } else { MemoryGroups::Rlimit }
    }
}

/// A cgroup that holds processes of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf(PathBuf);

impl Leaf {
    pub(super) fn at(path: PathBuf) -> Leaf {
        Leaf(path)
    }

    pub(super) fn create(path: PathBuf) -> io::Result<Leaf> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Leaf(path)),
        }
    }

    /// The file that a process writes `0` to in order to join.
    pub(super) fn door(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    /// Processes in it and in the groups beneath it.
    pub(super) fn processes(&self) -> BTreeSet<i32> {
        let mut found = read_pids(&self.door());
        for child in self.children() {
            found.extend(Leaf(child).processes());
        }
        found
    }

    fn children(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
    }

    /// Whether a process, zombies aside, is in it or beneath it.
    pub(super) fn is_populated(&self) -> bool {
        match fs::read_to_string(self.0.join("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "populated 1"),
            Err(_) => !self.processes().is_empty(),
        }
    }

    /// SIGKILL to all in it, also to those being born.
    pub(super) fn kill(&self) {
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            signal_all(self.processes(), Signal::SIGKILL);
        }
    }

    /// Removes it and what is beneath it; it must be empty.
    pub(super) fn remove(&self) {
        if fs::remove_dir(&self.0).is_err() {
            self.children().for_each(|child| Leaf(child).remove());
            // One that cannot be removed is found again when the agent starts the next time.
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Limits its memory, as v2 or v1 writes it.
    pub(super) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        match fs::write(self.0.join("memory.max"), bytes.to_string()) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.kind() == io::ErrorKind::PermissionDenied =>
            {
                fs::write(self.0.join("memory.limit_in_bytes"), bytes.to_string())?;
                // No more by way of swap; absent where swap is not accounted.
                let _ = fs::write(self.0.join("memory.memsw.limit_in_bytes"), bytes.to_string());
                Ok(())
            }
            other => {
                let _ = fs::write(self.0.join("memory.swap.max"), "0");
                other
            }
        }
    }

    /// Whether the kernel has ended a process of it for want of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        ["memory.events", "memory.oom_control"].iter().any(|file| {
            let text = fs::read_to_string(self.0.join(file)).unwrap_or_default();
            text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
        })
    }

    /// Ends and reaps what is in it, whoever it belonged to, and removes it; what stayed is told.
    pub(super) fn clear(&self) -> BTreeSet<i32> {
        let deadline = Instant::now() + KILL_BOUND;
        while self.is_populated() && Instant::now() < deadline {
            self.kill();
            std::thread::sleep(LOOK);
        }
        let left = self.processes();
        self.remove();
        left
    }
}

fn read_pids(path: &Path) -> BTreeSet<i32> {
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// Signals each of these processes; those that are gone are no error.
pub(super) fn signal_all(pids: impl IntoIterator<Item = i32>, signal: Signal) {
    for pid in pids {
        // Gone already, or not ours: nothing more can be done about either.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// A line of the process table.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) state: char,
    /// In the kernel's ticks since the start of the machine.
    pub(super) started: u64,
    pub(super) name: String,
}

impl Process {
    pub(super) fn read(pid: i32) -> Option<Process> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat);
        // The name is in parentheses and may contain anything, parentheses too.
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let mut fields = stat.get(close + 1..)?.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22 of the line; the parent was field 4.
        let started = fields.nth(17)?.parse().ok()?;
        Some(Process { pid, parent, state, started, name: stat.get(open + 1..close)?.to_owned() })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        format!("{} ({}, state {})", self.pid, self.name, self.state)
    }
}

/// Every process there is.
pub(super) fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The descendants of a process, zombies aside.
pub(super) fn descendants(root: i32) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<(i32, char)>> = BTreeMap::new();
    for process in processes() {
        children.entry(process.parent).or_default().push((process.pid, process.state));
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![root]);
    while let Some(parent) = open.pop() {
        for &(pid, state) in children.get(&parent).into_iter().flatten() {
            if state != 'Z' {
                found.insert(pid);
            }
            open.push(pid);
        }
    }
    found
}

/// Ends these processes and waits until they are gone; what stayed is told. For children of this process, reaps them.
pub(super) fn end_processes(find: impl Fn() -> BTreeSet<i32>) -> BTreeSet<i32> {
    let deadline = Instant::now() + KILL_BOUND;
    loop {
        let left = find();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        signal_all(left.iter().copied(), Signal::SIGKILL);
        std::thread::sleep(LOOK);
        for &pid in &left {
            // Not a child of ours, or not dead yet.
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_found_made_and_removed_where_the_machine_allows_it() {
        match containment() {
            Containment::Cgroup(parent) => {
                let leaf = Leaf::create(parent.join(format!("phalanx-test-{}", std::process::id()))).unwrap();
                assert!(!leaf.is_populated());
                assert_eq!(leaf.clear(), BTreeSet::new());
                assert!(!leaf.door().exists());
            }
            Containment::Subreaper => assert!(own_cgroup("cgroup2", None).is_none_or(|own| {
                fs::create_dir(own.join(format!("phalanx-test-{}", std::process::id()))).is_err()
            })),
        }
    }

    #[test]
    fn this_process_is_in_the_table_with_its_children() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let me = std::process::id() as i32;
        assert!(descendants(me).contains(&(child.id() as i32)));
        let name = Process::read(child.id() as i32).unwrap();
        assert_eq!(name.parent, me);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(me).contains(&(child.id() as i32)));
    }
}
