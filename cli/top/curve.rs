//! The curve of the selected job: its metric so far, in few numbers.

use crate::client::Client;
use phalanx_api::v1 as pb;
use tonic::Status;

/// Values that are kept; beyond it every second one is let go.
const VALUES: usize = 1024;
/// Points read at one look; a long job's curve is there after a few of them.
const POINTS_PER_LOOK: usize = 20_000;
/// The metrics worth showing, the first that the job reports; else its first by name.
const SHOWN: [&str; 4] = ["loss", "train/loss", "val/loss", "train_loss"];

/// A metric of a job over its reports.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    /// The metric's name.
    pub(super) metric: String,
    /// Its latest step and value.
    pub(super) last: Option<(u64, f64)>,
    /// Values in the order they came, evenly thinned.
    values: Vec<f64>,
    /// One of so many reports is kept.
    every: usize,
    skipped: usize,
}

impl Curve {
    /// Takes a report in.
    pub(super) fn push(&mut self, point: &pb::MetricPoint) {
        if self.metric.is_empty() {
            let named = SHOWN.iter().find(|name| point.metrics.contains_key(**name));
            let first = point.metrics.keys().next();
            let Some(name) = named.map(|name| (*name).to_owned()).or(first.cloned()) else { return };
            self.metric = name;
        }
        let Some(&value) = point.metrics.get(&self.metric) else { return };
        self.last = Some((point.step, value));
        self.skipped += 1;
        if self.skipped < self.every {
            return;
        }
        self.skipped = 0;
        self.values.push(value);
        if self.values.len() > VALUES {
            let mut place = 0;
            self.values.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.every = self.every.max(1) * 2;
        }
    }

    /// Heights from 0 to `height` for so many columns; none before there are two values to compare.
    pub(super) fn heights(&self, columns: usize, height: u64) -> Vec<Option<u64>> {
        heights(&self.values, columns, height)
    }
}

/// Values as heights from 0 to `height`, in at most so many columns: each shows the last value of its part. What is not
/// finite has no height.
pub(super) fn heights(values: &[f64], columns: usize, height: u64) -> Vec<Option<u64>> {
    let columns = columns.min(values.len());
    let shown: Vec<f64> =
        (1..=columns).map(|column| values[(column * values.len()).div_ceil(columns) - 1]).collect();
    let finite = || shown.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let span = if high > low { high - low } else { 1.0 };
    let place = |value: f64| value.is_finite().then(|| ((value - low) / span * height as f64).round() as u64);
    shown.into_iter().map(place).collect()
}

/// Reads the curve of one job at a time, from where it stopped.
#[derive(Debug, Default)]
pub(super) struct Follower {
    job: String,
    after_seq: u64,
    curve: Curve,
}

impl Follower {
    /// The curve of this job as of now.
    pub(super) async fn read(&mut self, client: &Client, job: &str) -> Result<&Curve, Status> {
        if self.job != job {
            *self = Follower { job: job.to_owned(), ..Follower::default() };
        }
        let request = pb::JobMetricsRequest {
            id: job.to_owned(),
            after_seq: self.after_seq,
            rank: Some(0),
            ..pb::JobMetricsRequest::default()
        };
        let mut points = client.jobs.clone().metrics(request).await?.into_inner();
        for _ in 0..POINTS_PER_LOOK {
            let Some(pb::JobMetricsResponse { point: Some(point), .. }) = points.message().await? else {
                break;
            };
            self.after_seq = point.seq;
            self.curve.push(&point);
        }
        Ok(&self.curve)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, metrics: &[(&str, f64)]) -> pb::MetricPoint {
        let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        pb::MetricPoint { step, metrics, ..pb::MetricPoint::default() }
    }

    #[test]
    fn a_loss_is_preferred_and_kept_to() {
        let mut curve = Curve::default();
        curve.push(&point(1, &[("accuracy", 0.5), ("loss", 2.0)]));
        curve.push(&point(2, &[("accuracy", 0.6)]));
        curve.push(&point(3, &[("loss", 1.0)]));
        assert_eq!((curve.metric.as_str(), curve.last), ("loss", Some((3, 1.0))));
        assert_eq!(curve.values, [2.0, 1.0]);
    }

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_shape() {
        let mut curve = Curve::default();
        (0..100_000).for_each(|step| curve.push(&point(step, &[("loss", step as f64)])));
        assert!(curve.values.len() <= VALUES && curve.values.len() > VALUES / 4, "{}", curve.values.len());
        assert!(curve.values.is_sorted());
        let heights = curve.heights(10, 8);
        assert_eq!((heights.len(), heights[0], heights[9]), (10, Some(0), Some(8)));
        assert_eq!(curve.last, Some((99_999, 99_999.0)));
    }

    #[test]
    fn heights_leave_out_what_is_not_finite() {
        assert_eq!(heights(&[1.0, f64::NAN, 3.0], 8, 4), [Some(0), None, Some(4)]);
        assert_eq!(heights(&[2.0, 2.0], 8, 4), [Some(0), Some(0)]);
        assert!(heights(&[], 8, 4).is_empty());
        assert_eq!(heights(&[f64::NAN], 8, 4), [None]);
    }
}
