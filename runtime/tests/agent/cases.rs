//! What the contract says of a rank's life.

use crate::service::{Running, Service, attempt, exits, launch, mark, own, processes_with, sh, written};
use phalanx_runtime::agent::{Containment, containment};
use phalanx_runtime::protocol::{Command, Happening};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

pub type Case = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub fn all() -> Vec<(&'static str, $crate::cases::Case)> {
            vec![$((stringify!($name), || Box::pin($name()))),*]
        }
    };
}
pub(crate) use cases;

cases! {
    exit_codes_lines_and_their_order,
    bytes_are_kept_as_they_are,
    what_cannot_be_started_says_why,
    a_rank_starts_clean,
    every_process_ends_in_a_cgroup,
    every_process_ends_under_a_subreaper,
    leftovers_do_not_hide_an_exit,
    a_rank_that_is_asked_ends_by_itself,
    a_flood_loses_nothing,
    memory_has_a_limit,
    a_killed_guard_takes_its_ranks_along,
    a_killed_agent_takes_its_ranks_along,
    a_cut_session_goes_on_without_gap_or_repeat,
    an_agent_alone_ends_its_ranks_and_tells_later,
    a_start_takes_few_milliseconds,
}

pub async fn setup() -> (tempfile::TempDir, Service, Running) {
    setup_with(None).await
}

async fn setup_with(containment: Option<Containment>) -> (tempfile::TempDir, Service, Running) {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start().await;
    let agent = Running::start(dir.path(), service.port, containment, false);
    (dir, service, agent)
}

/// Nothing stays: no folder of an attempt, no cgroup.
pub async fn tear_down(dir: tempfile::TempDir, agent: Running) {
    agent.stop().await;
    no_trace(dir.path());
}

fn no_trace(data_dir: &Path) {
    let left: Vec<_> =
        std::fs::read_dir(data_dir.join("run")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory"] {
        let tag = &blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex()[..10];
        let mut open = vec![std::path::PathBuf::from(root)];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                assert!(!entry.file_name().to_string_lossy().contains(tag), "{}", entry.path().display());
                open.extend(entry.file_type().is_ok_and(|kind| kind.is_dir()).then(|| entry.path()));
            }
        }
    }
}

async fn exit_codes_lines_and_their_order() {
    let (dir, service, agent) = setup().await;
    let all = service.complete(sh("echo out; echo err >&2; printf rest; exit 3")).await;
    let [exit] = &exits(&all)[..] else { panic!("{all:?}") };
    assert_eq!(
        (exit.code, &exit.message[..], exit.asked, exit.not_started),
        (3, "exited with code 3", false, false)
    );
    assert_eq!(written(&all, 0, false), b"out\nrest");
    assert_eq!(written(&all, 0, true), b"err\n");
    let position = |find: fn(&Happening) -> bool| all.iter().position(find).unwrap();
    let exited = position(|what| matches!(what, Happening::RankExited(_)));
    assert!(position(|what| matches!(what, Happening::RankStarted { .. })) < exited);
    assert!(all.iter().rposition(|what| matches!(what, Happening::Log(_))).unwrap() < exited, "{all:?}");
    for (script, code, message) in [
        ("kill -KILL $$", 137, "killed by signal 9 (SIGKILL)"),
        ("kill -TERM $$", 143, "killed by signal 15 (SIGTERM)"),
        ("kill -40 $$", 168, "killed by signal 40"),
        ("exit 255", 255, "exited with code 255"),
    ] {
        let exit = &exits(&service.complete(sh(script)).await)[0];
        assert_eq!((exit.code, &exit.message[..]), (code, message));
    }
    let gang = launch(&["sh", "-c", "echo rank $RANK of $WORLD_SIZE; exit $RANK"], 3);
    let all = service.complete(gang).await;
    let mut codes: Vec<i32> = exits(&all).iter().map(|exit| exit.code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1, 2]);
    assert_eq!(written(&all, 2, false), b"rank 2 of 3\n");
    tear_down(dir, agent).await;
}

async fn bytes_are_kept_as_they_are() {
    let (dir, service, agent) = setup().await;
    let all = service.complete(sh(r"printf '\377\376\000x\r\n\n\ra\n\303'")).await;
    assert_eq!(written(&all, 0, false), b"\xff\xfe\0x\r\n\n\ra\n\xc3");
    let lines = all.iter().filter(|what| matches!(what, Happening::Log(_))).count();
    assert_eq!(lines, 4);
    tear_down(dir, agent).await;
}

