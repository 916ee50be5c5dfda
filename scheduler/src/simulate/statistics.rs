//! Sums over the time of a simulation.

use super::outcome::{JobOutcome, Summary};
use crate::amounts::{Amounts, Kind};
use crate::cluster::Cluster;
use crate::node::Ground;
use crate::queue::Queue;
use crate::reason::ReasonCode;
use phalanx_core::spec::GangSpec;
use phalanx_core::{GpuRequest, Time};
use std::sync::Arc;

/// Integrals over time, in thousandths times seconds.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    until: Time,
    held: [f64; 2],
    up: [f64; 2],
    free_gpus: f64,
    useless_gpus: f64,
    /// What runs now, kept as it changes.
    pub(super) running: Amounts,
    pub(super) preemptions: u64,
    pub(super) decisions: u64,
    pub(super) decide_us: Vec<f64>,
}

impl Statistics {
    /// Adds the time from the last call up to `now`, over which nothing changed.
    pub(super) fn advance(&mut self, now: Time, cluster: &Cluster, queue: &Queue) {
        let seconds = now.since(self.until).as_secs_f64();
        self.until = now;
        if seconds == 0.0 {
            return;
        }
        for (at, kind) in [Kind::Gpu, Kind::Cpu].iter().enumerate() {
            self.held[at] += seconds * self.running.get(kind) as f64;
            self.up[at] += seconds * cluster.total.get(kind) as f64;
        }
        let free = cluster.total.get(&Kind::Gpu).saturating_sub(self.running.get(&Kind::Gpu));
        self.free_gpus += seconds * free as f64;
        if free > 0 && !queue.is_empty() {
            self.useless_gpus += seconds * useless(cluster, queue) as f64;
        }
    }

    pub(super) fn summary(mut self, jobs: &[JobOutcome]) -> Summary {
        let ends = jobs.iter().filter_map(|job| job.end).max();
        let makespan = jobs.iter().map(|job| job.submitted).min().zip(ends);
        let finished = jobs.iter().filter(|job| job.state == "finished");
        let mut times: Vec<f64> =
            finished.filter_map(|job| Some(job.end?.since(job.submitted).as_secs_f64())).collect();
        times.sort_by(f64::total_cmp);
        self.decide_us.sort_by(f64::total_cmp);
        let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
        let part = |some: f64, all: f64| (all > 0.0).then(|| some / all);
        Summary {
            makespan: makespan.map(|(first, last)| last.since(first).as_secs_f64()),
            mean_jct: (!times.is_empty()).then_some(mean),
            p95_jct: percentile(&times, 0.95),
            gpu_utilization: part(self.held[0], self.up[0]),
            cpu_utilization: part(self.held[1], self.up[1]),
            fragmentation: part(self.useless_gpus, self.free_gpus),
            preemptions: self.preemptions,
            decisions: self.decisions,
            decide_us_p50: percentile(&self.decide_us, 0.5),
            decide_us_p99: percentile(&self.decide_us, 0.99),
        }
    }
}

/// The nearest rank of a sorted list.
fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Free thousandths of GPUs on nodes where no waiting gang finds room for a worker, while one waits for GPUs.
fn useless(cluster: &Cluster, queue: &Queue) -> u64 {
    let waits = |code: Option<ReasonCode>| code.is_none_or(|code| !code.is_infeasible());
    let classes = queue.classes().map(|(_, class)| class);
    let mut gangs: Vec<&Arc<GangSpec>> = classes
        .filter(|class| {
            class.gang.each.gpus != GpuRequest::None && waits(class.blocked.map(|blocked| blocked.code))
        })
        .map(|class| &class.gang)
        .collect();
    if gangs.is_empty() {
        return 0;
    }
    gangs.sort_by_key(|gang| gang.each.gpus.shares());
    let nodes = cluster.index.with_free_gpus().filter_map(|slot| cluster.node(slot));
    let useless = nodes.filter_map(|node| {
        let free: u64 = node.devices.iter().map(|device| u64::from(device.free)).sum();
        let usable = |gang: &&&Arc<GangSpec>| node.matches(gang) && node.room(&gang.each, Ground::Free) > 0;
        (free > 0 && !gangs.iter().any(|gang| usable(&gang))).then_some(free)
    });
    useless.sum()
}
