//! Operations metrics for Prometheus: what the runtime counts, and gauges of the cluster read at each scrape.
//!
//! No label holds the id of a job or a trial: there are too many of them, and none of them lasts.

use metrics::{describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use phalanx_core::{JobState, NodeState};
use phalanx_runtime::Error;
use phalanx_runtime::controller::QueueStatus;
use phalanx_runtime::service::{DeviceStatus, Handle};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// How often samples are folded into their histograms, so that they do not pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// Seconds from submission to running: from a warm start to a long wait in the queue.
const START_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];
/// Seconds of a decision: from an idle service's to one over thousands of nodes.
const SCHEDULE_BUCKETS: &[f64] =
    &[0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Seconds of a commit: from a fast disk's to one that everybody waits for.
const COMMIT_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// The histograms, with their buckets: without these the exporter would show summaries.
const HISTOGRAMS: [(&str, &[f64]); 3] = [
    ("phalanx_job_start_seconds", START_BUCKETS),
    ("phalanx_schedule_seconds", SCHEDULE_BUCKETS),
    ("phalanx_commit_seconds", COMMIT_BUCKETS),
];
const MILLI: f64 = 1000.0;
const PERCENT: f64 = 100.0;

/// What Prometheus reads.
#[derive(Clone)]
pub struct Metrics {
    prometheus: PrometheusHandle,
    /// Nodes that have had a gauge: one that is gone goes to 0 instead of keeping its last value for ever.
    nodes: Arc<Mutex<BTreeSet<String>>>,
    /// The same for queues.
    queues: Arc<Mutex<BTreeSet<String>>>,
    started: f64,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Takes in what the whole process counts from now on; once a process.
    pub fn install() -> Result<Metrics, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in HISTOGRAMS {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
        }
        let prometheus = builder.install_recorder()?;
        describe();
        // In the text from the first scrape on, before anything has been counted.
        for (name, _) in HISTOGRAMS {
            let _ = metrics::histogram!(name);
        }
        gauge!("phalanx_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Ok(Metrics { prometheus, nodes: Arc::default(), queues: Arc::default(), started })
    }

    /// Folds samples until `shutdown`. Cancel: nothing is lost that a scrape would have shown. Error: none.
    pub(crate) async fn upkeep(self, shutdown: CancellationToken) {
        while tokio::time::timeout(UPKEEP, shutdown.cancelled()).await.is_err() {
            self.prometheus.run_upkeep();
        }
    }

    /// The text that Prometheus reads.
    pub(crate) async fn render(&self, handle: &Handle) -> Result<String, Error> {
        self.read_cluster(handle).await?;
        self.read_process();
        Ok(self.prometheus.render())
    }

    async fn read_cluster(&self, handle: &Handle) -> Result<(), Error> {
        let status = handle.status().await?;
        for state in JobState::ALL {
            let jobs = status.jobs.get(state.as_str()).copied().unwrap_or(0);
            gauge!("phalanx_jobs", "state" => state.as_str()).set(jobs as f64);
        }
        self.read_queues(&handle.queues().await?);
        let nodes = handle.nodes().await?;
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|name| !nodes.iter().any(|node| node.name.as_str() == **name)) {
            set_node(gone, [0.0; NODE_GAUGES.len()]);
            set_state(gone, None);
        }
        for node in &nodes {
            let there = if node.state == NodeState::Lost { 0.0 } else { 1.0 };
            let free: u64 = node.devices.iter().map(|held| u64::from(held.free_shares)).sum();
            let figures = [
                node.capacity.cpus.milli() as f64 / MILLI,
                node.cpus_free.milli() as f64 / MILLI,
                node.devices.len() as f64,
                free as f64 / MILLI,
                node.capacity.memory_bytes as f64,
                node.memory_free_bytes as f64,
            ];
            set_node(node.name.as_str(), figures.map(|figure| figure * there));
            set_state(node.name.as_str(), Some(node.state));
            node.devices.iter().for_each(|device| set_gpu(node.name.as_str(), device));
            known.insert(node.name.to_string());
        }
        Ok(())
    }

    fn read_queues(&self, queues: &[QueueStatus]) {
        let mut known = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.iter().filter(|name| !queues.iter().any(|queue| queue.spec.name == **name)) {
            gauge!("phalanx_queue_length", "queue" => gone.clone()).set(0.0);
            gauge!("phalanx_queue_running", "queue" => gone.clone()).set(0.0);
        }
        for queue in queues {
            let name = queue.spec.name.clone();
            gauge!("phalanx_queue_length", "queue" => name.clone()).set(queue.length as f64);
            gauge!("phalanx_queue_running", "queue" => name.clone()).set(queue.running as f64);
            known.insert(name);
        }
    }

    fn read_process(&self) {
        gauge!("process_start_time_seconds").set(self.started);
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm")
            && let Some(pages) =
                statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok())
        {
            /// Of every machine this runs on.
            const PAGE_BYTES: f64 = 4096.0;
            gauge!("process_resident_memory_bytes").set(pages * PAGE_BYTES);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            gauge!("process_open_fds").set(open.count() as f64);
        }
        if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            gauge!("process_max_fds").set(soft as f64);
        }
    }
}