async fn what_cannot_be_started_says_why() {
    let (dir, service, agent) = setup().await;
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "echo hi").unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut lost = sh("true");
    lost.workdir = "/no/such/folder".into();
    let mut own_path = launch(&["here-only"], 1);
    own_path.env.insert("PATH".into(), dir.path().to_str().unwrap().into());
    let mut relative = launch(&["./plain"], 1);
    relative.workdir = dir.path().to_owned();
    for (launch, code, word) in [
        (launch(&["no-such-command"], 1), 127, "`no-such-command`"),
        (launch(&["/no/such/command"], 1), 127, "`/no/such/command`"),
        (own_path, 127, dir.path().to_str().unwrap()),
        (relative, 126, "`./plain`"),
        (launch(&["/"], 1), 126, "is a folder"),
        (launch(&[script.to_str().unwrap()], 1), 127, "interpreter"),
        (lost, 127, "/no/such/folder"),
    ] {
        let all = service.complete(launch).await;
        let [exit] = &exits(&all)[..] else { panic!("{all:?}") };
        assert_eq!(exit.code, code, "{}", exit.message);
        assert!(exit.not_started && exit.message.contains(word), "{}", exit.message);
    }
    tear_down(dir, agent).await;
}

async fn a_rank_starts_clean() {
    let (dir, service, agent) = setup().await;
    let text = |all: &[Happening]| String::from_utf8(written(all, 0, false)).unwrap();
    let descriptors = text(&service.complete(launch(&["ls", "/proc/self/fd"], 1)).await);
    assert_eq!(descriptors, "0\n1\n2\n3\n", "the last one is that of `ls` itself");
    let status = text(&service.complete(launch(&["cat", "/proc/self/status"], 1)).await);
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    assert_eq!(text(&service.complete(launch(&["cat"], 1)).await), "", "standard input is empty");
    let mut launch =
        sh("env | grep ^PHALANX_ | cut -d= -f1 | sort | tr '\\n' ' '; test -S $PHALANX_SOCKET && \
        touch $PHALANX_SCRATCH/x && echo && pwd && echo \"$CUDA_VISIBLE_DEVICES.$OMP_NUM_THREADS.$A\"");
    launch.env.insert("A".into(), "b c".into());
    launch.workdir = dir.path().to_owned();
    let here = dir.path().canonicalize().unwrap();
    let expected =
        format!("PHALANX_ATTEMPT PHALANX_JOB PHALANX_SCRATCH PHALANX_SOCKET \n{}\n.1.b c\n", here.display());
    assert_eq!(text(&service.complete(launch).await), expected);
    tear_down(dir, agent).await;
}

/// What tries to get away: ignores SIGTERM, forks, starts sessions, forks twice, clears its environment.
fn escape(mark: &str) -> String {
    format!(
        "trap '' TERM; sleep {mark} & setsid sleep {mark} & (setsid sh -c 'sleep {mark} & sleep {mark}' &) & \
         (env -i setsid sh -c '(trap \"\" TERM; sleep {mark}; sleep {mark}) & exit 0' &); echo ready; \
         while :; do sleep {mark}; done"
    )
}

