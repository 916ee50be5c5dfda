//! Thousands of schedules by seed: whatever is lost, joins, is cancelled, preempts, borrows, shrinks and grows, the
//! promises hold. A failure prints its seed; `PHALANX_SEED=N cargo test -p phalanx-scheduler seeded` runs that one alone.

use super::{Outcome, simulate};
use phalanx_core::spec::Scenario;
use std::fmt::Write as _;

#[path = "../../tests/audit/mod.rs"]
mod audit;

/// splitmix64 (Steele, Lea, Flood, OOPSLA'14).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0xA076_1D64_78BD_642F))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Runs a check on the scenario of every seed; one that fails is printed.
fn each_seed(count: u64, make: fn(&mut Random) -> String, check: fn(&Scenario, &Outcome)) {
    let one = std::env::var("PHALANX_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let text = make(&mut Random::new(seed));
        let checked = std::panic::catch_unwind(|| {
            let scenario =
                Scenario::parse(&text).unwrap_or_else(|bad| panic!("{}", bad.render("seeded", &text)));
            check(&scenario, &simulate(&scenario, None));
        });
        if let Err(panic) = checked {
            println!("{text}\nseed {seed}: run it alone with PHALANX_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Nodes of all sorts, queues, events and every kind of job.
fn anything(random: &mut Random) -> String {
    let mut text = String::from("[policy]\n");
    let policy = [
        ("grace_seconds", ["0", "0", "3.5"]),
        ("max_bypass", ["0", "2", "64"]),
        ("resize_interval", ["0", "7", "60"]),
        ("share_half_life", ["10", "1000", "86400"]),
        ("las_threshold_seconds", ["10", "100", "3600"]),
        ("las_preemptions", ["0", "1", "3"]),
    ];
    for (key, values) in policy {
        let _ = writeln!(text, "{key} = {}", random.of(&values));
    }
    let queues = random.below(3);
    for at in 0..queues {
        let _ = writeln!(text, "[[queue]]\nname = \"q{at}\"\nweight = {}", random.of(&["1", "0.5", "3"]));
        if random.one_in(2) {
            let _ = writeln!(
                text,
                "guaranteed = {{ {} }}",
                random.of(&["gpus = 2", "cpus = 4", "gpus = 1, cpus = 8"])
            );
        }
        if random.one_in(3) {
            let _ = writeln!(
                text,
                "quota = {{ {} }}",
                random.of(&["gpus = 3", "cpus = 9, gpus = 8", "memory = \"8GiB\""])
            );
        }
        let _ = writeln!(text, "discipline = \"{}\"", random.of(&["fifo", "fifo", "las"]));
    }
    let nodes = 1 + random.below(5);
    for at in 0..nodes {
        let _ =
            writeln!(text, "[[node]]\nname = \"n{at}\"\ncpus = {}\nmemory = \"16GiB\"", 2 + random.below(12));
        let gpus = random.of(&["0", "1", "2", "4", "8"]);
        let _ = writeln!(text, "gpus = {gpus}\nresources = {{ license = {} }}", random.below(3));
        if random.one_in(2) {
            let preset = random.of(if gpus == "8" { &["dgx-1", "pcie"] } else { &["pairs", "nvswitch"] });
            let _ = writeln!(text, "gpu_links = \"{preset}\"");
        }
        if random.one_in(2) {
            let _ = writeln!(text, "labels = {{ zone = \"{}\" }}", random.of(&["x", "y"]));
        }
        if random.one_in(5) {
            let _ = writeln!(text, "at = {}", random.below(60));
        }
    }
    let jobs = 2 + random.below(14);
    (0..jobs).for_each(|at| any_job(random, &mut text, at, queues));
    for _ in 0..random.below(5) {
        let at = random.below(120);
        let _ = match random.below(3) {
            0 => writeln!(text, "[[event]]\nat = {at}\ncancel = \"j{}\"", random.below(jobs)),
            1 => writeln!(text, "[[event]]\nat = {at}\nnode_lost = \"n{}\"", random.below(nodes)),
            _ => writeln!(text, "[[event]]\nat = {at}\nnode_joined = \"n{}\"", random.below(nodes)),
        };
    }
    text
}

fn any_job(random: &mut Random, text: &mut String, at: u64, queues: u64) {
    let (submitted, work) = (random.below(80), random.below(90));
    let _ = writeln!(text, "[[job]]\nname = \"j{at}\"\nat = {submitted}\nseconds = {work}");
    let optional = [
        ("priority", ["1", "2", "-1"]),
        ("preemptible", ["false", "true", "true"]),
        ("time_limit", ["20", "95", "200"]),
        ("checkpoint_every", ["1", "10", "33.3"]),
        ("restart_seconds", ["1", "0.25", "12"]),
    ];
    for (key, values) in optional {
        if random.one_in(3) {
            let _ = writeln!(text, "{key} = {}", random.of(&values));
        }
    }
    if queues > 0 && random.one_in(2) {
        let _ = writeln!(text, "queue = \"q{}\"", random.below(queues));
    }
    let (min, more) = (1 + random.below(4), random.below(4));
    let elastic = random.one_in(3);
    let max = if elastic { min + more } else { min };
    let _ = writeln!(
        text,
        "[job.gang]\nworkers = {{ min = {min}, max = {max} }}\ncpus = {}",
        random.of(&["0", "0.5", "1", "2"])
    );
    let _ = writeln!(text, "gpus = {}", random.of(&["0", "0", "0.25", "0.6", "1", "1", "2", "4"]));
    let rare = [
        ("memory", ["\"1GiB\"", "\"3GiB\"", "\"9GiB\""]),
        ("resources", ["{ license = 1 }", "{ license = 0.5 }", "{ license = 2 }"]),
        ("labels", ["{ zone = \"x\" }", "{ zone = { not_in = [\"y\"] } }", "{ zone = { exists = false } }"]),
        ("placement", ["\"spread\"", "\"strict-pack\"", "\"strict-spread\""]),
        ("topology", ["\"zone\"", "\"zone\"", "\"rack\""]),
        ("efficiency", ["0.5", "0.9", "0"]),
    ];
    for (key, values) in rare {
        if random.one_in(5) {
            let _ = writeln!(text, "{key} = {}", random.of(&values));
        }
    }
    if random.one_in(6) {
        let bundle = random.of(&["{}", "{ labels = { zone = \"x\" } }", "{ labels = { node = \"n0\" } }"]);
        let rest = vec!["{}"; max as usize - 1].join(", ");
        let _ = writeln!(text, "bundles = [{bundle}{}{rest}]", if max > 1 { ", " } else { "" });
    }
}

#[test]
fn seeded_schedules_keep_every_promise() {
    each_seed(3000, anything, |scenario, outcome| {
        audit::audit(scenario, outcome).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(*outcome, simulate(scenario, None), "the same scenario gives the same outcome");
        assert_eq!(Scenario::parse(&scenario.to_toml()).as_ref(), Ok(scenario));
    });
}

/// Equal nodes, one queue, gangs of whole GPUs in one order.
fn plain(random: &mut Random, limits: bool) -> String {
    let mut text = format!("[policy]\nmax_bypass = {}\n", random.below(6));
    for at in 0..1 + random.below(4) {
        let _ = writeln!(text, "[[node]]\nname = \"n{at}\"\ncpus = 64\ngpus = 4");
    }
    for at in 0..10 + random.below(30) {
        let (submitted, work) = (random.below(100), 1 + random.below(60));
        let (workers, gpus) = (1 + random.below(4), random.of(&["1", "1", "2", "4"]));
        let _ = writeln!(text, "[[job]]\nname = \"j{at}\"\nat = {submitted}\nseconds = {work}");
        if limits {
            let _ = writeln!(text, "time_limit = {}", work + random.below(40));
        }
        let _ = writeln!(
            text,
            "gang = {{ workers = {workers}, gpus = {gpus}, placement = \"{}\" }}",
            random.of(&["pack", "spread"])
        );
    }
    text
}

#[test]
fn seeded_reservations_are_never_delayed() {
    let with_limits = |random: &mut Random| plain(random, true);
    each_seed(1000, with_limits, |_, outcome| {
        for job in &outcome.jobs {
            for told in &job.reasons {
                let Some((_, by)) = told.text.split_once("reserved: starts by ") else { continue };
                let by: f64 = by.split(' ').next().and_then(|by| by.parse().ok()).expect("a time");
                let start = job.start.map(|start| start.as_micros() as f64 / 1e6);
                assert!(start.is_some_and(|start| start <= by + 1e-3), "{job:?}");
            }
        }
    });
}

#[test]
fn seeded_waits_are_bounded_without_time_limits() {
    let without_limits = |random: &mut Random| plain(random, false);
    each_seed(1000, without_limits, |scenario, outcome| {
        let bound = scenario.policy.max_bypass.expect("a bound") as usize;
        let order = |at: usize| (scenario.jobs[at].at, at);
        for (at, job) in outcome.jobs.iter().enumerate().filter(|(_, job)| job.state == "finished") {
            let passes = |&other: &usize| order(other) > order(at) && outcome.jobs[other].start < job.start;
            let later = (0..outcome.jobs.len()).filter(|&other| outcome.jobs[other].start.is_some());
            let passed = later.filter(passes).count();
            assert!(passed <= bound, "{passed} passed {job:?}");
        }
    });
}
