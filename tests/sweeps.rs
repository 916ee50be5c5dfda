//! Sweeps with the real binary: run, killed, cancelled, paused, refused; and what their trials see.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use support::{Home, Service, eventually, signal};

/// A trial that counts to nine, hands every step over, and ends where it is asked to.
const TRIAL: &str = r#"
import os, pathlib, sys, tempfile, time
import phalanx
x = phalanx.params()["x"]
assert sys.argv[1] == str(x), sys.argv
assert os.environ["PHALANX_SWEEP"] == "s1"
folder = phalanx.restore()
step = int(pathlib.Path(folder, "step").read_text()) if folder else 0
print("trial", os.environ["PHALANX_TRIAL"], "from", step, flush=True)
while step < 9:
    step += 1
    time.sleep(float(sys.argv[2]))
    with tempfile.TemporaryDirectory() as made:
        pathlib.Path(made, "step").write_text(str(step))
        phalanx.checkpoint(made, step=step)
    if phalanx.report(step, {"loss": (x - 3) ** 2 + 1 / step}):
        sys.exit(0)
"#;

fn sweep(home: &Home, pause_s: f64, tables: &str) -> String {
    home.file("trial.py", TRIAL);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let text = format!(
        "version = 1\nname = \"count\"\ngrace = \"2s\"\nenv = {{ PYTHONPATH = \"{}\" }}\n[gang]\ncpus = 0.5\n\
         [program]\ncommand = [\"python3\", \"trial.py\", \"{{x}}\", \"{pause_s}\"]\n{tables}\n\
         [params]\nx = {{ kind = \"int\", low = 0, high = 99 }}\n",
        python.display()
    );
    home.file("sweep.toml", &text).to_str().unwrap().to_owned()
}

const PROMOTE: &str = "[sweep]\nmetric = \"loss\"\ntrials = 9\nseed = 3\nconcurrency = 1\n[search]\nkind = \"random\"\n\
    [stopping]\nkind = \"asha\"\nmode = \"promote\"\nmin = 1\nmax = 9\neta = 3\n";

fn trials(home: &Home, id: &str) -> Vec<Value> {
    home.run(["trials", id, "--json"]).expect(0).json().as_array().unwrap().clone()
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

#[track_caller]
fn reaches(home: &Home, id: &str, state: &str) {
    eventually(&format!("{id} is {state}"), Duration::from_secs(50), || describe(home, id)["state"] == state);
}

#[test]
fn a_sweep_runs_to_its_best_trial() {
    let home = Home::new();
    let file = sweep(&home, 0.0, PROMOTE);
    let ended = home.run(["run", &file, "--json"]).expect(0);
    let document = ended.json();
    assert_eq!(document["state"], "SUCCEEDED");
    // Nine trials take the first step, three go on to the third, one to the ninth: exactly, because the report at a rung is
    // answered only once it is judged.
    let counts = &document["counts"];
    assert_eq!(
        (&counts["complete"], &counts["stopped"], &counts["failed"]),
        (&1.into(), &8.into(), &0.into())
    );
    assert_eq!(document["steps_run"], 9 + 3 * 2 + 6);
    let trials = trials(&home, "s1");
    let steps: Vec<u64> = trials.iter().map(|trial| trial["step"].as_u64().unwrap()).collect();
    assert_eq!(steps.iter().filter(|step| **step == 1).count(), 6, "{steps:?}");
    let best = &document["best"];
    let number = best["number"].as_u64().unwrap() as usize;
    assert_eq!(trials[number]["state"], "COMPLETE");
    assert_eq!(trials[number]["value"], best["value"]);
    assert_eq!(trials[number]["params"], best["params"]);
    // A trial is its job.
    let trial = describe(&home, &format!("s1/{number}"));
    assert_eq!((&trial["sweep"], &trial["trial"]), (&"s1".into(), &number.into()));
    assert_eq!(trial["attempts"].as_array().unwrap().len(), 3);
    let log = home.run(["logs", &format!("s1/{number}")]).expect(0).out();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines, ["0", "1", "3"].map(|step| format!("trial {number} from {step}")), "{log}");
    assert!(home.run(["logs", "s1"]).expect(0).out().lines().count() == 9 + 3 + 1);
    // Its file runs as a job, which finds the same parameters.
    let toml = home.run(["best", "s1", "--toml"]).expect(0).out();
    assert!(toml.contains(&format!("\"trial.py\", \"{}\"", best["params"]["x"])), "{toml}");
    home.file("best.toml", &toml);
    let mut elsewhere = home.phalanx(["best", "s1", "--toml"]);
    let elsewhere = support::ended(elsewhere.current_dir(home.data())).expect(0).out();
    assert!(elsewhere.contains(&format!("workdir = {:?}", home.dir.path().join(""))), "{elsewhere}");
    let told = home.run(["run", "best.toml"]).expect(1).err();
    assert!(told.contains("PHALANX_SWEEP"), "the program gets as far as asking for its sweep: {told}");
    // Whatever is read of it at rest is the same.
    assert_eq!(home.run(["wait", "s1", "--json"]).expect(0).json()["best"], *best);
    assert!(home.run(["ps", "-a"]).expect(0).out().contains("SUCCEEDED"));
}

