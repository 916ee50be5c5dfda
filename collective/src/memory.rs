//! How much memory there is to be had, so that asking for more is an error and not a visit of the OOM killer.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process can still use: of the host's memory, and of what its cgroups allow. `None` where nothing says.
pub(crate) fn free() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok().map(|text| folders(&text)).unwrap_or_default();
    groups.iter().filter_map(|folder| headroom(folder)).chain(free_on_host()).min()
}

/// Bytes of the host's memory that can still be used.
pub(crate) fn free_on_host() -> Option<u64> {
    available(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The folders of this process's cgroups that can limit memory, and of those above them.
fn folders(proc_cgroup: &str) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for line in proc_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            list if list.split(',').any(|one| one == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        let own = Path::new(path.trim_start_matches('/'));
        all.extend(own.ancestors().map(|group| root.join(group)));
    }
    all
}

/// What a cgroup of either version has left; `None` without a limit. Memory of files that are not in use counts as free.
fn headroom(folder: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let v2 = || Some((number("memory.max")?, number("memory.current")?));
    let v1 = || Some((number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?));
    let (limit, used) = v2().or_else(v1)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let of_files = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    Some(limit.saturating_sub(used.saturating_sub(of_files("inactive_file "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_limit_counts() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    3 kB\n"), Some(3072));
        let found = folders("0::/a/b\n3:cpu,memory:/c\n2:cpu:/d\n");
        let wanted = [
            "/sys/fs/cgroup/a/b",
            "/sys/fs/cgroup/a",
            "/sys/fs/cgroup/",
            "/sys/fs/cgroup/memory/c",
            "/sys/fs/cgroup/memory/",
        ];
        assert_eq!(found, wanted.map(PathBuf::from));
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(headroom(folder.path()), None);
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert_eq!(headroom(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.stat", "anon 5\ninactive_file 100\n");
        assert_eq!(headroom(folder.path()), Some(400));
        assert!(free().is_some_and(|bytes| bytes > 0));
    }
}
