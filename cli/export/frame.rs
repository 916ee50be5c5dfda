//! Rows of a table, column by column: what the file formats have in common.

use phalanx_api::{time_of, v1 as pb};
use phalanx_core::Time;
use std::sync::Arc;

/// Rows that are written at a time: a row group of Parquet.
const ROWS: usize = 1 << 17;

/// Some rows of a table.
#[derive(Clone, Debug)]
pub(super) struct Frame(pub(super) Vec<Column>);

/// A column of some rows.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Its head.
    pub(super) name: String,
    /// Its cells, one a row.
    pub(super) cells: Cells,
}

/// The cells of a column; `None` is an empty one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cells {
    /// Text.
    Text(Vec<Option<Arc<str>>>),
    /// Whole numbers.
    Int(Vec<Option<i64>>),
    /// Whole numbers that may take all 64 bits.
    Count(Vec<Option<u64>>),
    /// Numbers.
    Float(Vec<Option<f64>>),
    /// Points in time.
    Time(Vec<Option<Time>>),
}

impl Frame {
    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.0.first().map_or(0, |column| column.cells.len())
    }
}

impl Cells {
    fn len(&self) -> usize {
        match self {
            Cells::Text(cells) => cells.len(),
            Cells::Int(cells) => cells.len(),
            Cells::Count(cells) => cells.len(),
            Cells::Float(cells) => cells.len(),
            Cells::Time(cells) => cells.len(),
        }
    }
}

/// Points of metrics in long form: a row a value.
#[derive(Debug, Default)]
pub(super) struct MetricRows {
    job: Vec<Option<Arc<str>>>,
    attempt: Vec<Option<i64>>,
    rank: Vec<Option<i64>>,
    step: Vec<Option<u64>>,
    time: Vec<Option<Time>>,
    metric: Vec<Option<Arc<str>>>,
    value: Vec<Option<f64>>,
}

impl MetricRows {
    /// Adds every value of a point.
    pub(super) fn push(&mut self, point: &pb::MetricPoint) {
        let (job, time) = (Arc::from(point.job.as_str()), point.time.as_ref().map(time_of));
        for (name, &value) in &point.metrics {
            self.job.push(Some(Arc::clone(&job)));
            self.attempt.push(Some(point.attempt.into()));
            self.rank.push(Some(point.rank.into()));
            self.step.push(Some(point.step));
            self.time.push(time);
            self.metric.push(Some(Arc::from(name.as_str())));
            self.value.push(Some(value));
        }
    }

    /// Whether it is time to write them.
    pub(super) fn is_full(&self) -> bool {
        self.value.len() >= ROWS
    }

    /// The rows, of which none are left here.
    pub(super) fn take(&mut self) -> Frame {
        std::mem::take(self).frame()
    }

    /// The rows as a table.
    pub(super) fn frame(self) -> Frame {
        let column = |name: &str, cells| Column { name: name.to_owned(), cells };
        Frame(vec![
            column("job", Cells::Text(self.job)),
            column("attempt", Cells::Int(self.attempt)),
            column("rank", Cells::Int(self.rank)),
            column("step", Cells::Count(self.step)),
            column("time", Cells::Time(self.time)),
            column("metric", Cells::Text(self.metric)),
            column("value", Cells::Float(self.value)),
        ])
    }
}
