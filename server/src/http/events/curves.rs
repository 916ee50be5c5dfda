//! Points of metrics as curves: columns for each series, thinned out where they are too many to draw.

use crate::downsample::{Sample, Series};
use futures_util::{Stream, StreamExt};
use phalanx_api::json::number;
use phalanx_core::JobId;
use phalanx_runtime::Error;
use phalanx_runtime::service::{Handle, PointBatch, Query};
use phalanx_runtime::store::PointRow;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Series of one job that are drawn; the rest is left out and that is said.
const SERIES: usize = 1_000;
/// How long points are gathered before they are told: together they cost a page one redrawing.
const GATHER: Duration = Duration::from_millis(80);
const MICROS: f64 = 1e6;

/// Which series: attempt, rank and the metric's name.
type Key = (u32, u32, String);

/// Points of one job, by series.
#[derive(Debug, Default)]
pub(super) struct Curves {
    series: BTreeMap<Key, Series>,
    /// The number of the last point in it.
    pub(super) last_seq: u64,
    left_out: bool,
}

impl Curves {
    fn push(&mut self, row: PointRow, points: usize) {
        self.last_seq = row.seq;
        for (name, value) in row.metrics {
            let key = (row.attempt, row.rank, name);
            if !self.series.contains_key(&key) && self.series.len() >= SERIES {
                self.left_out = true;
                continue;
            }
            let time = row.time.as_micros() as f64 / MICROS;
            let series = self.series.entry(key).or_insert_with(|| Series::new(points));
            series.push(Sample { step: row.step, time, value });
        }
    }

    /// As a page reads it; `reset` says that it replaces what was there.
    pub(super) fn document(&self, job: JobId, reset: bool) -> Value {
        let series = self.series.iter().map(|((attempt, rank, name), series)| {
            let samples = series.samples();
            json!({
                "attempt": attempt,
                "rank": rank,
                "metric": name,
                "step": samples.iter().map(|sample| sample.step).collect::<Vec<_>>(),
                "value": samples.iter().map(|sample| number(sample.value)).collect::<Vec<_>>(),
                "time": samples.iter().map(|sample| number(sample.time)).collect::<Vec<_>>(),
                "points": series.count(),
            })
        });
        json!({
            "job": job.to_string(),
            "seq": self.last_seq,
            "reset": reset,
            "series": series.collect::<Vec<_>>(),
            "left_out": self.left_out,
        })
    }
}

/// All curves of a job after a point, as one document.
pub(in super::super) async fn curves(
    handle: &Handle,
    id: JobId,
    after_seq: u64,
    points: usize,
) -> Result<Value, Error> {
    let mut curves = Curves { last_seq: after_seq, ..Curves::default() };
    let mut batches = handle.metrics(id, Query { after_seq, ..Query::default() });
    while let Some(batch) = batches.next().await {
        batch?.into_iter().for_each(|row| curves.push(row, points));
    }
    Ok(curves.document(id, true))
}

/// A stream of points, in handfuls.
pub(super) struct Gather(Pin<Box<dyn Stream<Item = PointBatch> + Send>>);

impl Gather {
    pub(super) fn new(batches: impl Stream<Item = PointBatch> + Send + 'static) -> Gather {
        Gather(Box::pin(batches))
    }

    /// Waits for points, takes those that follow at once, and at least those up to the number `through`.
    pub(super) async fn next(&mut self, points: usize, through: u64) -> Option<Result<Curves, Error>> {
        let mut curves = Curves::default();
        let mut batch = self.0.next().await?;
        let deadline = Instant::now() + GATHER;
        loop {
            match batch {
                Ok(rows) => rows.into_iter().for_each(|row| curves.push(row, points)),
                Err(error) => return Some(Err(error)),
            }
            let more = match curves.last_seq < through {
                true => Ok(self.0.next().await),
                false => timeout_at(deadline, self.0.next()).await,
            };
            match more {
                Ok(Some(next)) => batch = next,
                // The end is found again by the next call.
                Ok(None) | Err(_) => return Some(Ok(curves)),
            }
        }
    }
}
