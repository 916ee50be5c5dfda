//! The JSON documents that people's scripts read: the proto3 JSON form with the original field names.
//!
//! Unlike proto3 JSON every field is always there (`null` where it has no value) and 64-bit integers are numbers, so
//! that `jq` and a spreadsheet need no rules of their own.

use crate::{time_of, v1 as pb};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Nanoseconds in a second.
const NANOS: f64 = 1e9;

/// A job.
pub fn job(job: &pb::Job) -> Value {
    let reason = job.reason.as_ref().map(|reason| json!({ "code": reason.code, "text": reason.text }));
    let placement: Vec<Value> = job.placement.iter().map(placement).collect();
    let attempts: Vec<Value> = job.attempts.iter().map(attempt).collect();
    let checkpoints: Vec<Value> = job.checkpoints.iter().map(checkpoint).collect();
    json!({
        "id": job.id,
        "name": job.name,
        "state": job.state_name(),
        "reason": reason.unwrap_or_else(|| json!({ "code": "", "text": "" })),
        "queue": job.queue,
        "priority": job.priority,
        "attempt": job.attempt,
        "exit_code": job.exit_code,
        "submit_time": time(job.submit_time.as_ref()),
        "start_time": time(job.start_time.as_ref()),
        "end_time": time(job.end_time.as_ref()),
        "sweep": (!job.sweep.is_empty()).then_some(&job.sweep),
        "trial": job.trial,
        "gang": job.gang.as_ref().map(gang),
        "placement": placement,
        "attempts": attempts,
        "checkpoints": checkpoints,
    })
}

/// A placement group.
pub fn group(group: &pb::PlacementGroup) -> Value {
    let reason = group.reason.as_ref().map(|reason| json!({ "code": reason.code, "text": reason.text }));
    json!({
        "name": group.name,
        "namespace": group.namespace,
        "state": group.state().as_str_name(),
        "reason": reason.unwrap_or_else(|| json!({ "code": "", "text": "" })),
        "queue": group.queue,
        "priority": group.priority,
        "gang": group.gang.as_ref().map(gang),
        "bundles": group.bundles.iter().map(placement).collect::<Vec<_>>(),
        "create_time": time(group.create_time.as_ref()),
        "ready_time": time(group.ready_time.as_ref()),
    })
}

/// A sweep.
pub fn sweep(sweep: &pb::Sweep) -> Value {
    let reason = sweep.reason.as_ref().map(|reason| json!({ "code": reason.code, "text": reason.text }));
    let counts = sweep.counts.unwrap_or_default();
    let objectives = sweep
        .objectives
        .iter()
        .map(|one| json!({ "metric": one.metric, "mode": one.mode, "target": one.target.map(number) }));
    json!({
        "id": sweep.id,
        "name": sweep.name,
        "state": sweep.state_name(),
        "reason": reason.unwrap_or_else(|| json!({ "code": "", "text": "" })),
        "queue": sweep.queue,
        "priority": sweep.priority,
        "best": sweep.best.as_ref().map(best_trial),
        "front": sweep.front.iter().map(best_trial).collect::<Vec<_>>(),
        "counts": {
            "complete": counts.complete,
            "stopped": counts.stopped,
            "failed": counts.failed,
            "running": counts.running,
            "queued": counts.queued,
            "paused": counts.paused,
            "cancelled": counts.cancelled,
        },
        "steps_run": sweep.steps_run,
        "objectives": objectives.collect::<Vec<_>>(),
        "search": sweep.search,
        "stopping": sweep.stopping,
        "params": sweep.params,
        "trials": sweep.trials,
        "concurrency": (sweep.concurrency > 0).then_some(sweep.concurrency),
        "external": sweep.external,
        "submit_time": time(sweep.submit_time.as_ref()),
        "start_time": time(sweep.start_time.as_ref()),
        "end_time": time(sweep.end_time.as_ref()),
        "gang": sweep.gang.as_ref().map(gang),
    })
}

/// One of the best trials of a sweep.
pub fn best_trial(best: &pb::BestTrial) -> Value {
    json!({
        "number": best.number,
        "params": params(best.params.as_ref()),
        "value": number(best.value),
        "values": best.values.iter().copied().map(number).collect::<Vec<_>>(),
        "job": (!best.job.is_empty()).then_some(&best.job),
    })
}

/// A trial.
pub fn trial(trial: &pb::Trial) -> Value {
    json!({
        "number": trial.number,
        "state": trial.state_name(),
        "params": params(trial.params.as_ref()),
        "value": trial.value.map(number),
        "values": trial.values.iter().copied().map(number).collect::<Vec<_>>(),
        "step": trial.step,
        "job": (!trial.job.is_empty()).then_some(&trial.job),
        "sampler": trial.sampler,
        "message": trial.message,
        "start_time": time(trial.start_time.as_ref()),
        "end_time": time(trial.end_time.as_ref()),
        "stints": trial.stints.iter().map(stint).collect::<Vec<_>>(),
    })
}

