//! Guards that serve one attempt after another, and ranks of the built-in trainer that are forks of them.

use crate::cases::{cases, setup, tear_down};
use crate::service::{Service, built_in, exits, processes_with, sh, written};
use phalanx_runtime::protocol::Happening;
use std::collections::BTreeMap;
use std::time::Duration;

cases! {
    a_fork_sees_nothing_of_the_one_before,
    a_fork_ends_like_any_process,
    what_is_read_at_a_start_needs_one,
    a_fork_dies_with_its_guard,
    guards_wait_and_are_let_go,
}

/// The bound on guards that wait.
const IDLE_MOST: usize = 16;

async fn look(service: &Service) -> BTreeMap<String, String> {
    let mut launch = built_in("look");
    launch.workdir = "/usr".into();
    let all = service.complete(launch).await;
    assert_eq!(exits(&all)[0].code, 0, "{all:?}");
    let text = String::from_utf8(written(&all, 0, false)).unwrap();
    let entry = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter_map(entry).collect()
}

async fn a_fork_sees_nothing_of_the_one_before() {
    let (dir, service, agent) = setup().await;
    let first = look(&service).await;
    assert_eq!(first["runs"], "0");
    assert_eq!((&first["command"][..], &first["folder"][..]), ("phalanx worker", "/usr"));
    assert_eq!((&first["threads"][..], &first["descriptors"][..]), ("1", "3"));
    // As in a program of Rust that has just been started, but for the stack's overflow, which ends it as well.
    assert_eq!((&first["ignored"][..], &first["blocked"][..]), ("0000000000001000", "0000000000000000"));
    assert_eq!(first["caught"], "0000000000000000");
    assert_eq!(first["shown"], "the same");
    assert!(first["environment"].contains(" PART=look "), "{first:?}");
    let mut stain = built_in("stain");
    stain.grace = Duration::from_millis(300);
    let all = service.complete(stain).await;
    assert_eq!(exits(&all)[0].code, 3);
    assert_eq!(written(&all, 0, false), b"stained, and the line unfinished");
    let mut second = look(&service).await;
    assert_eq!(second["guard"], first["guard"], "the same guard has served them all");
    // But for what is theirs.
    for name in ["PHALANX_JOB", "TORCHELASTIC_RUN_ID", "PHALANX_SCRATCH", "PHALANX_SOCKET"] {
        let own = |look: &BTreeMap<String, String>| {
            let all = look["environment"].split(' ');
            all.filter(|entry| entry.starts_with(name)).map(str::to_owned).collect::<String>()
        };
        let (before, after) = (own(&first), own(&second));
        assert_ne!(before, after);
        let environment = second["environment"].replace(&after, &before);
        second.insert("environment".into(), environment);
    }
    assert_eq!(second, first);
    // A program is served by it too, and starts as clean as ever.
    let all = service.complete(sh("echo $PPID; env | grep -c STAIN")).await;
    assert_eq!(String::from_utf8(written(&all, 0, false)).unwrap(), format!("{}\n0\n", first["guard"]));
    tear_down(dir, agent).await;
}

async fn a_fork_ends_like_any_process() {
    let (dir, service, agent) = setup().await;
    for (part, code, message) in
        [("abort", 134, "killed by signal 6 (SIGABRT)"), ("panic", 101, "exited with code 101")]
    {
        let all = service.complete(built_in(part)).await;
        let exit = &exits(&all)[0];
        assert_eq!((exit.code, &exit.message[..], exit.not_started), (code, message, false));
    }
    let mut lost = built_in("look");
    lost.workdir = "/no/such/folder".into();
    let all = service.complete(lost).await;
    assert!(exits(&all)[0].not_started && exits(&all)[0].code == 127, "{all:?}");
    tear_down(dir, agent).await;
}

async fn what_is_read_at_a_start_needs_one() {
    let (dir, service, agent) = setup().await;
    let long = "x".repeat(17 << 10);
    for (name, value) in [("LD_LIBRARY_PATH", "/nowhere"), ("RUST_BACKTRACE", "1"), ("LONG", &long)] {
        let mut launch = built_in("look");
        launch.env.insert(name.into(), value.into());
        let all = service.complete(launch).await;
        let text = String::from_utf8(written(&all, 0, false)).unwrap();
        assert!(text.contains(" worker --spec /"), "{name}: {text}");
        assert!(text.contains("shown the same") && text.contains(&format!("{name}={value}")), "{name}");
    }
    tear_down(dir, agent).await;
}

/// A built-in rank that sleeps: its process, and that of its guard.
async fn asleep(service: &Service) -> (phalanx_core::id::AttemptId, u32, i32) {
    let launch = built_in("sleep");
    let attempt = launch.attempt;
    service.launch(launch).await;
    let started = |what: &Happening| match what {
        Happening::RankStarted { pid, .. } => Some(*pid),
        _ => None,
    };
    let pid = service.find(attempt, "its start", started).await;
    service.find(attempt, "a line", |what| matches!(what, Happening::Log(_)).then_some(())).await;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    (attempt, pid, parent)
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

async fn a_fork_dies_with_its_guard() {
    let (dir, service, agent) = setup().await;
    let (attempt, pid, guard) = asleep(&service).await;
    kill(pid.cast_signed());
    let all = service.gone(attempt).await;
    assert_eq!(exits(&all)[0].message, "killed by signal 9 (SIGKILL)");
    // The guard has seen that, and is killed under the next one, which it serves.
    let (attempt, pid, same) = asleep(&service).await;
    assert_eq!(same, guard);
    kill(guard);
    let all = service.gone(attempt).await;
    assert_eq!(exits(&all)[0].code, 137);
    assert!(exits(&all)[0].message.contains("guard"), "{all:?}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    // One that is killed while it waits is missed by nobody.
    let first = look(&service).await["guard"].clone();
    kill(first.parse().unwrap());
    assert_ne!(look(&service).await["guard"], first);
    tear_down(dir, agent).await;
}

async fn guards_wait_and_are_let_go() {
    let (dir, service, agent) = setup().await;
    let attempts: Vec<_> = (0..IDLE_MOST + 4).map(|_| sh("sleep 0.3")).collect();
    let ids: Vec<_> = attempts.iter().map(|launch| launch.attempt).collect();
    for launch in attempts {
        service.launch(launch).await;
    }
    for id in ids {
        service.gone(id).await;
    }
    let me = std::process::id();
    let guards = || {
        let mine = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent =
                stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
            parent == Some(me) && !stat.contains(") Z ")
        };
        processes_with("guard").into_iter().filter(mine).count()
    };
    let mut left = guards();
    for _ in 0..200 {
        if left <= IDLE_MOST {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        left = guards();
    }
    assert!((1..=IDLE_MOST).contains(&left), "{left} guards wait");
    tear_down(dir, agent).await;
    assert_eq!(guards(), 0, "an agent that ends lets all of them go");
}
