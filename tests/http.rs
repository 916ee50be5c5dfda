//! The HTTP face of `phalanx up`: the API, the live stream, and who gets in.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{Home, Service, eventually, script, signal};

/// A client that knows the token.
struct Api {
    host: String,
    token: String,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn lines(&self) -> Vec<Value> {
        self.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The error as it is said: its code, the name of its status and the reason in its details.
    #[track_caller]
    fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        assert_eq!(error["code"], self.code, "{self:?}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        let reason = error["details"][0]["reason"].as_str().unwrap_or("").to_owned();
        (self.code, error["status"].as_str().unwrap().to_owned(), reason)
    }

    fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }
}

impl Api {
    fn of(service: &Service) -> Api {
        Api { host: service.http.strip_prefix("http://").unwrap().to_owned(), token: service.token() }
    }

    fn connect(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // One that is refused early may be cut while it still writes.
        let _ = stream.write_all(request.as_bytes());
        stream
    }

    /// A request by hand. HTTP/1.0, so that bodies end with the connection.
    fn raw(&self, request: &str) -> Answer {
        let mut bytes = Vec::new();
        let _ = self.connect(request).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { code, head: head.to_owned(), body: body.to_owned() }
    }

    fn head(&self, method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Bearer {}\r\n", self.host, self.token)
    }

    fn get(&self, path: &str) -> Answer {
        self.raw(&format!("{}\r\n", self.head("GET", path)))
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        let head = self.head("POST", path);
        let length = body.len();
        self.raw(&format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"))
    }

    fn submit(&self, toml: &str) -> String {
        let answer = self.post("/api/v1/jobs", &json!({ "toml": toml }).to_string());
        assert_eq!(answer.code, 200, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    fn events(&self, query: &str, last: Option<&str>) -> Events {
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("{}{last}\r\n", self.head("GET", &format!("/api/v1/events{query}")));
        let mut lines = BufReader::new(self.connect(&request));
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{line}");
        while line.trim() != "" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        Events(lines)
    }
}

/// A stream of events.
struct Events(BufReader<TcpStream>);

#[derive(Clone, Debug)]
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let (mut name, mut id, mut data) = (String::new(), String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end().split_once(':') {
                Some(("event", value)) => name = value.trim().to_owned(),
                Some(("id", value)) => id = value.trim().to_owned(),
                Some(("data", value)) => data.push_str(value.trim()),
                None if !name.is_empty() => {
                    return Some(Event { name, id, data: serde_json::from_str(&data).unwrap() });
                }
                _ => {}
            }
        }
    }
}

impl Events {
    /// The next event of a kind.
    #[track_caller]
    fn until(&mut self, name: &str, mut so: impl FnMut(&Event) -> bool) -> Event {
        let start = Instant::now();
        loop {
            let event = self.next().expect("the stream goes on");
            if event.name == name && so(&event) {
                return event;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "no `{name}`; last {event:?}");
        }
    }
}

#[test]
fn a_job_over_http_from_submit_to_its_end() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let toml = script("echo hello; echo problem >&2; phalanx report --step 1 loss=0.5; exit 6");
    let toml = toml.replace("phalanx", env!("CARGO_BIN_EXE_phalanx"));
    let id = api.submit(&toml);
    let logs = api.get(&format!("/api/v1/jobs/{id}/logs?follow=true"));
    assert_eq!(logs.header("content-type").as_deref(), Some("application/x-ndjson"));
    let lines = logs.lines();
    let mut texts: Vec<&str> = lines.iter().filter_map(|line| line["line"]["line"].as_str()).collect();
    // Two pipes: which is read first is not said.
    texts.sort_unstable();
    assert_eq!(texts, ["hello", "problem"]);
    let last = &lines.last().unwrap()["job"];
    assert_eq!((&last["state"], &last["exit_code"]), (&json!("FAILED"), &json!(6)));
    assert_eq!(api.get(&format!("/api/v1/jobs/{id}")).json(), *last);
    assert_eq!(home.run(["describe", &id, "--json"]).expect(0).json(), *last, "the same document");
    let points = api.get(&format!("/api/v1/jobs/{id}/metrics")).lines();
    assert_eq!((&points[0]["point"]["metrics"]["loss"], points.len()), (&json!(0.5), 2));
    let curves = api.get(&format!("/api/v1/jobs/{id}/metrics?points=100")).json();
    assert_eq!(curves["series"][0]["value"], json!([0.5]));
    let tail = api.get(&format!("/api/v1/jobs/{id}/logs?tail=1")).lines();
    assert_eq!((tail.len(), &tail[0]["line"]["seq"]), (2, &json!(2)));
    let jobs = api.get("/api/v1/jobs").json();
    assert_eq!((jobs["jobs"].as_array().unwrap().len(), &jobs["next_page_token"]), (1, &json!("")));
    assert_eq!(api.get("/api/v1/nodes").json()["nodes"][0]["state"], "READY");
    assert_eq!(api.get("/api/v1/queues").json()["queues"][0]["name"], "default");
    assert_eq!(api.get("/api/v1/status").json()["jobs"]["FAILED"], 1);
    let openapi = api.get("/api/v1/openapi.json").json();
    assert_eq!(openapi["openapi"], "3.1.0");
}