fn stint(stint: &pb::Stint) -> Value {
    json!({ "start_time": time(stint.start_time.as_ref()), "end_time": time(stint.end_time.as_ref()) })
}

/// Parameters by name.
pub fn params(params: Option<&prost_types::Struct>) -> Value {
    use prost_types::value::Kind;
    let value = |value: &prost_types::Value| match &value.kind {
        Some(Kind::BoolValue(flag)) => Value::from(*flag),
        Some(Kind::NumberValue(found)) => number(*found),
        Some(Kind::StringValue(text)) => Value::from(text.as_str()),
        // No parameter is anything else.
        Some(Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_)) | None => Value::Null,
    };
    let fields = params.into_iter().flat_map(|params| &params.fields);
    Value::Object(fields.map(|(name, found)| (name.clone(), value(found))).collect())
}

fn gang(gang: &pb::Gang) -> Value {
    json!({
        "min_workers": gang.min_workers,
        "max_workers": gang.max_workers,
        "cpus": number(gang.cpus),
        "gpus": number(gang.gpus),
        "memory_bytes": gang.memory_bytes,
        "resources": numbers(&gang.resources),
        "placement": gang.placement,
        "group": (!gang.group.is_empty()).then_some(&gang.group),
    })
}

fn placement(placement: &pb::RankPlacement) -> Value {
    json!({ "rank": placement.rank, "node": placement.node, "gpus": placement.gpus })
}

fn attempt(attempt: &pb::Attempt) -> Value {
    json!({
        "number": attempt.number,
        "state": pb::attempt::State::try_from(attempt.state).map_or("", |state| state.as_str_name()),
        "start_time": time(attempt.start_time.as_ref()),
        "end_time": time(attempt.end_time.as_ref()),
        "exit_code": attempt.exit_code,
        "failed_rank": attempt.failed_rank,
        "message": attempt.message,
    })
}

fn checkpoint(checkpoint: &pb::Checkpoint) -> Value {
    json!({
        "attempt": checkpoint.attempt,
        "step": checkpoint.step,
        "time": time(checkpoint.time.as_ref()),
        "metric": checkpoint.metric.map(number),
        "path": checkpoint.path,
    })
}

/// A line of a log; bytes that are not UTF-8 become U+FFFD.
pub fn log_line(line: &pb::LogLine) -> Value {
    let stream = match line.stream() {
        pb::log_line::Stream::Stderr => "stderr",
        pb::log_line::Stream::Stdout | pb::log_line::Stream::Unspecified => "stdout",
    };
    json!({
        "job": line.job,
        "attempt": line.attempt,
        "rank": line.rank,
        "stream": stream,
        "seq": line.seq,
        "time": time(line.time.as_ref()),
        "line": String::from_utf8_lossy(&line.line),
        "partial": line.partial,
    })
}

/// A point of metrics.
pub fn metric_point(point: &pb::MetricPoint) -> Value {
    json!({
        "job": point.job,
        "attempt": point.attempt,
        "rank": point.rank,
        "step": point.step,
        "time": time(point.time.as_ref()),
        "metrics": numbers(&point.metrics),
        "seq": point.seq,
    })
}

/// Something that happened.
pub fn event(event: &pb::Event) -> Value {
    json!({
        "seq": event.seq,
        "time": time(event.time.as_ref()),
        "actor": event.actor,
        "action": event.action,
        "target": event.target,
        "text": event.text,
    })
}

/// A queue.
pub fn queue(queue: &pb::Queue) -> Value {
    let waiting = queue.waiting.iter().map(|job| {
        let reason = job.reason.clone().unwrap_or_default();
        json!({ "id": job.id, "name": job.name, "reason": { "code": reason.code, "text": reason.text } })
    });
    json!({
        "name": queue.name,
        "weight": number(queue.weight),
        "discipline": queue.discipline,
        "share": number(queue.share),
        "guaranteed": numbers(&queue.guaranteed),
        "quota": numbers(&queue.quota),
        "held": numbers(&queue.held),
        "running": queue.running,
        "length": queue.length,
        "waiting": waiting.collect::<Vec<Value>>(),
        "from_api": queue.from_api,
    })
}

/// The service itself.
pub fn status(status: &pb::StatusResponse) -> Value {
    let uptime = status.uptime.as_ref().map(|up| up.seconds as f64 + f64::from(up.nanos) / NANOS);
    json!({
        "version": status.version,
        "uptime_seconds": uptime.map(number),
        "jobs": status.jobs,
        "data_dir": status.data_dir,
    })
}

