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
/// More than any machine does while ranks are killed.
const ENDLESS: u64 = 1 << 40;

/// Ranks that take long enough to be killed; the shards make sums that are the same for any number of them.
fn submit(home: &Home, workers: &str, steps: u64) -> String {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits/digits.csv");
    let text = format!(
        "version = 1\nmax_failures = 9\ngrace = \"1s\"\n[gang]\ncpus = 0.5\nworkers = {workers}\n[train]\n\
         data = {{ kind = \"csv\", path = \"{data}\", target = \"label\", validation = 0.2 }}\n\
         model = {{ kind = \"mlp\", hidden = [64] }}\noptimizer = {{ kind = \"adam\", lr = 0.003 }}\n\
         steps = {steps}\nbatch_size = 32\ndeterministic = \"logical-shards\"\nlog_every = 50\nema = 0.99\n"
    );
    home.file("job.toml", &text);
    home.run(["submit", "job.toml"]).expect(0).out().trim().to_owned()
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

/// The process of a rank of this home's only job, once it is another than `before`.
#[track_caller]
fn process_of(home: &Home, rank: u32, before: Option<u32>) -> u32 {
    let of_rank = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |text: &str| environment.split(|&byte| byte == 0).any(|entry| entry == text.as_bytes());
        let folder = home.dir.path().as_os_str().as_encoded_bytes();
        has(&format!("RANK={rank}")) && environment.windows(folder.len()).any(|window| window == folder)
    };
    let find = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| Some(*pid) != before && support::is_alive(*pid)).find(of_rank)
    };
    let mut found = None;
    eventually(&format!("rank {rank} runs"), LIMIT, || {
        found = find();
        found.is_some()
    });
    found.unwrap()
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

/// What an undisturbed run of one worker measures on its way.
fn undisturbed(steps: u64) -> BTreeMap<(u64, String), f64> {
    let home = Home::new();
    let _service = Service::start(&home);
    let id = submit(&home, "1", steps);
    home.run(["wait", &id]).expect(0);
    metrics(&home, &id)
}

#[test]
fn killed_ranks_are_let_in_again_and_no_step_is_lost() {
    let home = Home::new();
    let mut service = Service::start(&home);
    let id = submit(&home, "{ min = 1, max = 4 }", ENDLESS);
    let mut ranks: Vec<u32> = (0..4).map(|rank| process_of(&home, rank, None)).collect();
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
        ranks[rank] = process_of(&home, rank as u32, Some(ranks[rank]));
        eventually("all train on", LIMIT, || {
            let job = describe(&home, &id);
            step_of(&home, &id) > step && job["reason"]["text"] == "4 ranks run"
        });
    }
    let steps = step_of(&home, &id) + 100;
    eventually("it goes further", LIMIT, || step_of(&home, &id) >= steps);
    home.run(["cancel", &id]).expect(0);
    home.run(["wait", &id]);
    let job = describe(&home, &id);
    let attempts = job["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{job}");
    let events = home.run(["events", &id]).expect(0).out();
    assert_eq!(events.matches("rank.restart").count(), 4, "{events}");
    let log = home.run(["logs", &id]).expect(0).out();
    assert_eq!(log.matches("training mlp").count(), 1, "nobody began anew:\n{log}");
    // However fast the machine is: all that both have measured is the same, up to steps after the last kill.
    let (mine, whole) = (metrics(&home, &id), undisturbed(steps));
    let both = || mine.iter().filter_map(|(key, value)| Some((key, value, whole.get(key)?)));
    let other: Vec<_> = both().filter(|(_, mine, whole)| mine.to_bits() != whole.to_bits()).collect();
    assert!(other.is_empty(), "{other:?}");
    assert!(both().any(|((step, _), ..)| *step + 100 >= steps), "nothing to compare near step {steps}");
    drop(service);
}

#[test]
fn a_gang_that_has_lost_a_rank_comes_to_its_end() {
    let home = Home::new();
    let _service = Service::start(&home);
    let id = submit(&home, "{ min = 1, max = 4 }", 3000);
    // Before they have met, while they train, or at the end: the machine decides.
    signal(process_of(&home, 2, None), "KILL");
    home.run(["wait", &id]).expect(0);
    assert_eq!(step_of(&home, &id), 3000);
    let log = home.run(["logs", &id]).expect(0).out();
    assert_eq!(log.matches("validation accuracy: 0.9").count(), 1, "{log}");
}

/// An agent of another machine, as far as the service can tell.
struct Agent {
    child: Child,
    _machine: Home,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(home: &Home, service: &Service, name: &str) -> Agent {
    home.file("join", &home.run(["token", "--agent"]).expect(0).out());
    let machine = Home::new();
    let token = home.dir.path().join("join");
    let args = ["agent", "--server", &service.grpc, "--name", name, "--cpus", "1", "--json", "--token-file"];
    let args = args.iter().map(|arg| arg.to_string()).chain([token.to_str().unwrap().to_owned()]);
    let mut child = machine.phalanx(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("{{\"node\":\"{name}\"}}\n"));
    Agent { child, _machine: machine }
}

#[test]
fn a_lost_node_costs_no_step() {
    let home = Home::new();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "0"];
    let service = Service::start_in(&home, &args, &[("PHALANX_NODE_TIMEOUT", "2s")]);
    let agents = ["n1", "n2"].map(|name| (name, agent(&home, &service, name)));
    let ready = || home.run(["nodes", "--json"]).expect(0).json().as_array().unwrap().len() == 2;
    eventually("both are there", LIMIT, ready);
    let id = submit(&home, "{ min = 1, max = 4 }", ENDLESS);
    eventually("all four train", LIMIT, || {
        step_of(&home, &id) > 0 && describe(&home, &id)["placement"].as_array().unwrap().len() == 4
    });
    // The node of the rank that speaks for all.
    let leader = describe(&home, &id)["placement"][0]["node"].as_str().unwrap().to_owned();
    let step = step_of(&home, &id);
    let (_, lost) = agents.iter().find(|(name, _)| *name == leader).unwrap();
    signal(lost.child.id(), "KILL");
    let resumed = || {
        let log = home.run(["logs", &id]).expect(0).out();
        let from = log.lines().find_map(|line| line.split("going on from step ").nth(1));
        from.map(|from| from.trim().parse::<u64>().unwrap())
    };
    eventually("it goes on as a gang of two", LIMIT, || {
        resumed().is_some_and(|from| step_of(&home, &id) > from)
    });
    home.run(["cancel", &id]).expect(0);
    home.run(["wait", &id]);
    let job = describe(&home, &id);
    let attempts = job["attempts"].as_array().unwrap();
    assert_eq!(
        (&attempts[0]["state"], &attempts[1]["state"]),
        (&"RESIZED".into(), &"CANCELLED".into()),
        "{job}"
    );
    assert_eq!(job["placement"].as_array().unwrap().len(), 2);
    // The second attempt goes on where the first was, and not from a step before the loss.
    assert!(resumed() >= Some(step), "{:?} after {step}", resumed());
}
