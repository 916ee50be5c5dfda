//! A clock that goes backwards, and forwards by a day, under a service and its agent: nothing is lost and nobody is taken for
//! dead.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Home, Service, eventually, script};

const LIMIT: Duration = Duration::from_secs(30);
const ARGS: [&str; 6] = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "2"];

/// The shim, where a C compiler makes one.
fn shim(folder: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/clock_shim.c");
    let library = folder.join("clock_shim.so");
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    match made {
        Ok(status) => {
            assert!(status.success());
            Some(library)
        }
        Err(_) => {
            eprintln!("skipped: no C compiler");
            None
        }
    }
}

#[test]
fn a_clock_that_is_set_loses_nothing() {
    let home = Home::new();
    let Some(shim) = shim(home.dir.path()) else { return };
    let clock = home.file("offset", "0");
    let set = |seconds: i64| {
        // Replaced whole, so that nobody reads half of it.
        let fresh = home.file("offset.new", &seconds.to_string());
        std::fs::rename(fresh, &clock).unwrap();
    };
    let variables = [("LD_PRELOAD", shim.to_str().unwrap()), ("CLOCK_OFFSET_FILE", clock.to_str().unwrap())];
    let service = Service::start_in(&home, &ARGS, &variables);
    let steps = format!(
        "for i in $(seq 1 40); do echo line $i; {} report --step $i loss=$i; sleep 0.1; done",
        env!("CARGO_BIN_EXE_phalanx")
    );
    home.file("long.toml", &script(&steps));
    home.file("short.toml", &script("true"));
    let long = home.run(["submit", "long.toml"]).expect(0).out().trim().to_owned();
    let lines = || home.run(["logs", &long]).expect(0).out().lines().count();
    let is_ready = || home.run(["nodes", "--json"]).expect(0).json()[0]["state"] == "READY";
    eventually("it writes", LIMIT, || lines() > 3);
    for offset in [-7200, 86_400, -86_400, 0] {
        set(offset);
        let seen = lines();
        assert_eq!(home.run(["run", "-q", "short.toml"]).code, 0, "at {offset} s");
        assert!(is_ready(), "at {offset} s");
        if seen < 35 {
            eventually("it goes on", LIMIT, || lines() > seen);
        }
    }
    set(-3600);
    home.run(["wait", &long]).expect(0);
    let told: Vec<Value> = home.run(["logs", &long, "--json"]).expect(0).json_lines();
    let numbers: Vec<u64> = told.iter().filter_map(|line| line["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>(), "every line once, in order");
    let points = home.run(["metrics", &long]).expect(0).json_lines();
    let steps: Vec<u64> = points.iter().filter_map(|point| point["step"].as_u64()).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
    // What has happened stays in the order in which it was committed, and is all there after a restart with another clock.
    let before = home.run(["events", "--json"]).expect(0).json_lines();
    service.kill();
    set(-172_800);
    let service = Service::start_in(&home, &ARGS, &variables);
    let after = home.run(["events", "--json", "--tail", "1000"]).expect(0).json_lines();
    let numbers: Vec<u64> = after.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted() && before.iter().all(|event| after.contains(event)));
    let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
    assert!(jobs.as_array().unwrap().iter().all(|job| job["state"] == "SUCCEEDED"), "{jobs}");
    eventually("the node is back", LIMIT, is_ready);
    assert_eq!(home.run(["run", "-q", "short.toml"]).code, 0);
    assert_eq!(service.stop(), 0);
}
