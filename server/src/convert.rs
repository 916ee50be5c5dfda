//! Rows of the records and views of the cluster as messages.

use phalanx_api::{timestamp, v1 as pb};
use phalanx_core::spec::Limits;
use phalanx_core::{Event, JobId};
use phalanx_runtime::controller::QueueStatus;
use phalanx_runtime::service::{NodeStatus, Status};
use phalanx_runtime::store::{LogRow, PointRow};
use std::collections::BTreeMap;

/// Thousandths in one.
const MILLI: f64 = 1000.0;

pub(crate) fn line(job: JobId, row: LogRow) -> pb::JobLogsResponse {
    let stream = if row.stderr { pb::log_line::Stream::Stderr } else { pb::log_line::Stream::Stdout };
    let line = pb::LogLine {
        job: job.to_string(),
        attempt: row.attempt as i32,
        rank: row.rank as i32,
        stream: stream as i32,
        seq: row.seq,
        time: Some(timestamp(row.time)),
        line: row.line,
        partial: row.partial,
        newline: row.newline,
    };
    pb::JobLogsResponse { line: Some(line), job: None }
}

pub(crate) fn queue(status: QueueStatus) -> pb::Queue {
    let waiting = status.waiting.into_iter().map(|(id, name, reason)| pb::WaitingJob {
        id: id.to_string(),
        name,
        reason: Some((&reason).into()),
    });
    pb::Queue {
        name: status.spec.name.clone(),
        weight: status.spec.weight,
        discipline: status.spec.discipline().to_owned(),
        guaranteed: limits(&status.spec.guaranteed),
        quota: limits(&status.spec.quota),
        held: limits(&status.held),
        share: status.share,
        running: status.running,
        length: status.length,
        waiting: waiting.collect(),
        from_api: status.from_api,
    }
}

fn limits(limits: &Limits) -> BTreeMap<String, f64> {
    limits.named().map(|(kind, amount)| (kind.to_owned(), as_number(kind == "memory", amount))).collect()
}

fn as_number(in_bytes: bool, amount: u64) -> f64 {
    if in_bytes { amount as f64 } else { amount as f64 / MILLI }
}

pub(crate) fn point(job: JobId, row: PointRow) -> pb::JobMetricsResponse {
    let point = pb::MetricPoint {
        job: job.to_string(),
        attempt: row.attempt as i32,
        rank: row.rank as i32,
        step: row.step,
        time: Some(timestamp(row.time)),
        metrics: row.metrics,
        seq: row.seq,
    };
    pb::JobMetricsResponse { point: Some(point), job: None }
}

pub(crate) fn node(status: &NodeStatus) -> pb::Node {
    let capacity = &status.capacity;
    let resources: BTreeMap<_, _> = capacity
        .custom
        .iter()
        .map(|(name, &total)| {
            let free = status.custom_free.get(name).copied().unwrap_or(0);
            (name.clone(), amount(total as f64 / MILLI, free as f64 / MILLI))
        })
        .collect();
    let gpus = status.devices.iter().map(|held| pb::Gpu {
        index: held.device.index as i32,
        uuid: held.device.uuid.clone(),
        name: held.device.name.clone(),
        memory_total: held.device.memory_bytes,
        memory_used: held.memory_used_bytes,
        utilization: held.utilization,
        free: f64::from(held.free_shares) / MILLI,
    });
    pb::Node {
        name: status.name.to_string(),
        state: pb::node::State::from(status.state) as i32,
        cpus: Some(amount(capacity.cpus.milli() as f64 / MILLI, status.cpus_free.milli() as f64 / MILLI)),
        memory: Some(amount(capacity.memory_bytes as f64, status.memory_free_bytes as f64)),
        gpus: gpus.collect(),
        labels: capacity.labels.clone(),
        resources,
    }
}

fn amount(total: f64, free: f64) -> pb::Amount {
    pb::Amount { total, free }
}

pub(crate) fn event(event: Event) -> pb::EventsResponse {
    let event = pb::Event {
        seq: event.seq,
        time: Some(timestamp(event.time)),
        actor: event.what.actor,
        action: event.what.action,
        target: event.what.target,
        text: event.what.text,
    };
    pb::EventsResponse { event: Some(event) }
}

pub(crate) fn service(status: Status) -> pb::StatusResponse {
    pb::StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: prost_types::Duration::try_from(status.uptime).ok(),
        jobs: status.jobs,
        data_dir: status.data_dir.to_string_lossy().into_owned(),
    }
}