#[test]
fn pages_requests_that_repeat_and_actions() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let submit = |more: Value| {
        let mut body = json!({ "toml": script("sleep 60"), "default_name": "long" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.post("/api/v1/jobs", &body.to_string())
    };
    assert_eq!(submit(json!({ "validate_only": true })).json()["id"], "");
    let first = submit(json!({ "request_id": "a" })).json();
    assert_eq!(
        (&submit(json!({ "requestId": "a" })).json()["id"], &first["name"]),
        (&first["id"], &json!("long"))
    );
    let other = submit(json!({ "request_id": "a", "default_name": "other" }));
    assert_eq!(other.error(), (409, "ALREADY_EXISTS".into(), "REQUEST_ID_REUSED".into()));
    for _ in 0..4 {
        submit(json!({ "toml": script("true") }));
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/jobs?page_size=2&page_token={token}")).json();
        seen.extend(
            page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()),
        );
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["j5", "j4", "j3", "j2", "j1"]);
    eventually("what can end has ended", Duration::from_secs(20), || {
        let open = api.get("/api/v1/jobs?unfinished=true").json();
        let open: Vec<&str> =
            open["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
        open == ["j1"]
    });
    eventually("it runs", Duration::from_secs(10), || {
        api.get("/api/v1/jobs/j1").json()["state"] == "RUNNING"
    });
    assert_eq!(api.post("/api/v1/jobs/j1:pause", "{}").code, 200);
    eventually("it is paused", Duration::from_secs(20), || {
        api.get("/api/v1/jobs/j1").json()["state"] == "PAUSED"
    });
    assert_eq!(api.post("/api/v1/jobs/j1:resume", "").code, 200);
    assert_eq!(api.post("/api/v1/jobs/j1:resume", "{}").error().2, "WRONG_STATE");
    assert_eq!(api.post("/api/v1/jobs/j1:cancel", "{}").code, 200);
}

#[test]
fn every_mistake_is_a_typed_error() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let error = |code: u16, status: &str, reason: &str| (code, status.to_owned(), reason.to_owned());
    let unknown = error(404, "NOT_FOUND", "UNKNOWN_JOB");
    let field = error(400, "INVALID_ARGUMENT", "INVALID_FIELD");
    for id in ["j99", "x", "j", "..%2f..%2fetc%2fpasswd", "%00", "j1%2f..", "j99999999999999999999"] {
        for path in ["", "/logs", "/metrics", "/metrics?points=9"] {
            assert_eq!(api.get(&format!("/api/v1/jobs/{id}{path}")).error(), unknown, "{id}{path}");
        }
        for action in ["cancel", "pause", "resume"] {
            assert_eq!(
                api.post(&format!("/api/v1/jobs/{id}:{action}"), "{}").error(),
                unknown,
                "{id}:{action}"
            );
        }
        assert_eq!(api.get(&format!("/api/v1/events?watch=job:{id}")).code / 100, 4, "{id}");
    }
    for query in [
        "jobs?page_size=-1",
        "jobs?page_size=many",
        "jobs?page_token=xx",
        "jobs?unfinished=perhaps",
        "jobs?pagesize=3",
        "jobs?page_size=1&page_size=2",
        "nodes?x=1",
        "events?watch=everything",
        "events?points=1",
        "events?last_event_id=nonsense",
        "placement-groups/a?namespace=%00",
    ] {
        assert_eq!(api.get(&format!("/api/v1/{query}")).error(), field, "{query}");
    }
    let id = api.submit(&script("true"));
    for query in ["rank=-1", "rank=x", "attempt=-3", "after_seq=-1", "follow=maybe", "tail=x", "points=2"] {
        let path = if query.starts_with("tail") { "logs" } else { "metrics" };
        assert_eq!(api.get(&format!("/api/v1/jobs/{id}/{path}?{query}")).error(), field, "{query}");
    }
    for body in
        ["", "[]", "{", "{\"toml\": 3}", "{\"toml\": \"\", \"more\": 1}", "nothing", "{\"toml\":\"a\"}{}"]
    {
        assert_eq!(api.post("/api/v1/jobs", body).error(), field, "{body}");
    }
    let deep = format!("{{\"toml\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(api.post("/api/v1/jobs", &deep).error(), field);
    let toml = json!({ "toml": "version = 1\n[gang]\nworkrs = 2\n" }).to_string();
    let bad = api.post("/api/v1/jobs", &toml);
    assert_eq!(bad.error(), error(400, "INVALID_ARGUMENT", "INVALID_FILE"));
    let details = &bad.json()["error"]["details"][1];
    assert_eq!(details["@type"], "type.googleapis.com/google.rpc.BadRequest");
    assert!(details["field_violations"].as_array().unwrap().iter().any(|at| at["field"] == "toml:3:1"));
    let never = json!({ "toml": support::script_with("gang.cpus = 99", "true"), "validate_only": true });
    assert_eq!(
        api.post("/api/v1/jobs", &never.to_string()).error(),
        error(400, "FAILED_PRECONDITION", "INFEASIBLE")
    );
    assert_eq!(api.post(&format!("/api/v1/jobs/{id}:explode"), "{}").error(), field);
    assert_eq!(api.post(&format!("/api/v1/jobs/{id}"), "{}").error(), field);
    assert_eq!(api.post("/api/v1/nodes", "{}").error(), error(405, "UNIMPLEMENTED", ""));
    assert_eq!(api.get("/api/v1/nowhere").error(), error(404, "NOT_FOUND", ""));
    let large = format!("{{\"toml\": \"{}\"}}", "x".repeat(5 << 20));
    assert_eq!(api.post("/api/v1/jobs", &large).code, 413);
    let head = api.head("POST", "/api/v1/jobs").replace("1.0", "1.1");
    let chunks = format!("{:x}\r\n{}\r\n", large.len(), large);
    let chunked = format!(
        "{head}Connection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    );
    assert_eq!(api.raw(&chunked).code, 413, "without a length");
    assert_eq!(api.get("/api/v1/jobs").code, 200, "it serves on");
}

#[test]
fn the_files_of_a_checkpoint_are_had_by_their_ids_and_by_nothing_else() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("python");
    let keys = format!("env = {{ PYTHONPATH = {python:?} }}");
    let hands_over = "mkdir -p made/deep && printf weights > made/deep/w.bin && \
                      python3 -c 'import phalanx; phalanx.checkpoint(\"made\", step=3)'";
    let id = api.submit(&support::script_with(&keys, &format!("cd $PHALANX_SCRATCH && {hands_over}")));
    home.run(["wait", &id]).expect(0);
    let path = format!("/api/v1/jobs/{id}/artifacts");
    let listed = api.get(&path).json()["artifacts"].clone();
    let file = listed.as_array().unwrap().iter().find(|file| file["name"] == "deep/w.bin").unwrap();
    assert_eq!((&file["bytes"], &file["step"]), (&json!(7), &json!(3)));
    let artifact = file["id"].as_str().unwrap();
    let got = api.get(&format!("{path}/{artifact}"));
    assert_eq!((got.code, got.body.as_str()), (200, "weights"));
    assert_eq!(got.header("content-disposition").as_deref(), Some("attachment"));
    for other in ["deep%2Fw.bin", "..%2f..%2ftoken", "w.bin", "%2Fetc%2Fpasswd", &artifact[1..], "%00"] {
        let refused = api.get(&format!("{path}/{other}"));
        assert_eq!(refused.error(), (404, "NOT_FOUND".into(), "UNKNOWN_ARTIFACT".into()), "{other}");
    }
    let another = api.submit(&script("true"));
    assert_eq!(api.get(&format!("/api/v1/jobs/{another}/artifacts/{artifact}")).code, 404, "of another job");
}

#[test]
fn a_browser_gets_in_by_a_cookie_and_stays_on_our_pages() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let get =
        |path: &str, more: &str| api.raw(&format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{more}\r\n", api.host));
    let page = get("/", "Accept: text/html\r\n");
    assert_eq!((page.code, page.body.contains("name=\"token\"")), (401, true));
    assert_eq!(get("/api/v1/jobs", "").code, 401);
    assert_eq!(get("/?token=wrong", "").code, 401);
    let url = home.run(["token", "--url"]).expect(0).out();
    assert_eq!(url.trim(), format!("{}/?token={}", service.http, api.token));
    let login = get(&format!("/jobs/j1?token={}&tab=logs", api.token), "");
    assert_eq!((login.code, login.header("location").as_deref()), (303, Some("/jobs/j1?tab=logs")));
    let away = get(&format!("//evil.example/?token={}", api.token), "");
    assert_eq!(away.header("location").as_deref(), Some("/evil.example/"));
    let set = login.header("set-cookie").unwrap();
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Strict") && !set.contains(&api.token),
        "{set}"
    );
    let cookie = format!("Cookie: {}\r\n", set.split(';').next().unwrap());
    assert_eq!(get("/api/v1/jobs", &cookie).code, 200);
    assert_eq!(get("/api/v1/jobs", &format!("{cookie}Sec-Fetch-Site: same-origin\r\n")).code, 200);
    assert_eq!(get("/api/v1/jobs", &format!("{cookie}Sec-Fetch-Site: same-site\r\n")).code, 403);
    let policy = get("/api/v1/jobs", &cookie).header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let post = |more: &str| {
        api.raw(&format!(
            "POST /api/v1/jobs/j9:cancel HTTP/1.0\r\nHost: {}\r\n{cookie}Content-Type: application/json\r\n{more}\r\n",
            api.host
        ))
    };
    assert_eq!(post(&format!("Origin: http://{}\r\n", api.host)).code, 404, "ours gets through");
    assert_eq!(post("Origin: http://127.0.0.1:1\r\n").code, 403, "another port is another site");
    assert_eq!(post("Origin: null\r\n").code, 403);
}

