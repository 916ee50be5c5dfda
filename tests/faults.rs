//! Bad input and faults, against the real binary: each has a clear error or a recorded failure, leaves nothing behind, and
//! loses no line that was written.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Home, Service, eventually, finish, is_alive, script, script_with, signal};

/// How long the end of an attempt with a grace of a second may take on a busy machine.
const END: Duration = Duration::from_secs(20);

#[track_caller]
fn submit(home: &Home, file: &str, more: &[&str]) -> String {
    home.run(["submit", file].iter().chain(more)).expect(0).out().trim().to_owned()
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

/// Waits for a process to write its number, whole, into a file.
#[track_caller]
fn pid_in(path: &Path) -> u32 {
    let read = || std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'));
    eventually(&format!("{} is written", path.display()), END, || read().is_some());
    read().unwrap().trim().parse().unwrap()
}

/// Processes that carry the folder in their command line or environment, but for the caller's own.
fn processes_of(home: &Home) -> BTreeSet<u32> {
    let folder = home.dir.path().to_str().unwrap().as_bytes().to_vec();
    let has = |path: PathBuf| {
        std::fs::read(path).is_ok_and(|bytes| bytes.windows(folder.len()).any(|window| window == folder))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| {
        is_alive(pid)
            && (has(format!("/proc/{pid}/cmdline").into()) || has(format!("/proc/{pid}/environ").into()))
    })
    .collect()
}

/// Ends the service and checks that nothing of it is left: no process, no port, no scratch folder.
#[track_caller]
fn assert_nothing_left(home: &Home, service: Service) {
    let nodes = home.run(["nodes", "--json"]).expect(0).json();
    for node in nodes.as_array().unwrap() {
        assert_eq!(node["cpus"]["free"], node["cpus"]["total"], "a CPU is still held");
        for gpu in node["gpus"].as_array().unwrap() {
            assert_eq!(gpu["free"], 1, "a device is still held");
        }
    }
    let (grpc, http) = (service.grpc.clone(), service.http.strip_prefix("http://").unwrap().to_owned());
    assert_eq!(service.stop(), 0);
    eventually("no process is left", END, || processes_of(home).is_empty());
    for address in [grpc, http] {
        assert!(std::net::TcpStream::connect(&address).is_err(), "{address} still answers");
    }
    assert_eq!(sockets_below(&home.data()), Vec::<PathBuf>::new());
}

fn sockets_below(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_socket() || kind.is_fifo() {
            found.push(entry.path());
        } else if kind.is_dir() {
            found.extend(sockets_below(&entry.path()));
        }
    }
    found
}

#[test]
fn a_wrong_file_tells_every_problem_and_queues_nothing() {
    let home = Home::new();
    let service = Service::start(&home);
    let file = home
        .file("job.toml", "version = 1\nqueu = \"a\"\nmax_failures = -1\n[program]\ncomand = [\"true\"]\n");
    for command in ["check", "submit", "run"] {
        let refused = home.run([command, file.to_str().unwrap()]).expect(2);
        let text = refused.err();
        for word in ["job.toml", "queu", "queue", "max_failures", "comand", "command", "^"] {
            assert!(text.contains(word), "{command}: no `{word}` in\n{text}");
        }
        assert!(refused.out().is_empty(), "{}", refused.out());
    }
    home.file("torn.toml", "version = 1\n[program\ncommand = [");
    home.run(["submit", "torn.toml"]).expect(2);
    home.file("deep.toml", &format!("version = 1\nenv = {}{}", "[".repeat(100_000), "]".repeat(100_000)));
    home.run(["submit", "deep.toml"]).expect(2);
    std::fs::write(home.dir.path().join("bytes.toml"), b"version = 1\nname = \"\xff\xfe\"\n").unwrap();
    home.run(["submit", "bytes.toml"]).expect(2);
    assert_eq!(home.run(["ps", "-a", "--json"]).expect(0).json(), Value::Array(vec![]));
    assert_nothing_left(&home, service);
}

