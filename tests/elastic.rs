//! Elastic gangs of the built-in trainer against the real binary: whatever is killed, the others go on, and the model is the
//! one of an undisturbed run, bit for bit.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::{Child, Stdio};
use std::time::Duration;
use support::{Home, Service, eventually, signal};

const LIMIT: Duration = Duration::from_secs(60);

/// Ranks that take long enough to be killed; the shards make sums that are the same for any number of them.
fn job(home: &Home, more: &str) {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/digits.csv");
    let text = format!(
        "version = 1\nmax_failures = 9\ngrace = \"1s\"\n[gang]\ncpus = 0.5\n{more}\n[train]\n\
         data = {{ kind = \"csv\", path = \"{data}\", target = \"label\", validation = 0.2 }}\n\
         model = {{ kind = \"mlp\", hidden = [64] }}\noptimizer = {{ kind = \"adam\", lr = 0.003 }}\n\
         steps = 12000\nbatch_size = 32\ndeterministic = \"logical-shards\"\nlog_every = 50\nema = 0.99\n\
         export = \"model.safetensors\"\n"
    );
    home.file("job.toml", &text);
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

/// The process of a rank, once it is another than `before`.
#[track_caller]
fn process_of(id: &str, rank: u32, before: Option<u32>) -> u32 {
    let of_rank = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |text: &str| environment.split(|&byte| byte == 0).any(|entry| entry == text.as_bytes());
        has(&format!("RANK={rank}")) && has(&format!("PHALANX_JOB={id}"))
    };
    let find = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| Some(*pid) != before && support::is_alive(*pid)).find(of_rank)
    };
    eventually(&format!("rank {rank} runs"), LIMIT, || find().is_some());
    find().unwrap()
}

/// What was measured at each step, but for what the clock says; no step has two values.
fn metrics(home: &Home, id: &str) -> BTreeMap<(u64, String), f64> {
    let mut all = BTreeMap::new();
    for line in home.run(["metrics", id]).expect(0).json_lines() {
        for (name, value) in line["metrics"].as_object().unwrap() {
            if name.ends_with("_s") {
                continue;
            }
            let (step, value) = (line["step"].as_u64().unwrap(), value.as_f64().unwrap());
            let other = all.insert((step, name.clone()), value);
            assert!(
                other.is_none_or(|other: f64| other.to_bits() == value.to_bits()),
                "{name} at step {step}"
            );
        }
    }
    all
}

#[track_caller]
fn step_of(home: &Home, id: &str) -> u64 {
    metrics(home, id).keys().map(|(step, _)| *step).max().unwrap_or(0)
}

/// The model and what it measured on its way, of an undisturbed run.
fn undisturbed() -> (Vec<u8>, BTreeMap<(u64, String), f64>) {
    let home = Home::new();
    let _service = Service::start(&home);
    job(&home, "workers = 1");
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    home.run(["wait", &id]).expect(0);
    (std::fs::read(home.dir.path().join("model.safetensors")).unwrap(), metrics(&home, &id))
}

#[test]
fn killed_ranks_are_let_in_again_and_no_step_is_lost() {
    let home = Home::new();
    let mut service = Service::start(&home);
    job(&home, "workers = { min = 1, max = 3 }");
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    let mut ranks: Vec<u32> = (0..3).map(|rank| process_of(&id, rank, None)).collect();
    eventually("it trains", LIMIT, || step_of(&home, &id) > 0);
    // The first of them speaks for all; another must take over, and be killed in its turn.
    for (at, rank) in [1, 0, 2, 1].into_iter().enumerate() {
        let step = step_of(&home, &id);
        signal(ranks[rank], "KILL");
        if at == 1 {
            // The service dies before it knows.
            service.kill();
            service = Service::start(&home);
        }
        ranks[rank] = process_of(&id, rank as u32, Some(ranks[rank]));
        eventually("all train on", LIMIT, || {
            let job = describe(&home, &id);
            step_of(&home, &id) > step && job["reason"]["text"] == "3 ranks run"
        });
    }
    home.run(["wait", &id]).expect(0);
    let job = describe(&home, &id);
    let attempts = job["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{job}");
    assert!(attempts[0]["message"].as_str().unwrap().contains("rank 1 killed by signal 9"), "{job}");
    let events = home.run(["events", &id]).expect(0).out();
    assert_eq!(events.matches("rank.restart").count(), 4, "{events}");
    let log = home.run(["logs", &id]).expect(0).out();
    assert_eq!(log.matches("training mlp").count(), 1, "nobody began anew:\n{log}");
    let model = std::fs::read(home.dir.path().join("model.safetensors")).unwrap();
    let (whole_model, whole) = undisturbed();
    assert_eq!(step_of(&home, &id), 12_000);
    let mine = metrics(&home, &id);
    let differs = mine.iter().find(|(key, value)| whole[*key].to_bits() != value.to_bits());
    assert_eq!(differs, None);
    assert!(model == whole_model, "the models differ");
    drop(service);
}

fn agent(home: &Home, service: &Service, name: &str) -> (Home, Child) {
    home.file("join", &home.run(["token", "--agent"]).expect(0).out());
    let machine = Home::new();
    let token = home.dir.path().join("join");
    let args = ["agent", "--server", &service.grpc, "--name", name, "--cpus", "1", "--json", "--token-file"];
    let args = args.iter().map(|arg| arg.to_string()).chain([token.to_str().unwrap().to_owned()]);
    let mut agent = machine.phalanx(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("{{\"node\":\"{name}\"}}\n"));
    (machine, agent)
}

#[test]
fn a_lost_node_costs_no_step() {
    let home = Home::new();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "0"];
    let service = Service::start_in(&home, &args, &[("PHALANX_NODE_TIMEOUT", "2s")]);
    let (_first, mut first) = agent(&home, &service, "n1");
    let (_second, mut second) = agent(&home, &service, "n2");
    job(&home, "workers = { min = 1, max = 4 }\n");
    let id = home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned();
    eventually("all four train", LIMIT, || {
        step_of(&home, &id) > 0 && describe(&home, &id)["placement"].as_array().unwrap().len() == 4
    });
    let leader = describe(&home, &id)["placement"][0]["node"].as_str().unwrap().to_owned();
    let (lost, left) = if leader == "n1" { (&mut first, &mut second) } else { (&mut second, &mut first) };
    let step = step_of(&home, &id);
    signal(lost.id(), "KILL");
    lost.wait().unwrap();
    eventually("it goes on as a gang of two", LIMIT, || {
        let job = describe(&home, &id);
        job["attempts"].as_array().unwrap().len() == 2 && step_of(&home, &id) > step
    });
    home.run(["wait", &id]).expect(0);
    let job = describe(&home, &id);
    let attempts = job["attempts"].as_array().unwrap();
    assert_eq!(
        (&attempts[0]["state"], &attempts[1]["state"]),
        (&"RESIZED".into(), &"SUCCEEDED".into()),
        "{job}"
    );
    assert_eq!(job["placement"].as_array().unwrap().len(), 2);
    // The second attempt goes on where the first was, and not from a step before the loss.
    let log = home.run(["logs", &id]).expect(0).out();
    let from = log.lines().find_map(|line| line.split("going on from step ").nth(1)).unwrap();
    assert!(from.trim().parse::<u64>().unwrap() >= step, "{log}");
    signal(left.id(), "TERM");
    assert!(left.wait().unwrap().success());
}
