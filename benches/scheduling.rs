//! The scheduler's decisions against baselines written here, and what a decision costs at scale.
//!
//! `cargo bench -p phalanx-scheduler` prints both (`-- quality` and `-- scale` one of them), and what each figure is to be.
//! Traces are seeded; the baselines (FIFO, EASY with the jobs' true
//! lengths, preemptive least attained service with one queue a decade) know GPUs as one pool, which the gangs here, that
//! may split over nodes, are placed on as well.
#![allow(missing_docs)]

#[path = "scheduling/baseline.rs"]
mod baseline;
#[path = "scheduling/figures.rs"]
mod figures;

use baseline::{Baseline, baseline};
use figures::Figures;
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{GangSpec, QueueSpec, Scenario, ScenarioJob, ScenarioNode, Workers};
use phalanx_core::{Cpus, GpuRequest, Time};
use phalanx_scheduler::simulate::simulate;
use std::time::{Duration, Instant};

/// Nodes of eight GPUs that the traces run on.
const NODES: u32 = 8;

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[derive(Clone, Copy)]
struct Job {
    at: f64,
    seconds: f64,
    gpus: u32,
}

/// Sizes and lengths as in Microsoft's Philly trace (ATC'19): most gangs are small, lengths log-normal over decades.
fn philly(random: &mut Random, jobs: usize, gpus: u32, load: f64, bursty: bool) -> Vec<Job> {
    let size = |unit: f64| match unit {
        u if u < 0.70 => 1,
        u if u < 0.80 => 2,
        u if u < 0.90 => 4,
        u if u < 0.97 => 8,
        _ => 16,
    };
    let mut out = Vec::with_capacity(jobs);
    for _ in 0..jobs {
        let gpus = size(random.unit());
        let seconds = (900.0f64.ln() + 1.8 * random.normal()).exp().clamp(30.0, 200_000.0).round();
        out.push(Job { at: 0.0, seconds, gpus });
    }
    let work: f64 = out.iter().map(|job| job.seconds * f64::from(job.gpus)).sum();
    let mean = work / f64::from(gpus) / load / jobs as f64;
    let (mut now, mut left) = (0.0, 0);
    for job in &mut out {
        if bursty {
            if left == 0 {
                left = 1 + (random.unit() * 80.0) as usize;
                now += random.exponential(mean * 40.5);
            }
            left -= 1;
        } else {
            now += random.exponential(mean);
        }
        job.at = now.round();
    }
    out
}

fn scenario(jobs: &[Job], nodes: u32, las: bool, elastic: bool, limits: bool) -> Scenario {
    let device = |index| Device { index, uuid: String::new(), name: String::new(), memory_bytes: 0 };
    let node = |at: u32| ScenarioNode {
        name: format!("n{at}").parse().expect("a name"),
        capacity: Capacity {
            cpus: Cpus::from_cores(64),
            memory_bytes: 1 << 40,
            devices: (0..8).map(device).collect(),
            ..Capacity::default()
        },
        at: Time::ZERO,
    };
    let job = |(at, job): (usize, &Job)| {
        let min = if elastic { job.gpus.div_ceil(4) } else { job.gpus };
        let mut gang = GangSpec { workers: Workers { min, max: job.gpus }, ..GangSpec::default() };
        gang.each.gpus = GpuRequest::Whole(1);
        ScenarioJob {
            name: format!("j{at}"),
            at: Time::ZERO + Duration::from_secs_f64(job.at),
            work: Duration::from_secs_f64(job.seconds),
            queue: "default".to_owned(),
            priority: 0,
            preemptible: true,
            time_limit: limits.then(|| Duration::from_secs_f64(job.seconds)),
            checkpoint_every: Some(Duration::from_secs(1)),
            restart: Duration::ZERO,
            gang,
            efficiency: 0.9,
        }
    };
    let none = phalanx_core::spec::Limits::default;
    let queue = QueueSpec { name: "default".to_owned(), weight: 1.0, guaranteed: none(), quota: none(), las };
    Scenario {
        nodes: (0..nodes).map(node).collect(),
        queues: vec![queue],
        jobs: jobs.iter().enumerate().map(job).collect(),
        ..Scenario::default()
    }
}

/// One schedule's line.
fn line(trace: &str, label: &str, figures: &Figures, more: &str) {
    let Figures { mean, p95, makespan, utilisation, unfairness: [unfair, worst] } = figures;
    println!(
        "{trace:<9}{label:<18}{mean:>10.0}{p95:>10.0}{makespan:>11.0}{utilisation:>7.3}{unfair:>7.2}{worst:>7.2}{more}"
    );
}

/// A figure that has to stay below a bound.
fn verdict(what: &str, ratio: f64, bound: f64) {
    println!("  {what}: {ratio:.3} (to be at most {bound}{})", if ratio <= bound { "" } else { ": MISSED" });
}