/// What is shown of every node, in the order that [`set_node`] takes.
const NODE_GAUGES: [&str; 6] = [
    "phalanx_node_cpus",
    "phalanx_node_cpus_free",
    "phalanx_node_gpus",
    "phalanx_node_gpus_free",
    "phalanx_node_memory_bytes",
    "phalanx_node_memory_free_bytes",
];

fn set_node(name: &str, figures: [f64; NODE_GAUGES.len()]) {
    for (gauge, figure) in NODE_GAUGES.into_iter().zip(figures) {
        gauge!(gauge, "node" => name.to_owned()).set(figure);
    }
}

/// 1 for the state that the node is in.
fn set_state(name: &str, state: Option<NodeState>) {
    for &one in NodeState::ALL {
        let is = if state == Some(one) { 1.0 } else { 0.0 };
        gauge!("phalanx_node_state", "node" => name.to_owned(), "state" => one.as_str()).set(is);
    }
}

fn set_gpu(node: &str, status: &DeviceStatus) {
    let labels = [("node", node.to_owned()), ("gpu", status.device.index.to_string())];
    gauge!("phalanx_gpu_utilization_ratio", &labels).set(status.utilization / PERCENT);
    gauge!("phalanx_gpu_memory_bytes", &labels).set(status.device.memory_bytes as f64);
    gauge!("phalanx_gpu_memory_used_bytes", &labels).set(status.memory_used_bytes as f64);
}

fn describe() {
    describe_gauge!("phalanx_node_cpus", "CPUs of a node; 0 while it is lost");
    describe_gauge!("phalanx_node_cpus_free", "CPUs of a node that no gang holds");
    describe_gauge!("phalanx_node_gpus", "GPUs of a node; 0 while it is lost");
    describe_gauge!("phalanx_node_gpus_free", "GPUs of a node that no gang holds, shared ones in part");
    describe_gauge!("phalanx_node_memory_bytes", "Memory of a node; 0 while it is lost");
    describe_gauge!("phalanx_node_memory_free_bytes", "Memory of a node that no gang holds");
    describe_gauge!("phalanx_node_state", "1 for the state that a node is in");
    describe_gauge!("phalanx_gpu_utilization_ratio", "How busy a device is, by its driver, from 0 to 1");
    describe_gauge!("phalanx_gpu_memory_bytes", "Memory of a device; 0 when unknown");
    describe_gauge!("phalanx_gpu_memory_used_bytes", "Memory of a device that is used, by its driver");
    describe_gauge!("phalanx_queue_length", "Gangs that wait in a queue");
    describe_gauge!("phalanx_queue_running", "Jobs of a queue with an attempt under way");
    describe_gauge!("phalanx_build_info", "1, with the version of the service as a label");
    describe_histogram!("phalanx_commit_seconds", "Time that one commit takes until it is on the disk");
    describe_gauge!("process_max_fds", "Most file descriptors that the service may open");
    describe_gauge!("phalanx_jobs", "Jobs by state");
    describe_histogram!(
        "phalanx_job_start_seconds",
        "From submission until all ranks of the first attempt run"
    );
    describe_histogram!("phalanx_schedule_seconds", "Time that one scheduling decision takes");
    describe_gauge!(
        "process_start_time_seconds",
        "When the service started, in seconds since the Unix epoch"
    );
    describe_gauge!("process_resident_memory_bytes", "Resident memory of the service");
    describe_gauge!("process_open_fds", "Open file descriptors of the service");
}
