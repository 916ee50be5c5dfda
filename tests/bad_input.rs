//! Every method of gRPC under input that is missing, foreign, malformed, oversized, repeated or not allowed: the answer is a
//! typed status with details that fits into the headers of any client, nothing is changed, and the service serves on.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use phalanx_api::v1 as pb;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use std::collections::BTreeSet;
use std::time::Duration;
use support::{Home, Service, eventually, script, script_with};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// No answer takes longer; a stream that is still open then has refused nothing.
const LIMIT: Duration = Duration::from_secs(20);
/// What the smallest of common clients takes of headers, in bytes.
const HEADER_BYTES: usize = 8 << 10;

/// Messages as they are, right or wrong.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Every method that there is, as `Jobs.Submit`.
fn methods() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(phalanx_api::DESCRIPTORS).unwrap();
    let ours = set.file.iter().filter(|file| file.package() == "phalanx.v1");
    let services = ours.flat_map(|file| &file.service);
    services
        .flat_map(|service| {
            service.method.iter().map(move |method| format!("{}.{}", service.name(), method.name()))
        })
        .collect()
}

struct Client {
    channel: Channel,
    token: String,
}

impl Client {
    async fn to(service: &Service) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}", service.grpc)).unwrap();
        Client { channel: endpoint.connect().await.unwrap(), token: service.token() }
    }

    /// Calls a method with some tokens and messages: its first answer, or how it was refused. On the wire a call with one
    /// message and one with many are the same.
    async fn call(&self, method: &str, tokens: &[&str], messages: &[&[u8]]) -> Result<Option<Bytes>, Status> {
        let messages: Vec<Bytes> = messages.iter().map(|message| Bytes::copy_from_slice(message)).collect();
        let mut request = Request::new(tokio_stream::iter(messages));
        for token in tokens {
            request.metadata_mut().append("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let path = format!("/phalanx.v1.{}", method.replace('.', "/")).parse().unwrap();
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let answered = async {
            grpc.ready().await.unwrap();
            grpc.streaming(request, path, Raw).await?.into_inner().message().await
        };
        tokio::time::timeout(LIMIT, answered).await.unwrap_or_else(|_| panic!("{method} hangs"))
    }

    /// A call that has to be refused.
    #[track_caller]
    fn refused(method: &str, what: &str, answer: Result<Option<Bytes>, Status>) -> (Code, String) {
        let status = answer.err().unwrap_or_else(|| panic!("{method} takes {what}"));
        let details = status.get_error_details();
        let info =
            details.error_info().unwrap_or_else(|| panic!("{method}, {what}: no details in {status:?}"));
        assert!(!status.message().is_empty() && info.domain == "phalanx", "{method}, {what}: {status:?}");
        let headers = status.clone().into_http::<()>().headers().clone();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        assert!(bytes < HEADER_BYTES, "{method}, {what}: {bytes} bytes of headers");
        (status.code(), info.reason.clone())
    }

    async fn serves(&self) {
        let status = self.call("Cluster.Status", &[&self.token], &[&[]]).await.unwrap().unwrap();
        assert!(pb::StatusResponse::decode(status).unwrap().uptime.is_some());
    }
}

#[tokio::test]
async fn no_method_lets_anybody_in_or_trips_over_bytes() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let agent = home.run(["token", "--agent"]).expect(0).out().trim().to_owned();
    let user = client.token.as_str();
    let unauthenticated = (Code::Unauthenticated, "TOKEN".to_owned());
    for method in methods() {
        let strangers: [&[&str]; 5] = [&[], &["wrong"], &[""], &[user, user], &[&user[1..]]];
        for tokens in strangers.into_iter().chain((!method.starts_with("Agents")).then_some(&[&*agent][..])) {
            let answer = client.call(&method, tokens, &[&[]]).await;
            assert_eq!(Client::refused(&method, "a stranger", answer), unauthenticated, "{method}");
        }
        let malformed = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
        // Not protobuf; cut short; a length beyond the end; a group that does not end; a field number of zero.
        for bytes in [&b"\xff\xff\xff"[..], b"\x0a\x05a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x00\x01"] {
            let answer = client.call(&method, &[user], &[bytes]).await;
            assert_eq!(Client::refused(&method, "bytes", answer), malformed, "{method} {bytes:?}");
        }
        let none = client.call(&method, &[user], &[]).await;
        assert_eq!(Client::refused(&method, "no message", none), malformed, "{method}");
        let large = client.call(&method, &[user], &[&vec![0; 5 << 20]]).await;
        let (code, _) = Client::refused(&method, "5 MiB", large);
        assert!(matches!(code, Code::ResourceExhausted | Code::InvalidArgument), "{method}: {code}");
        client.serves().await;
    }
    for nowhere in ["Jobs.Explode", "Nothing.Get"] {
        let answer = client.call(nowhere, &[user], &[&[]]).await;
        let wanted = (Code::Unimplemented, "UNKNOWN_METHOD".to_owned());
        assert_eq!(Client::refused(nowhere, "an unknown method", answer), wanted);
        let stranger = client.call(nowhere, &[], &[&[]]).await;
        assert_eq!(Client::refused(nowhere, "a stranger", stranger), unauthenticated);
    }
    assert_eq!(home.run(["ps", "-a", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
    assert!(service.token() == user, "no call of these has changed the token");
}

/// A request, and how it is refused.
#[derive(Clone)]
struct Case {
    method: &'static str,
    what: &'static str,
    request: Vec<u8>,
    code: Code,
    reason: &'static str,
}

fn case(
    method: &'static str,
    what: &'static str,
    request: impl Message,
    code: Code,
    reason: &'static str,
) -> Case {
    Case { method, what, request: request.encode_to_vec(), code, reason }
}

/// Ids that are none, the longest of them longer than headers may be.
fn foreign_ids() -> [(&'static str, String); 8] {
    [
        ("no id", String::new()),
        ("an unknown job", "j99".into()),
        ("an unknown sweep", "s99".into()),
        ("a path", "../../etc/passwd".into()),
        ("a number beyond any", "j99999999999999999999".into()),
        ("control characters", "j1\0\r\n\x1b[2J".into()),
        ("another script", "ј１".into()),
        ("a megabyte", "j1".repeat(1 << 19)),
    ]
}

/// Methods that take an id and nothing else that matters here: in all of their messages it is the first field.
const BY_ID: [(&str, &[&str]); 2] = [
    ("UNKNOWN_JOB", &["Get", "Cancel", "Pause", "Resume", "Watch", "Logs", "Metrics"]),
    ("UNKNOWN_SWEEP", &["Get", "Cancel", "Pause", "Resume", "Trials", "Watch", "Ask", "Tell", "Report"]),
];

/// A file that is right, for requests that are wrong elsewhere.
fn job(keys: &str) -> String {
    script_with(keys, "sleep 60")
}

fn sweep(tables: &str) -> String {
    let search = "[sweep]\nmetric = \"loss\"\ntrials = 1\n[search]\nkind = \"random\"\n[params]\nx = \
                  { kind = \"float\", low = 0.0, high = 1.0 }\n";
    format!("{}{search}{tables}", script("sleep 60"))
}

fn files() -> Vec<Case> {
    let (invalid, refused) = (Code::InvalidArgument, Code::FailedPrecondition);
    let long = "x".repeat(100_000);
    let deep = format!("a = {}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let one_line = format!("gang = {{ {} }}", (0..9000).map(|at| format!("k{at} = 1,")).collect::<String>());
    let wrong = [
        ("no file", String::new()),
        ("no TOML", "\0\0".into()),
        ("an unknown key", "version = 1\n[gang]\nworkrs = 2\n".into()),
        ("a key of 100 kB", format!("version = 1\n{long} = 1\n")),
        ("one line of problems", one_line),
        ("deep nesting", deep),
        ("more than a file may have", format!("# {}\n", "x".repeat(1 << 20))),
        ("a name of 100 kB", format!("name = \"{long}\"\n{}", job(""))),
    ];
    let mut cases = Vec::new();
    for (what, toml) in wrong {
        let submit = pb::SubmitRequest { toml: toml.clone(), ..Default::default() };
        cases.push(case("Jobs.Submit", what, submit, invalid, "INVALID_FILE"));
        let create = pb::CreateSweepRequest { toml: toml.clone(), ..Default::default() };
        cases.push(case("Sweeps.Create", what, create, invalid, "INVALID_FILE"));
        let group = pb::CreatePlacementGroupRequest { toml: toml.clone(), ..Default::default() };
        cases.push(case("Cluster.CreatePlacementGroup", what, group, invalid, "INVALID_FILE"));
        if !toml.is_empty() {
            let queues = pb::SetQueuesRequest { toml, ..Default::default() };
            cases.push(case("Cluster.SetQueues", what, queues, invalid, "INVALID_QUEUES"));
        }
    }
    let submit = |toml: String| pb::SubmitRequest { toml, ..Default::default() };
    let with_id = pb::SubmitRequest { request_id: long.clone(), ..submit(job("")) };
    let relative = pb::SubmitRequest { base_dir: "here".into(), ..submit(job("")) };
    let dry = pb::SubmitRequest { validate_only: true, ..submit(job("gang.cpus = 99")) };
    let create = |toml: String| pb::CreateSweepRequest { toml, ..Default::default() };
    let relative_sweep = pb::CreateSweepRequest { base_dir: "../x".into(), ..create(sweep("")) };
    let sweep_with_id = pb::CreateSweepRequest { request_id: long, ..create(sweep("")) };
    cases.extend([
        case("Jobs.Submit", "a long request_id", with_id, invalid, "INVALID_FIELD"),
        case("Jobs.Submit", "a relative folder", relative, invalid, "INVALID_FIELD"),
        case("Jobs.Submit", "what never fits", submit(job("gang.cpus = 99")), refused, "INFEASIBLE"),
        case("Jobs.Submit", "what never fits, dry", dry, refused, "INFEASIBLE"),
        case("Jobs.Submit", "an unknown queue", submit(job("queue = \"nope\"")), refused, "UNKNOWN_QUEUE"),
        case(
            "Jobs.Submit",
            "an unknown secret",
            submit(job("secrets = [\"NO\"]")),
            refused,
            "UNKNOWN_SECRET",
        ),
        case("Sweeps.Create", "a relative folder", relative_sweep, invalid, "INVALID_FIELD"),
        case("Sweeps.Create", "a long request_id", sweep_with_id, invalid, "INVALID_FIELD"),
        case("Sweeps.Create", "a job", create(job("")), invalid, "INVALID_FILE"),
        case("Jobs.Submit", "a sweep", submit(sweep("")), invalid, "INVALID_FILE"),
    ]);
    cases
}

fn pages() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, page_size, page_token) in [
        ("a negative size", -1, String::new()),
        ("a token of nobody", 0, "x".into()),
        ("a token of a megabyte", 0, "0".repeat(1 << 20)),
        ("a token of another version", 0, "000000010000000000000001".into()),
    ] {
        let jobs = pb::ListJobsRequest { page_size, page_token, unfinished: false };
        // The three requests have their size and their token in the same fields; that of trials follows.
        for method in ["Jobs.List", "Sweeps.List", "Cluster.ListPlacementGroups"] {
            cases.push(case(method, what, jobs.clone(), Code::InvalidArgument, "INVALID_FIELD"));
        }
        let pb::ListJobsRequest { page_size, page_token, .. } = jobs;
        let trials = pb::ListTrialsRequest { id: "s1".into(), page_size, page_token };
        cases.push(case("Sweeps.Trials", what, trials, Code::InvalidArgument, "INVALID_FIELD"));
    }
    cases
}

/// `j1` has ended, `s1` is external and `s2` is not.
fn others() -> Vec<Case> {
    let (invalid, refused, missing) = (Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound);
    let id = || "j1".to_owned();
    let logs = |rank, attempt| pb::JobLogsRequest { id: id(), rank, attempt, ..Default::default() };
    let points = |rank, attempt| pb::JobMetricsRequest { id: id(), rank, attempt, ..Default::default() };
    let tell = |id: &str, number, values: &[f64], state| pb::TellRequest {
        id: id.into(),
        number,
        values: values.to_vec(),
        state,
        ..pb::TellRequest::default()
    };
    let report = |id: &str, number| pb::ReportRequest { id: id.into(), number, step: 1, value: 0.5 };
    let long = "x".repeat(1 << 20);
    let drain = |node: &str| pb::DrainRequest { node: node.into(), undo: false };
    let events = |tail| pb::EventsRequest { tail, ..Default::default() };
    let secret = |name: &str, value: &str| pb::SetSecretRequest { name: name.into(), value: value.into() };
    let forget = |name: &str| pb::RemoveSecretRequest { name: name.into() };
    let group = |namespace: &str, name: &str| pb::GetPlacementGroupRequest {
        namespace: namespace.into(),
        name: name.into(),
        wait: None,
    };
    let wait = |seconds| pb::GetPlacementGroupRequest {
        name: "pool".into(),
        wait: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    let reset = pb::SetQueuesRequest { reset: vec!["nope".into()], ..Default::default() };
    let agent = |message| pb::AgentMessage { message: Some(message) };
    let hello = |node: &str, capacity_json: &str| {
        let hello =
            pb::AgentHello { node: node.into(), capacity_json: capacity_json.into(), ..Default::default() };
        agent(pb::agent_message::Message::Hello(hello))
    };
    let heartbeat = agent(pb::agent_message::Message::Heartbeat(Default::default()));
    vec![
        case("Jobs.Logs", "a negative rank", logs(Some(-1), None), invalid, "INVALID_FIELD"),
        case("Jobs.Logs", "a negative attempt", logs(None, Some(-1)), invalid, "INVALID_FIELD"),
        case("Jobs.Metrics", "a negative rank", points(Some(-1), None), invalid, "INVALID_FIELD"),
        case("Jobs.Metrics", "a negative attempt", points(None, Some(-1)), invalid, "INVALID_FIELD"),
        case("Jobs.Cancel", "a job that is over", pb::CancelJobRequest { id: id() }, refused, "WRONG_STATE"),
        case("Jobs.Pause", "a job that is over", pb::PauseJobRequest { id: id() }, refused, "WRONG_STATE"),
        case("Jobs.Resume", "a job that is over", pb::ResumeJobRequest { id: id() }, refused, "WRONG_STATE"),
        case(
            "Jobs.Get",
            "a trial without a job",
            pb::GetJobRequest { id: "s1/0".into() },
            missing,
            "UNKNOWN_TRIAL",
        ),
        case(
            "Sweeps.Ask",
            "a sweep that runs itself",
            pb::GetSweepRequest { id: "s2".into() },
            refused,
            "NOT_EXTERNAL",
        ),
        case("Sweeps.Tell", "a sweep that runs itself", tell("s2", 0, &[1.0], 0), refused, "NOT_EXTERNAL"),
        case("Sweeps.Report", "a sweep that runs itself", report("s2", 0), refused, "NOT_EXTERNAL"),
        case("Sweeps.Tell", "an unknown trial", tell("s1", 99, &[1.0], 0), missing, "UNKNOWN_TRIAL"),
        case("Sweeps.Report", "an unknown trial", report("s1", u64::MAX), missing, "UNKNOWN_TRIAL"),
        case("Sweeps.Tell", "a state that is no end", tell("s1", 0, &[], 2), invalid, "INVALID_FIELD"),
        case("Sweeps.Tell", "a state that is none", tell("s1", 0, &[], 99), invalid, "INVALID_FIELD"),
        case("Cluster.Drain", "no name", drain(""), missing, "UNKNOWN_NODE"),
        case("Cluster.Drain", "an unknown node", drain("nowhere"), missing, "UNKNOWN_NODE"),
        case("Cluster.Drain", "a name of a megabyte", drain(&long), missing, "UNKNOWN_NODE"),
        case("Cluster.Events", "a negative tail", events(-1), invalid, "INVALID_FIELD"),
        case("Cluster.Events", "a long tail", events(i32::MAX), invalid, "INVALID_FIELD"),
        case("Cluster.SetSecret", "no name", secret("", "long enough"), invalid, "INVALID_FIELD"),
        case("Cluster.SetSecret", "a path", secret("../x", "long enough"), invalid, "INVALID_FIELD"),
        case(
            "Cluster.SetSecret",
            "a name of a megabyte",
            secret(&long, "long enough"),
            invalid,
            "INVALID_FIELD",
        ),
        case("Cluster.SetSecret", "a short value", secret("SHORT", "abc"), invalid, "INVALID_FIELD"),
        case("Cluster.SetSecret", "a value with NUL", secret("NUL", "abc\0def"), invalid, "INVALID_FIELD"),
        case("Cluster.SetSecret", "a value of a megabyte", secret("LONG", &long), invalid, "INVALID_FIELD"),
        case("Cluster.RemoveSecret", "no name", forget(""), missing, "UNKNOWN_SECRET"),
        case("Cluster.RemoveSecret", "an unknown name", forget("NOPE"), missing, "UNKNOWN_SECRET"),
        case("Cluster.RemoveSecret", "a name of a megabyte", forget(&long), missing, "UNKNOWN_SECRET"),
        case("Cluster.SetQueues", "a reset of nothing", reset, invalid, "INVALID_QUEUES"),
        case("Cluster.GetPlacementGroup", "no name", group("", ""), invalid, "INVALID_FIELD"),
        case(
            "Cluster.GetPlacementGroup",
            "an unknown name",
            group("", "nope"),
            missing,
            "UNKNOWN_PLACEMENT_GROUP",
        ),
        case("Cluster.GetPlacementGroup", "control characters", group("\0", "a"), invalid, "INVALID_FIELD"),
        case("Cluster.GetPlacementGroup", "a megabyte", group("", &long), invalid, "INVALID_FIELD"),
        case("Cluster.GetPlacementGroup", "a negative wait", wait(-1), invalid, "INVALID_FIELD"),
        case("Cluster.GetPlacementGroup", "an endless wait", wait(i64::MAX), invalid, "INVALID_FIELD"),
        case("Cluster.RemovePlacementGroup", "no name", group("", ""), invalid, "INVALID_FIELD"),
        case("Agents.Connect", "a heartbeat first", heartbeat, invalid, "INVALID_FIELD"),
        case("Agents.Connect", "nothing first", pb::AgentMessage::default(), invalid, "INVALID_FIELD"),
        case("Agents.Connect", "no name", hello("", "{}"), invalid, "INVALID_FIELD"),
        case("Agents.Connect", "no capacity", hello("n9", ""), invalid, "INVALID_FIELD"),
        case("Agents.Connect", "deep nesting", hello("n9", &"[".repeat(100_000)), invalid, "INVALID_FIELD"),
    ]
}

/// Methods that take nothing, and one that takes no more than yes or no.
const TAKE_NOTHING: [&str; 6] = [
    "Cluster.Nodes",
    "Cluster.Queues",
    "Cluster.Settings",
    "Cluster.Status",
    "Cluster.ListSecrets",
    "Cluster.RotateToken",
];

#[tokio::test]
async fn every_method_refuses_what_makes_no_sense_with_a_reason() {
    let home = Home::new();
    let service = Service::start(&home);
    home.file("job.toml", &script("true"));
    assert_eq!(home.run(["run", "-q", "job.toml"]).code, 0);
    let client = Client::to(&service).await;
    let user = client.token.as_str();
    for external in [true, false] {
        let request = pb::CreateSweepRequest { toml: sweep(""), external, ..Default::default() };
        client.call("Sweeps.Create", &[user], &[&request.encode_to_vec()]).await.unwrap();
    }
    let mut cases = [files(), pages(), others()].concat();
    for (reason, methods) in BY_ID {
        let service = if reason == "UNKNOWN_JOB" { "Jobs" } else { "Sweeps" };
        for method in methods {
            let method: &str = format!("{service}.{method}").leak();
            for (what, id) in foreign_ids() {
                cases.push(case(method, what, pb::GetJobRequest { id }, Code::NotFound, reason));
            }
        }
    }
    let tested: BTreeSet<String> =
        cases.iter().map(|case| case.method).chain(TAKE_NOTHING).map(str::to_owned).collect();
    assert_eq!(tested, methods(), "every method has cases");
    let state = async || {
        let (nodes, groups) = (home.run(["nodes", "--json"]), home.run(["groups", "--json"]));
        let (jobs, queues) = (home.run(["ps", "-a", "--json"]), home.run(["queues", "--json"]));
        let lists = [nodes.json(), groups.json(), jobs.json(), queues.json()];
        lists.map(|list| list.as_array().unwrap().len())
    };
    eventually("s2 runs its one trial", LIMIT, || {
        home.run(["trials", "s2", "--json"]).expect(0).json()[0]["state"] == "RUNNING"
    });
    let before = state().await;
    let mut wrong = Vec::new();
    for Case { method, what, request, code, reason } in cases {
        let answer = client.call(method, &[user], &[&request]).await;
        let found = Client::refused(method, what, answer);
        if found != (code, reason.to_owned()) {
            wrong.push(format!("{method}, {what}: {found:?} instead of {code:?} {reason}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // A message of another method's, and one that comes twice, are either refused or as good as the first.
    let foreign = sweep("").into_bytes();
    for method in methods().iter().filter(|method| *method != "Cluster.RotateToken") {
        let submit = pb::SubmitRequest { toml: "x = 1".into(), ..Default::default() };
        for messages in [&[&foreign[..]][..], &[&submit.encode_to_vec()[..]; 2]] {
            if let Err(status) = client.call(method, &[user], messages).await {
                assert!(status.get_error_details().error_info().is_some(), "{method}: {status:?}");
            }
        }
    }
    client.serves().await;
    assert_eq!(state().await, before, "what was refused has changed nothing");
    assert!(home.run(["secret", "list"]).expect(0).out().is_empty());
}

#[tokio::test]
async fn clients_that_vanish_leave_nothing_behind() {
    let home = Home::new();
    let service = Service::start(&home);
    let client = Client::to(&service).await;
    let flood =
        pb::SubmitRequest { toml: script("while :; do echo x; sleep 0.005; done"), ..Default::default() };
    let job = client.call("Jobs.Submit", &[&client.token], &[&flood.encode_to_vec()]).await.unwrap().unwrap();
    let id = pb::Job::decode(job).unwrap().id;
    // Of the descriptors only these: the pool of the store grows with those who read, and stays.
    let open = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", service.child.id())).unwrap();
        let links = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    let before = open();
    let host = service.http.strip_prefix("http://").unwrap();
    let head = |method: &str, path: &str| {
        format!(
            "{method} /api/v1/{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n",
            client.token
        )
    };
    let watch = head("GET", &format!("events?watch=jobs,logs:{id},metrics:{id}"));
    let follow = head("GET", &format!("jobs/{id}/logs?follow=true"));
    let half = head("POST", "jobs")
        + "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{\"toml\": \"";
    let mut streams = Vec::new();
    for request in [format!("{watch}\r\n"), format!("{follow}\r\n"), half] {
        for _ in 0..40 {
            let mut stream = std::net::TcpStream::connect(host).unwrap();
            std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
            streams.push(stream);
        }
    }
    let logs = pb::JobLogsRequest { id: id.clone(), follow: true, ..Default::default() }.encode_to_vec();
    let mut channels = Vec::new();
    for _ in 0..20 {
        let other = Client::to(&service).await;
        other.call("Jobs.Logs", &[&other.token], &[&logs]).await.unwrap();
        channels.push(other);
    }
    eventually("they are all there", LIMIT, || open() >= before + 120);
    // No farewell: what they were sent lies unread, so that they are reset.
    drop((streams, channels));
    tokio::task::yield_now().await;
    let deadline = std::time::Instant::now() + LIMIT;
    while open() > before {
        assert!(std::time::Instant::now() < deadline, "{} sockets of {before}", open());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.serves().await;
    assert_eq!(home.run(["describe", &id, "--json"]).expect(0).json()["state"], "RUNNING");
    home.run(["cancel", &id]).expect(0);
}
