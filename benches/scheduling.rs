//! The scheduler's decisions against baselines written here, and what a decision costs at scale.
//!
//! `cargo bench -p phalanx-scheduler` prints both (`-- quality` and `-- scale` one of them), and what each figure is to be.
//! Traces are seeded; the baselines (FIFO, EASY with the jobs' true
//! lengths, preemptive least attained service with one queue a decade) know GPUs as one pool, which the gangs here, that
//! may split over nodes, are placed on as well. To the baselines a preemption costs nothing, and no job waits too long.
#![allow(missing_docs)]

#[path = "scheduling/baseline.rs"]
mod baseline;
#[path = "scheduling/figures.rs"]
mod figures;

use baseline::{Baseline, baseline};
use figures::{Busy, Figures};
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{GangSpec, QueueSpec, Scenario, ScenarioJob, ScenarioNode, Workers};
use phalanx_core::{Cpus, GpuRequest, Time};
use phalanx_scheduler::simulate::simulate;
use std::time::{Duration, Instant};

/// Nodes of eight GPUs that the traces run on.
const NODES: u32 = 8;
/// Jobs of a trace.
const JOBS: usize = 2000;
/// Traces of each kind.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

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

/// How jobs come to the product.
#[derive(Clone, Copy, Default)]
struct Given {
    las: bool,
    /// From a quarter of a job's GPUs to twice as many, at the pace that its work then has.
    elastic: bool,
    /// With its true length as time limit.
    limits: bool,
}

/// What a gang's pace grows by with its workers: k workers do k^0.9 of one.
const EFFICIENCY: f64 = 0.9;

fn scenario(jobs: &[Job], nodes: u32, given: Given) -> Scenario {
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
        let (min, max) = match given.elastic {
            true => (job.gpus.div_ceil(4), (job.gpus * 2).min(nodes * 8)),
            false => (job.gpus, job.gpus),
        };
        let mut gang = GangSpec { workers: Workers { min, max }, ..GangSpec::default() };
        gang.each.gpus = GpuRequest::Whole(1);
        let seconds = job.seconds * (f64::from(job.gpus) / f64::from(max)).powf(EFFICIENCY);
        ScenarioJob {
            name: format!("j{at}"),
            at: Time::ZERO + Duration::from_secs_f64(job.at),
            work: Duration::from_secs_f64(seconds),
            queue: "default".to_owned(),
            priority: 0,
            preemptible: true,
            time_limit: given.limits.then(|| Duration::from_secs_f64(job.seconds)),
            checkpoint_every: Some(Duration::from_secs(1)),
            restart: Duration::ZERO,
            gang,
            efficiency: EFFICIENCY,
        }
    };
    let none = phalanx_core::spec::Limits::default;
    let queue = QueueSpec {
        name: "default".to_owned(),
        weight: 1.0,
        guaranteed: none(),
        quota: none(),
        las: given.las,
    };
    Scenario {
        nodes: (0..nodes).map(node).collect(),
        queues: vec![queue],
        jobs: jobs.iter().enumerate().map(job).collect(),
        ..Scenario::default()
    }
}

/// A figure that has to stay below a bound.
fn verdict(what: &str, ratio: f64, bound: f64) {
    println!("  {what}: {ratio:.3} (to be at most {bound}{})", if ratio <= bound { "" } else { ": MISSED" });
}

/// What the product is asked to do with a trace, by the name of its line.
const OURS: [(&str, Given); 4] = [
    ("phalanx fifo", Given { las: false, elastic: false, limits: false }),
    ("  with limits", Given { las: false, elastic: false, limits: true }),
    ("phalanx las", Given { las: true, elastic: false, limits: false }),
    ("  elastic gangs", Given { las: true, elastic: true, limits: false }),
];

fn quality() {
    println!("each line is the mean over {} seeds of a trace of {JOBS} jobs", SEEDS.count());
    let columns = ["mean JCT", "p95 JCT", "makespan", "util", "ftf", "p95", "frag", "preempt", "decisions/s"];
    println!("{:<8}{:<18}{}", "trace", "scheduler", columns.map(|name| format!("{name:>12}")).concat());
    for (trace, bursty) in [("philly", false), ("bursty", true)] {
        let schedules: Vec<[Figures; 7]> = SEEDS
            .map(|seed| {
                let jobs = philly(&mut Random(seed), JOBS, NODES * 8, 0.9, bursty);
                let baselines = [Baseline::Fifo, Baseline::Easy, Baseline::Las]
                    .map(|kind| baseline(kind, &jobs, NODES * 8))
                    .map(|(ends, busy)| Figures::of(&jobs, &ends, &busy, NODES * 8));
                let ours = OURS.map(|(_, given)| ours(&jobs, &scenario(&jobs, NODES, given)));
                let ([fifo, easy, las], [ours_fifo, ours_easy, ours_las, elastic]) = (baselines, ours);
                [fifo, easy, las, ours_fifo, ours_easy, ours_las, elastic]
            })
            .collect();
        let labels = ["FIFO", "EASY", "LAS"].into_iter().chain(OURS.map(|(label, _)| label));
        for (at, label) in labels.enumerate() {
            let lines: Vec<&Figures> = schedules.iter().map(|schedule| &schedule[at]).collect();
            println!("{trace:<8}{label:<18}{}", Figures::line(&lines));
        }
        // The geometric mean over the seeds of one figure over another.
        let ratio = |of: &dyn Fn(&[Figures; 7]) -> f64| {
            let logarithms: f64 = schedules.iter().map(|schedule| of(schedule).ln()).sum();
            (logarithms / schedules.len() as f64).exp()
        };
        verdict(
            "fifo: mean JCT over FIFO, which knows no lengths either",
            ratio(&|s| s[3].mean / s[0].mean),
            1.0,
        );
        let best = |s: &[Figures; 7]| s[0].mean.min(s[1].mean);
        verdict("fifo with limits: over the better of FIFO and EASY", ratio(&|s| s[4].mean / best(s)), 1.01);
        verdict(
            "EASY's utilisation over that of fifo with limits",
            ratio(&|s| s[1].utilisation / s[4].utilisation),
            1.001,
        );
        verdict("las: mean JCT over LAS", ratio(&|s| s[5].mean / s[2].mean), 1.0);
        verdict("elastic gangs: mean JCT over las", ratio(&|s| s[6].mean / s[5].mean), 0.8);
    }
}

/// A run of the product.
fn ours(jobs: &[Job], scenario: &Scenario) -> Figures {
    let started = Instant::now();
    let outcome = simulate(scenario, None);
    let seconds = started.elapsed().as_secs_f64();
    let seconds_of = |at: Option<Time>| at.map_or(f64::NAN, |at| at.as_micros() as f64 / 1e6);
    let ends: Vec<f64> = outcome.jobs.iter().map(|job| seconds_of(job.end)).collect();
    let attempts = outcome.jobs.iter().flat_map(|job| &job.attempts);
    let busy: Vec<Busy> = attempts
        .map(|attempt| {
            let (from, to) = (seconds_of(Some(attempt.start)), seconds_of(attempt.end));
            Busy { from, to, gpus: attempt.bundles.iter().map(|rank| rank.gpus.len() as u32).sum() }
        })
        .collect();
    let summary = &outcome.summary;
    Figures {
        fragmentation: summary.fragmentation,
        preemptions: Some(summary.preemptions as f64),
        decisions_per_second: Some(summary.decisions as f64 / seconds),
        ..Figures::of(jobs, &ends, &busy, NODES * 8)
    }
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
        let summary =
            simulate(&scenario(&jobs, nodes, Given { limits, ..Given::default() }), Some(&clock)).summary;
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
