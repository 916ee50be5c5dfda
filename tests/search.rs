//! What a sweep's search does with real trials: populations, older sweeps, standing groups, the examples, and bad files.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::{Ended, Home, Service, ended, eventually, finish_within, frameworks};

/// An example takes longer than a command of a test, on a busy machine.
const EXAMPLE_LIMIT: Duration = Duration::from_secs(300);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn trials(home: &Home, id: &str) -> Vec<Value> {
    home.run(["trials", id, "--json"]).expect(0).json().as_array().unwrap().clone()
}

fn describe(home: &Home, id: &str) -> Value {
    home.run(["describe", id, "--json"]).expect(0).json()
}

/// A sweep whose trials report what they were given, times three.
fn reported(sweep: &str, tables: &str) -> String {
    let binary = env!("CARGO_BIN_EXE_phalanx");
    format!(
        "version = 1\n[gang]\ncpus = 0.5\n{tables}\n[program]\ncommand = [\"{binary}\", \"report\", \"loss={{x}}\"]\n\
         [sweep]\nmetric = \"loss\"\nseed = 4\n{sweep}\n[params]\nx = {{ kind = \"float\", low = 0.0, high = 1.0 }}\n"
    )
}

#[test]
fn a_population_goes_on_from_its_better_members() {
    let home = Home::new();
    let digits = root().join("examples/digits/digits.csv");
    let text = format!(
        "version = 1\n[gang]\ncpus = 0.5\n[train]\nmodel = {{ kind = \"mlp\", hidden = [16] }}\n\
         data = {{ kind = \"csv\", path = \"{}\", target = \"label\", validation = 0.2 }}\n\
         optimizer = {{ kind = \"sgd\", lr = \"{{lr}}\" }}\nsteps = 90\neval_every = 30\nbatch_size = 64\nseed = 1\n\
         [sweep]\nmetric = \"val/loss\"\ntrials = 12\nconcurrency = 1\nseed = 3\n[search]\nkind = \"pbt\"\npopulation = 4\ninterval = 30\n\
         [params]\nlr = {{ kind = \"float\", low = 1e-4, high = 0.5, log = true }}\n",
        digits.display()
    );
    let file = home.file("population.toml", &text);
    let document = home.run(["run", file.to_str().unwrap(), "--json"]).expect(0).json();
    assert_eq!(document["counts"]["complete"], 12, "{document}");
    let trials = trials(&home, "s1");
    let generation =
        |step: u64| -> Vec<&Value> { trials.iter().filter(|trial| trial["step"] == step).collect() };
    let of = |trials: &[&Value], name: &str| -> Vec<f64> {
        let value = |trial: &&Value| trial[name].as_f64().or(trial["params"][name].as_f64()).unwrap();
        trials.iter().map(value).collect()
    };
    let generations = [30, 60, 90].map(generation);
    assert!(generations.iter().all(|members| members.len() == 4), "{trials:?}");
    for member in generations[1..].iter().flatten() {
        let log = home.run(["logs", &format!("s1/{}", member["number"])]).expect(0).out();
        assert!(log.contains("going on from step "), "{log}");
    }
    // A member that hardly learns at its rate gives its place to a descendant of the best one, at a rate of its own; the
    // others go on as they were.
    let first = of(&generations[0], "lr");
    let worst = of(&generations[0], "value").into_iter().fold(0.0, f64::max);
    let later = generations[1..].iter().flatten().copied();
    let (same, explored): (Vec<&Value>, Vec<&Value>) =
        later.partition(|trial| first.contains(&trial["params"]["lr"].as_f64().unwrap()));
    assert!(!same.is_empty() && !explored.is_empty(), "{trials:?}");
    assert!(of(&explored, "value").iter().any(|value| *value < 0.7 * worst), "{explored:?}");
    assert!(
        trials.iter().all(|trial| trial["message"] == ""),
        "a member that has done its part was not stopped"
    );
    // The best one as a job of its own trains to its end.
    let toml = home.run(["best", "s1", "--toml"]).expect(0).out();
    let file = home.file("best.toml", &toml);
    let told = home.run(["run", file.to_str().unwrap()]).expect(0).out();
    assert!(told.contains("validation accuracy"), "{told}");
}