async fn every_process_ends(containment: Containment) {
    let (dir, service, agent) = setup_with(Some(containment)).await;
    let mark = mark();
    let launch = sh(&escape(&mark));
    let attempt = launch.attempt;
    service.launch(launch).await;
    service.find(attempt, "a line", |what| matches!(what, Happening::Log(_)).then_some(())).await;
    while processes_with(&mark).len() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let began = Instant::now();
    let grace = Duration::from_millis(300);
    service.send(Command::Stop { attempt, ask_first: false, grace }).await;
    let all = service.gone(attempt).await;
    assert!(began.elapsed() >= grace && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
    assert!(exits(&all)[0].asked);
    assert_eq!(exits(&all)[0].code, 137);
    assert!(matches!(all.last(), Some(Happening::Gone { unreaped }) if unreaped.is_empty()));
    tear_down(dir, agent).await;
}

async fn every_process_ends_in_a_cgroup() {
    match containment() {
        Containment::Subreaper => println!("no cgroup v2 can be had here"),
        cgroup => every_process_ends(cgroup).await,
    }
}

async fn every_process_ends_under_a_subreaper() {
    every_process_ends(Containment::Subreaper).await;
}

async fn leftovers_do_not_hide_an_exit() {
    let (dir, service, agent) = setup().await;
    let mark = mark();
    let mut launch = sh(&format!(
        "(trap '' TERM; touch $PHALANX_SCRATCH/deaf; setsid sleep {mark}; sleep {mark}) & setsid sleep {mark} & \
         until [ -e $PHALANX_SCRATCH/deaf ]; do sleep 0.01; done; echo bye; exit 7"
    ));
    launch.grace = Duration::from_secs(2);
    let attempt = launch.attempt;
    service.launch(launch).await;
    let exit = |what: &Happening| match what {
        Happening::RankExited(exit) => Some(exit.clone()),
        _ => None,
    };
    let exit = service.find(attempt, "an exit", exit).await;
    assert_eq!((exit.code, exit.asked), (7, false));
    assert!(!processes_with(&mark).is_empty(), "they hold its standard output");
    let all = service.gone(attempt).await;
    assert_eq!(written(&all, 0, false), b"bye\n");
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
    tear_down(dir, agent).await;
}

async fn a_rank_that_is_asked_ends_by_itself() {
    let (dir, service, agent) = setup().await;
    let launch = own(&["report-until-stop"]);
    let attempt = launch.attempt;
    service.launch(launch).await;
    let third = |what: &Happening| matches!(what, Happening::Report { step: 3, .. }).then_some(());
    service.find(attempt, "the third report", third).await;
    service.send(Command::Stop { attempt, ask_first: true, grace: Duration::from_secs(20) }).await;
    let all = service.gone(attempt).await;
    let exit = &exits(&all)[0];
    assert_eq!((exit.code, exit.asked), (0, true));
    assert_eq!(written(&all, 0, false), b"stopping by itself\n");
    let steps: Vec<u64> = all
        .iter()
        .filter_map(|what| match what {
            Happening::Report { step, .. } => Some(*step),
            _ => None,
        })
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "each step once");
    // One that never spoke is signalled at once.
    let launch = sh("echo up; exec sleep 1000");
    let attempt = launch.attempt;
    service.launch(launch).await;
    service.find(attempt, "a line", |what| matches!(what, Happening::Log(_)).then_some(())).await;
    service.send(Command::Stop { attempt, ask_first: true, grace: Duration::from_secs(20) }).await;
    let all = service.gone(attempt).await;
    assert_eq!(exits(&all)[0].code, 143);
    tear_down(dir, agent).await;
}

async fn a_flood_loses_nothing() {
    let (dir, service, agent) = setup().await;
    for (total, width) in [(400_usize << 20, (1 << 20) + 17), (64 << 20, 4095), (32 << 20, 79)] {
        let began = Instant::now();
        let launch = own(&["flood", &total.to_string(), &width.to_string()]);
        let all = service.complete(launch).await;
        let seconds = began.elapsed().as_secs_f64();
        let bytes = written(&all, 0, false);
        assert!(bytes.len() >= total);
        assert!(bytes.split(|&byte| byte == b'\n').all(|line| line.len() == width || line.is_empty()));
        println!(
            "  {} MiB in lines of {width} bytes: {:.0} MB/s",
            total >> 20,
            bytes.len() as f64 / seconds / 1e6
        );
        service.fake.0.lock().unwrap().events.clear();
    }
    tear_down(dir, agent).await;
}

async fn memory_has_a_limit() {
    let (dir, service, agent) = setup().await;
    let mut launch = own(&["eat", "200"]);
    launch.memory_bytes = 64 << 20;
    let all = service.complete(launch).await;
    let exit = &exits(&all)[0];
    assert!(exit.code != 0, "{exit:?}");
    assert!(exit.message.contains("out of memory") || exit.code != 137, "{exit:?}");
    let mut launch = own(&["eat", "20"]);
    launch.memory_bytes = 64 << 20;
    assert_eq!(exits(&service.complete(launch).await)[0].code, 0);
    tear_down(dir, agent).await;
}

async fn a_killed_guard_takes_its_ranks_along() {
    for containment in [containment(), Containment::Subreaper] {
        let (dir, service, agent) = setup_with(Some(containment)).await;
        let mark = mark();
        let launch = sh(&escape(&mark));
        let attempt = launch.attempt;
        service.launch(launch).await;
        let started = |what: &Happening| match what {
            Happening::RankStarted { pid, .. } => Some(*pid),
            _ => None,
        };
        let pid = service.find(attempt, "its start", started).await;
        while processes_with(&mark).len() < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let guard: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(processes_with("guard").contains(&guard));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), nix::sys::signal::Signal::SIGKILL).unwrap();
        let all = service.gone(attempt).await;
        let exit = &exits(&all)[0];
        assert_eq!((exit.code, exit.asked), (137, false));
        assert!(exit.message.contains("guard"), "{}", exit.message);
        assert_eq!(processes_with(&mark), Vec::<i32>::new());
        tear_down(dir, agent).await;
    }
}

