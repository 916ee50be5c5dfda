//! What `/api/v1` takes and gives, as an OpenAPI document for programs that are written or tested by one.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The document, which a test holds against the routes and the messages.
const OPENAPI: &str = include_str!("openapi.json");

pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_api::{json, v1 as pb};
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(OPENAPI).unwrap()
    }

    /// The paths of the router are private to it; this is what its source says.
    #[test]
    fn every_path_is_described_and_no_other() {
        let source = include_str!("mod.rs");
        let routed = source.lines().filter_map(|line| line.trim().strip_prefix(".route(\"/"));
        let routed: BTreeSet<String> = routed
            .map(|rest| rest.split('"').next().unwrap().to_owned())
            .filter(|path| !["healthz", "readyz", "metrics"].contains(&path.as_str()))
            .map(|path| format!("/api/v1/{path}"))
            .collect();
        let document = document();
        let paths = document["paths"].as_object().unwrap().keys();
        let described: BTreeSet<String> =
            paths.map(|path| path.split("}:").next().unwrap().to_owned()).map(closed).collect();
        assert_eq!(routed, described);
    }

    /// `{id}:cancel` is routed as `{id}`.
    fn closed(path: String) -> String {
        if path.contains('{') && !path.contains('}') { format!("{path}}}") } else { path }
    }

    #[test]
    fn every_message_has_the_fields_that_are_described() {
        let messages = [
            ("Job", json::job(&pb::Job::default())),
            ("Node", json::node(&pb::Node::default())),
            ("Queue", json::queue(&pb::Queue::default())),
            ("PlacementGroup", json::group(&pb::PlacementGroup::default())),
            ("Sweep", json::sweep(&pb::Sweep::default())),
            ("Trial", json::trial(&pb::Trial::default())),
            ("BestTrial", json::best_trial(&pb::BestTrial::default())),
            ("LogLine", json::log_line(&pb::LogLine::default())),
            ("MetricPoint", json::metric_point(&pb::MetricPoint::default())),
            ("Event", json::event(&pb::Event::default())),
            ("Status", json::status(&pb::StatusResponse::default())),
        ];
        let document = document();
        for (name, message) in messages {
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
            let described = &document["components"]["schemas"][name]["properties"];
            assert_eq!(keys(&message), keys(described), "{name}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let references = OPENAPI.split("\"$ref\": \"#/components/schemas/").skip(1);
        for name in references.map(|rest| rest.split('"').next().unwrap()) {
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