#[test]
fn a_killed_service_goes_on_and_decides_the_same() {
    let (calm, killed) = (Home::new(), Home::new());
    let decided = |home: &Home| -> BTreeMap<u64, (Value, Value, Value, Value)> {
        let row = |trial: &Value| {
            let fields = ["state", "params", "value", "step"].map(|field| trial[field].clone());
            let [state, params, value, step] = fields;
            (trial["number"].as_u64().unwrap(), (state, params, value, step))
        };
        trials(home, "s1").iter().map(row).collect()
    };
    let file = sweep(&calm, 0.02, PROMOTE);
    calm.run(["run", &file]).expect(0);

    let file = sweep(&killed, 0.02, PROMOTE);
    let mut service = Service::start(&killed);
    assert_eq!(killed.run(["submit", &file]).expect(0).out(), "s1\n");
    for ended in [1, 4, 7] {
        eventually("trials have ended or paused", Duration::from_secs(50), || {
            let counts = &describe(&killed, "s1")["counts"];
            let done = ["complete", "stopped", "paused"].map(|state| counts[state].as_u64().unwrap());
            done.iter().sum::<u64>() >= ended
        });
        service.kill();
        service = Service::start(&killed);
    }
    killed.run(["wait", "s1"]).expect(0);
    assert_eq!(decided(&killed), decided(&calm));
}

#[test]
fn a_sweep_is_paused_resumed_and_cancelled() {
    let home = Home::new();
    let _service = Service::start(&home);
    let tables =
        "[sweep]\nmetric = \"loss\"\ntrials = 40\nconcurrency = 2\nseed = 3\n[search]\nkind = \"random\"\n";
    let file = sweep(&home, 0.2, tables);
    let id = home.run(["submit", &file]).expect(0).out().trim().to_owned();
    eventually("trials report", Duration::from_secs(30), || {
        let steps: Vec<u64> = trials(&home, &id).iter().filter_map(|trial| trial["step"].as_u64()).collect();
        steps.len() == 2
    });
    home.run(["pause", &id]).expect(0);
    eventually("its trials are paused", Duration::from_secs(30), || {
        describe(&home, &id)["counts"]["paused"] == 2
    });
    assert_eq!(describe(&home, &id)["state"], "PAUSED");
    // Also where it is resumed before its trials have come to rest.
    home.run(["resume", &id]).expect(0);
    home.run(["pause", &id]).expect(0);
    home.run(["resume", &id]).expect(0);
    eventually("they run again", Duration::from_secs(30), || describe(&home, &id)["counts"]["running"] == 2);
    eventually("trial 0 goes on from its checkpoint", Duration::from_secs(30), || {
        let log = home.run(["logs", &format!("{id}/0")]).expect(0).out();
        log.lines().any(|line| line.starts_with("trial 0 from ") && !line.ends_with(" 0"))
    });
    home.run(["cancel", &format!("{id}/0")]).expect(0);
    home.run(["cancel", &id]).expect(0);
    reaches(&home, &id, "CANCELLED");
    home.run(["wait", &id]).expect(1);
    let running = home.run(["ps", "--json"]).expect(0).json();
    assert_eq!(running.as_array().unwrap().len(), 0, "{running}");
    assert!(
        trials(&home, &id).iter().all(|trial| trial["state"] == "CANCELLED" || trial["state"] == "COMPLETE")
    );
    home.run(["cancel", &id]).expect(0);
    assert!(home.run(["resume", &id]).expect(1).err().contains("CANCELLED"));
    assert!(home.run(["describe", "s99"]).expect(1).err().contains("no sweep s99"));
    assert!(home.run(["describe", "s1/99"]).expect(1).err().contains("no trial s1/99"));
}