async fn a_killed_agent_takes_its_ranks_along() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start().await;
    let mark = mark();
    let program = std::env::current_exe().unwrap();
    let start = || {
        let mut command = std::process::Command::new(&program);
        command.arg("agent").arg(dir.path()).arg(service.port.to_string()).spawn().unwrap()
    };
    let mut agent = start();
    let mut launch = sh(&escape(&mark));
    launch.grace = Duration::from_secs(1);
    let attempt = launch.attempt;
    service.launch(launch).await;
    while processes_with(&mark).len() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    let began = Instant::now();
    while !processes_with(&mark).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "ranks outlive their agent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A second one, killed and at once followed by another agent, which sweeps.
    let mut agent = start();
    service.gone(attempt).await;
    let second = sh(&escape(&mark));
    let attempt = second.attempt;
    service.launch(second).await;
    while processes_with(&mark).len() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    let running = Running::start(dir.path(), service.port, None, false);
    service.gone(attempt).await;
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
    let incarnations: std::collections::BTreeSet<String> =
        service.fake.0.lock().unwrap().hellos.iter().map(|hello| hello.incarnation.clone()).collect();
    assert_eq!(incarnations.len(), 3);
    tear_down(dir, running).await;
}

async fn a_cut_session_goes_on_without_gap_or_repeat() {
    let (dir, mut service, agent) = setup().await;
    let launch = sh("for i in $(seq 1 40); do echo $i; sleep 0.02; done");
    let attempt = launch.attempt;
    service.launch(launch).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let port = service.port;
        let fake = service.cut();
        tokio::time::sleep(Duration::from_millis(50)).await;
        service = Service::on(fake, port).await;
    }
    let all = service.gone(attempt).await;
    let expected: String = (1..=40).map(|i| format!("{i}\n")).collect();
    assert_eq!(String::from_utf8(written(&all, 0, false)).unwrap(), expected);
    assert!(service.fake.0.lock().unwrap().hellos.len() >= 2);
    tear_down(dir, agent).await;
}

async fn an_agent_alone_ends_its_ranks_and_tells_later() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start().await;
    let agent = Running::start(dir.path(), service.port, None, true);
    let mark = mark();
    let done = sh("sleep 0.3; exit 5");
    let running = sh(&format!("exec sleep {mark}"));
    let (first, id) = (done.attempt, running.attempt);
    service.launch(done).await;
    service.launch(running).await;
    service.find(id, "its start", |what| matches!(what, Happening::RankStarted { .. }).then_some(())).await;
    let fake = service.cut();
    let began = Instant::now();
    agent.ended().await;
    assert!(began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(8));
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
    let service = Service::on(fake, 0).await;
    let agent = Running::start(dir.path(), service.port, None, false);
    let all = service.gone(first).await;
    assert_eq!(
        (exits(&all)[0].code, exits(&all)[0].asked),
        (5, false),
        "what ended by itself keeps its result"
    );
    let all = service.gone(id).await;
    assert_eq!((exits(&all)[0].code, exits(&all)[0].asked), (143, true));
    let unknown = attempt();
    service.send(Command::Stop { attempt: unknown, ask_first: false, grace: Duration::ZERO }).await;
    service.gone(unknown).await;
    tear_down(dir, agent).await;
}

async fn a_start_takes_few_milliseconds() {
    let (dir, service, agent) = setup().await;
    let mut times = Vec::new();
    for _ in 0..30 {
        let launch = sh("echo hi");
        let attempt = launch.attempt;
        service.send(Command::Reserve { attempt, wants_master_port: true }).await;
        service
            .find(attempt, "Reserved", |what| matches!(what, Happening::Reserved { .. }).then_some(()))
            .await;
        let began = Instant::now();
        service.send(Command::Start(Box::new(launch))).await;
        service.find(attempt, "a line", |what| matches!(what, Happening::Log(_)).then_some(())).await;
        let line = began.elapsed();
        service.find(attempt, "Gone", |what| matches!(what, Happening::Gone { .. }).then_some(())).await;
        times.push((line, began.elapsed()));
    }
    times.sort();
    let (line, gone) = times[times.len() / 2];
    println!("  start to first line {line:?}, to gone {gone:?} (medians of {})", times.len());
    assert!(line < Duration::from_millis(500));
    tear_down(dir, agent).await;
}
