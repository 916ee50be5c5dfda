//! What is fuzzed: every parser of what comes from outside. Each takes any bytes and neither panics nor hangs.
#![allow(dead_code, missing_docs, unreachable_pub)]

use phalanx_api::v1 as pb;
use phalanx_core::spec::{GroupSpec, JobSpec, Scenario, ServiceSpec, SweepSpec};
use phalanx_runtime::protocol::wire;
use prost::Message;

/// TOML of jobs, sweeps, placement groups, scenarios and configurations; an error is shown with its caret.
pub fn files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = |problems: phalanx_core::Problems| drop(problems.render("file.toml", text));
    let _ = JobSpec::parse(text, "job").map_err(shown);
    let _ = SweepSpec::parse(text, "sweep").map_err(shown);
    let _ = GroupSpec::parse(text).map_err(shown);
    let _ = ServiceSpec::parse(text).map_err(shown);
    let _ = Scenario::parse(text).map_err(shown);
    let set: Vec<String> = text.lines().take(4).map(str::to_owned).collect();
    let _ = phalanx_core::overrides::apply("version = 1\n[gang]\nworkers = 1\n", &set);
}

/// Lines that a rank writes on its socket.
pub fn socket(data: &[u8]) {
    for line in data.split(|&byte| byte == b'\n') {
        let _ = phalanx_core::report::parse_line(line);
    }
}

/// What an agent sends.
pub fn agent(data: &[u8]) {
    if let Ok(message) = pb::AgentMessage::decode(data) {
        let _ = wire::hello(message.clone());
        let _ = wire::from_agent(message);
    }
    let _ = pb::SubmitRequest::decode(data);
}

/// Queries, ids of events, page tokens and hosts of HTTP.
pub fn http(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        phalanx_server::read_outside(text);
    }
}
