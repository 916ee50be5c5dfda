//! `phalanx run` without a service, and the commands that read its records: the contract, item by item.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::{Home, ended, eventually, finish, is_alive, script, script_with, signal};

fn sh(home: &Home, script: &str) -> support::Ended {
    home.run(["run", "-q", "--", "sh", "-c", script])
}

#[test]
fn the_exit_code_is_the_jobs_own() {
    let home = Home::new();
    sh(&home, "exit 0").expect(0);
    sh(&home, "exit 3").expect(3);
    sh(&home, "kill -9 $$").expect(137);
    let missing = home.run(["run", "--", "/no/such/program"]).expect(127);
    assert!(missing.err().contains("/no/such/program"), "{}", missing.err());
    home.file("plain", "not executable");
    home.run(["run", "--", "./plain"]).expect(126);
    home.run(["run"]).expect(2);
    home.run(["run", "--no-such-flag"]).expect(2);
    let missing = home.run(["run", "no-such-file.toml"]).expect(2);
    assert!(missing.err().contains("no-such-file.toml"), "{}", missing.err());
}

#[test]
fn output_is_passed_on_byte_by_byte() {
    let home = Home::new();
    let ended = sh(&home, r"printf 'a\377b\r\nlast'; printf 'e\200\nrr' >&2").expect(0);
    assert_eq!(ended.stdout, b"a\xffb\r\nlast");
    assert_eq!(ended.stderr, b"e\x80\nrr");
}

