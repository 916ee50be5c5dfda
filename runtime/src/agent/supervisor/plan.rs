//! What a guard is to run, from what the service wants to be started.

use super::Ground;
use crate::agent::containment::{Containment, Leaf};
use crate::agent::environment::{Places, of_rank};
use crate::agent::guard::{Groups, Plan, RankPlan, Work, has_room_for};
use crate::agent::places::AttemptPlaces;
use crate::launch::{Launch, LaunchWork, RankLaunch};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// What the loader and the libraries read once, when a program starts: a rank with one of these has to be a new program.
const READ_AT_START: [&str; 4] = ["LD_", "GLIBC_", "MALLOC_", "RUST_"];

/// The one of them that ranks and guards are given from the agent's environment.
pub(super) const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// The plan of an attempt; makes its cgroup.
pub(super) fn plan(ground: &Ground, launch: &Launch, places: &AttemptPlaces) -> io::Result<Plan> {
    let rank = |(local, rank)| rank_plan(launch, places, local, rank);
    let ranks: Vec<RankPlan> = launch.ranks.iter().enumerate().map(rank).collect();
    let work = match &launch.work {
        LaunchWork::Program(command) => Work::Program(command.iter().map(OsString::from).collect()),
        LaunchWork::Worker(spec) if ranks.iter().all(|rank| may_be_a_fork(&rank.env)) => {
            Work::Fork(serde_json::to_string(spec)?)
        }
        LaunchWork::Worker(spec) => {
            let file = places.scratch().join("worker.json");
            std::fs::write(&file, serde_json::to_vec(spec)?)?;
            let program = ground.program.clone().into();
            Work::Program(vec![program, "worker".into(), "--spec".into(), file.into()])
        }
    };
    Ok(Plan {
        leaf: make_leaf(ground, places),
        memory_groups: Groups::of(&ground.memory_groups, &places.group_name()),
        grace: launch.grace,
        elastic: launch.elastic,
        memory_bytes: launch.memory_bytes,
        workdir: launch.workdir.clone(),
        work,
        ranks,
    })
}

fn rank_plan(launch: &Launch, places: &AttemptPlaces, local: usize, rank: &RankLaunch) -> RankPlan {
    let socket = places.socket(rank.rank);
    let at = Places { socket: &socket, scratch: Path::new(places.scratch()), params: &places.params() };
    let env = of_rank(launch, local, rank, at, std::env::vars_os());
    RankPlan { rank: rank.rank, env: env.into_iter().collect() }
}

/// Whether a rank with this environment does as well as a fork, and is shown with it in the process table.
fn may_be_a_fork(env: &[(OsString, OsString)]) -> bool {
    let needs_a_start = |(name, value): &(OsString, OsString)| {
        let is_read =
            READ_AT_START.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
        let as_the_guards = name == LIBRARIES && std::env::var_os(LIBRARIES).as_ref() == Some(value);
        is_read && !as_the_guards
    };
    has_room_for(env) && !env.iter().any(needs_a_start)
}

/// The attempt's cgroup; without one its guard holds it alone.
fn make_leaf(ground: &Ground, places: &AttemptPlaces) -> Option<PathBuf> {
    let Containment::Cgroup(parent) = &ground.containment else { return None };
    let path = parent.join(places.group_name());
    match Leaf::create(path.clone()) {
        Ok(_) => Some(path),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "no cgroup for an attempt; its guard holds it alone");
            None
        }
    }
}
