//! What `top` shows: the service as it was at one look.

use crate::client::Client;
use crate::failure::Failure;
use phalanx_api::{json, v1 as pb};
use phalanx_core::Time;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Jobs that are shown at most. The newest of those that are over; of those that are not, all up to here.
const JOBS: usize = 5000;
/// Sweeps that are shown at most.
const SWEEPS: i32 = 200;
/// Jobs asked for at a time.
const PAGE: i32 = 1000;

/// The service at one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// When it was taken.
    pub(super) at: Time,
    /// The service itself.
    pub(super) status: pb::StatusResponse,
    /// Its nodes, in the order of their names.
    pub(super) nodes: Vec<pb::Node>,
    /// Its queues, in the order of their names.
    pub(super) queues: Vec<pb::Queue>,
    /// Jobs, the newest first.
    pub(super) jobs: Vec<pb::Job>,
    /// Sweeps, the newest first.
    pub(super) sweeps: Vec<pb::Sweep>,
}

impl Snapshot {
    /// Looks. With `all` the jobs that are over are among them.
    pub(super) async fn take(client: &Client, all: bool) -> Result<Snapshot, Failure> {
        let mut cluster = (client.cluster.clone(), client.cluster.clone(), client.cluster.clone());
        let (status, nodes, queues, jobs, sweeps) = tokio::try_join!(
            cluster.0.status(pb::StatusRequest {}),
            cluster.1.nodes(pb::NodesRequest {}),
            cluster.2.queues(pb::QueuesRequest {}),
            jobs(client, all),
            sweeps(client),
        )?;
        Ok(Snapshot {
            at: now(),
            status: status.into_inner(),
            nodes: nodes.into_inner().nodes,
            queues: queues.into_inner().queues,
            jobs,
            sweeps,
        })
    }

    /// Jobs in a state.
    pub(super) fn count(&self, state: &str) -> u64 {
        self.status.jobs.get(state).copied().unwrap_or(0)
    }

    /// CPUs of all nodes: how many are held, and how many there are.
    pub(super) fn cpus(&self) -> (f64, f64) {
        let amounts = self.nodes.iter().filter_map(|node| node.cpus);
        amounts.fold((0.0, 0.0), |sum, cpus| (sum.0 + cpus.total - cpus.free, sum.1 + cpus.total))
    }

    /// Devices of all nodes: how many are held, and how many there are.
    pub(super) fn gpus(&self) -> (f64, f64) {
        let gpus = self.nodes.iter().flat_map(|node| &node.gpus);
        gpus.fold((0.0, 0.0), |sum, gpu| (sum.0 + 1.0 - gpu.free, sum.1 + 1.0))
    }

    /// Jobs that wait in any queue.
    pub(super) fn waiting(&self) -> u64 {
        self.queues.iter().map(|queue| queue.length).sum()
    }

    /// The document of `top --json`.
    pub(super) fn document(&self) -> Value {
        let uptime = self.status.uptime.map_or(0.0, |up| up.seconds as f64 + f64::from(up.nanos) / 1e9);
        json!({
            "version": self.status.version,
            "uptime_s": json::number(uptime),
            "counts": self.status.jobs,
            "nodes": self.nodes.iter().map(json::node).collect::<Vec<_>>(),
            "queues": self.queues.iter().map(json::queue).collect::<Vec<_>>(),
            "jobs": self.jobs.iter().map(json::job).collect::<Vec<_>>(),
            "sweeps": self.sweeps.iter().map(json::sweep).collect::<Vec<_>>(),
        })
    }
}

/// The time of this machine.
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

async fn jobs(client: &Client, all: bool) -> Result<Vec<pb::Job>, tonic::Status> {
    let mut jobs: Vec<pb::Job> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListJobsRequest { page_size: PAGE, page_token, unfinished: !all };
        let page = client.jobs.clone().list(request).await?.into_inner();
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        // All that are over may be very many, and nobody scrolls through them here.
        if page_token.is_empty() || jobs.len() >= JOBS || all {
            return Ok(jobs);
        }
    }
}

/// The newest sweeps.
async fn sweeps(client: &Client) -> Result<Vec<pb::Sweep>, tonic::Status> {
    let request = pb::ListSweepsRequest { page_size: SWEEPS, page_token: String::new() };
    Ok(client.sweeps.clone().list(request).await?.into_inner().sweeps)
}