#[test]
fn one_stream_tells_everything_and_resumes_over_a_killed_service() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let phalanx = env!("CARGO_BIN_EXE_phalanx");
    let steps = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; {phalanx} report --step $i loss=$((20 - i)); sleep 0.4; done"
    );
    let mut all = api.events("", None);
    assert_eq!(all.next().unwrap().name, "hello");
    let id = api.submit(&script(&steps));
    let (mut running, mut held) = (false, false);
    for event in all.by_ref() {
        let runs = event.name == "job" && event.data["id"] == *id && event.data["state"] == "RUNNING";
        running |= runs && !event.id.is_empty();
        held |= event.name == "nodes" && event.data["nodes"][0]["cpus"]["free"] != 4;
        if running && held {
            break;
        }
    }
    let watch = format!("?watch=job:{id},logs:{id},metrics:{id}&points=100");
    let mut live = api.events(&watch, None);
    let (mut lines, mut steps, mut last) = (Vec::new(), Vec::new(), String::new());
    let mut take = |event: &Event| {
        let numbers = |value: &Value| -> Vec<u64> {
            value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
        };
        match event.name.as_str() {
            "log" => lines
                .extend(event.data["lines"].as_array().unwrap().iter().map(|l| l["seq"].as_u64().unwrap())),
            "metrics" => steps.extend(numbers(&event.data["series"][0]["step"])),
            _ => {}
        }
        lines.len()
    };
    for event in live.by_ref() {
        if !event.id.is_empty() {
            last.clone_from(&event.id);
        }
        if take(&event) >= 3 {
            break;
        }
    }
    drop((live, all));
    service.kill();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let mut ended = 0;
    for event in api.events(&watch, Some(&last)) {
        if event.name == "metrics" {
            assert_eq!(event.data["reset"], false, "it goes on");
        }
        take(&event);
        ended += u32::from(event.name == "end");
        if ended == 3 {
            break;
        }
    }
    assert_eq!(lines, (1..=10).collect::<Vec<_>>(), "no line lost, none twice");
    assert_eq!(steps, (1..=10).collect::<Vec<_>>(), "no step lost, none twice");
}

