//! `describe`: all about a job or a sweep.

use crate::args::Global;
use crate::client::Route;
use crate::failure::Failure;
use crate::output::Output;
use crate::sweep;
use crate::table;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use phalanx_api::{json, v1 as pb};
use phalanx_core::quantity::format_bytes;
use std::fmt::Write;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx describe j12
  phalanx describe s3          a sweep; s3/7 is its trial 7
  phalanx describe j12 --json | jq '.attempts[].message'")]
pub(crate) struct DescribeArgs {
    /// The id of a job, a sweep or a trial
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: String,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &DescribeArgs, output: &Output) -> Result<(), Failure> {
    let client = Route::to_records(global).await?.connect().await?;
    if sweep::is_sweep_id(&args.id) {
        let sweep = sweep::get(&client, &args.id).await?;
        return match output.json {
            true => output.document(&json::sweep(&sweep)),
            false => output.line(sweep_in_words(&sweep).trim_end()),
        };
    }
    let job = client.job(&args.id).await?;
    match output.json {
        true => output.document(&json::job(&job)),
        false => output.line(in_words(&job, output).trim_end()),
    }
}

/// A line of a description; nothing where there is nothing to say.
fn field(out: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    }
}

fn sweep_in_words(sweep: &pb::Sweep) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: String| field(&mut out, name, &value);
    field("sweep", sweep.id.clone());
    field("name", sweep.name.clone());
    field("state", sweep.state_name().to_owned());
    let reason = sweep.reason.as_ref().filter(|reason| !reason.code.is_empty());
    field("reason", reason.map(|reason| format!("{} ({})", reason.text, reason.code)).unwrap_or_default());
    let objective = |one: &pb::SweepObjective| format!("{} ({})", one.metric, one.mode);
    field("objective", sweep.objectives.iter().map(objective).collect::<Vec<_>>().join(", "));
    field("search", format!("{}, stopping {}", sweep.search, sweep.stopping));
    field("params", sweep.params.join(", "));
    let counts = sweep.counts.unwrap_or_default();
    let most = if sweep.trials > 0 { format!(" of {}", sweep.trials) } else { String::new() };
    field(
        "trials",
        format!(
            "{} complete{most}, {} stopped early, {} failed, {} cancelled, {} running, {} queued, {} paused",
            counts.complete,
            counts.stopped,
            counts.failed,
            counts.cancelled,
            counts.running,
            counts.queued,
            counts.paused
        ),
    );
    field("steps run", sweep.steps_run.to_string());
    field("queue", format!("{} (priority {})", sweep.queue, sweep.priority));
    field("gang", sweep.gang.as_ref().map(|gang_of| format!("{} each", gang(gang_of))).unwrap_or_default());
    field("submitted", table::time(sweep.submit_time.as_ref()));
    field("started", table::time(sweep.start_time.as_ref()));
    field("ended", table::time(sweep.end_time.as_ref()));
    for line in sweep::results(sweep) {
        field("", line);
    }
    out
}

fn in_words(job: &pb::Job, output: &Output) -> String {
    let mut out = String::new();
    let mut field = |name: &str, value: String| field(&mut out, name, &value);
    field("job", job.id.clone());
    field("trial", job.trial.map(|number| format!("{number} of {}", job.sweep)).unwrap_or_default());
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
