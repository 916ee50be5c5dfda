//! The environment of a rank: the torchrun contract, ours, the job's own, and an allow-list of the agent's.

use crate::launch::{Launch, RankLaunch};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What passes from the agent's environment to a rank.
const PASSED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TERM",
    "HOSTNAME",
    "LD_LIBRARY_PATH",
];
/// And what begins like this.
const PASSED_PREFIXES: [&str; 5] = ["LC_", "XDG_", "NCCL_", "CUDA_", "PYTHON"];
/// The one role of a gang, as torchrun names it.
const ROLE_NAME: &str = "default";

/// The folders and sockets of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places<'a> {
    /// The rank's socket.
    pub(super) socket: &'a Path,
    /// The attempt's folder.
    pub(super) scratch: &'a Path,
    /// The file of a trial's parameters.
    pub(super) params: &'a Path,
}

/// The whole environment of one rank.
pub(super) fn of_rank(
    launch: &Launch,
    local_rank: usize,
    rank: &RankLaunch,
    places: Places<'_>,
    inherited: impl IntoIterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> =
        inherited.into_iter().filter(|(name, _)| passes(name)).collect();
    let mut set = |name: &str, value: &OsStr| drop(env.insert(name.into(), value.to_owned()));
    let local_world = launch.ranks.len();
    for (name, value) in [
        ("RANK", u64::from(rank.rank)),
        ("LOCAL_RANK", local_rank as u64),
        ("WORLD_SIZE", u64::from(launch.world)),
        ("LOCAL_WORLD_SIZE", local_world as u64),
        ("GROUP_RANK", u64::from(launch.group_rank)),
        ("GROUP_WORLD_SIZE", u64::from(launch.group_world)),
        ("ROLE_RANK", u64::from(rank.rank)),
        ("ROLE_WORLD_SIZE", u64::from(launch.world)),
        ("MASTER_PORT", u64::from(launch.master_port)),
        ("TORCHELASTIC_RESTART_COUNT", u64::from(launch.restart_count)),
        ("TORCHELASTIC_MAX_RESTARTS", u64::from(launch.max_restarts)),
        ("OMP_NUM_THREADS", launch.cpus.threads()),
        ("PHALANX_ATTEMPT", u64::from(launch.attempt.number)),
    ] {
        set(name, value.to_string().as_ref());
    }
    let job = launch.attempt.job.to_string();
    set("ROLE_NAME", ROLE_NAME.as_ref());
    set("MASTER_ADDR", launch.master_addr.as_ref());
    set("TORCHELASTIC_RUN_ID", job.as_ref());
    set("TORCHELASTIC_USE_AGENT_STORE", "False".as_ref());
    set("CUDA_VISIBLE_DEVICES", rank.visible_devices.as_ref());
    set("PHALANX_JOB", job.as_ref());
    set("PHALANX_SOCKET", places.socket.as_os_str());
    set("PHALANX_SCRATCH", places.scratch.as_os_str());
    if let Some(checkpoint) = &launch.checkpoint {
        set("PHALANX_CHECKPOINT", checkpoint.as_os_str());
    }
    if let Some(trial) = &launch.trial {
        set("PHALANX_SWEEP", trial.id.sweep.to_string().as_ref());
        set("PHALANX_TRIAL", trial.id.number.to_string().as_ref());
    }
    if launch.params.is_some() {
        set("PHALANX_PARAMS", places.params.as_os_str());
    }
    env.extend(launch.env.iter().map(|(name, value)| (name.into(), value.into())));
    env.extend(launch.secrets.iter().map(|(name, secret)| (name.into(), secret.reveal().into())));
    env
}