#[test]
fn a_search_begins_with_what_older_ones_have_found() {
    let home = Home::new();
    let run = |name: &str, text: &str| home.run(["run", home.file(name, text).to_str().unwrap(), "--json"]);
    let random = "trials = 12\n[search]\nkind = \"random\"";
    run("first.toml", &reported(random, "")).expect(0);
    let tpe = "trials = 2\nlearn_from = [\"s1\"]\n[search]\nkind = \"tpe\"";
    run("second.toml", &reported(tpe, "")).expect(0);
    let samplers: Vec<Value> = trials(&home, "s2").iter().map(|trial| trial["sampler"].clone()).collect();
    assert_eq!(samplers, ["tpe", "tpe"], "the first points are none at random");
    let refused = |sweep: &str, from: &str, to: &str, why: &str| {
        let told = run("bad.toml", &reported(sweep, "").replace(from, to)).expect(1).err();
        assert!(told.contains(why), "{told}");
    };
    refused(&tpe.replace("s1", "s9"), "", "", "cannot learn from s9: there is no such sweep");
    refused(tpe, "\"loss\"", "\"other\"", "cannot learn from s1: the older study improves");
    refused(tpe, "high = 1.0", "high = 1e-9", "none of its trials is complete and a point");
    let bad = reported(&tpe.replace("s1", "j1"), "");
    let told = home.run(["check", home.file("bad.toml", &bad).to_str().unwrap()]).expect(2).err();
    assert!(told.contains("no sweep's id") && told.contains("learn_from = [\"j1\"]"), "{told}");
    let file = home.file("second.toml", &reported(tpe, ""));
    assert!(home.run(["study", file.to_str().unwrap()]).expect(2).err().contains("--learn"));
}

#[test]
fn trials_run_in_a_standing_group() {
    let home = Home::new();
    let _service = Service::start(&home);
    home.file("pool.toml", "version = 1\nname = \"pool\"\n[gang]\nworkers = 2\ncpus = 0.5\n");
    home.run(["groups", "create", "pool.toml", "--wait", "20s"]).expect(0);
    let free = || home.run(["nodes", "--json"]).expect(0).json()[0]["cpus"]["free"].as_f64().unwrap();
    assert_eq!(free(), 3.0);
    let text = reported("trials = 8\n[search]\nkind = \"random\"", "group = \"pool\"");
    let text = text.replace("\"report\",", "\"report\", \"--step\", \"1\",");
    let file = home.file("sweep.toml", &text);
    let id = home.run(["submit", file.to_str().unwrap()]).expect(0).out().trim().to_owned();
    eventually("a trial runs", Duration::from_secs(30), || {
        assert_eq!(free(), 3.0, "trials take nothing outside of their group");
        describe(&home, &id)["start_time"].is_string()
    });
    home.run(["wait", &id]).expect(0);
    assert_eq!(describe(&home, &id)["counts"]["complete"], 8);
    // Without its group a sweep cannot go on, and says so.
    let slow = text.replace("[\"", "[\"sh\", \"-c\", \"sleep 30\", \"");
    let file = home.file("slow.toml", &slow);
    let id = home.run(["submit", file.to_str().unwrap()]).expect(0).out().trim().to_owned();
    eventually("two trials run", Duration::from_secs(30), || describe(&home, &id)["counts"]["running"] == 2);
    home.run(["groups", "remove", "pool"]).expect(0);
    eventually("it has ended", Duration::from_secs(40), || describe(&home, &id)["state"] == "FAILED");
    assert_eq!(describe(&home, &id)["reason"]["code"], "group_removed");
    let told = home.run(["submit", file.to_str().unwrap()]).expect(1).err();
    assert!(told.contains("pool"), "{told}");
}

/// Runs an example's sweep with a Python of these folders on its path.
fn example(home: &Home, name: &str, trials: usize, python: Option<PathBuf>) -> Ended {
    let file = root().join("examples").join(name).join("sweep.toml");
    let trials = format!("sweep.trials={trials}");
    let mut command =
        home.phalanx(["run", file.to_str().unwrap(), "--json", "--set", &trials, "--set", "gang.cpus=0.5"]);
    command.env("PYTHONPATH", root().join("python"));
    if let Some(python) = python {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", python.display()));
    }
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
    finish_within(child.unwrap(), EXAMPLE_LIMIT)
}

#[test]
fn the_scikit_learn_example_finds_a_good_forest() {
    let Some(mut python) = frameworks("sklearn") else { return };
    let bin = ended(python.args(["-c", "import sys; print(sys.prefix + '/bin')"])).expect(0).out();
    let home = Home::new();
    let document = example(&home, "sklearn_sweep", 3, Some(bin.trim().into())).expect(0).json();
    assert_eq!(document["counts"]["complete"], 3, "{document}");
    assert!(document["best"]["value"].as_f64().unwrap() > 0.9, "{document}");
    assert_eq!(trials(&home, "s1")[0]["params"]["trees"], 100, "what was put in front is tried first");
}