#[test]
fn a_missing_program_is_named_and_not_tried_again() {
    let home = Home::new();
    let service = Service::start(&home);
    home.file("job.toml", "version = 1\nmax_failures = 3\n[program]\ncommand = [\"/no/such/program\"]\n");
    let id = submit(&home, "job.toml", &["--set", "gang.workers=2"]);
    home.run(["wait", &id]).expect(127);
    let job = describe(&home, &id);
    assert_eq!((&job["state"], job["attempts"].as_array().unwrap().len()), (&Value::from("FAILED"), 1));
    assert!(job["attempts"][0]["message"].as_str().unwrap().contains("/no/such/program"), "{job}");
    assert_nothing_left(&home, service);
}

#[test]
fn data_that_cannot_be_read_is_named() {
    let home = Home::new();
    let service = Service::start(&home);
    let train = |path: &str| {
        format!(
            "version = 1\n[gang]\nworkers = 2\n[train]\nmodel = {{ kind = \"mlp\", hidden = [4] }}\n\
             data = {{ kind = \"csv\", path = \"{path}\", target = \"label\" }}\nepochs = 1\n"
        )
    };
    std::fs::create_dir(home.dir.path().join("folder.csv")).unwrap();
    home.file("words.csv", "a,label\n1,0\nnot-a-number,1\n");
    home.file("empty.csv", "");
    for data in ["missing.csv", "folder.csv", "words.csv", "empty.csv"] {
        home.file("job.toml", &train(data));
        let ended = home.run(["run", "-q", "job.toml"]);
        assert!(ended.code != 0 && ended.code < 125, "{data}: {} {}", ended.code, ended.err());
        assert!(ended.err().contains(data), "{data} is not named in\n{}", ended.err());
    }
    assert_nothing_left(&home, service);
}

#[test]
fn a_folder_of_a_later_version_is_refused_and_left_alone() {
    let home = Home::new();
    home.run(["run", "-q", "--", "true"]).expect(0);
    let path = home.data().join("state.db");
    // What stands in the log would count for more than what is about to be written.
    for log in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(home.data().join(log));
    }
    let mut bytes = std::fs::read(&path).unwrap();
    // Offset 60 of an SQLite file: the version of its schema.
    bytes[60..64].copy_from_slice(&77_u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let up = ["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    for (args, code) in [(&up[..], 1), (&["run", "-q", "--", "true"][..], 125), (&["ps", "-a"][..], 1)] {
        let refused = home.run(args).expect(code);
        assert!(refused.err().contains("77") && refused.err().contains("--data"), "{}", refused.err());
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "the file was touched");
    std::fs::write(
        &path,
        "this is no database, but it is longer than a header of a hundred bytes ".repeat(20),
    )
    .unwrap();
    let refused = home.run(up).expect(1);
    assert!(refused.err().contains("state.db"), "{}", refused.err());
    assert!(processes_of(&home).is_empty());
}

