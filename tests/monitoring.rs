//! The dashboards and alert rules that come along, held against what a service really shows.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Home, Service, eventually};

fn grafana(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grafana").join(file)
}

/// Every name in a query that could be one of ours.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("phalanx_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn queries_of(dashboard: &Value) -> Vec<String> {
    match dashboard {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "expr" || key == "query" => vec![text.clone()],
                value => queries_of(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(queries_of).collect(),
        _ => Vec::new(),
    }
}

fn scrape(service: &Service) -> String {
    let host = service.http.strip_prefix("http://").unwrap();
    let token = service.token();
    let head = format!("GET /metrics HTTP/1.0\nHost: {host}\nAuthorization: Bearer {token}\n\n");
    let (status, _, body) = service.http(&head);
    assert_eq!(status, 200, "{body}");
    body
}

fn with_gpus() -> (Home, Service) {
    let home = Home::new();
    let args = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--cpus", "2", "--gpus", "2"];
    let service = Service::start_with(&home, &args);
    home.run(["run", "-q", "--", "true"]).expect(0);
    (home, service)
}

#[test]
fn every_query_names_metrics_that_are_there() {
    let (_home, service) = with_gpus();
    let body = scrape(&service);
    let shown: BTreeSet<String> = body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned))
        .collect();
    let mut asked = BTreeSet::new();
    for file in ["cluster.json", "service.json"] {
        let dashboard: Value =
            serde_json::from_str(&std::fs::read_to_string(grafana(file)).unwrap()).unwrap();
        let queries = queries_of(&dashboard);
        assert!(queries.len() > 8, "{file}: {queries:?}");
        asked.extend(queries.iter().flat_map(|query| names(query)));
    }
    let rules = std::fs::read_to_string(grafana("alerts.yml")).unwrap();
    asked.extend(rules.lines().filter(|line| line.trim().starts_with("expr:")).flat_map(names));
    let missing: Vec<&String> = asked.difference(&shown).collect();
    assert!(missing.is_empty(), "asked for and not shown: {missing:?}");
    // What the documentation lists is there, and nothing is shown that it does not list.
    let docs = std::fs::read_to_string(grafana("../metrics.md")).unwrap();
    let families: BTreeSet<String> = body
        .lines()
        .filter_map(|line| {
            line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()).map(str::to_owned)
        })
        .collect();
    assert_eq!(names(&docs).into_iter().collect::<BTreeSet<_>>(), families);
}

/// Whether a program of the distribution is there.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: {program} is not installed (Debian's `prometheus` has it)");
    }
    there
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    if !has("promtool") {
        return;
    }
    let (_home, service) = with_gpus();
    let mut check =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(scrape(&service).as_bytes()).unwrap();
    assert!(check.wait().unwrap().success());
    let rules =
        Command::new("promtool").args(["check", "rules"]).arg(grafana("alerts.yml")).status().unwrap();
    assert!(rules.success());
}

/// Ends a process at the end of the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_it() {
    if !has("prometheus") {
        return;
    }
    let (home, service) = with_gpus();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: phalanx\n  authorization: {{credentials_file: {}}}\n  static_configs: [{{targets: [\"{}\"]}}]\nrule_files: [{}]\n",
        service.token_file.display(),
        service.http.strip_prefix("http://").unwrap(),
        grafana("alerts.yml").display(),
    );
    let file = home.file("prometheus.yml", &config);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _prometheus = Ends(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", home.dir.path().join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let asked = |query: &str| {
        let url = format!("http://127.0.0.1:{port}/api/v1/query?query={query}");
        let answer = Command::new("curl").args(["-s", "-g", &url]).output().unwrap();
        serde_json::from_slice::<Value>(&answer.stdout).unwrap_or_default()["data"]["result"].clone()
    };
    eventually("prometheus has scraped", Duration::from_secs(30), || {
        asked("phalanx_node_gpus")[0]["value"][1] == "2"
    });
    assert_eq!(asked("up{job=\"phalanx\"}")[0]["value"][1], "1");
}
