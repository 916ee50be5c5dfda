//! What a proposal costs, how good proposals are, what early stopping saves, and how fast `study` is, beside Optuna where
//! it is installed.
//!
//! `cargo bench --bench tuning [-- cost|quality|fronts|stopping|study …] [--seeds N] [--only NAME] [--peer] [--svg FOLDER]`.
//! `--peer` runs Optuna too, and rustuna for the cost, by the Python of `PHALANX_PEER_PYTHON` (default `python3`); its Gaussian
//! process needs torch. What Optuna finds is the same every time and lies beside the bench, with the script that made it.
//! `--svg` draws what was measured for docs/tuning.md.
//! The objectives are those of the peers' own benchmark; their check values are asserted first.

#[path = "tuning/chart.rs"]
mod chart;
#[path = "tuning/cost.rs"]
mod cost;
#[path = "tuning/fronts.rs"]
mod fronts;
#[path = "tuning/objectives.rs"]
mod objectives;
#[path = "tuning/peer.rs"]
mod peer;
#[path = "tuning/quality.rs"]
mod quality;
#[path = "tuning/statistics.rs"]
mod statistics;
#[path = "tuning/stopping.rs"]
mod stopping;
#[path = "tuning/study.rs"]
mod through_study;
#[path = "support/verdict.rs"]
mod verdict;

use phalanx_core::spec::SweepSpec;
use phalanx_tuner::Study;
use std::path::PathBuf;
use verdict::verdict;

/// What the command line asks for.
struct Options {
    parts: Vec<String>,
    seeds: u64,
    only: Option<String>,
    peer: bool,
    svg: Option<PathBuf>,
}

const PARTS: [&str; 5] = ["cost", "quality", "fronts", "stopping", "study"];

impl Options {
    fn read() -> Options {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let after =
            |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1)).cloned();
        Options {
            parts: args.iter().filter(|arg| PARTS.contains(&arg.as_str())).cloned().collect(),
            seeds: after("--seeds").and_then(|seeds| seeds.parse().ok()).unwrap_or(20),
            only: after("--only"),
            peer: args.iter().any(|arg| arg == "--peer"),
            svg: after("--svg").map(PathBuf::from),
        }
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    fn draw(&self, name: &str, chart: &chart::Chart<'_>) {
        let Some(folder) = &self.svg else { return };
        let path = folder.join(format!("{name}.svg"));
        std::fs::write(&path, chart.svg()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn main() {
    objectives::check();
    let options = Options::read();
    let run = |part: &str, run: fn(&Options)| {
        if options.wants(part) {
            run(&options);
        }
    };
    run("cost", cost::run);
    run("quality", quality::run);
    run("fronts", fronts::run);
    run("stopping", stopping::run);
    run("study", through_study::run);
}

/// A study of a sweep with these lines behind `[sweep]`.
fn study(lines: &str) -> Study {
    let text = format!("version = 1\n[sweep]\n{lines}");
    match SweepSpec::parse(&text, "bench") {
        Ok(spec) => Study::new(&spec),
        Err(problems) => panic!("{}", problems.render("bench.toml", &text)),
    }
}