#[test]
fn a_stream_that_has_told_all_stays_open_and_an_old_place_misses_nothing() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let id = api.submit(&script("for i in 1 2 3; do echo line $i; done"));
    home.run(["wait", &id]).expect(0);
    let mut over = api.events(&format!("?watch=job:{id},logs:{id},metrics:{id}"), None);
    for _ in 0..3 {
        over.until("end", |_| true);
    }
    over.0.get_ref().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let silent = over.0.read_line(&mut String::new()).unwrap_err();
    assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock, "an end would have been no error");
    // Where a browser was before it slept for an hour: of each job only how it is now, every line from there on.
    let others: Vec<String> = (0..3).map(|_| api.submit(&script("true"))).collect();
    home.run(["wait", others.last().unwrap()]).expect(0);
    let mut late = api.events(&format!("?watch=jobs,logs:{id}"), Some(&format!("jobs=1,logs:{id}=1")));
    let mut seen = std::collections::BTreeMap::new();
    let lines = loop {
        let event = late.next().unwrap();
        if event.name == "job" {
            let told = seen.insert(event.data["id"].as_str().unwrap().to_owned(), event.data);
            assert!(told.is_none(), "only the latest change is told");
        } else if event.name == "log" {
            break event.data["lines"].as_array().unwrap().len();
        }
    };
    assert_eq!(lines, 2);
    late.0.get_ref().set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    seen.extend(
        late.filter(|event| event.name == "job")
            .map(|event| (event.data["id"].as_str().unwrap().to_owned(), event.data)),
    );
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.values().all(|job| job["state"] == "SUCCEEDED"));
    // A place in other records: what is here is told from the start rather than never.
    let ahead = format!("jobs=9999,events=9999,job:{id}=9999,logs:{id}=9999,metrics:{id}=9999");
    let mut elsewhere = api.events(&format!("?watch=jobs,events,job:{id},logs:{id}"), Some(&ahead));
    let lines = elsewhere.until("log", |_| true).data["lines"].as_array().unwrap().len();
    assert_eq!(lines, 3);
    let mut elsewhere = api.events("?watch=jobs,events", Some(&ahead));
    elsewhere.until("events", |_| true);
    let next = api.submit(&script("true"));
    elsewhere.until("job", |event| event.data["id"] == *next);
}

