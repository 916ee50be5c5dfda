//! Which host a process is on, and which of its CPUs it may use.

use std::collections::BTreeSet;

/// A text that is equal for processes that can pass descriptors to one another, share memory and watch one another die.
///
/// The boot id tells kernels apart (cloned machines share a machine id), and containers of one kernel, which share the boot
/// id, differ in their network and PID namespaces. What cannot be read makes a text that is equal to no other.
pub(crate) fn identity() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|s| s.trim().to_string());
    let namespace = |name: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        Some(link.to_string_lossy().into_owned())
    };
    let facts = || {
        let boot = read("/proc/sys/kernel/random/boot_id")?;
        Some(format!("boot {boot} {} {}", namespace("net")?, namespace("pid")?))
    };
    let machine = read("/etc/machine-id").unwrap_or_default();
    match facts() {
        Some(facts) => format!("machine {machine} {facts}"),
        None => format!("unknown {:016x}", nonce()),
    }
}

/// CPUs that this process may run on.
pub(crate) fn cpus() -> BTreeSet<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    match sched_getaffinity(nix::unistd::Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// A number that others cannot guess.
pub(crate) fn nonce() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: the kernel writes at most the eight bytes that are there.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // It does not fail for eight bytes once the system is up; before that, the clock and our id are what there is.
    if got == 8 {
        u64::from_ne_bytes(bytes)
    } else {
        crate::recorder::now_ns() ^ u64::from(std::process::id()) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_itself() {
        assert_eq!(identity(), identity());
        assert!(identity().starts_with("machine"), "{}", identity());
        assert!(!cpus().is_empty());
        assert_ne!(nonce(), nonce());
    }
}
