//! What the service costs: time to ready, idle memory, submit to first log line, trivial jobs a second.
//!
//! Beside them stand Ray's figures as the project's requirements state them, measured elsewhere on like hardware, not in this
//! run: 5.1 s to the first task, 695 MiB idle in 20 processes, 6.8 s for a no-op `ray job submit`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/support/caller.rs"]
mod caller;
#[path = "../tests/support/mod.rs"]
mod support;

use caller::Caller;

use phalanx_api::v1 as pb;
use phalanx_api::v1::jobs_client::JobsClient;
use std::time::{Duration, Instant};
use support::{Home, Service};
use tonic::Streaming;
use tonic::transport::Channel;

const STARTS: usize = 9;
const SUBMITS: usize = 50;
const JOBS: usize = 300;
/// Jobs under way at a time: as many as the node's CPUs allow, and some that wait.
const AT_ONCE: usize = 32;
const HI: &str = "version = 1\n[gang]\ncpus = 0.25\n[program]\ncommand = [\"sh\", \"-c\", \"echo hi\"]\n";

#[derive(Clone)]
struct Client {
    jobs: JobsClient<Channel>,
    caller: Caller,
}

impl Client {
    async fn to(service: &Service) -> Client {
        let caller = Caller::to(&service.grpc, &service.token()).await;
        Client { jobs: JobsClient::new(caller.channel.clone()), caller }
    }

    async fn submit(&self) -> String {
        let request = pb::SubmitRequest { toml: HI.to_owned(), ..pb::SubmitRequest::default() };
        self.jobs.clone().submit(self.caller.request(request)).await.unwrap().into_inner().id
    }

    async fn logs(&self, id: String) -> Streaming<pb::JobLogsResponse> {
        let request = pb::JobLogsRequest { id, follow: true, ..pb::JobLogsRequest::default() };
        self.jobs.clone().logs(self.caller.request(request)).await.unwrap().into_inner()
    }

    /// From submit to the first line, and then to the terminal job.
    async fn first_line(&self) -> Duration {
        let start = Instant::now();
        let mut lines = self.logs(self.submit().await).await;
        let first = lines.message().await.unwrap().unwrap();
        assert_eq!(first.line.unwrap().line, b"hi");
        let took = start.elapsed();
        while lines.message().await.unwrap().is_some() {}
        took
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut starts: Vec<f64> = (0..STARTS).map(|_| time_to_ready()).collect();
    report("`up` until ready", "s", &mut starts, 1.0, "Ray: 5.1 s to the first task");

    let home = Home::new();
    let service = Service::start(&home);
    std::thread::sleep(Duration::from_secs(2));
    let tree = resident_mib(service.child.id());
    println!(
        "{:<34} {tree:8.1} MiB                      Ray: 695 MiB in 20 processes ({:.0}x)",
        "idle, all processes",
        695.0 / tree
    );

    runtime.block_on(async {
        let client = Client::to(&service).await;
        client.first_line().await;
        let mut took = Vec::new();
        for _ in 0..SUBMITS {
            took.push(client.first_line().await.as_secs_f64());
        }
        report(
            "submit until the first log line",
            "ms",
            &mut took,
            1e3,
            "Ray: 6800 ms for a no-op `ray job submit`",
        );
        let start = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..AT_ONCE {
            let client = client.clone();
            workers.spawn(async move {
                for _ in (worker..JOBS).step_by(AT_ONCE) {
                    client.first_line().await;
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.unwrap();
        }
        let rate = JOBS as f64 / start.elapsed().as_secs_f64();
        println!("{:<34} {rate:8.1} jobs/s  ({JOBS} jobs, {AT_ONCE} at once)", "submit, run, reap");
    });
}

fn time_to_ready() -> f64 {
    let home = Home::new();
    let start = Instant::now();
    let service = Service::start(&home);
    let took = start.elapsed().as_secs_f64();
    service.stop();
    took
}

fn report(what: &str, unit: &str, samples: &mut [f64], scale: f64, peer: &str) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize] * scale;
    println!("{what:<34} {:8.2} {unit:<4} (min {:.2}, max {:.2})    {peer}", at(0.5), at(0.0), at(1.0));
}

/// Resident memory of a process and all its descendants.
fn resident_mib(root: u32) -> f64 {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let all: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let parent = stat(pid).rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    let pages = tree.iter().filter_map(|pid| {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        statm.split(' ').nth(1)?.parse::<f64>().ok()
    });
    pages.sum::<f64>() * 4096.0 / f64::from(1 << 20)
}
