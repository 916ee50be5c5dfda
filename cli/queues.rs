//! `queues`: what each queue is, holds and waits for; and changes of them.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use clap::{Args, Subcommand};
use phalanx_api::{json, v1 as pb};
use phalanx_core::overrides;
use phalanx_core::quantity::format_bytes;
use serde_json::Value;
use std::collections::BTreeMap;

/// Waiting jobs of one queue that are shown without `--json`.
const SHOWN: usize = 10;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx queues
  phalanx queues --json | jq '.[] | {name, share, length}'
  phalanx queues set research weight=2 quota.gpus=4 guaranteed.cpus=8
  phalanx queues reset research                as the configuration has it")]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    change: Option<QueueChange>,
}

#[derive(Debug, Subcommand)]
enum QueueChange {
    /// Change a queue, or make one: what is not named stays as it is
    #[command(after_help = "Examples:
  phalanx queues set research weight=2 quota.gpus=4 quota.memory=64GiB
  phalanx queues set research quota.gpus=none          no limit any more
  phalanx queues set night discipline=las

Keys: weight, discipline (fifo, las), guaranteed.KIND and quota.KIND, with cpus, gpus, memory or
resources.NAME as KIND. The service keeps a queue that was set so, over its configuration, until it is reset.")]
    Set {
        /// The queue
        name: String,
        /// What to change
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        /// Only say whether it could be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Make queues again what the configuration says; one that it does not have is gone
    #[command(after_help = "Examples:
  phalanx queues reset research")]
    Reset {
        /// The queues
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &QueuesArgs, output: &Output) -> Result<(), Failure> {
    let mut cluster = Route::to_live_service(global)?.connect().await?.cluster;
    let queues = match &args.change {
        None => cluster.queues(pb::QueuesRequest {}).await?,
        Some(QueueChange::Set { name, settings, dry_run }) => {
            let (toml, reset) = (change_of(name, settings)?, Vec::new());
            cluster.set_queues(pb::SetQueuesRequest { toml, reset, validate_only: *dry_run }).await?
        }
        Some(QueueChange::Reset { names }) => {
            let change =
                pb::SetQueuesRequest { toml: String::new(), reset: names.clone(), validate_only: false };
            cluster.set_queues(change).await?
        }
    };
    show(&queues.into_inner().queues, output)
}

/// A change as the service reads it.
fn change_of(name: &str, settings: &[String]) -> Result<String, Failure> {
    let refused = |problems: phalanx_core::Problems| Failure::usage(problems.to_string());
    let named = [format!("name={}", toml_edit::Value::from(name))];
    let keys =
        overrides::apply("", &named).and_then(|text| overrides::apply(&text, settings)).map_err(refused)?;
    let table: toml_edit::DocumentMut =
        keys.parse().map_err(|error: toml_edit::TomlError| Failure::usage(error.to_string()))?;
    let mut tables = toml_edit::ArrayOfTables::new();
    tables.push(table.as_table().clone());
    let mut document = toml_edit::DocumentMut::new();
    document.insert("queue", toml_edit::Item::ArrayOfTables(tables));
    Ok(document.to_string())
}

fn show(queues: &[pb::Queue], output: &Output) -> Result<(), Failure> {
    if output.json {
        return output.document(&Value::Array(queues.iter().map(json::queue).collect()));
    }
    let heads = ["QUEUE", "WEIGHT", "SHARE", "HOLDS", "GUARANTEED", "QUOTA", "ORDER", "RUNNING", "WAITING"];
    let mut rows = table::new(output, &heads);
    for queue in queues {
        rows.add_row([
            queue.name.clone(),
            queue.weight.to_string(),
            format!("{:.3}", queue.share),
            amounts(&queue.held),
            amounts(&queue.guaranteed),
            amounts(&queue.quota),
            queue.discipline.clone(),
            queue.running.to_string(),
            queue.length.to_string(),
        ]);
    }
    output.line(&table::list(rows))?;
    for queue in queues.iter().filter(|queue| !queue.waiting.is_empty()) {
        output.line(&format!("\nwaiting in {}:", queue.name))?;
        for job in queue.waiting.iter().take(SHOWN) {
            let reason = job.reason.clone().unwrap_or_default();
            output.line(&format!("  {} {}: {} ({})", job.id, job.name, reason.text, reason.code))?;
        }
        let more = queue.length.saturating_sub(SHOWN as u64);
        if more > 0 {
            output.line(&format!("  and {more} more"))?;
        }
    }
    Ok(())
}

fn amounts(amounts: &BTreeMap<String, f64>) -> String {
    let words = amounts.iter().map(|(kind, amount)| match kind.as_str() {
        "memory" => format_bytes(*amount as u64),
        kind => format!("{amount} {kind}"),
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::spec::parse_queues;

    #[test]
    fn a_change_reads_as_the_service_reads_it() {
        let settings =
            ["weight=2", "quota.gpus=4", "quota.memory=64GiB", "discipline=las"].map(str::to_owned);
        let text = change_of("a \"b\"", &settings).unwrap();
        let queue = &parse_queues(&text, &BTreeMap::new()).unwrap()[0];
        assert_eq!((queue.name.as_str(), queue.weight, queue.las), ("a \"b\"", 2.0, true));
        assert_eq!((queue.quota.gpus, queue.quota.memory_bytes), (Some(4000), Some(64 << 30)));
        assert!(change_of("a", &["nonsense".to_owned()]).is_err());
    }
}
