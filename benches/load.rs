//! What the service bears: points it takes in, a long list of jobs, a long log, many watchers, a real browser, and hostile
//! clients.
//!
//! Beside each figure stands what the project asks of it. The reporters are this program itself, started as a job's ranks.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/support/caller.rs"]
mod caller;
#[path = "load/hostile.rs"]
mod hostile;
#[path = "../tests/support/mod.rs"]
mod support;

use caller::Caller;
use phalanx_api::v1 as pb;
use phalanx_api::v1::jobs_client::JobsClient;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::{Home, Service};
use tokio::io::AsyncWriteExt;
use tonic::transport::Channel;
use tonic::{Request, Streaming};

/// Ranks that report at a time.
const REPORTERS: u64 = 8;
/// Reports of each.
const REPORTS: u64 = 100_000;
/// Reports sent ahead of their answers.
const AHEAD: u64 = 512;
/// Jobs in the long list.
const JOBS: usize = 10_000;
/// Submissions under way at a time.
const AT_ONCE: usize = 64;
/// Bytes of the long log.
const LOG_BYTES: u64 = 1_000_000_000;
/// Streams that watch one job.
const WATCHERS: usize = 1000;
/// Pages that are open meanwhile.
const BROWSERS: usize = 50;
/// How long they all watch a job that talks before memory is read.
const WATCHED: Duration = Duration::from_secs(10);
/// Streams on a connection.
const STREAMS: usize = 100;
/// Megabytes in a mebibyte.
const MIB_IN_MB: f64 = 1.048576;
/// Times a read is repeated.
const READS: usize = 30;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, metrics] = &args[..]
        && mode == "reporter"
    {
        return reporter(metrics.parse().unwrap());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // `cargo bench --bench load -- hostile` runs that one alone.
    let asked: Vec<&String> = args[1..].iter().filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| asked.is_empty() || asked.iter().any(|asked| *asked == name);
    runtime.block_on(async {
        if wants("ingest") {
            ingest(1).await;
            ingest(10).await;
        }
        if wants("log") {
            long_log().await;
        }
        if wants("watchers") {
            watchers().await;
        }
        if wants("report") {
            report_to_page().await;
        }
        if wants("list") {
            long_list().await;
        }
        if wants("hostile") {
            hostile::bear().await;
        }
    });
}

/// A rank that reports as fast as it is answered.
fn reporter(metrics: u64) {
    let stream = UnixStream::connect(std::env::var("PHALANX_SOCKET").unwrap()).unwrap();
    let (mut answers, mut out) = (BufReader::new(stream.try_clone().unwrap()), BufWriter::new(stream));
    println!("{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros());
    let mut answer = String::new();
    let mut hear = || {
        answer.clear();
        answers.read_line(&mut answer).unwrap();
        assert!(answer.contains("\"ok\":true"), "{answer}");
    };
    for step in 1..=REPORTS {
        let value = 1.0 / step as f64;
        let values: Vec<String> = (0..metrics).map(|metric| format!("\"metric/{metric}\":{value}")).collect();
        writeln!(out, "{{\"report\":{{\"step\":{step},\"metrics\":{{{}}}}}}}", values.join(",")).unwrap();
        if step % (AHEAD / 2) == 0 {
            out.flush().unwrap();
            if step >= AHEAD {
                (0..AHEAD / 2).for_each(|_| hear());
            }
        }
    }
    out.flush().unwrap();
    let heard = (REPORTS / (AHEAD / 2)).saturating_sub(1) * (AHEAD / 2);
    (heard..REPORTS).for_each(|_| hear());
}

/// Points of eight ranks until the last of them is durable.
async fn ingest(metrics: u64) {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let program = std::env::current_exe().unwrap();
    let toml = format!(
        "version = 1\n[gang]\nworkers = {REPORTERS}\ncpus = 0.1\n[program]\ncommand = [{program:?}, \"reporter\", \"{metrics}\"]\n"
    );
    let job = client.run(&toml).await;
    let start = client.lines(&job.id).await.iter().map(|line| line.parse::<u64>().unwrap()).min().unwrap();
    let end = phalanx_api::time_of(&job.end_time.unwrap()).as_micros();
    let seconds = (end - start) as f64 / 1e6;
    let begun = Instant::now();
    let mut points = client.points(&job.id).await;
    let mut found = 0;
    while let Some(pb::JobMetricsResponse { point: Some(point), .. }) = points.message().await.unwrap() {
        assert_eq!(point.metrics.len() as u64, metrics);
        found += 1;
    }
    let reading = begun.elapsed().as_secs_f64();
    assert_eq!(found, REPORTERS * REPORTS);
    let rate = (found * metrics) as f64 / seconds;
    println!(
        "points, {metrics:>2} a report, {REPORTERS} ranks     {rate:9.0} /s ({:9.0} reports/s)   wanted: 50000 /s ({:.1}x)",
        found as f64 / seconds,
        rate / 50_000.0
    );
    println!("  read again                   {:9.0} /s", found as f64 / reading);
    service.stop();
}

/// The last lines of a log of a gigabyte.
async fn long_log() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let line = "x".repeat(99);
    let script = format!("yes {line} | head -c {LOG_BYTES}");
    let begun = Instant::now();
    let job = client.run(&support::script(&script)).await;
    let rate = LOG_BYTES as f64 / begun.elapsed().as_secs_f64() / 1e6;
    let request = format!(
        "GET /api/v1/jobs/{}/logs?tail=100 HTTP/1.1\nHost: {}\nAuthorization: Bearer {}\nConnection: close\n\n",
        job.id,
        service.http.strip_prefix("http://").unwrap(),
        service.token()
    );
    let mut took = Vec::new();
    for _ in 0..READS {
        let begun = Instant::now();
        let (status, _, body) = service.http(&request);
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        assert!(status == 200 && body.contains("xxxxxxxx"), "{status} {}", &body[..body.len().min(300)]);
    }
    println!("a log of 1 GB, taken in        {rate:9.0} MB/s");
    report("its last 100 lines", &mut took, 50.0);
    service.stop();
}