#[test]
fn a_reader_that_stops_reading_holds_nobody_up() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let id = api.submit(&script("yes 0123456789012345678901234567890123456789 | head -n 400000"));
    // Opened and never read.
    let stuck: Vec<TcpStream> = (0..20)
        .map(|_| api.connect(&format!("{}\r\n", api.head("GET", &format!("/api/v1/events?watch=logs:{id}")))))
        .collect();
    home.run(["wait", &id]).expect(0);
    assert_eq!(api.get(&format!("/api/v1/jobs/{id}/logs?tail=1")).lines()[0]["line"]["seq"], 400_000);
    drop(stuck);
}

#[test]
fn strangers_that_stay_silent_keep_nobody_out() {
    let home = Home::new();
    let service = Service::start(&home);
    let api = Api::of(&service);
    let mut watcher = api.events("", None);
    assert_eq!(watcher.next().unwrap().name, "hello");
    let silent: Vec<TcpStream> = (0..700).map(|_| api.connect("GET / HT")).collect();
    let start = Instant::now();
    assert_eq!(api.get("/api/v1/jobs").code, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // Who was let in before is still there.
    let id = api.submit(&script("true"));
    watcher.until("job", |event| event.data["id"] == *id);
    drop(silent);
    for garbage in
        ["\r\n\r\n", "\0\0\0\0", "GET", "GET / HTTP/9.9\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let _ = api.raw(garbage);
    }
    let huge = format!("{}X: {}\r\n\r\n", api.head("GET", "/api/v1/jobs"), "a".repeat(1 << 20));
    assert!(matches!(api.raw(&huge).code, 0 | 400 | 431), "refused or cut");
    assert_eq!(api.get("/api/v1/jobs").code, 200);
    signal(service.child.id(), "TERM");
}
