//! What a scenario may say, and what it may not.

use super::*;

const SMALL: &str = r#"
    [[node]]
    name = "a"
    cpus = 8
    gpus = 2
    memory = "1GiB"
    labels = { zone = "x" }
    resources = { license = 1.5 }
    gpu_links = [["X", "NV4"], ["NV4", "X"]]
    [[queue]]
    name = "q"
    weight = 2.5
    guaranteed = { gpus = 1 }
    discipline = "las"
    [[job]]
    name = "j"
    at = 0.5
    seconds = 10
    queue = "q"
    gang = { workers = { min = 1, max = 2 }, gpus = 1, efficiency = 0.9 }
    [[event]]
    at = 3
    cancel = "j"
    [policy]
    grace_seconds = 30
    max_bypass = 3
"#;

fn problems(text: &str) -> String {
    // Not `unwrap_err`: of a scenario that should not have been read there may be very much.
    let Err(problems) = Scenario::parse(text) else { panic!("it is read") };
    problems.0.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>().join("; ")
}

#[test]
fn reads_what_the_format_has() {
    let scenario = Scenario::parse(SMALL).unwrap();
    assert_eq!(scenario.nodes[0].capacity.custom["license"], 1500);
    assert_eq!(scenario.nodes[0].gpu_shares(), 2000);
    assert_eq!(scenario.nodes[0].capacity.links.get(0, 1), Some(Link::NvLink(4)));
    assert!(scenario.queues[0].las && scenario.queues[0].guaranteed.gpus == Some(1000));
    assert_eq!(scenario.jobs[0].at.as_micros(), 500_000);
    assert_eq!((scenario.jobs[0].efficiency, scenario.jobs[0].gang.workers.max), (0.9, 2));
    assert_eq!(scenario.events[0].what, Happening::Cancel("j".into()));
    assert_eq!((scenario.policy.grace, scenario.policy.max_bypass), (Some(Duration::from_secs(30)), Some(3)));
}