/// Memory that watchers of a job and open pages take, while the job talks ten times a second.
async fn watchers() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let binary = env!("CARGO_BIN_EXE_phalanx");
    let talks = format!(
        "i=0; while :; do i=$((i+1)); echo line $i; {binary} report --step $i a=$i b=$i; sleep 0.1; done"
    );
    let job = client.submit(&support::script(&talks)).await;
    let before = resident_mib(service.child.id());
    let mut streams = Vec::new();
    for connection in 0..WATCHERS / STREAMS {
        let client = Client::to(&service).await;
        for _ in 0..STREAMS {
            let mut stream = client.watch(&job).await;
            stream.message().await.unwrap().unwrap();
            streams.push(stream);
        }
        assert_eq!(streams.len(), (connection + 1) * STREAMS);
    }
    let pages: Vec<_> = (0..BROWSERS).map(|_| tokio::task::spawn(page(&service, &job))).collect();
    tokio::time::sleep(WATCHED).await;
    let after = resident_mib(service.child.id());
    println!(
        "{WATCHERS} watchers, {BROWSERS} pages of a job  {:9.1} MB (before them {:.1})           wanted: under 200 MB ({:.1}x)",
        after * MIB_IN_MB,
        before * MIB_IN_MB,
        200.0 / (after * MIB_IN_MB)
    );
    for page in &pages {
        assert!(!page.is_finished(), "a page's stream has ended");
    }
    let begun = Instant::now();
    client.cancel(&job).await;
    for stream in &mut streams {
        while stream.message().await.unwrap().is_some() {}
    }
    println!("  until all have heard the end {:9.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    service.stop();
}

/// Reads what a job's page watches until the service ends.
fn page(service: &Service, job: &str) -> impl Future<Output = u64> + use<> {
    let host = service.http.strip_prefix("http://").unwrap().to_owned();
    let watch = format!("jobs,job:{job},logs:{job},metrics:{job}&points=2500");
    let token = service.token();
    let request = format!(
        "GET /api/v1/events?watch={watch} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    async move {
        let mut stream = tokio::net::TcpStream::connect(&host).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap_or(0)
    }
}

/// From a report in a job to its figure in a browser.
async fn report_to_page() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let reports = "import phalanx, time\nfor step in range(1, 6000):\n  time.sleep(0.1)\n  \
                   phalanx.report(step, at=int(time.time() * 1000) % 100000)";
    home.file("report.py", reports);
    let job = support::script_with(
        &format!("env = {{ PYTHONPATH = {python:?} }}"),
        &format!("python3 {:?}", home.dir.path().join("report.py")),
    );
    let job = client.submit(&job).await;
    if let Some(found) = in_browser(&service, &["report", &service.http, &service.token(), &job]) {
        report("a report is on the page after", &mut numbers(&found["delays_ms"]), 200.0);
    }
    service.stop();
}

