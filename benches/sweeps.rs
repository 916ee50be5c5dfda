//! What a sweep costs: trivial trials a second with a process each and in warm workers, and what ten thousand trials leave
//! behind.
//!
//! The first two are measured in turn, and nothing is deleted before the end: a file system that has just lost thousands of
//! files is slow to make new ones. The folders are beneath `$TMPDIR`, which says what disk is measured.
//!
//! Beside the rate stand Ray Tune's figures as the project's requirements state them, measured elsewhere on like hardware, not in
//! this run: 1.0 trivial trials a second, 14.5 with `reuse_actors`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "support/spread.rs"]
mod spread;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/support/sweeper.rs"]
mod sweeper;
#[path = "support/verdict.rs"]
mod verdict;

use phalanx_api::v1::trial::State;
use spread::spread;
use std::time::Instant;
use support::{Home, Service};
use sweeper::Sweeper;
use verdict::verdict;

const TRIVIAL: usize = 200;
/// Trials of the built-in trainer, how many run at a time, and the rows they train on.
const WARM: usize = 600;
const AT_ONCE: usize = 16;
const ROWS: usize = 20;
const MANY: u64 = 10_000;
/// Trials whose cost is compared, at the beginning and at the end of the many.
const PART: usize = 1_000;
const LOOKS: usize = 9;
const RAY: f64 = 14.5;
const ROUNDS: usize = 3;
/// A name, how many trials a second there are, and how many there are to be.
type Sweep = (&'static str, fn(&Home) -> f64, f64);

fn main() {
    let sweeps: [Sweep; 2] = [("a process each", trivial, 50.0), ("built-in trainer, warm", built_in, 300.0)];
    let mut rates = sweeps.map(|_| Vec::new());
    let mut homes = Vec::new();
    for _ in 0..ROUNDS {
        for ((_, sweep, _), rates) in sweeps.iter().zip(&mut rates) {
            let home = Home::new();
            rates.push(sweep(&home));
            homes.push(home);
        }
    }
    for ((what, _, goal), rates) in sweeps.into_iter().zip(rates) {
        let (rate, low, high) = spread(&rates);
        let word = verdict(rate >= goal);
        println!(
            "trivial trials, {what:<22} {rate:5.0} trials/s ({low:.0} to {high:.0}; goal {goal:.0}: {word})   Ray Tune: {RAY} at best ({:.1}x)",
            rate / RAY
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(many());
}

/// A process each, two at a time, one report each.
fn trivial(home: &Home) -> f64 {
    let binary = env!("CARGO_BIN_EXE_phalanx");
    let text = format!(
        "version = 1\n[gang]\ncpus = 0.1\n[program]\ncommand = [\"{binary}\", \"report\", \"--step\", \"1\", \"loss={{x}}\"]\n\
         [sweep]\nmetric = \"loss\"\ntrials = {TRIVIAL}\nconcurrency = 2\n[search]\nkind = \"random\"\n\
         [params]\nx = {{ kind = \"float\", low = 0.0, high = 1.0 }}\n"
    );
    rate(home, &text, TRIVIAL)
}

/// Built-in trainer trials of one step on a few rows, in warm workers: forks of guards that are used again.
fn built_in(home: &Home) -> f64 {
    let rows: String = (0..ROWS).map(|row| format!("{row},{},{}\n", row * 7 % 11, row * 3 % 5)).collect();
    home.file("rows.csv", &format!("a,b,y\n{rows}"));
    let text = format!(
        "version = 1\n[gang]\ncpus = 0.1\n[train]\nmodel = {{ kind = \"linear\" }}\n\
         data = {{ kind = \"csv\", path = \"rows.csv\", target = \"y\" }}\nloss = \"mse\"\n\
         optimizer = {{ kind = \"sgd\", lr = \"{{lr}}\" }}\nsteps = 1\nbatch_size = 8\n\
         [sweep]\nmetric = \"loss\"\ntrials = {WARM}\nconcurrency = {AT_ONCE}\n[search]\nkind = \"random\"\n\
         [params]\nlr = {{ kind = \"float\", low = 0.001, high = 0.01 }}\n"
    );
    rate(home, &text, WARM)
}

/// Trials a second of a sweep, from the command to its end.
fn rate(home: &Home, text: &str, trials: usize) -> f64 {
    let file = home.file("sweep.toml", text);
    let start = Instant::now();
    let ended = home.run(["run", file.to_str().unwrap(), "--json"]).expect(0);
    let rate = trials as f64 / start.elapsed().as_secs_f64();
    assert_eq!(ended.json()["counts"]["complete"], trials);
    rate
}

/// Ten thousand trials that run elsewhere: the search and its store alone.
async fn many() {
    let home = Home::new();
    let service = Service::start(&home);
    let mut client = Sweeper::to(&service).await;
    let toml = format!(
        "version = 1\n[sweep]\nmetric = \"loss\"\ntrials = {MANY}\n[search]\nkind = \"random\"\n\
         [stopping]\nkind = \"asha\"\nmin = 1\nmax = 9\n\
         [params]\nx = {{ kind = \"float\", low = 0.0, high = 1.0 }}\ny = {{ kind = \"int\", low = 0, high = 99 }}\n"
    );
    let id = client.create(&toml).await;
    let mut took = Vec::with_capacity(MANY as usize);
    for _ in 0..MANY {
        let start = Instant::now();
        trial(&mut client, &id).await;
        took.push(start.elapsed().as_secs_f64());
    }
    let median = |part: &[f64]| {
        let mut part = part.to_vec();
        part.sort_by(f64::total_cmp);
        1e3 * part[part.len() / 2]
    };
    let (first, last) = (median(&took[..PART]), median(&took[took.len() - PART..]));
    println!(
        "ask, report, tell: first thousand   {first:8.3} ms, last thousand {last:.3} ms ({:.2}x)",
        last / first
    );
    println!("the service's memory                {:8.1} MiB", resident_mib(service.child.id()));
    let mut tables = Vec::new();
    for _ in 0..LOOKS {
        let start = Instant::now();
        let shown = home.run(["trials", &id]).expect(0).out().lines().count();
        tables.push(start.elapsed().as_secs_f64());
        assert_eq!(shown as u64, MANY + 1);
    }
    println!("`phalanx trials` of all of them     {:8.1} ms", median(&tables));
}

/// One trial from its proposal to its end.
async fn trial(client: &mut Sweeper, id: &str) {
    let number = client.trial(id).await.number;
    let value = f64::from(u32::try_from(number * 7919 % 1009).unwrap());
    client.report(id, number, 1, value).await.unwrap();
    client.tell(id, number, &[value], State::Unspecified).await.unwrap();
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}