#[test]
fn a_rank_that_ignores_sigterm_is_killed_after_its_grace() {
    let home = Home::new();
    let service = Service::start(&home);
    let pid = home.dir.path().join("pid");
    let ignores =
        format!("trap '' TERM INT HUP; echo $$ > {}; echo deaf; while :; do sleep 0.1; done", pid.display());
    home.file("job.toml", &script_with("grace = \"1s\"", &ignores));
    let id = submit(&home, "job.toml", &[]);
    let rank = pid_in(&pid);
    let start = Instant::now();
    home.run(["cancel", &id]).expect(0);
    home.run(["wait", &id]);
    assert!(!is_alive(rank), "terminal means that no process is left");
    assert!(start.elapsed() < END && start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(describe(&home, &id)["state"], "CANCELLED");
    assert_eq!(home.run(["logs", &id]).expect(0).out(), "deaf\n");
    assert_nothing_left(&home, service);
}

#[test]
fn children_that_get_away_end_with_their_attempt() {
    let home = Home::new();
    let service = Service::start(&home);
    let at = |name: &str| home.dir.path().join(name);
    let child =
        |name: &str| format!("sh -c \"trap '' TERM; echo \\$\\$ > {}; exec sleep 300\"", at(name).display());
    // In a session of its own; without an environment; forked twice; holding the rank's stdout, and not.
    let rank = format!(
        "setsid {} &\nsetsid env -i PATH=$PATH {} > /dev/null 2>&1 &\n(setsid sh -c '{} &' &)\n{} &\n\
         while [ ! -s {} ] || [ ! -s {} ] || [ ! -s {} ] || [ ! -s {} ]; do sleep 0.02; done; echo done; exit 4",
        child("session"),
        child("bare"),
        child("twice").replace('\'', "'\\''"),
        child("plain"),
        at("session").display(),
        at("bare").display(),
        at("twice").display(),
        at("plain").display(),
    );
    home.file("rank.sh", &rank);
    home.file("job.toml", "version = 1\ngrace = \"1s\"\n[program]\ncommand = [\"sh\", \"rank.sh\"]\n");
    let id = submit(&home, "job.toml", &[]);
    let start = Instant::now();
    home.run(["wait", &id]).expect(4);
    assert!(start.elapsed() < END, "a child that holds stdout must not hide the rank's exit");
    for name in ["session", "bare", "twice", "plain"] {
        assert!(!is_alive(pid_in(&at(name))), "{name} is left");
    }
    assert_eq!(home.run(["logs", &id]).expect(0).out(), "done\n");
    assert_nothing_left(&home, service);
}

#[test]
fn a_flood_is_kept_to_the_byte() {
    let home = Home::new();
    let service = Service::start(&home);
    // Two ranks: 24 lines of exactly 1 MiB each, then bytes that are no text, then an end without a newline.
    let flood = "i=0; while [ $i -lt 24 ]; do head -c 1048576 /dev/zero | tr '\\0' $RANK; echo; i=$((i+1)); done; \
                 head -c 3000 /dev/zero | tr '\\0' '\\377'; printf '\\n\\303'";
    home.file("flood.sh", flood);
    home.file("job.toml", "version = 1\n[gang]\nworkers = 2\n[program]\ncommand = [\"sh\", \"flood.sh\"]\n");
    let id = submit(&home, "job.toml", &[]);
    home.run(["wait", &id]).expect(0);
    for rank in ["0", "1"] {
        let mut wanted = Vec::new();
        for _ in 0..24 {
            wanted.extend(std::iter::repeat_n(rank.as_bytes()[0], 1 << 20));
            wanted.push(b'\n');
        }
        wanted.extend(std::iter::repeat_n(0xff, 3000));
        wanted.extend(b"\n\xc3");
        let got = home.run(["logs", &id, "--rank", rank]).expect(0).stdout;
        let plain: Vec<u8> = strip_prefixes(&got, rank);
        assert!(plain == wanted, "rank {rank}: {} bytes of {}", plain.len(), wanted.len());
    }
    let lines = home.run(["logs", &id, "--json"]).expect(0).json_lines();
    assert!((1..).zip(&lines).all(|(seq, line): (u64, _)| line["seq"] == seq), "no gap over both ranks");
    assert_nothing_left(&home, service);
}

/// Lines of a gang may begin with `[RANK] `.
fn strip_prefixes(bytes: &[u8], rank: &str) -> Vec<u8> {
    let prefix = format!("[{rank}] ").into_bytes();
    let lines = bytes.split(|&byte| byte == b'\n').map(|line| line.strip_prefix(&prefix[..]).unwrap_or(line));
    lines.collect::<Vec<_>>().join(&b'\n')
}

#[test]
fn a_rank_that_ends_before_its_gang_has_met_ends_the_gang() {
    let home = Home::new();
    let service = Service::start(&home);
    let pid = home.dir.path().join("pid");
    let waits =
        format!("[ $RANK = 1 ] && {{ echo leaving; exit 5; }}; echo $$ > {}; exec sleep 300", pid.display());
    home.file("job.toml", &script_with("grace = \"1s\"", &waits));
    let id = submit(&home, "job.toml", &["--set", "gang.workers=2"]);
    home.run(["wait", &id]).expect(5);
    let attempt = describe(&home, &id)["attempts"][0].clone();
    assert_eq!((&attempt["failed_rank"], &attempt["exit_code"]), (&Value::from(1), &Value::from(5)));
    assert!(attempt["message"].as_str().unwrap().contains("rank 1"), "{attempt}");
    assert!(home.run(["logs", &id, "--rank", "1"]).expect(0).out().contains("leaving"));
    assert_nothing_left(&home, service);
}

#[test]
fn a_trainer_killed_in_the_middle_ends_the_gang_and_the_next_attempt_goes_on() {
    let home = Home::new();
    let service = Service::start(&home);
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/job.toml");
    let more = ["--set", "train.epochs=100000", "--set", "max_failures=1", "--set", "grace=\"1s\""];
    let id = submit(&home, digits, &more);
    let worker = |attempt: &str, rank: &str| {
        let has = |environ: &[u8], wanted: String| {
            environ.split(|&byte| byte == 0).any(|var| var == wanted.as_bytes())
        };
        processes_of(&home).into_iter().find(|pid| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            has(&environ, format!("RANK={rank}")) && has(&environ, format!("PHALANX_ATTEMPT={attempt}"))
        })
    };
    let trains = |attempt: u64| {
        let metrics = home.run(["metrics", &id]).expect(0);
        metrics.json_lines().iter().any(|point| point["attempt"] == attempt)
    };
    eventually("the first attempt trains", Duration::from_secs(60), || trains(1));
    signal(worker("1", "1").unwrap(), "KILL");
    eventually("the second attempt trains", Duration::from_secs(60), || trains(2));
    let first = describe(&home, &id)["attempts"][0].clone();
    assert_eq!(
        (&first["state"], &first["failed_rank"], &first["exit_code"]),
        (&"FAILED".into(), &1.into(), &137.into())
    );
    assert!(first["message"].as_str().unwrap().contains("SIGKILL"), "{first}");
    let second = worker("2", "0").unwrap();
    signal(second, "KILL");
    home.run(["wait", &id]).expect(137);
    let job = describe(&home, &id);
    assert_eq!((&job["state"], &job["attempts"][1]["failed_rank"]), (&"FAILED".into(), &0.into()));
    let steps: Vec<(u64, u64)> = (home.run(["metrics", &id]).expect(0).json_lines().iter())
        .filter(|point| {
            point["metrics"].get("loss").is_some() || point["metrics"].get("train/loss").is_some()
        })
        .map(|point| (point["attempt"].as_u64().unwrap(), point["step"].as_u64().unwrap()))
        .collect();
    assert!(steps.is_sorted(), "an attempt's steps come in order");
    assert_nothing_left(&home, service);
}

