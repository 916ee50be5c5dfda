//! What is checked of any input, by the fuzz target and by the test that mutates inputs.

use crate::audit::audit;
use phalanx_core::spec::Scenario;
use phalanx_scheduler::simulate::{gantt, simulate, svg};
use phalanx_scheduler::trace::{self, Format};

/// What is simulated of an input is no larger than this, so that many inputs are tried.
const NODES: usize = 64;
const JOBS: usize = 64;
const RANKS: u64 = 1024;
const GPUS: usize = 512;

/// Reads the input as a scenario and as every trace; simulates and audits what can be read.
pub(crate) fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for scenario in [Scenario::parse(text), Scenario::parse_json(text)].into_iter().flatten() {
        run(&scenario);
    }
    for (_, format) in Format::NAMES {
        if let Ok(trace) = trace::read(format, text) {
            run(&trace.into_scenario(cluster()));
        }
    }
    let _ = trace::openb_nodes(text);
}

fn run(scenario: &Scenario) {
    let written = scenario.to_toml();
    assert_eq!(Scenario::parse(&written).as_ref(), Ok(scenario), "{written}");
    let ranks: u64 = scenario.jobs.iter().map(|job| u64::from(job.gang.workers.max)).sum();
    let gpus: usize = scenario.nodes.iter().map(|node| node.capacity.devices.len()).sum();
    if scenario.nodes.len() > NODES || scenario.jobs.len() > JOBS || ranks > RANKS || gpus > GPUS {
        return;
    }
    let outcome = simulate(scenario, None);
    if let Err(broken) = audit(scenario, &outcome) {
        panic!("{broken}\n{written}");
    }
    assert_eq!(outcome, simulate(scenario, None), "the same scenario gives the same outcome\n{written}");
    let _ = (gantt(scenario, &outcome, 40), svg(scenario, &outcome));
}

/// Somewhere for the jobs of a trace to run.
fn cluster() -> Scenario {
    let text = "[[node]]\nname = \"a\"\ncpus = 64\ngpus = 8\nmemory = \"512GiB\"\n[[node]]\nname = \"b\"\ncpus = 64\ngpus = 8\nmemory = \"512GiB\"\n";
    Scenario::parse(text).unwrap_or_default()
}