#[test]
fn failing_trials_end_a_sweep_and_say_why() {
    let home = Home::new();
    let sweep = |lines: &str, command: &str| {
        let text = format!(
            "version = 1\n[gang]\ncpus = 0.5\n[program]\ncommand = [\"sh\", \"-c\", '''{command}''']\n\
             [sweep]\nmetric = \"loss\"\ntrials = 6\nconcurrency = 1\n{lines}\n[search]\nkind = \"random\"\n\
             [params]\nx = {{ kind = \"int\", low = 0, high = 9 }}\n"
        );
        home.file("s.toml", &text).to_str().unwrap().to_owned()
    };
    // The third failure is one too many.
    let ended = home.run(["run", &sweep("max_failed_trials = 2", "exit 3"), "--json"]).expect(1);
    assert!(ended.err().contains("exited with code 3"), "{}", ended.err());
    assert_eq!(ended.json()["counts"]["failed"], 3);
    assert_eq!(ended.json()["reason"]["code"], "too_many_failures");
    assert!(home.run(["best", "s1"]).expect(1).err().contains("no complete trial"));
    // A metric that is never reported fails its trial with the reason.
    let ended = home.run(["run", &sweep("", "true")]).expect(1);
    assert!(ended.err().contains("without ever reporting `loss`"), "{}", ended.err());
    assert_eq!(trials(&home, "s2").len(), 6);
    // A target ends it early.
    let binary = env!("CARGO_BIN_EXE_phalanx");
    let ended =
        home.run(["run", &sweep("target = 5", &format!("{binary} report loss=4")), "--json"]).expect(0);
    assert_eq!(
        (&ended.json()["reason"]["code"], &ended.json()["counts"]["complete"]),
        (&"target_reached".into(), &1.into())
    );
}

#[test]
fn a_bad_sweep_is_refused_before_anything_runs() {
    let home = Home::new();
    let file = home.file(
        "bad.toml",
        "version = 1\n[program]\ncommand = [\"{y}\"]\n[sweep]\nmetrc = \"a\"\n[stopping]\nkind = \"asha\"\nmin = 9\nmax = 3\n\
         [params]\nx = { kind = \"float\", low = 0.0, high = 1.0, log = true }\n",
    );
    let file = file.to_str().unwrap();
    for args in [["run", file], ["check", file]] {
        let told = home.run(args).expect(2).err();
        for problem in ["`{y}` is no parameter", "did you mean `metric`", "above `max`", "starts above 0"] {
            assert!(told.contains(problem), "{args:?}: {problem}\n{told}");
        }
    }
    let _service = Service::start(&home);
    home.run(["submit", file]).expect(2);
    let large = sweep(&home, 0.0, PROMOTE);
    let told = home.run(["submit", &large, "--set", "gang.cpus=4000"]).expect(3).err();
    assert!(told.contains("4000"), "{told}");
    assert_eq!(home.run(["ps", "-a", "--sweeps", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
    let told = home.run(["check", &large]).expect(0).out();
    assert!(
        told.contains("9 trials over 1 parameter with 100 combinations; about 23 steps of the 81"),
        "{told}"
    );
}

#[test]
fn an_interrupted_run_ends_its_trials() {
    let home = Home::new();
    let tables = "[sweep]\nmetric = \"loss\"\ntrials = 40\n[search]\nkind = \"random\"\n";
    let file = sweep(&home, 0.5, tables);
    let mut command = home.phalanx(["run", &file]);
    let child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    eventually("trials run", Duration::from_secs(30), || {
        let ended = home.run(["describe", "s1", "--json"]);
        ended.code == 0 && ended.json()["counts"]["running"].as_u64().unwrap() > 0
    });
    signal(child.id(), "INT");
    let ended = support::finish(child).expect(130);
    assert!(ended.err().contains("ending s1"), "{}", ended.err());
    assert_eq!(describe(&home, "s1")["state"], "CANCELLED");
}