#[test]
fn a_flood_of_long_lines_arrives_whole() {
    let home = Home::new();
    // 3 lines of 2.5 MB: kept in pieces, put together again.
    let ended = sh(&home, "for i in 1 2 3; do head -c 2500000 /dev/zero | tr '\\0' $i; echo; done").expect(0);
    let wanted: Vec<u8> = [b'1', b'2', b'3']
        .iter()
        .flat_map(|&digit| {
            let mut line = vec![digit; 2_500_000];
            line.push(b'\n');
            line
        })
        .collect();
    assert!(ended.stdout == wanted, "{} bytes", ended.stdout.len());
    let pieces = home.run(["logs", "j1", "--json"]).expect(0).json_lines();
    assert!(pieces.len() > 3 && pieces[0]["partial"] == true && pieces.last().unwrap()["partial"] == false);
    let seqs: Vec<u64> = pieces.iter().map(|piece| piece["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=pieces.len() as u64).collect::<Vec<_>>());
}

#[test]
fn standard_input_is_empty_and_braces_stay() {
    let home = Home::new();
    assert_eq!(sh(&home, "wc -c").expect(0).out().trim(), "0");
    assert_eq!(sh(&home, "echo '{lr} {{ $HOME'").expect(0).out(), "{lr} {{ $HOME\n");
}

#[test]
fn with_more_ranks_every_line_says_whose_it_is() {
    let home = Home::new();
    let args = ["run", "-q", "--set", "gang.workers=2", "--set", "gang.cpus=0.1", "--", "sh", "-c"];
    let ended = home.run(args.iter().chain(&["echo $RANK of $WORLD_SIZE; echo oops >&2"])).expect(0);
    let mut lines: Vec<String> = ended.out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["[0] 0 of 2", "[1] 1 of 2"]);
    assert_eq!(ended.err().matches("oops").count(), 2);
}

#[test]
fn the_working_folder_is_the_files_or_the_current_one() {
    let home = Home::new();
    let folder = std::fs::canonicalize(home.dir.path()).unwrap();
    assert_eq!(sh(&home, "pwd -P").expect(0).out().trim(), folder.to_str().unwrap());
    home.file("sub/inner/x", "");
    let file = home.file("sub/job.toml", &script("pwd -P"));
    assert_eq!(
        home.run(["run", "-q", file.to_str().unwrap()]).expect(0).out().trim(),
        folder.join("sub").to_str().unwrap()
    );
    let set = home.run(["run", "-q", "sub/job.toml", "--set", "program.workdir=inner"]).expect(0);
    assert_eq!(set.out().trim(), folder.join("sub/inner").to_str().unwrap());
}

#[test]
fn settings_are_toml_or_text_and_unknown_keys_are_wrong_usage() {
    let home = Home::new();
    home.file("job.toml", &script("echo $GREETING $OMP_NUM_THREADS"));
    let set = ["run", "-q", "job.toml", "--set", "env.GREETING=good day", "--set", "gang.cpus=0.5"];
    assert_eq!(home.run(set).expect(0).out(), "good day 1\n");
    let wrong = home.run(["run", "job.toml", "--set", "gang.wrokers=2"]).expect(2);
    assert!(wrong.err().contains("did you mean `workers`"), "{}", wrong.err());
    home.run(["run", "job.toml", "--set", "nonsense"]).expect(2);
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    let home = Home::new();
    home.file("job.toml", "version = 1\nnmae = \"x\"\n[gang]\ncpus = -1\n[program]\ncommand = []\n");
    for command in ["run", "check"] {
        let err = home.run([command, "job.toml"]).expect(2).err();
        for part in ["did you mean `name`", "job.toml:4", "job.toml:6", "^"] {
            assert!(err.contains(part), "`{command}` does not say {part}:\n{err}");
        }
    }
    let document = home.run(["check", "job.toml", "--json"]).expect(2).json();
    assert_eq!(document["valid"], false);
    assert!(document["problems"].as_array().unwrap().len() >= 3);
    home.file("good.toml", &script("true"));
    home.run(["check", "good.toml"]).expect(0);
    assert_eq!(home.run(["check", "good.toml", "--json"]).expect(0).json()["valid"], true);
}

#[test]
fn what_can_never_be_placed_says_what_was_asked_and_what_there_is() {
    let home = Home::new();
    let err = home.run(["run", "--set", "gang.cpus=5000", "--", "true"]).expect(3).err();
    assert!(err.contains("5000"), "{err}");
    assert_eq!(home.run(["ps", "-a", "--json"]).expect(0).json(), Value::Array(vec![]), "nothing is queued");
}

#[test]
fn a_time_limit_is_kept() {
    let home = Home::new();
    home.file("job.toml", &script_with("time_limit = \"300ms\"\ngrace = \"200ms\"", "sleep 60"));
    let start = Instant::now();
    home.run(["run", "job.toml"]).expect(124);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_failure_is_answered_by_another_attempt_and_told() {
    let home = Home::new();
    home.file("job.toml", &script_with("max_failures = 1", "echo attempt $PHALANX_ATTEMPT; exit 5"));
    let ended = home.run(["run", "job.toml"]).expect(5);
    assert_eq!(ended.out(), "attempt 1\nattempt 2\n");
    let job = home.run(["describe", "j1", "--json"]).expect(0).json();
    let attempts = job["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), &job["attempt"]), (2, &Value::from(2)));
    assert_eq!(attempts[0]["failed_rank"], 0);
    assert_eq!(attempts[0]["exit_code"], 5);
    assert!(attempts[0]["message"].as_str().unwrap().contains("rank 0"), "{}", attempts[0]);
    assert_eq!(home.run(["logs", "j1", "--attempt", "2"]).expect(0).out(), "attempt 2\n");
}

#[test]
fn json_is_one_document_as_the_last_line_of_stdout() {
    let home = Home::new();
    let ended = home.run(["run", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]).expect(4);
    assert_eq!(ended.out().lines().count(), 1);
    let job = ended.json();
    for field in [
        "id",
        "name",
        "state",
        "reason",
        "queue",
        "priority",
        "attempt",
        "exit_code",
        "submit_time",
        "start_time",
        "end_time",
        "sweep",
        "trial",
        "gang",
        "placement",
        "attempts",
    ] {
        assert!(job.get(field).is_some(), "{field} is missing from {job}");
    }
    assert_eq!((&job["state"], &job["exit_code"]), (&Value::from("FAILED"), &Value::from(4)));
    assert_eq!(job["placement"][0]["rank"], 0);
    assert!(job["submit_time"].as_str().unwrap().ends_with('Z'));
    for line in ["out\n", "err\n"] {
        assert!(ended.err().contains(line), "{}", ended.err());
    }
}

#[test]
fn records_are_read_without_a_service() {
    let home = Home::new();
    home.run(["run", "-q", "--", "sh", "-c", "echo one; printf two; exit 7"]).expect(7);
    home.run(["run", "-q", "--", "true"]).expect(0);
    home.run(["wait", "j1"]).expect(7);
    assert_eq!(home.run(["wait", "j2", "--json"]).expect(0).json()["state"], "SUCCEEDED");
    assert_eq!(home.run(["logs", "j1"]).expect(0).out(), "one\ntwo");
    assert_eq!(home.run(["logs", "-f", "j1"]).expect(0).out(), "one\ntwo");
    let lines = home.run(["logs", "j1", "--json"]).expect(0).json_lines();
    assert_eq!(lines.len(), 2);
    for (field, value) in [
        ("job", Value::from("j1")),
        ("attempt", 1.into()),
        ("rank", 0.into()),
        ("stream", "stdout".into()),
        ("seq", 1.into()),
        ("line", "one".into()),
        ("partial", false.into()),
    ] {
        assert_eq!(lines[0][field], value, "{field}");
    }
    let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
    let ids: Vec<&str> = jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["j2", "j1"]);
    assert_eq!(home.run(["ps", "--json"]).expect(0).json(), Value::Array(vec![]));
    assert!(home.run(["ps", "-a"]).expect(0).out().contains("SUCCEEDED"));
    assert!(home.run(["describe", "j1"]).expect(0).out().contains("exited with code 7"));
    assert!(home.run(["why", "j1"]).expect(0).out().contains("FAILED"));
    let unknown = home.run(["describe", "j99"]).expect(1);
    assert!(unknown.err().contains("j99"), "{}", unknown.err());
    for change in ["cancel", "pause", "resume"] {
        let refused = home.run([change, "j1"]).expect(1);
        assert!(refused.err().contains("phalanx up"), "{}", refused.err());
    }
    let refused = home.run(["submit", "-"]);
    assert_eq!(refused.code, 2, "an empty file: {}", refused.err());
}

#[test]
fn a_folder_without_records_says_so() {
    let home = Home::new();
    let ended = home.run(["ps"]).expect(1);
    assert!(ended.err().contains("no records"), "{}", ended.err());
    assert!(!home.data().exists(), "reading makes nothing");
}

#[test]
fn reports_become_metrics() {
    let home = Home::new();
    let phalanx = env!("CARGO_BIN_EXE_phalanx");
    let job = format!(
        "{phalanx} report --step 3 loss=0.5 x=nan && {phalanx} report val/a=-2 && {phalanx} report --json loss=1"
    );
    let ended = sh(&home, &job).expect(0);
    assert_eq!(ended.out(), "{\"ok\":true,\"stop\":false}\n");
    let points = home.run(["metrics", "j1", "--json"]).expect(0).json_lines();
    assert_eq!(points.len(), 3);
    assert_eq!(points[0]["step"], 3);
    assert_eq!(points[0]["metrics"]["loss"], 0.5);
    assert_eq!(points[0]["metrics"]["x"], "NaN");
    assert_eq!(points[1]["step"], 4, "one more than the last");
    assert_eq!(points[1]["metrics"]["val/a"], -2);
    sh(&home, &format!("{phalanx} report loss=high")).expect(2);
    // Outside a job it does nothing.
    home.run(["report", "loss=1"]).expect(0);
}

#[test]
fn an_interrupt_asks_the_gang_to_stop() {
    let home = Home::new();
    let pid_file = home.dir.path().join("pid");
    let trap = format!(
        "trap 'echo stopping; exit 0' TERM; echo $$ > {}; while :; do sleep 0.05; done",
        pid_file.display()
    );
    let mut command = home.phalanx(["run", "--", "sh", "-c", &trap]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the rank runs", Duration::from_secs(20), || {
        std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let rank: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    signal(child.id(), "INT");
    let ended = finish(child).expect(130);
    assert_eq!(ended.out(), "stopping\n", "{}", ended.err());
    assert!(!is_alive(rank));
    assert_eq!(home.run(["describe", "j1", "--json"]).expect(0).json()["state"], "CANCELLED");
}

#[test]
fn a_killed_run_leaves_no_rank() {
    let home = Home::new();
    let pid_file = home.dir.path().join("pid");
    let stubborn =
        format!("trap '' TERM; setsid sleep 300 & echo $! > {}; wait; sleep 300", pid_file.display());
    let mut command = home.phalanx(["run", "--", "sh", "-c", &stubborn]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the rank runs", Duration::from_secs(20), || {
        std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
    });
    let rank: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert!(is_alive(rank));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its ranks are gone", Duration::from_secs(12), || !is_alive(rank));
    // The folder is free, and what was under way is not run again.
    home.run(["run", "-q", "--", "true"]).expect(0);
    let left = home.run(["describe", "j1", "--json"]).expect(0).json();
    assert_ne!(left["state"], "RUNNING", "{left}");
}

#[test]
fn two_runs_share_a_folder_one_after_the_other() {
    let home = Home::new();
    let children: Vec<_> = (0..2)
        .map(|_| {
            let mut command = home.phalanx(["run", "--", "sh", "-c", "sleep 0.3; echo done"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        assert_eq!(finish(child).expect(0).out(), "done\n");
    }
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let home = Home::new();
    let phalanx = env!("CARGO_BIN_EXE_phalanx");
    let pipeline = format!("{phalanx} run -q -- sh -c 'while :; do echo y; done' | head -n 2");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &pipeline]).env("PHALANX_DATA", home.data()).env_remove("PHALANX_SERVER");
    let ended = ended(&mut command).expect(0);
    assert_eq!((ended.out().as_str(), ended.err().as_str()), ("y\ny\n", ""));
}
