//! Queues in the service: the configuration, quotas, shares, preemption and elastic gangs, with the real binary.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use support::{Ended, Home, Service, eventually, script_with, signal};

/// Counts to 40 in tenths of a second, takes half a second to save itself when it is asked to end, and goes on from there.
const COUNT: &str = r#"
import os, pathlib, sys, tempfile, time
import phalanx
folder = phalanx.restore()
step = int(pathlib.Path(folder, "step").read_text()) if folder else 0
print("from", step, "as", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
while step < int(sys.argv[1]):
    time.sleep(0.1)
    step += 1
    stop = phalanx.report(step, {"count": step})
    if os.environ["RANK"] == "0" and (stop or step % 5 == 0):
        if stop:
            time.sleep(0.5)
        with tempfile.TemporaryDirectory() as made:
            pathlib.Path(made, "step").write_text(str(step))
            phalanx.checkpoint(made, step=step)
    if stop:
        sys.exit(0)
print("counted", step, flush=True)
"#;

fn start(home: &Home, site: &str, cpus: &str) -> Service {
    let path = home.file("site.toml", &format!("version = 1\n{site}"));
    let path = path.to_str().unwrap();
    Service::start_with(
        home,
        &["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", cpus, "--config", path],
    )
}

#[track_caller]
fn submit(home: &Home, file: &str, more: &[&str]) -> String {
    home.run(["submit", file].iter().chain(more)).expect(0).out().trim().to_owned()
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

#[track_caller]
fn reaches(home: &Home, id: &str, state: &str) {
    eventually(&format!("{id} is {state}"), Duration::from_secs(30), || describe(home, id)["state"] == state);
}

/// A job that counts, elastic from one to two workers.
fn counting(home: &Home, keys: &str, steps: u32) {
    home.file("count.py", COUNT);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let text = format!(
        "version = 1\n{keys}\nenv = {{ PYTHONPATH = \"{}\" }}\n[gang]\nworkers = {{ min = 1, max = 2 }}\n\
         [program]\ncommand = [\"python3\", \"count.py\", \"{steps}\"]\n",
        python.display()
    );
    home.file("count.toml", &text);
}

/// Every attempt's state with its number of workers, as the log has it.
fn attempts(home: &Home, id: &str) -> Vec<(String, String)> {
    let job = describe(home, id);
    let states = job["attempts"].as_array().unwrap().iter().map(|a| a["state"].as_str().unwrap().to_owned());
    let says = |number: usize| {
        let number = number.to_string();
        let lines = home.run(["logs", id, "--attempt", &number]).out();
        let line = lines.lines().find(|line| line.contains("from")).unwrap_or_default();
        line.rsplit(' ').next().unwrap_or_default().to_owned()
    };
    states.enumerate().map(|(at, state)| (state, says(at + 1))).collect()
}

fn queue(home: &Home, name: &str) -> Value {
    let queues = home.run(["queues", "--json"]).expect(0).json();
    queues.as_array().unwrap().iter().find(|queue| queue["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_bad_configuration_is_refused_with_every_problem() {
    let home = Home::new();
    let bad = "version = 1\nnode_timeot = 3\n[[queue]]\nname = \"a\"\nweight = -1\n[[queue]]\nname = \"a\"\n\
               [scheduling]\nmax_bypas = 3\n[provider]\nkind = \"kubernetes\"\n";
    home.file("site.toml", bad);
    for command in [&["up", "--config", "site.toml"][..], &["config", "show", "--config", "site.toml"]] {
        let told = home.run(command).expect(2).err();
        for part in [
            "site.toml:2:1",
            "did you mean `node_timeout`",
            "weight",
            "two queues",
            "`max_bypass`",
            "not there yet",
        ] {
            assert!(told.contains(part), "`{part}` is not in:\n{told}");
        }
    }
    assert!(!home.data().exists(), "nothing was made for a service that does not start");
    let absent = home.run(["up", "--config", "nowhere.toml"]).expect(2).err();
    assert!(absent.contains("nowhere.toml"), "{absent}");
    let flag = home.run(["up", "--set", "scheduling.max_bypass=-1"]).expect(2).err();
    assert!(flag.contains("max_bypass"), "{flag}");
}

#[test]
fn the_layers_of_the_configuration_are_told() {
    let home = Home::new();
    home.file("config/phalanx/config.toml", "version = 1\nnode_timeout = 9\n[scheduling]\nmax_bypass = 3\n");
    let show = |more: &[&str]| -> Vec<Value> {
        let mut command = home.phalanx(["config", "show", "--json"].iter().chain(more));
        command.env("XDG_CONFIG_HOME", home.dir.path().join("config"));
        command.env("PHALANX_SCHEDULING__MAX_BYPASS", "4");
        support::ended(&mut command).expect(0).json().as_array().unwrap().clone()
    };
    let of = |all: &[Value], key: &str| {
        let found = all.iter().find(|setting| setting["key"] == key).unwrap();
        (found["value"].as_str().unwrap().to_owned(), found["origin"].as_str().unwrap().to_owned())
    };
    let all = show(&[]);
    let (value, origin) = of(&all, "node_timeout");
    assert!(value == "\"9s\"" && origin.ends_with("config.toml:2"), "{value} {origin}");
    assert_eq!(of(&all, "scheduling.max_bypass"), ("4".into(), "PHALANX_SCHEDULING__MAX_BYPASS".into()));
    assert_eq!(of(&all, "queue.default.weight"), ("1".into(), "default".into()));
    let all = show(&["--set", "scheduling.max_bypass=5"]);
    assert_eq!(of(&all, "scheduling.max_bypass"), ("5".into(), "--set".into()));
}

#[test]
fn a_quota_holds_and_says_so_everywhere() {
    let home = Home::new();
    let service = start(&home, "[[queue]]\nname = \"small\"\nquota = { cpus = 1 }\n", "4");
    home.file("job.toml", &script_with("queue = \"small\"", "sleep 60"));
    let unknown = home.run(["submit", "job.toml", "--set", "queue=smal"]).expect(2).err();
    assert!(unknown.contains("`smal`") && unknown.contains("default, small"), "{unknown}");
    let large = home.run(["submit", "job.toml", "--set", "gang.workers=2"]).expect(3).err();
    assert!(large.contains("2 CPU") && large.contains("quota is 1 CPU"), "{large}");
    let (first, second) = (submit(&home, "job.toml", &[]), submit(&home, "job.toml", &[]));
    reaches(&home, &first, "RUNNING");
    eventually("the second says why", Duration::from_secs(5), || {
        describe(&home, &second)["reason"]["code"] == "waiting_quota"
    });
    let why = home.run(["why", &second]).expect(0).out();
    assert!(why.contains("1 CPU of its quota of 1 CPU"), "{why}");
    let small = queue(&home, "small");
    assert_eq!(
        (&small["running"], &small["length"], &small["held"]["cpus"]),
        (&1.into(), &1.into(), &1.into())
    );
    assert_eq!((&small["waiting"][0]["id"], &small["quota"]["cpus"]), (&second.clone().into(), &1.into()));
    assert!(small["share"].as_f64().unwrap() >= 0.25);
    let request = format!(
        "GET /metrics HTTP/1.1\nHost: localhost\nAuthorization: Bearer {}\nConnection: close\n\n",
        service.token()
    );
    let (_, _, metrics) = service.http(&request);
    assert!(metrics.contains("phalanx_queue_length{queue=\"small\"} 1"), "{metrics}");
    assert!(metrics.contains("phalanx_queue_length{queue=\"default\"} 0"), "{metrics}");
    // Room is made: it starts.
    home.run(["queues", "set", "small", "quota.cpus=2"]).expect(0);
    reaches(&home, &second, "RUNNING");
}

#[test]
fn of_two_queues_the_heavier_gets_more() {
    let home = Home::new();
    let site = "[[queue]]\nname = \"light\"\nweight = 1\n[[queue]]\nname = \"heavy\"\nweight = 3\n";
    let _service = start(&home, site, "1");
    home.file("gate.toml", &script_with("priority = 1", "while [ ! -e open ]; do sleep 0.02; done"));
    submit(&home, "gate.toml", &[]);
    home.file("job.toml", &script_with("", "sleep 0.2"));
    let of = |queue: &str| -> Vec<String> {
        (0..8).map(|_| submit(&home, "job.toml", &["--set", &format!("queue={queue}")])).collect()
    };
    let (light, heavy) = (of("light"), of("heavy"));
    home.file("open", "");
    eventually("eight have ended", Duration::from_secs(30), || {
        let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
        jobs.as_array().unwrap().iter().filter(|job| job["state"] == "SUCCEEDED").count() >= 9
    });
    let jobs = home.run(["ps", "-a", "--json"]).expect(0).json();
    let mut started: Vec<(String, String)> = jobs
        .as_array()
        .unwrap()
        .iter()
        .filter(|job| !job["start_time"].is_null())
        .map(|job| (job["start_time"].as_str().unwrap().to_owned(), job["id"].as_str().unwrap().to_owned()))
        .collect();
    started.sort();
    let first: Vec<&String> = started.iter().map(|(_, id)| id).skip(1).take(8).collect();
    let (of_light, of_heavy) = (
        first.iter().filter(|id| light.contains(id)).count(),
        first.iter().filter(|id| heavy.contains(id)).count(),
    );
    assert!(of_heavy >= 5 && of_light >= 1, "{of_heavy} of heavy and {of_light} of light: {started:?}");
}

#[test]
fn what_is_guaranteed_comes_back_and_the_borrower_goes_on_where_it_was() {
    let home = Home::new();
    let _service = start(&home, "[[queue]]\nname = \"gold\"\nguaranteed = { cpus = 2 }\n", "2");
    counting(&home, "priority = 5\nmax_failures = 0", 30);
    home.file("owner.toml", &script_with("queue = \"gold\"\n[gang]\nworkers = 2", "sleep 0.3"));
    let guest = submit(&home, "count.toml", &["--set", "gang.workers=2"]);
    eventually("it has counted", Duration::from_secs(20), || {
        !describe(&home, &guest)["checkpoints"].as_array().unwrap().is_empty()
    });
    let owner = submit(&home, "owner.toml", &[]);
    home.run(["wait", &owner]).expect(0);
    home.run(["wait", &guest]).expect(0);
    let states: Vec<String> = attempts(&home, &guest).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["PREEMPTED", "SUCCEEDED"]);
    let first = &describe(&home, &guest)["attempts"][0];
    assert!(first["message"].as_str().unwrap().contains(&owner), "{first}");
    let log = home.run(["logs", &guest]).expect(0).out();
    let again: u32 = log
        .lines()
        .filter_map(|line| line.split_once("from ")?.1.split(' ').next()?.parse().ok())
        .max()
        .unwrap();
    assert!(again >= 5 && log.contains("counted 30"), "{log}");
}

#[test]
fn the_trainer_shrinks_and_grows_and_ends_as_if_it_had_not() {
    let home = Home::new();
    let _service = start(&home, "[scheduling]\nresize_interval = 0.2\n", "2");
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits/job.toml");
    // Each resize waits for what the attempt before it has done, so that all the rest of the training is left to do after the
    // last: a machine would have to be very busy to train that long before it lets the gang grow.
    let more = ["--set", "gang.workers={ min = 1, max = 2 }", "--set", "train.epochs=300"];
    let digits = submit(&home, job.to_str().unwrap(), &more);
    home.file("urgent.toml", &script_with("priority = 1", "while [ ! -e open ]; do sleep 0.02; done"));
    let trains = |attempt: u64| {
        eventually(&format!("attempt {attempt} trains"), Duration::from_secs(60), || {
            let points = home.run(["metrics", &digits, "--json"]).out();
            let points = points.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            points.filter(|point| point["attempt"] == attempt).count() > 1
        });
    };
    trains(1);
    let urgent = submit(&home, "urgent.toml", &[]);
    trains(2);
    home.file("open", "");
    home.run(["wait", &urgent]).expect(0);
    home.run(["wait", &digits]).expect(0);
    let states: Vec<String> = attempts(&home, &digits).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["RESIZED", "RESIZED", "SUCCEEDED"]);
    let points = home.run(["metrics", &digits, "--json"]).expect(0).json_lines();
    let first_of = |attempt: u64| {
        let points = points.iter().filter(|point| point["attempt"] == attempt);
        points.map(|point| point["step"].as_u64().unwrap()).min().unwrap()
    };
    assert!(first_of(1) < first_of(2) && first_of(2) < first_of(3), "each goes on where the last one ended");
    let accuracy = points.iter().rev().find_map(|point| point["metrics"]["val/accuracy"].as_f64()).unwrap();
    assert!(accuracy > 0.95, "{accuracy}");
}

#[test]
fn a_service_killed_in_the_middle_of_a_resize_finishes_it() {
    let home = Home::new();
    let site = "node_timeout = 30\n[scheduling]\nresize_interval = 1\n";
    let service = start(&home, site, "2");
    counting(&home, "max_failures = 0\ngrace = \"5s\"", 60);
    let elastic = submit(&home, "count.toml", &[]);
    eventually("it has counted", Duration::from_secs(20), || {
        !describe(&home, &elastic)["checkpoints"].as_array().unwrap().is_empty()
    });
    home.file("urgent.toml", &script_with("priority = 1", "sleep 0.5"));
    let urgent = submit(&home, "urgent.toml", &[]);
    eventually("it is being resized", Duration::from_secs(5), || {
        describe(&home, &elastic)["attempts"][0]["state"] == "STOPPING"
    });
    service.kill();
    let _service = start(&home, site, "2");
    home.run(["wait", &urgent]).expect(0);
    home.run(["wait", &elastic]).expect(0);
    let attempts = attempts(&home, &elastic);
    let expected = [("RESIZED", "2"), ("RESIZED", "1"), ("SUCCEEDED", "2")];
    assert_eq!(attempts, expected.map(|(state, workers)| (state.to_owned(), workers.to_owned())));
    assert!(home.run(["logs", &elastic]).out().contains("counted 60"));
}

#[test]
fn a_change_of_queues_outlives_a_kill_and_a_bad_one_changes_nothing() {
    let home = Home::new();
    let site = "[[queue]]\nname = \"team\"\nweight = 2\nquota = { cpus = 2 }\n";
    let service = start(&home, site, "2");
    home.file("job.toml", &script_with("queue = \"team\"\n[gang]\nworkers = 2", "sleep 60"));
    let job = submit(&home, "job.toml", &[]);
    let refused = |ended: Ended, parts: &[&str]| {
        let told = ended.expect(2).err();
        parts.iter().for_each(|part| assert!(told.contains(part), "`{part}` is not in:\n{told}"));
    };
    let before = home.run(["config", "show", "--json"]).expect(0).json();
    refused(home.run(["queues", "set", "team", "weigth=3", "quota.cpus=-1"]), &["`weight`", "cpus"]);
    refused(home.run(["queues", "set", "team", "quota.cpus=1"]), &[&job, "quota is 1 CPU"]);
    refused(home.run(["queues", "reset", "taem"]), &["`taem`", "did you mean `team`"]);
    assert_eq!(home.run(["config", "show", "--json"]).expect(0).json(), before);
    home.run(["queues", "set", "team", "weight=7", "--dry-run"]).expect(0);
    assert_eq!(queue(&home, "team")["weight"], 2);
    home.run(["queues", "set", "team", "weight=5"]).expect(0);
    home.run(["queues", "set", "night", "discipline=las", "guaranteed.cpus=0.5"]).expect(0);
    service.kill();
    let service = start(&home, site, "2");
    let night = queue(&home, "night");
    assert_eq!((&queue(&home, "team")["weight"], &night["discipline"]), (&5.into(), &"las".into()));
    assert_eq!((&night["guaranteed"]["cpus"], &night["from_api"]), (&0.5.into(), &true.into()));
    // SIGHUP reads the file again: what is bad or leaves a job without its queue changes nothing.
    for bad in ["version = 1\n[[queue]]\nnam = 3\n", "version = 1\n[[queue]]\nname = \"other\"\nweight = 0\n"]
    {
        home.file("site.toml", bad);
        signal(service.child.id(), "HUP");
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(queue(&home, "other"), Value::Null);
    }
    home.file("site.toml", &format!("version = 1\n{site}[[queue]]\nname = \"other\"\nweight = 4\n"));
    signal(service.child.id(), "HUP");
    eventually("the file is read again", Duration::from_secs(5), || queue(&home, "other")["weight"] == 4);
    home.run(["queues", "reset", "team", "night"]).expect(0);
    assert_eq!((&queue(&home, "team")["weight"], queue(&home, "night")), (&2.into(), Value::Null));
    // A file without the queue of a job is not started with either.
    service.kill();
    home.file("empty.toml", "version = 1\n");
    let told = home.run(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--config", "empty.toml"]);
    refused(told, &["`team` would be gone", &job]);
    let _service = start(&home, site, "2");
    home.run(["cancel", &job]).expect(0);
}