#[test]
fn a_rank_that_ends_while_the_service_is_away_keeps_its_result() {
    let home = Home::new();
    let service = Service::start(&home);
    let (started, go) = (home.dir.path().join("pid"), home.dir.path().join("go"));
    let waits = format!(
        "echo before; echo $$ > {}; while [ ! -e {} ]; do sleep 0.05; done; echo after; exit 7",
        started.display(),
        go.display()
    );
    home.file("job.toml", &script_with("max_failures = 3", &waits));
    let id = submit(&home, "job.toml", &[]);
    let rank = pid_in(&started);
    service.kill();
    std::fs::write(&go, "").unwrap();
    eventually("the rank ends by itself", END, || !is_alive(rank));
    let service = Service::start(&home);
    // Attempt 2 would wait for nothing: the file is there.
    home.run(["wait", &id]).expect(7);
    let job = describe(&home, &id);
    assert_eq!(
        (&job["attempts"][0]["exit_code"], &job["attempts"][0]["failed_rank"]),
        (&7.into(), &0.into())
    );
    let lines = home.run(["logs", &id, "--attempt", "1"]).expect(0).out();
    assert_eq!(lines, "before\nafter\n");
    assert_nothing_left(&home, service);
}

#[test]
fn kills_of_the_service_at_any_moment_lose_nothing_that_was_answered() {
    let home = Home::new();
    home.file("job.toml", &script("echo $PHALANX_JOB one; echo $PHALANX_JOB two"));
    let mut answered = Vec::new();
    for round in 0..5_u64 {
        let service = Service::start(&home);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(40 + 130 * round) {
            answered.push(submit(&home, "job.toml", &[]));
        }
        service.kill();
    }
    let service = Service::start(&home);
    assert!(answered.iter().collect::<BTreeSet<_>>().len() == answered.len(), "no id is given twice");
    for id in &answered {
        home.run(["wait", id]).expect(0);
        let attempts = describe(&home, id)["attempts"].as_array().unwrap().clone();
        let last = attempts.last().unwrap()["number"].to_string();
        let lines = home.run(["logs", id, "--attempt", &last]).expect(0).out();
        assert_eq!(lines, format!("{id} one\n{id} two\n"));
    }
    assert_nothing_left(&home, service);
}