fn passes(name: &OsStr) -> bool {
    let name = name.as_bytes();
    PASSED.iter().any(|passed| passed.as_bytes() == name)
        || PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::LaunchWork;
    use phalanx_core::id::AttemptId;
    use phalanx_core::{Cpus, JobId, Secret, SweepId, TrialId, TrialOf};
    use std::time::Duration;

    fn launch() -> Launch {
        let rank = |rank| RankLaunch { rank, visible_devices: format!("GPU-{rank}") };
        Launch {
            attempt: AttemptId { job: JobId(7), number: 3 },
            work: LaunchWork::Program(vec!["true".into()]),
            workdir: "/".into(),
            env: BTreeMap::from([("LR".into(), "0.1".into())]),
            secret_names: vec!["HF_TOKEN".into()],
            secrets: BTreeMap::from([("HF_TOKEN".into(), Secret::new("hunter22".into()).unwrap())]),
            cpus: Cpus::from_milli(2500),
            memory_bytes: 0,
            world: 4,
            group_rank: 1,
            group_world: 2,
            master_addr: "10.0.0.1".into(),
            master_port: 29_500,
            restart_count: 2,
            max_restarts: 5,
            grace: Duration::from_secs(10),
            checkpoint: Some("/data/c".into()),
            trial: None,
            params: None,
            elastic: false,
            ranks: vec![rank(2), rank(3)],
        }
    }

    fn env(launch: &Launch) -> Vec<String> {
        let inherited = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("XDG_RUNTIME_DIR", "/x"),
            ("SECRET", "no"),
            ("PHALANX_SERVER", "no"),
            ("OMP_NUM_THREADS", "64"),
            ("CUDA_VISIBLE_DEVICES", "9"),
            ("LD_PRELOAD", "no"),
            ("SLURM_JWT", "no"),
        ];
        let inherited = inherited.map(|(name, value)| (name.into(), value.into()));
        let places = Places {
            socket: Path::new("/r/3.sock"),
            scratch: Path::new("/r/scratch"),
            params: Path::new("/r/params.json"),
        };
        let env = of_rank(launch, 1, &launch.ranks[1], places, inherited);
        env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    #[test]
    fn the_contract_word_for_word() {
        let expected = [
            "CUDA_VISIBLE_DEVICES=GPU-3",
            "GROUP_RANK=1",
            "GROUP_WORLD_SIZE=2",
            "HF_TOKEN=hunter22",
            "LC_ALL=C",
            "LOCAL_RANK=1",
            "LOCAL_WORLD_SIZE=2",
            "LR=0.1",
            "MASTER_ADDR=10.0.0.1",
            "MASTER_PORT=29500",
            "OMP_NUM_THREADS=2",
            "PATH=/bin",
            "PHALANX_ATTEMPT=3",
            "PHALANX_CHECKPOINT=/data/c",
            "PHALANX_JOB=j7",
            "PHALANX_SCRATCH=/r/scratch",
            "PHALANX_SOCKET=/r/3.sock",
            "RANK=3",
            "ROLE_NAME=default",
            "ROLE_RANK=3",
            "ROLE_WORLD_SIZE=4",
            "TORCHELASTIC_MAX_RESTARTS=5",
            "TORCHELASTIC_RESTART_COUNT=2",
            "TORCHELASTIC_RUN_ID=j7",
            "TORCHELASTIC_USE_AGENT_STORE=False",
            "WORLD_SIZE=4",
            "XDG_RUNTIME_DIR=/x",
        ];
        assert_eq!(env(&launch()), expected);
    }

    #[test]
    fn a_trial_knows_what_it_is() {
        let id = TrialId { sweep: SweepId(2), number: 5 };
        let trial = TrialOf { id, params: BTreeMap::new(), judged: None, from: None };
        let env = env(&Launch { trial: Some(Box::new(trial)), params: Some(BTreeMap::new()), ..launch() });
        for line in ["PHALANX_SWEEP=s2", "PHALANX_TRIAL=5", "PHALANX_PARAMS=/r/params.json"] {
            assert!(env.iter().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn the_jobs_own_environment_comes_last_and_no_device_is_an_empty_list() {
        let mut launch = launch();
        launch.env = BTreeMap::from([("OMP_NUM_THREADS".into(), "1".into()), ("PATH".into(), "/opt".into())]);
        launch.ranks[1].visible_devices = String::new();
        launch.checkpoint = None;
        let env = env(&launch);
        for line in ["OMP_NUM_THREADS=1", "PATH=/opt", "CUDA_VISIBLE_DEVICES="] {
            assert!(env.iter().any(|found| found == line), "{line}");
        }
        assert!(!env.iter().any(|line| line.starts_with("PHALANX_CHECKPOINT")));
    }
}