#[test]
fn json_says_the_same() {
    let json = r#"{"node":[{"name":"a","cpus":8,"gpus":2,"memory":1073741824,"labels":{"zone":"x"},
        "resources":{"license":1.5},"gpu_links":[["X","NV4"],["NV4","X"]]}],
        "queue":[{"name":"q","weight":2.5,"guaranteed":{"gpus":1},"discipline":"las"}],
        "job":[{"name":"j","at":0.5,"seconds":10,"queue":"q",
                "gang":{"workers":{"min":1,"max":2},"gpus":1,"efficiency":0.9}}],
        "event":[{"at":3,"cancel":"j"}],"policy":{"grace_seconds":30,"max_bypass":3}}"#;
    assert_eq!(Scenario::parse_json(json), Scenario::parse(SMALL));
    for bad in ["", "[]", "{\"job\":[{\"name\":null}]}", "{\"jobs\":[]}", "{\"a\\u0000\":1}"] {
        assert!(Scenario::parse_json(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let text = problems(
        r#"
        [[node]]
        name = "a"
        cpus = -1
        [[node]]
        name = "a"
        colour = "red"
        [[job]]
        name = "j"
        seconds = -5
        queue = "nope"
        gang = { workers = { min = 3, max = 2 } }
        [[job]]
        name = "k"
        seconds = 1
        gang = { workers = 0 }
        [[event]]
        at = 1
        node_lost = "b"
        [[event]]
        at = 1
        [policy]
        grace_seconds = 121
    "#,
    );
    for part in [
        "cpus",
        "two nodes are named `a`",
        "unknown key `colour`",
        "`job.seconds` is -5",
        "no queue `nope`",
        "min 3 above max 2",
        "`job.gang.workers` is 0",
        "no node `b`",
        "exactly one of",
        "grace_seconds",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn links_are_a_whole_matrix_or_a_known_preset() {
    let with =
        |links: &str| Scenario::parse(&format!("[[node]]\nname = \"a\"\ngpus = 2\ngpu_links = {links}"));
    assert!(with("\"nvswitch\"").is_ok() && with("\"pcie\"").is_ok());
    for bad in [
        "\"web\"",
        "1",
        "[[\"X\"]]",
        "[[\"X\",\"NV0\"],[\"NV0\",\"X\"]]",
        "[[\"X\",\"SYS\"],[\"PIX\",\"X\"]]",
    ] {
        assert!(with(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let all = format!(
        "{SMALL}{}",
        r#"
        las_preemptions = 0
        las_threshold_seconds = 1e3
        share_half_life = "90m"
        resize_interval = 0.25
        [[node]]
        name = "late"
        at = 0.000001
        gpus = 8
        gpu_links = "dgx-1"
        memory = 18446744073709
        [[queue]]
        name = "weird \" \\ näme"
        guaranteed = { cpus = 0.001, memory = "3KiB", resources = { "a b" = 2 } }
        quota = { memory = "18446744073709551615B" }
        [[job]]
        name = "k"
        seconds = 0.1
        queue = "weird \" \\ näme"
        priority = -2147483648
        preemptible = false
        time_limit = 12.5
        checkpoint_every = 3
        restart_seconds = 0.5
        [job.gang]
        workers = 2
        gpus = 0.25
        cpus = 0
        memory = "1MiB"
        resources = { license = 0.5 }
        labels = { a = { in = ["x", "y"] }, b = { not_in = ["z"] }, c = { exists = false }, "d e" = "f" }
        bundles = [{}, { labels = { rack = "r1" } }]
        placement = "strict-spread"
        topology = "zone"
        [[event]]
        at = 1
        node_lost = "late"
        [[event]]
        at = 2.25
        node_joined = "late"
    "#
    );
    let scenario = Scenario::parse(&all).unwrap();
    let written = scenario.to_toml();
    assert_eq!(Scenario::parse(&written), Ok(scenario), "{written}");
}

#[test]
fn links_come_as_the_table_that_is_printed_too() {
    let table = "'''\n      GPU0  GPU1  CPU Affinity\nGPU0  X     NV2   0-7\nGPU1  NV2   X     0-7\n'''";
    let text = format!("[[node]]\nname = \"a\"\ngpus = 2\ngpu_links = {table}");
    assert_eq!(Scenario::parse(&text).unwrap().nodes[0].capacity.links.get(0, 1), Some(Link::NvLink(2)));
    assert!(Scenario::parse(&text.replace("gpus = 2", "gpus = 3")).is_err());
}

#[test]
fn what_is_too_large_is_refused_before_anything_is_made_of_it() {
    let long = format!("# {}\n", "x".repeat(SCENARIO_FILE_BYTES));
    for refused in [Scenario::parse(&long), Scenario::parse_json(&long)] {
        assert!(refused.unwrap_err().to_string().contains("the limit is"));
    }
    let node = |at: usize| format!("[[node]]\nname = \"n{at}\"\ngpus = 1024\n");
    let nodes: String = (0..=SCENARIO_GPUS / 1024).map(node).collect();
    assert!(problems(&nodes).contains("a scenario has at most 1048576"), "GPUs");
    assert!(problems("[[node]]\nname = \"a\"\ngpus = 1025").contains("0 to 1024"));
    let job = |at: u64| format!("[[job]]\nname = \"j{at}\"\nseconds = 1\ngang = {{ workers = 65536 }}\n");
    let jobs: String = (0..=SCENARIO_RANKS / 65_536).map(job).collect();
    assert!(problems(&jobs).contains("workers; a scenario has at most"), "ranks");
    for (key, value) in [("cpus", "99999999999999999999"), ("memory", "\"99999999999PiB\""), ("gpus", "1e9")]
    {
        assert!(!problems(&format!("[[node]]\nname = \"a\"\n{key} = {value}")).is_empty(), "{key}");
    }
}

#[test]
fn what_names_nothing_or_comes_to_nothing_is_refused() {
    let job = "[[job]]\nname = \"j\"\nseconds = 1\n";
    for (text, says) in [
        ("[[job]]\nseconds = 1\n".to_owned(), "`job.name` is missing"),
        ("[[job]]\nname = \"j\"\n".to_owned(), "`job.seconds` is missing"),
        (format!("{job}queue = \"q\"\n"), "no queue `q`"),
        (format!("{job}gang = {{ labels = {{ zone = 3 }} }}\n"), "label `zone`"),
        (format!("{job}gang = {{ labels = {{ zone = {{ in = [] }} }} }}\n"), "matches no node"),
        (format!("{job}gang = {{ placement = \"scatter\" }}\n"), "scatter"),
        (
            format!(
                "{job}gang = {{ workers = 2, placement = \"strict-spread\", topology = \"hostname\" }}\n"
            ),
            "strict-spread",
        ),
        (format!("{job}gang = {{ workers = 3, bundles = [{{}}] }}\n"), "1 bundles for 3 workers"),
        (format!("{job}gang = {{ gpus = 1.5 }}\n"), "whole number"),
        (format!("{job}gang = {{ cpus = -1 }}\n"), "cpus"),
        (format!("{job}[[event]]\nat = 1\ncancel = \"k\"\n"), "no job `k`"),
        (format!("{job}[[event]]\ncancel = \"j\"\n"), "`event.at` is missing"),
        (format!("{job}[[event]]\nat = -1\ncancel = \"j\"\n"), "`event.at` is -1"),
        (format!("{job}[[event]]\nat = 1\nnode_joined = \"n\"\n"), "no node `n`"),
        ("[[queue]]\nname = \"q\"\nparent = \"q\"\n".to_owned(), "unknown key `parent`"),
        (
            "[[queue]]\nname = \"q\"\nguaranteed = { gpus = 2 }\nquota = { gpus = 1 }\n".to_owned(),
            "above its quota",
        ),
    ] {
        let told = problems(&text);
        assert!(told.contains(says), "`{says}` is not in: {told}");
    }
}