#[test]
fn a_killed_embedded_run_takes_its_ranks_with_it() {
    let home = Home::new();
    let at = |name: &str| home.dir.path().join(name);
    let rank = format!(
        "trap '' TERM; setsid sh -c \"trap '' TERM; echo \\$\\$ > {}; exec sleep 300\" & echo $$ > {}; sleep 300",
        at("away").display(),
        at("rank").display()
    );
    let mut command = home.phalanx(["run", "-q", "--", "sh", "-c", &rank]);
    let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pids = [pid_in(&at("rank")), pid_in(&at("away"))];
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its ranks are gone", Duration::from_secs(10), || !pids.iter().any(|&pid| is_alive(pid)));
    eventually("nothing else is left", Duration::from_secs(10), || processes_of(&home).is_empty());
    // The folder is free, the next run does not take the dead one's job up, and its record is an end.
    home.run(["run", "-q", "--", "true"]).expect(0);
    let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
    assert_eq!(jobs.as_array().unwrap().len(), 2);
    assert_eq!(describe(&home, "j1")["state"], "FAILED");
}

#[test]
fn a_killed_agent_is_replaced_and_its_ranks_do_not_outlive_it() {
    let home = Home::new();
    let service = Service::start(&home);
    let pid = home.dir.path().join("pid");
    let rank = format!(
        "[ $PHALANX_ATTEMPT = 2 ] && exit 0; trap '' TERM; echo $$ > {}; while :; do sleep 0.1; done",
        pid.display()
    );
    home.file("job.toml", &script_with("grace = \"1s\"", &rank));
    let id = submit(&home, "job.toml", &[]);
    let rank = pid_in(&pid);
    let lock = std::fs::read_to_string(home.data().join("agent/lock")).unwrap();
    signal(lock.split(' ').next().unwrap().parse().unwrap(), "KILL");
    eventually("the rank is gone", Duration::from_secs(60), || !is_alive(rank));
    home.run(["wait", &id]).expect(0);
    let job = describe(&home, &id);
    assert_eq!(job["attempts"].as_array().unwrap().len(), 2, "{job}");
    assert_nothing_left(&home, service);
}

