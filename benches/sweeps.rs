//! What a sweep costs: trivial trials a second with a process each, and what ten thousand trials leave behind.
//!
//! Beside the rate stand Ray Tune's figures as the project's requirements state them, measured elsewhere on like hardware, not in
//! this run: 1.0 trivial trials a second, 14.5 with `reuse_actors`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use phalanx_api::v1 as pb;
use phalanx_api::v1::sweeps_client::SweepsClient;
use std::time::Instant;
use support::{Home, Service};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

const TRIVIAL: usize = 200;
const MANY: u64 = 10_000;
/// Trials whose cost is compared, at the beginning and at the end of the many.
const PART: usize = 1_000;
const LOOKS: usize = 9;
const RAY: f64 = 14.5;

fn main() {
    trivial();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(many());
}

/// A process each, two at a time, one report each.
fn trivial() {
    let home = Home::new();
    let binary = env!("CARGO_BIN_EXE_phalanx");
    let text = format!(
        "version = 1\n[gang]\ncpus = 0.1\n[program]\ncommand = [\"{binary}\", \"report\", \"--step\", \"1\", \"loss={{x}}\"]\n\
         [sweep]\nmetric = \"loss\"\ntrials = {TRIVIAL}\nconcurrency = 2\n[search]\nkind = \"random\"\n\
         [params]\nx = {{ kind = \"float\", low = 0.0, high = 1.0 }}\n"
    );
    let file = home.file("sweep.toml", &text);
    let start = Instant::now();
    let ended = home.run(["run", file.to_str().unwrap(), "--json"]).expect(0);
    let rate = TRIVIAL as f64 / start.elapsed().as_secs_f64();
    assert_eq!(ended.json()["counts"]["complete"], TRIVIAL);
    println!(
        "trivial trials, a process each      {rate:8.1} trials/s   Ray Tune: {RAY} at best ({:.1}x)",
        rate / RAY
    );
}

/// Ten thousand trials that run elsewhere: the search and its store alone.
async fn many() {
    let home = Home::new();
    let service = Service::start(&home);
    let endpoint = Endpoint::from_shared(format!("http://{}", service.grpc)).unwrap();
    let mut client = Client {
        sweeps: SweepsClient::new(endpoint.connect().await.unwrap()),
        token: format!("Bearer {}", service.token()).parse().unwrap(),
    };
    let id = client.create().await;
    let mut took = Vec::with_capacity(MANY as usize);
    for _ in 0..MANY {
        let start = Instant::now();
        client.trial(&id).await;
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

struct Client {
    sweeps: SweepsClient<Channel>,
    token: MetadataValue<Ascii>,
}

impl Client {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.token.clone());
        request
    }

    async fn create(&mut self) -> String {
        let toml = format!(
            "version = 1\n[sweep]\nmetric = \"loss\"\ntrials = {MANY}\n[search]\nkind = \"random\"\n\
             [stopping]\nkind = \"asha\"\nmin = 1\nmax = 9\n\
             [params]\nx = {{ kind = \"float\", low = 0.0, high = 1.0 }}\ny = {{ kind = \"int\", low = 0, high = 99 }}\n"
        );
        let request = pb::CreateSweepRequest { toml, external: true, ..pb::CreateSweepRequest::default() };
        let request = self.request(request);
        self.sweeps.create(request).await.unwrap().into_inner().id
    }

    async fn trial(&mut self, id: &str) {
        let request = self.request(pb::AskRequest { id: id.to_owned(), ..pb::AskRequest::default() });
        let trial = self.sweeps.ask(request).await.unwrap().into_inner().trial.unwrap();
        let value = f64::from(u32::try_from(trial.number * 7919 % 1009).unwrap());
        let (id, number) = (id.to_owned(), trial.number);
        let request = self.request(pb::ReportRequest { id: id.clone(), number, step: 1, value });
        self.sweeps.report(request).await.unwrap();
        let request = pb::TellRequest { id, number, values: vec![value], ..pb::TellRequest::default() };
        let request = self.request(request);
        self.sweeps.tell(request).await.unwrap();
    }
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}