#[test]
fn the_example_of_two_objectives_ends_with_a_front() {
    let home = Home::new();
    let document = example(&home, "pareto", 6, None).expect(0).json();
    assert_eq!(document["counts"]["complete"], 6, "{document}");
    let values = |row: &Value| (row["values"][0].as_f64().unwrap(), row["values"][1].as_f64().unwrap());
    let front: Vec<(f64, f64)> = document["front"].as_array().unwrap().iter().map(values).collect();
    let all: Vec<(f64, f64)> = trials(&home, "s1").iter().map(values).collect();
    let beats = |a: (f64, f64), b: (f64, f64)| a.0 >= b.0 && a.1 <= b.1 && a != b;
    let expected = all.iter().filter(|one| !all.iter().any(|other| beats(*other, **one))).count();
    assert_eq!(front.len(), expected, "{front:?} of {all:?}");
    assert!(front.iter().all(|one| !all.iter().any(|other| beats(*other, *one))));
}

/// A line of a sweep file that cannot mean what it says, and what is said of it.
const BAD: [(&str, &str); 22] = [
    ("[params]\na = { kind = \"float\", low = 2.0, high = 1.0 }", "`params.a.low` is 2"),
    ("[params]\na = { kind = \"float\", low = 0.0, high = 1.0, log = true }", "starts above 0"),
    ("[params]\na = { kind = \"int\", low = 0, high = 9, log = true }", "starts above 0"),
    ("[params]\na = { kind = \"float\", low = 0.0, high = nan }", "params.a"),
    ("[params]\na = { kind = \"float\", low = -inf, high = 1.0 }", "params.a"),
    ("[params]\na = { kind = \"float\", low = 0.0, high = 1.0, step = 0.0 }", "step"),
    ("[params]\na = { kind = \"int\", low = 1, high = 3, step = -1 }", "step"),
    ("[params]\na = { kind = \"choice\", values = [] }", "values"),
    ("[params]\na = { kind = \"choice\", values = [1, 1] }", "twice"),
    ("[params]\na = { kind = \"uniform\", low = 0, high = 1 }", "kind"),
    ("[params]\na = { kind = \"int\", low = 1, high = 3, when = { b = 1 } }", "`b`"),
    (
        "[params]\na = { kind = \"int\", low = 1, high = 3, when = { b = 1 } }\n\
         b = { kind = \"int\", low = 1, high = 3, when = { a = 1 } }",
        "goes in a circle",
    ),
    ("[stopping]\nkind = \"asha\"\nmin = 1\nmax = 9\neta = 1", "eta"),
    ("[stopping]\nkind = \"hyperband\"\nmin = 9\nmax = 3", "above `max`"),
    ("[stopping]\nkind = \"asha\"\nmin = 0\nmax = 3", "min"),
    ("[stopping]\nkind = \"median\"\neta = 3", "eta"),
    ("[stopping]\nkind = \"percentile\"\npercentile = 101.0", "percentile"),
    ("[search]\nkind = \"grid\"\n[params]\na = { kind = \"float\", low = 0.0, high = 1.0 }", "continuous"),
    ("[search]\nkind = \"annealing\"", "annealing"),
    ("[search]\nkind = \"pbt\"\npopulation = 1\ninterval = 1", "population"),
    ("[params]\na = { kind = \"int\", low = 1, high = 3 }\n[[enqueue]]\na = 9", "a"),
    ("[params]\na = { kind = \"int\", low = 1, high = 3 }\n[[enqueue]]\nb = 1", "`b`"),
];

#[test]
fn what_a_file_cannot_mean_is_refused_everywhere_and_all_at_once() {
    let home = Home::new();
    let head = "version = 1\n[program]\ncommand = [\"true\"]\n[sweep]\nmetric = \"loss\"\nmode = \"mni\"\ntrials = 0\n";
    for (lines, word) in BAD {
        let file = home.file("bad.toml", &format!("{head}{lines}\n"));
        let told = home.run(["check", file.to_str().unwrap()]).expect(2).err();
        // Those of the head as well, each with its place.
        assert!(
            told.contains("mni") && told.contains("sweep.trials") && told.contains(word),
            "{lines}\n{told}"
        );
        assert!(told.matches("bad.toml:").count() >= 3, "{lines}\n{told}");
    }
    let service = Service::start(&home);
    for (lines, word) in BAD {
        let file = home.file("bad.toml", &format!("{head}{lines}\n"));
        let told = home.run(["submit", file.to_str().unwrap()]).expect(2).err();
        assert!(told.contains(word) && told.contains("mni"), "{lines}\n{told}");
    }
    assert_eq!(home.run(["ps", "-a", "--sweeps", "--json"]).expect(0).json(), Value::Array(Vec::new()));
    drop(service);
}