/// A small file system, mounted where the data folder will be; gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(SmallDisk(path));
        }
        eprintln!("skipped: a small tmpfs cannot be mounted here");
        None
    }

    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        assert!(std::fs::write(&ballast, vec![0; 64 << 20]).is_err(), "the disk is full");
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_new_jobs_and_everything_else_goes_on() {
    let home = Home::new();
    let Some(disk) = SmallDisk::mount(home.data(), "24m") else { return };
    let service = Service::start(&home);
    let go = home.dir.path().join("go");
    home.file(
        "long.toml",
        &script(&format!(
            "echo before; while [ ! -e {} ]; do sleep 0.05; done; echo after; exit 3",
            go.display()
        )),
    );
    home.file("short.toml", &script("echo short"));
    let long = submit(&home, "long.toml", &[]);
    eventually("it runs", END, || home.run(["logs", &long]).out() == "before\n");
    let ballast = disk.fill();
    let (mut answered, start) = (vec![long.clone()], Instant::now());
    let refused = loop {
        let asked = Instant::now();
        let ended = home.run(["submit", "short.toml"]);
        assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
        if ended.code != 0 {
            break ended;
        }
        answered.push(ended.out().trim().to_owned());
        assert!(start.elapsed() < Duration::from_secs(60), "a full disk takes everything");
    };
    assert!(refused.err().contains("space") && refused.out().is_empty(), "{}", refused.err());
    assert_eq!(home.run(["logs", &long]).expect(0).out(), "before\n");
    assert_eq!(describe(&home, &long)["state"], "RUNNING");
    let known = |home: &Home| -> BTreeSet<String> {
        let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
        jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(known(&home), answered.iter().cloned().collect(), "what was refused is not there");
    // The job ends while there is no space: its end is recorded once there is.
    std::fs::write(&go, "").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    std::fs::remove_file(&ballast).unwrap();
    home.run(["wait", &long]).expect(3);
    assert_eq!(home.run(["logs", &long]).expect(0).out(), "before\nafter\n");
    let last = submit(&home, "short.toml", &[]);
    answered.push(last.clone());
    for id in &answered[1..] {
        home.run(["wait", id]).expect(0);
        assert_eq!(home.run(["logs", id]).expect(0).out(), "short\n");
    }
    assert_eq!(known(&home), answered.iter().cloned().collect());
    assert_nothing_left(&home, service);
    drop(disk);
}

#[test]
fn a_service_that_is_gone_is_said_at_once() {
    let home = Home::new();
    let service = Service::start(&home);
    let id = {
        home.file("job.toml", &script("echo kept"));
        let id = submit(&home, "job.toml", &[]);
        home.run(["wait", &id]).expect(0);
        id
    };
    service.kill();
    eventually("its agent goes with it", Duration::from_secs(40), || processes_of(&home).is_empty());
    // Reading works on the records at rest; what needs a service says so.
    assert_eq!(home.run(["logs", &id]).expect(0).out(), "kept\n");
    let mut command = home.phalanx(["submit", "job.toml"]);
    let refused = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).expect(1);
    assert!(refused.err().contains("phalanx up"), "{}", refused.err());
}

#[test]
fn a_killed_rank_of_the_trainer_is_named_with_the_operation_that_missed_it() {
    let home = Home::new();
    let service = Service::start(&home);
    let rows: String = (0..2000).map(|i| format!("{},{},{}\n", i % 17, i % 5, i % 3)).collect();
    home.file("data.csv", &format!("a,b,label\n{rows}"));
    let job = "version = 1\nmax_failures = 0\n[gang]\nworkers = 2\ncpus = 0.5\n[train]\n\
               model = { kind = \"mlp\", hidden = [32] }\nbatch_size = 64\nepochs = 1000000\n\
               data = { kind = \"csv\", path = \"data.csv\", target = \"label\" }\n";
    home.file("job.toml", job);
    let id = submit(&home, "job.toml", &[]);
    eventually("it trains", END, || !home.run(["metrics", &id, "--json"]).out().is_empty());
    let is_rank_1 = |&pid: &u32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|variable| variable == b"RANK=1"))
    };
    signal(processes_of(&home).into_iter().find(is_rank_1).unwrap(), "KILL");
    home.run(["wait", &id]).expect(137);
    let job = describe(&home, &id);
    let attempt = &job["attempts"][0];
    assert_eq!(attempt["failed_rank"], 1);
    let message = attempt["message"].as_str().unwrap();
    assert!(message.starts_with("rank 1 killed by signal 9 (SIGKILL); "), "{message}");
    assert!(message.contains("operation") && message.contains("allreduce sum of"), "{message}");
    assert_nothing_left(&home, service);
}
