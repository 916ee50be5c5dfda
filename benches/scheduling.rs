//! The scheduler's decisions against baselines written here, and what a decision costs at scale.
//!
//! `cargo bench -p phalanx-scheduler` prints both. Traces are seeded; the baselines (FIFO, EASY with the jobs' true
//! lengths, preemptive least attained service with one queue a decade) know GPUs as one pool, which the gangs here, that
//! may split over nodes, are placed on as well.
#![allow(missing_docs)]

use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{GangSpec, QueueSpec, Scenario, ScenarioJob, ScenarioNode, Workers};
use phalanx_core::{Cpus, GpuRequest, Time};
use phalanx_scheduler::simulate::simulate;
use std::time::{Duration, Instant};

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

/// How a baseline orders and preempts.
#[derive(Clone, Copy, PartialEq)]
enum Baseline {
    Fifo,
    Easy,
    Las,
}

/// Mean and 95th percentile completion time, makespan and utilisation of a baseline on one pool of GPUs.
fn baseline(kind: Baseline, jobs: &[Job], gpus: u32) -> [f64; 4] {
    let mut left: Vec<f64> = jobs.iter().map(|job| job.seconds).collect();
    let mut attained = vec![0.0f64; jobs.len()];
    let mut ends = vec![0.0f64; jobs.len()];
    let mut running: Vec<usize> = Vec::new();
    let mut waiting: Vec<usize> = Vec::new();
    let (mut now, mut next) = (0.0f64, 0);
    // Levels of attained service: 3,600 GPU-seconds and ten times that, as Tiresias discretises.
    let level = |attained: f64| [3600.0, 36_000.0].iter().filter(|&&bound| attained >= bound).count();
    loop {
        let used: u32 = running.iter().map(|&at| jobs[at].gpus).sum();
        let mut free = gpus - used;
        if kind == Baseline::Las {
            waiting.append(&mut running);
            waiting.sort_by(|&a, &b| (level(attained[a]), a).cmp(&(level(attained[b]), b)));
            free = gpus;
            let (start, wait): (Vec<usize>, Vec<usize>) = waiting.iter().partition(|&&at| {
                let fits = jobs[at].gpus <= free;
                free -= if fits { jobs[at].gpus } else { 0 };
                fits
            });
            (running, waiting) = (start, wait);
        } else {
            while let Some(&first) = waiting.first().filter(|&&at| jobs[at].gpus <= free) {
                free -= jobs[first].gpus;
                running.push(waiting.remove(0));
            }
            if let (Baseline::Easy, Some(&head)) = (kind, waiting.first()) {
                let mut by_end: Vec<(f64, u32)> =
                    running.iter().map(|&at| (now + left[at], jobs[at].gpus)).collect();
                by_end.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (mut sum, mut shadow) = (free, f64::INFINITY);
                for (end, gpus) in by_end {
                    sum += gpus;
                    if sum >= jobs[head].gpus {
                        shadow = end;
                        break;
                    }
                }
                let mut extra = sum.saturating_sub(jobs[head].gpus);
                let mut at = 1;
                while at < waiting.len() {
                    let job = jobs[waiting[at]];
                    let short = now + job.seconds <= shadow;
                    if job.gpus <= free && (short || job.gpus <= extra) {
                        free -= job.gpus;
                        extra -= if short { 0 } else { job.gpus };
                        running.push(waiting.remove(at));
                    } else {
                        at += 1;
                    }
                }
            }
        }
        let arrival = jobs.get(next).map_or(f64::INFINITY, |job| job.at);
        let end = running.iter().map(|&at| now + left[at]).fold(f64::INFINITY, f64::min);
        let crossing = |at: usize| {
            let bound = if attained[at] < 3600.0 { 3600.0 } else { 36_000.0 };
            let crosses = kind == Baseline::Las && attained[at] < bound && !waiting.is_empty();
            if crosses { now + (bound - attained[at]) / f64::from(jobs[at].gpus) } else { f64::INFINITY }
        };
        let level_at = running.iter().map(|&at| crossing(at)).fold(f64::INFINITY, f64::min);
        let then = arrival.min(end).min(level_at.max(now + 1e-6));
        if then.is_infinite() {
            break;
        }
        for &at in &running {
            left[at] -= then - now;
            attained[at] += (then - now) * f64::from(jobs[at].gpus);
        }
        now = then;
        running.retain(|&at| {
            if left[at] <= 1e-6 {
                ends[at] = now;
            }
            left[at] > 1e-6
        });
        while jobs.get(next).is_some_and(|job| job.at <= now) {
            waiting.push(next);
            next += 1;
        }
    }
    let mut times: Vec<f64> = jobs.iter().zip(&ends).map(|(job, end)| end - job.at).collect();
    times.sort_by(f64::total_cmp);
    let work: f64 = jobs.iter().map(|job| job.seconds * f64::from(job.gpus)).sum();
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    [mean, times[times.len() * 95 / 100], now - jobs[0].at, work / f64::from(gpus) / now]
}

fn quality() {
    const NODES: u32 = 8;
    println!(
        "{:<14}{:<18}{:>10}{:>10}{:>12}{:>8}{:>8}{:>9}",
        "trace", "scheduler", "mean JCT", "p95 JCT", "makespan", "util", "frag", "preempt"
    );
    for (name, bursty, seed) in [("philly", false, 1), ("bursty", true, 2)] {
        let jobs = philly(&mut Random(seed), 2000, NODES * 8, 0.9, bursty);
        for (label, kind) in [("FIFO", Baseline::Fifo), ("EASY", Baseline::Easy), ("LAS", Baseline::Las)] {
            let [mean, p95, makespan, used] = baseline(kind, &jobs, NODES * 8);
            println!(
                "{name:<14}{label:<18}{mean:>10.0}{p95:>10.0}{makespan:>12.0}{used:>8.3}{:>8}{:>9}",
                "-", "-"
            );
        }
        for (label, las, elastic, limits) in [
            ("phalanx fifo", false, false, false),
            ("  with limits", false, false, true),
            ("phalanx las", true, false, false),
            ("phalanx elastic", true, true, false),
        ] {
            let summary = simulate(&scenario(&jobs, NODES, las, elastic, limits), None).summary;
            println!(
                "{name:<14}{label:<18}{:>10.0}{:>10.0}{:>12.0}{:>8.3}{:>8.3}{:>9}",
                summary.mean_jct.unwrap_or(f64::NAN),
                summary.p95_jct.unwrap_or(f64::NAN),
                summary.makespan.unwrap_or(f64::NAN),
                summary.gpu_utilization.unwrap_or(f64::NAN),
                summary.fragmentation.unwrap_or(f64::NAN),
                summary.preemptions,
            );
        }
    }
}

/// A full cluster with a deep queue: a job submitted or finished is a decision.
fn scale() {
    println!(
        "{:<12}{:>10}{:>12}{:>14}{:>14}{:>12}",
        "nodes", "limits", "jobs", "p50 µs", "p99 µs", "seconds"
    );
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
        println!(
            "{nodes:<12}{limits:>10}{:>12}{:>14.1}{:>14.1}{:>12.1}",
            jobs.len(),
            summary.decide_us_p50.unwrap_or(f64::NAN),
            summary.decide_us_p99.unwrap_or(f64::NAN),
            started.elapsed().as_secs_f64(),
        );
    }
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
