//! `describe`: all about a job.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::table;
use clap::Args;
use phalanx_api::{json, v1 as pb};
use phalanx_core::quantity::format_bytes;
use std::fmt::Write;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx describe j12
  phalanx describe j12 --json | jq '.attempts[].message'")]
pub(crate) struct DescribeArgs {
    /// The job's id
    id: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &DescribeArgs, output: &Output) -> Result<(), Failure> {
    let job = Route::to_records(global).await?.connect().await?.job(&args.id).await?;
    match output.json {
        true => output.document(&json::job(&job)),
        false => output.line(in_words(&job, output).trim_end()),
    }
}

fn in_words(job: &pb::Job, output: &Output) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:<12} {value}");
        }
    };
    field("job", job.id.clone());
    field("name", job.name.clone());
    field("state", job.state_name().to_owned());
    let reason = job.reason.as_ref().filter(|reason| !reason.code.is_empty());
    field("reason", reason.map(|reason| format!("{} ({})", reason.text, reason.code)).unwrap_or_default());
    field("exit code", job.exit_code.map(|code| code.to_string()).unwrap_or_default());
    field("queue", format!("{} (priority {})", job.queue, job.priority));
    field("gang", job.gang.as_ref().map(gang).unwrap_or_default());
    field("submitted", table::time(job.submit_time.as_ref()));
    field("started", table::time(job.start_time.as_ref()));
    field("ended", table::time(job.end_time.as_ref()));
    if !job.placement.is_empty() {
        let mut rows = table::new(output, &["RANK", "NODE", "GPUS"]);
        for placement in &job.placement {
            let gpus: Vec<String> = placement.gpus.iter().map(ToString::to_string).collect();
            rows.add_row([placement.rank.to_string(), placement.node.clone(), gpus.join(",")]);
        }
        let _ = writeln!(out, "\n{}", table::text(&rows));
    }
    if !job.attempts.is_empty() {
        let mut rows = table::new(output, &["ATTEMPT", "STATE", "STARTED", "ENDED", "EXIT", "MESSAGE"]);
        for attempt in &job.attempts {
            rows.add_row([
                attempt.number.to_string(),
                attempt.state().as_str_name().to_owned(),
                table::time(attempt.start_time.as_ref()),
                table::time(attempt.end_time.as_ref()),
                attempt.exit_code.map(|code| code.to_string()).unwrap_or_default(),
                attempt.message.clone(),
            ]);
        }
        let _ = writeln!(out, "\n{}", table::text(&rows));
    }
    if !job.checkpoints.is_empty() {
        let mut rows = table::new(output, &["CHECKPOINT", "ATTEMPT", "METRIC", "PATH"]);
        for checkpoint in &job.checkpoints {
            rows.add_row([
                format!("step {}", checkpoint.step),
                checkpoint.attempt.to_string(),
                checkpoint.metric.map(|metric| metric.to_string()).unwrap_or_default(),
                checkpoint.path.clone(),
            ]);
        }
        let _ = writeln!(out, "\n{}", table::text(&rows));
    }
    out
}

pub(crate) fn gang(gang: &pb::Gang) -> String {
    let workers = match (gang.min_workers, gang.max_workers) {
        (min, max) if min == max => format!("{max} × "),
        (min, max) => format!("{min} to {max} × "),
    };
    let mut each = vec![format!("{} CPU", gang.cpus)];
    if gang.gpus > 0.0 {
        each.push(format!("{} GPU", gang.gpus));
    }
    if gang.memory_bytes > 0 {
        each.push(format!("{} memory", format_bytes(gang.memory_bytes)));
    }
    each.extend(gang.resources.iter().map(|(name, amount)| format!("{amount} {name}")));
    let group = if gang.group.is_empty() { String::new() } else { format!(", in the group {}", gang.group) };
    format!("{workers}({}), {}{group}", each.join(", "), gang.placement)
}