fn quality() {
    println!(
        "{:<9}{:<18}{:>10}{:>10}{:>11}{:>7}{:>7}{:>7}{:>7}{:>9}{:>12}",
        "trace",
        "scheduler",
        "mean JCT",
        "p95 JCT",
        "makespan",
        "util",
        "ftf",
        "p95",
        "frag",
        "preempt",
        "decisions/s"
    );
    for (name, bursty, seed) in [("philly", false, 1), ("bursty", true, 2)] {
        let jobs = philly(&mut Random(seed), 2000, NODES * 8, 0.9, bursty);
        let [fifo, easy, las] = [("FIFO", Baseline::Fifo), ("EASY", Baseline::Easy), ("LAS", Baseline::Las)]
            .map(|(label, kind)| {
                let figures = Figures::of(&jobs, &baseline(kind, &jobs, NODES * 8), NODES * 8);
                line(name, label, &figures, &format!("{:>7}{:>9}{:>12}", "pool", "-", "-"));
                figures
            });
        let [ours_fifo, ours_easy, ours_las, ours_elastic] = [
            ("phalanx fifo", false, false, false),
            ("  with limits", false, false, true),
            ("phalanx las", true, false, false),
            ("  elastic gangs", true, true, false),
        ]
        .map(|(label, las, elastic, limits)| {
            ours(name, label, &jobs, scenario(&jobs, NODES, las, elastic, limits))
        });
        let best = fifo.mean.min(easy.mean);
        verdict("fifo: mean JCT over the better of FIFO and EASY", ours_fifo.mean / best, 1.01);
        verdict("fifo with limits: the same", ours_easy.mean / best, 1.01);
        verdict("EASY's utilisation over that of fifo", easy.utilisation / ours_fifo.utilisation, 1.0);
        verdict(
            "EASY's utilisation over that of fifo with limits",
            easy.utilisation / ours_easy.utilisation,
            1.0,
        );
        verdict("las: mean JCT over LAS", ours_las.mean / las.mean, 1.0);
        verdict("elastic gangs: mean JCT over las", ours_elastic.mean / ours_las.mean, 0.8);
    }
}

/// A run of the product, with its line.
fn ours(trace: &str, label: &str, jobs: &[Job], scenario: Scenario) -> Figures {
    let started = Instant::now();
    let outcome = simulate(&scenario, None);
    let seconds = started.elapsed().as_secs_f64();
    let ends = outcome.jobs.iter().map(|job| job.end.map_or(f64::NAN, |end| end.as_micros() as f64 / 1e6));
    let figures = Figures::of(jobs, &ends.collect::<Vec<_>>(), NODES * 8);
    let summary = outcome.summary;
    let rate = summary.decisions as f64 / seconds;
    let fragmentation = summary.fragmentation.unwrap_or(f64::NAN);
    line(trace, label, &figures, &format!("{fragmentation:>7.3}{:>9}{rate:>12.0}", summary.preemptions));
    figures
}

/// A full cluster with a deep queue: a job submitted or finished is a decision.
fn scale() {
    println!(
        "{:<12}{:>10}{:>12}{:>14}{:>14}{:>12}",
        "nodes", "limits", "jobs", "p50 µs", "p99 µs", "seconds"
    );
    let mut medians = Vec::new();
    for (nodes, limits) in [(5_000, false), (10_000, false), (10_000, true)] {
        let mut random = Random(7);
        let filling = nodes as usize * 2;
        let mut jobs: Vec<Job> = Vec::new();
        for at in 0..filling + 10_000 {
            let gpus = [1, 2, 4, 8, 8, 8, 16][(random.next() % 7) as usize];
            jobs.push(Job {
                at: at as f64 * 0.01,
                seconds: (1000.0 + random.unit() * 20_000.0).round(),
                gpus,
            });
        }
        let started = Instant::now();
        let clock = || started.elapsed().as_secs_f64() * 1e6;
        let summary = simulate(&scenario(&jobs, nodes, false, false, limits), Some(&clock)).summary;
        let (p50, p99) =
            (summary.decide_us_p50.unwrap_or(f64::NAN), summary.decide_us_p99.unwrap_or(f64::NAN));
        let seconds = started.elapsed().as_secs_f64();
        println!("{nodes:<12}{limits:>10}{:>12}{p50:>14.1}{p99:>14.1}{seconds:>12.1}", jobs.len());
        if nodes == 10_000 {
            verdict("median of a decision, µs", p50, 100.0);
            verdict("p99 of a decision, µs", p99, 2000.0);
            verdict("30,000 jobs, s", seconds, 60.0);
        }
        medians.push(p50);
    }
    verdict("median with twice the nodes over that with 5,000", medians[1] / medians[0], 1.5);
    match peak_bytes() {
        Some(bytes) => verdict("memory at its most, GiB", bytes as f64 / (1u64 << 30) as f64, 2.0),
        None => println!("  memory at its most: this system does not say"),
    }
}

/// The most memory that this process has had.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn main() {
    let wanted = std::env::args().nth(1).filter(|word| !word.starts_with('-'));
    if wanted.as_deref() != Some("scale") {
        quality();
    }
    if wanted.as_deref() != Some("quality") {
        scale();
    }
}
