//! `phalanx simulate`: scenarios and traces in, tables, documents and pictures out, and what is refused.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use support::Home;

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/what-if").join(name).display().to_string()
}

#[test]
fn a_trace_of_every_format_runs_and_can_be_kept_as_a_scenario() {
    let home = Home::new();
    let traces = [
        ("philly", "philly.csv", "cluster.toml", 59),
        ("sacct", "sacct.txt", "cluster.toml", 23),
        ("openb", "openb_pods.csv", "openb_nodes.csv", 29),
        ("pai", "pai_tasks.csv", "cluster.toml", 19),
    ];
    for (format, trace, cluster, jobs) in traces {
        let (trace, cluster) = (example(trace), example(cluster));
        let run =
            ["simulate", &trace, "--from", format, "--cluster", &cluster, "--write", "kept.toml", "--json"];
        let ended = home.run(run).expect(0);
        assert!(ended.err().contains("1 that never ran"), "{}", ended.err());
        let outcome = ended.json();
        assert_eq!(outcome["jobs"].as_array().unwrap().len(), jobs, "{format}");
        assert!(outcome["jobs"].as_array().unwrap().iter().all(|job| job["state"] == "finished"), "{format}");
        let again = home.run(["simulate", "kept.toml", "--json"]).expect(0);
        assert_eq!(again.json(), outcome, "{format}: the scenario that was written runs the same");
    }
}

#[test]
fn what_if_is_asked_by_flags() {
    let home = Home::new();
    let (trace, cluster) = (example("philly.csv"), example("cluster.toml"));
    let mean = |more: &[&str]| {
        let run = ["simulate", &trace, "--from", "philly", "--cluster", &cluster, "--json"];
        let outcome = home.run(run.iter().chain(more)).expect(0).json();
        outcome["summary"]["mean_jct"].as_f64().unwrap()
    };
    let before = mean(&[]);
    assert!(mean(&["--add-nodes", "1:gpus=8,cpus=64,memory=512GiB"]) < before);
    assert_ne!(mean(&["--set", "queue.speech.weight=9", "--set", "queue.speech.guaranteed.gpus=8"]), before);
    let unknown = home.run(["simulate", "x.toml", "--add-nodes", "1:colour=red"]).expect(2).err();
    assert!(unknown.contains("none of cpus, gpus, memory"), "{unknown}");
}

#[test]
fn pictures_show_nodes_and_time() {
    let home = Home::new();
    home.file(
        "small.toml",
        "[[node]]\nname = \"n\"\ncpus = 8\ngpus = 2\n[[job]]\nname = \"x\"\nseconds = 10\ngang = { gpus = 2 }\n\
         [[job]]\nname = \"y\"\nseconds = 10\ngang = { gpus = 1 }\n",
    );
    let ended = home.run(["simulate", "small.toml", "--gantt", "--svg", "out.svg"]).expect(0);
    let line = format!("n |{}{}|", "A".repeat(36), "B".repeat(36));
    assert!(ended.out().contains(&line), "{}", ended.out());
    let svg = std::fs::read_to_string(home.dir.path().join("out.svg")).unwrap();
    assert_eq!(svg.matches("<rect class=\"job").count(), 3, "{svg}");
    assert!(svg.contains("<title>y, attempt 1: 10 s to 20 s, finished</title>"), "{svg}");
}

#[test]
fn devices_are_chosen_by_their_links() {
    let home = Home::new();
    home.file(
        "links.toml",
        "[[node]]\nname = \"n\"\ncpus = 8\ngpus = 4\ngpu_links = \"pairs\"\n\
         [[job]]\nname = \"one\"\nseconds = 10\ngang = { gpus = 1 }\n[[job]]\nname = \"two\"\nat = 1\nseconds = 10\ngang = { gpus = 2 }\n",
    );
    let outcome = home.run(["simulate", "links.toml", "--json"]).expect(0).json();
    let gpus = |job: usize| outcome["jobs"][job]["attempts"][0]["bundles"][0]["gpus"].to_string();
    assert_eq!((gpus(0), gpus(1)), ("[0]".to_owned(), "[2,3]".to_owned()));
}

#[test]
fn what_cannot_be_simulated_is_refused_with_exit_2_and_says_why() {
    let home = Home::new();
    home.file(
        "bad.toml",
        "[[job]]\nname = \"j\"\nseconds = -1\nqueue = \"q\"\n[[event]]\nat = 1\ncancel = \"k\"\n",
    );
    let told = home.run(["simulate", "bad.toml"]).expect(2).err();
    for part in ["bad.toml:3", "`job.seconds` is -1", "no queue `q`", "no job `k`"] {
        assert!(told.contains(part), "`{part}` is not in: {told}");
    }
    // 100 MB are refused before they are read.
    let huge = std::fs::File::create(home.dir.path().join("huge.toml")).unwrap();
    huge.set_len(100 << 20).unwrap();
    let told = home.run(["simulate", "huge.toml"]).expect(2).err();
    assert!(told.contains("104857600 bytes; the limit is"), "{told}");
    home.file("jobs.csv", "job_id,submit_time,num_gpu,duration\n1,soon,1,5\n");
    home.file("none.csv", "");
    let cases: [(&[&str], &str); 6] = [
        (&["simulate", "jobs.csv"], "say with --from"),
        (&["simulate", "jobs.csv", "--from", "philly", "--add-nodes", "1:gpus=1,cpus=1"], "line 2: `soon`"),
        (&["simulate", "none.csv", "--from", "philly", "--add-nodes", "1:gpus=1,cpus=1"], "is empty"),
        (&["simulate", "jobs.csv", "--from", "borg"], "philly, openb, pai, sacct"),
        (&["simulate", "away.toml"], "cannot be read"),
        (&["simulate", "bad.toml", "--set", "queue.q.weight=2"], "no queue `q`"),
    ];
    for (command, says) in cases {
        let told = home.run(command).expect(2).err();
        assert!(told.contains(says), "`{says}` is not in: {told}");
    }
    let trace = example("philly.csv");
    let told = home.run(["simulate", &trace, "--from", "philly"]).expect(2).err();
    assert!(told.contains("--cluster FILE or --add-nodes"), "{told}");
}
