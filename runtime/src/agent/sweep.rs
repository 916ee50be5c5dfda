//! What a dead agent of the same data folder left behind: processes, groups and folders.

use super::containment::{Leaf, end_processes};
use super::places::{AttemptPlaces, attempts_folder, noted_groups, tag};
use super::supervisor::Ground;
use super::{Containment, MemoryGroups};
use phalanx_core::id::AttemptId;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Ends and removes all of it; tells the attempts that were under way. Blocks for as long as that takes.
pub(super) fn sweep(ground: &Ground) -> io::Result<BTreeSet<AttemptId>> {
    let run = attempts_folder(&ground.data_dir);
    fs::create_dir_all(&run)?;
    let mut cut = BTreeSet::new();
    for entry in fs::read_dir(&run)?.flatten() {
        if let Some(attempt) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            cut.insert(attempt);
        }
    }
    if cut.is_empty() {
        return Ok(cut);
    }
    if let Some(parent) = noted_groups(&ground.data_dir) {
        for &attempt in &cut {
            Leaf::at(parent.join(AttemptPlaces::of(&ground.data_dir, attempt).group_name())).clear();
        }
    }
    let left = end_processes(|| marked(&run));
    if !left.is_empty() {
        tracing::error!(?left, "processes of an earlier agent cannot be ended");
    }
    remove_all_groups(ground);
    for &attempt in &cut {
        AttemptPlaces::of(&ground.data_dir, attempt).remove()?;
    }
    tracing::info!(attempts = cut.len(), "swept what an earlier agent left behind");
    Ok(cut)
}

/// Groups of ours that no folder speaks of any more.
fn remove_all_groups(ground: &Ground) {
    let prefix = format!("phalanx-{}-", tag(&ground.data_dir));
    if let Containment::Cgroup(parent) = &ground.containment {
        remove_groups(parent, &prefix);
    }
    if let MemoryGroups::V1(parent) = &ground.memory_groups {
        remove_groups(parent, &prefix);
    }
}

/// Ends what is in the groups whose names begin like this, and removes them.
pub(super) fn remove_groups(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            Leaf::at(entry.path()).clear();
        }
    }
}

/// Processes whose environment says that they belong to an attempt in this folder.
fn marked(run: &Path) -> BTreeSet<i32> {
    let mut marker = b"PHALANX_SCRATCH=".to_vec();
    marker.extend(run.as_os_str().as_bytes());
    marker.push(b'/');
    let me = std::process::id() as i32;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let belongs = |&pid: &i32| {
        // A zombie has no environment, and no process of another user can be ours.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry.starts_with(&marker))
    };
    pids.filter(|&pid| pid != me).filter(belongs).collect()
}