/// A node.
pub fn node(node: &pb::Node) -> Value {
    let gpus: Vec<Value> = node.gpus.iter().map(gpu).collect();
    let resources: Map<String, Value> =
        node.resources.iter().map(|(name, held)| (name.clone(), amount(Some(held)))).collect();
    json!({
        "name": node.name,
        "state": pb::node::State::try_from(node.state).map_or("", |state| state.as_str_name()),
        "cpus": amount(node.cpus.as_ref()),
        "memory": amount(node.memory.as_ref()),
        "gpus": gpus,
        "labels": node.labels,
        "resources": resources,
    })
}

fn gpu(gpu: &pb::Gpu) -> Value {
    json!({
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_total": gpu.memory_total,
        "memory_used": gpu.memory_used,
        "utilization": number(gpu.utilization),
        "free": number(gpu.free),
    })
}

fn amount(amount: Option<&pb::Amount>) -> Value {
    let amount = amount.copied().unwrap_or_default();
    json!({ "total": number(amount.total), "free": number(amount.free) })
}

/// A point in time as RFC 3339 in UTC with microseconds, or null.
pub fn time(timestamp: Option<&prost_types::Timestamp>) -> Value {
    timestamp.map_or(Value::Null, |timestamp| {
        let micros = i64::try_from(time_of(timestamp).as_micros()).unwrap_or(i64::MAX);
        let text = jiff::Timestamp::from_microsecond(micros).map(|time| format!("{time:.6}"));
        text.map_or(Value::Null, Value::from)
    })
}

/// A number as proto3 JSON has it: what is not finite is a text. Whole numbers have no fraction.
pub fn number(value: f64) -> Value {
    /// Whole numbers up to here are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        _ if value.is_nan() => Value::from("NaN"),
        f64::INFINITY => Value::from("Infinity"),
        f64::NEG_INFINITY => Value::from("-Infinity"),
        _ if value.fract() == 0.0 && value.abs() < EXACT && !(value == 0.0 && value.is_sign_negative()) => {
            Value::from(value as i64)
        }
        _ => Value::from(value),
    }
}

fn numbers(values: &BTreeMap<String, f64>) -> Value {
    Value::Object(values.iter().map(|(name, &value)| (name.clone(), number(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp;
    use phalanx_core::Time;

    #[test]
    fn a_job_has_every_field_even_before_it_has_a_value() {
        let sparse = pb::Job { id: "j1".into(), state: pb::job::State::Queued as i32, ..pb::Job::default() };
        let Value::Object(document) = job(&sparse) else { panic!("not an object") };
        let listed = [
            "id",
            "name",
            "state",
            "reason",
            "queue",
            "priority",
            "attempt",
            "exit_code",
            "submit_time",
            "start_time",
            "end_time",
            "sweep",
            "trial",
            "gang",
            "placement",
            "attempts",
        ];
        for field in listed {
            assert!(document.contains_key(field), "{field}");
        }
        assert_eq!(document["state"], "QUEUED");
        assert_eq!(document["exit_code"], Value::Null);
        assert_eq!(document["trial"], Value::Null);
        assert_eq!(document["reason"], json!({ "code": "", "text": "" }));
    }

    #[test]
    fn a_sweep_and_a_trial_have_the_fields_of_the_contract() {
        let Value::Object(document) = sweep(&pb::Sweep::default()) else { panic!("not an object") };
        for field in ["id", "name", "state", "best", "counts", "steps_run"] {
            assert!(document.contains_key(field), "{field}");
        }
        for count in ["complete", "stopped", "failed", "running", "queued", "paused"] {
            assert_eq!(document["counts"][count], 0, "{count}");
        }
        let Value::Object(document) = trial(&pb::Trial::default()) else { panic!("not an object") };
        for field in ["number", "state", "params", "value", "values", "step", "job"] {
            assert!(document.contains_key(field), "{field}");
        }
    }

    #[test]
    fn times_are_rfc_3339_with_microseconds() {
        let moment = timestamp(Time::from_micros(1_700_000_000_000_120));
        assert_eq!(time(Some(&moment)), "2023-11-14T22:13:20.000120Z");
        assert_eq!(time(None), Value::Null);
    }

    #[test]
    fn numbers_that_json_has_not_are_texts() {
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(f64::INFINITY), "Infinity");
        assert_eq!(number(f64::NEG_INFINITY), "-Infinity");
        assert_eq!(number(2.0).to_string(), "2");
        assert_eq!(number(0.1).to_string(), "0.1");
        assert_eq!(number(-0.0).to_string(), "-0.0");
        assert_eq!(number(1e300).to_string(), "1e+300");
    }

    #[test]
    fn lines_that_are_not_text_are_still_shown() {
        let line = pb::LogLine {
            line: b"a\xff\rb".to_vec(),
            stream: pb::log_line::Stream::Stderr as i32,
            seq: 7,
            ..pb::LogLine::default()
        };
        let document = log_line(&line);
        assert_eq!(document["line"], "a\u{fffd}\rb");
        assert_eq!(document["stream"], "stderr");
        assert_eq!(document["seq"], 7);
    }
}
