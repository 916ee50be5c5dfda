//! `nodes`: machines, and what is free on them.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use phalanx_api::{json, v1 as pb};
use phalanx_core::quantity::format_bytes;
use serde_json::Value;

/// Shown by `nodes --help`.
pub(crate) const EXAMPLES: &str = "Examples:
  phalanx nodes
  phalanx nodes --json | jq '.[].gpus[] | select(.free == 1) | .uuid'";

/// Runs it.
pub(crate) async fn run(global: &Global, output: &Output) -> Result<(), Failure> {
    let client = Route::to_live_service(global)?.connect().await?;
    let nodes = client.cluster.clone().nodes(pb::NodesRequest {}).await?.into_inner().nodes;
    if output.json {
        return output.document(&Value::Array(nodes.iter().map(json::node).collect()));
    }
    let mut rows = table::new(output, &["NODE", "STATE", "CPUS FREE", "MEMORY FREE", "GPUS FREE", "LABELS"]);
    for node in &nodes {
        let amount = |amount: &Option<pb::Amount>| amount.unwrap_or_default();
        let (cpus, memory) = (amount(&node.cpus), amount(&node.memory));
        let gpus_free = node.gpus.iter().fold(0.0, |sum, gpu| sum + gpu.free);
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.add_row([
            node.name.clone(),
            node.state().as_str_name().to_owned(),
            format!("{} of {}", cpus.free, cpus.total),
            format!("{} of {}", format_bytes(memory.free as u64), format_bytes(memory.total as u64)),
            format!("{gpus_free} of {}", node.gpus.len()),
            labels.join(" "),
        ]);
    }
    output.line(&table::list(rows))
}