/// What the page itself measures; `None`, and why, where there is no browser.
fn in_browser(service: &Service, args: &[&str]) -> Option<serde_json::Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard");
    if !folder.join("node_modules/playwright-core").exists() {
        println!("no browser: run `npm ci` in dashboard/, and install chromium");
        return None;
    }
    let mut command = std::process::Command::new("node");
    let output = command.arg("test/speed.mjs").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{} {}", service.http, String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The first page of a long list.
async fn long_list() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..AT_ONCE {
        let client = client.clone();
        workers.spawn(async move {
            for _ in (worker..JOBS).step_by(AT_ONCE) {
                client.submit(&support::script_with("[gang]\ncpus = 4", "sleep 600")).await;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.unwrap();
    }
    println!("jobs submitted                 {:9.0} /s", JOBS as f64 / begun.elapsed().as_secs_f64());
    for size in [100, 1000] {
        let mut took = Vec::new();
        for _ in 0..READS {
            let begun = Instant::now();
            let request = pb::ListJobsRequest { page_size: size, ..pb::ListJobsRequest::default() };
            let page = client.jobs.clone().list(client.request(request)).await.unwrap().into_inner();
            took.push(begun.elapsed().as_secs_f64() * 1e3);
            assert!(page.jobs.len() as i32 == size && !page.next_page_token.is_empty());
        }
        report(&format!("first {size} of {JOBS} jobs"), &mut took, 50.0);
    }
    if let Some(found) = in_browser(&service, &["paint", &service.http, &service.token()]) {
        report("first paint of their list", &mut numbers(&found["first_paint_ms"]), 1000.0);
        report("  until its rows are there", &mut numbers(&found["rows_ms"]), 1000.0);
    }
    service.kill();
}

fn report(what: &str, took_ms: &mut [f64], wanted_ms: f64) {
    took_ms.sort_by(f64::total_cmp);
    let (median, most) = (took_ms[took_ms.len() / 2], took_ms[took_ms.len() - 1]);
    println!(
        "{what:<30} {median:9.2} ms (most {most:.2})            wanted: under {wanted_ms} ms ({:.1}x)",
        wanted_ms / median
    );
}

#[derive(Clone)]
struct Client {
    jobs: JobsClient<Channel>,
    caller: Caller,
}

impl Client {
    async fn to(service: &Service) -> Client {
        let caller = Caller::to(&service.grpc, &service.token()).await;
        let jobs = JobsClient::new(caller.channel.clone()).max_decoding_message_size(8 << 20);
        Client { jobs, caller }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.caller.request(message);
        request.set_timeout(Duration::from_secs(600));
        request
    }

    async fn submit(&self, toml: &str) -> String {
        let request = pb::SubmitRequest { toml: toml.to_owned(), ..pb::SubmitRequest::default() };
        self.jobs.clone().submit(self.request(request)).await.unwrap().into_inner().id
    }

    async fn watch(&self, id: &str) -> Streaming<pb::WatchJobResponse> {
        let request = pb::WatchJobRequest { id: id.to_owned(), after_seq: 0 };
        self.jobs.clone().watch(self.request(request)).await.unwrap().into_inner()
    }

    /// Runs a job to its end.
    async fn run(&self, toml: &str) -> pb::Job {
        let mut changes = self.watch(&self.submit(toml).await).await;
        let mut last = pb::Job::default();
        while let Some(change) = changes.message().await.unwrap() {
            last = change.job.unwrap();
        }
        assert_eq!(last.state_name(), "SUCCEEDED", "{:?}", last.reason);
        last
    }

    async fn cancel(&self, id: &str) {
        let request = pb::CancelJobRequest { id: id.to_owned() };
        self.jobs.clone().cancel(self.request(request)).await.unwrap();
    }

    async fn lines(&self, id: &str) -> Vec<String> {
        let request = pb::JobLogsRequest { id: id.to_owned(), ..pb::JobLogsRequest::default() };
        let mut lines = self.jobs.clone().logs(self.request(request)).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(pb::JobLogsResponse { line: Some(line), .. }) = lines.message().await.unwrap() {
            found.push(String::from_utf8(line.line).unwrap());
        }
        found
    }

    async fn points(&self, id: &str) -> Streaming<pb::JobMetricsResponse> {
        let request = pb::JobMetricsRequest { id: id.to_owned(), ..pb::JobMetricsRequest::default() };
        self.jobs.clone().metrics(self.request(request)).await.unwrap().into_inner()
    }
}

/// Resident memory of a process.
fn resident_mib(pid: u32) -> f64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}
