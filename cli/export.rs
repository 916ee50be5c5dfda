//! `export`: what a job's ranks reported, as files that other programs read.

mod csv;
mod events;
mod file;
mod frame;
mod parquet;
mod tensorboard;
mod trials;

use crate::args::Global;
use crate::client::{Client, Route};
use crate::failure::Failure;
use crate::follow::{Points, Rows, follow};
use crate::output::Output;
use crate::sweep;
use clap::{Args, ValueEnum};
use clap_complete::ArgValueCompleter;
use frame::{Frame, MetricRows};
use phalanx_api::v1 as pb;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx export j12 --to csv results            results/metrics.csv
  phalanx export j12 --to parquet results        results/metrics.parquet
  phalanx export j12 --to tensorboard runs       runs/j12; `tensorboard --logdir runs` shows it
  phalanx export s3 --to csv results             of every trial, and results/trials.csv with their parameters
  phalanx export s3 --to tensorboard runs        runs/trial-0000, runs/trial-0001, …

Tables are in long form, a row a value: job, attempt, rank, step, time, metric, value.
What still runs is exported as it is now.")]
pub(crate) struct ExportArgs {
    /// The id of a job, a trial or a sweep
    #[arg(add = ArgValueCompleter::new(crate::completions::ids))]
    id: String,
    /// The form of the files
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Format,
    /// The folder to write to; made where it is missing
    dir: PathBuf,
}

/// What others read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Event files, a folder per job
    Tensorboard,
    /// Comma-separated values
    Csv,
    /// Parquet
    Parquet,
}

/// A job whose points are exported.
struct Run {
    /// Its id.
    job: String,
    /// What its folder is called.
    name: String,
    /// When it was made.
    begin: Option<prost_types::Timestamp>,
}

/// Where points go.
trait Sink {
    /// The points of this run follow.
    fn begin(&mut self, run: &Run) -> Result<(), Failure>;

    /// A point of that run.
    fn point(&mut self, point: &pb::MetricPoint) -> Result<(), Failure>;

    /// All is there: puts the files in their places and names them.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Failure>;
}

/// A file that holds one table.
trait TableFile {
    /// Adds rows; the columns are always the same ones.
    fn write(&mut self, frame: &Frame) -> Result<(), Failure>;

    /// Puts the file in its place and names it.
    fn finish(self: Box<Self>) -> Result<PathBuf, Failure>;
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &ExportArgs, output: &Output) -> Result<(), Failure> {
    let route = Route::to_records(global).await?;
    let client = route.connect().await?;
    let (runs, trials) = runs(&client, &args.id).await?;
    std::fs::create_dir_all(&args.dir).map_err(|error| cannot_write(&args.dir, &error))?;
    let mut sink: Box<dyn Sink> = match args.to {
        Format::Tensorboard => Box::new(tensorboard::Runs::new(&args.dir)),
        table => Box::new(Metrics::create(table, &args.dir)?),
    };
    let mut points: u64 = 0;
    for run in &runs {
        sink.begin(run)?;
        let hear = async |point: pb::MetricPoint| {
            points += 1;
            sink.point(&point)
        };
        let rows = Rows { id: run.job.clone(), ..Rows::default() };
        follow(&route, output, &mut Points { rows, hear }).await?;
    }
    let mut files = sink.finish()?;
    if let Some(trials) = trials.filter(|_| args.to != Format::Tensorboard) {
        let mut file = table_file(args.to, &args.dir, "trials", &trials)?;
        file.write(&trials)?;
        files.push(file.finish()?);
    }
    if output.json {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        return output.document(&json!({ "id": args.id, "points": points, "files": files }));
    }
    output.say(&format!("phalanx: {points} points of {}", args.id));
    files.iter().try_for_each(|file| output.line(&file.display().to_string()))
}

/// The runs behind an id, and the table of trials where it is a sweep's.
async fn runs(client: &Client, id: &str) -> Result<(Vec<Run>, Option<Frame>), Failure> {
    if !sweep::is_sweep_id(id) {
        let job = client.job(id).await?;
        return Ok((vec![Run { name: job.id.clone(), job: job.id, begin: job.submit_time }], None));
    }
    let (sweep, trials) = (sweep::get(client, id).await?, sweep::trials(client, id).await?);
    // A trial that has not been handed out, or runs elsewhere, has no job.
    let with_job = trials.iter().filter(|trial| !trial.job.is_empty());
    let runs = with_job.map(|trial| Run {
        job: trial.job.clone(),
        name: format!("trial-{:04}", trial.number),
        begin: trial.start_time.or(sweep.submit_time),
    });
    Ok((runs.collect(), Some(trials::frame(&sweep, &trials))))
}

/// The points as one table in long form.
struct Metrics {
    file: Box<dyn TableFile>,
    rows: MetricRows,
}

impl Metrics {
    fn create(format: Format, dir: &Path) -> Result<Metrics, Failure> {
        let file = table_file(format, dir, "metrics", &MetricRows::default().frame())?;
        Ok(Metrics { file, rows: MetricRows::default() })
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.file.write(&self.rows.take())
    }
}

impl Sink for Metrics {
    fn begin(&mut self, _: &Run) -> Result<(), Failure> {
        Ok(())
    }

    fn point(&mut self, point: &pb::MetricPoint) -> Result<(), Failure> {
        self.rows.push(point);
        if self.rows.is_full() { self.flush() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<PathBuf>, Failure> {
        self.flush()?;
        Ok(vec![self.file.finish()?])
    }
}

/// A table of this name in the folder, with the columns of `frame`.
fn table_file(format: Format, dir: &Path, name: &str, frame: &Frame) -> Result<Box<dyn TableFile>, Failure> {
    match format {
        Format::Parquet => {
            Ok(Box::new(parquet::ParquetFile::create(&dir.join(format!("{name}.parquet")), frame)?))
        }
        Format::Csv | Format::Tensorboard => {
            Ok(Box::new(csv::CsvFile::create(&dir.join(format!("{name}.csv")), frame)?))
        }
    }
}

fn cannot_write(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
}
