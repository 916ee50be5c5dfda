//! `check`: a file's problems, all at once, without running anything.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, USAGE};
use crate::file::JobFile;
use crate::output::Output;
use crate::submit;
use clap::Args;
use phalanx_core::spec::{Stopping, SweepSpec};
use phalanx_core::{JobSpec, Problems};
use serde_json::{Value, json};
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx check job.toml                          every problem, with its line
  phalanx check job.toml --set gang.workers=64    as it would be with a key changed
  phalanx check sweep.toml                        how large a sweep's space is, and what it may cost
  phalanx check job.toml --plan                   and whether the cluster could ever place it")]
pub(crate) struct CheckArgs {
    /// The job or sweep file; `-` is stdin
    file: PathBuf,
    /// Ask the service too: what would be placed where
    #[arg(long)]
    plan: bool,
}

/// Runs it.
pub(crate) async fn run(global: &Global, args: &CheckArgs, output: &Output) -> Result<(), Failure> {
    let file = JobFile::read(&args.file, global)?;
    let checked = match file.is_sweep() {
        true => file.problems_of_sweep().map(|sweep| Checked::Sweep(Box::new(sweep))),
        false => file.problems_of_job().map(|job| Checked::Job(Box::new(job))),
    };
    let spec = match checked {
        Ok(spec) => spec,
        Err(problems) if output.json => {
            output.document(&document(false, &problems, &file))?;
            return Err(Failure::new(USAGE, ""));
        }
        Err(problems) => return Err(file.refused(&problems)),
    };
    let planned = match (spec.job(), args.plan) {
        (Some(job), true) => Some(plan(global, &file, job).await?),
        _ => None,
    };
    if output.json {
        let mut valid = document(true, &Problems::default(), &file);
        if let Checked::Sweep(sweep) = &spec {
            valid["sweep"] = Budget::of(sweep).document();
        }
        if let Some(planned) = planned {
            valid["plan"] = Value::from(planned);
        }
        return output.document(&valid);
    }
    output.line(&match &spec {
        Checked::Job(job) => format!("{} is a valid job{}", file.shown, summary(job)),
        Checked::Sweep(sweep) => {
            format!("{} is a valid sweep: {}, {}", file.shown, sweep.name, Budget::of(sweep))
        }
    })?;
    planned.map_or(Ok(()), |planned| output.line(&planned))
}

/// What a file turned out to be.
enum Checked {
    Job(Box<JobSpec>),
    Sweep(Box<SweepSpec>),
}

impl Checked {
    /// The job, or that of a trial.
    fn job(&self) -> Option<&JobSpec> {
        match self {
            Checked::Job(job) => Some(job),
            Checked::Sweep(sweep) => sweep.job.as_ref(),
        }
    }
}

/// How large a sweep's space is, and what searching it costs.
struct Budget {
    trials: Option<u64>,
    /// Combinations of the parameters that have a number of values.
    points: u64,
    /// Parameters that have no number of values.
    continuous: usize,
    varied: usize,
    /// Steps if every trial went to the last rung, and if each rung let one in `eta` go on.
    steps: Option<(u64, u64)>,
}

impl Budget {
    fn of(sweep: &SweepSpec) -> Budget {
        let counts: Vec<Option<u64>> = sweep.params.iter().map(|param| param.domain.count()).collect();
        let trials = match (sweep.trials, sweep.grid_size()) {
            (Some(trials), Some(grid)) => Some(trials.min(grid)),
            (trials, grid) => trials.or(grid),
        };
        let halving = match &sweep.stopping {
            Stopping::Asha(halving) => Some(halving),
            _ => None,
        };
        let steps = trials.zip(halving).map(|(trials, halving)| {
            let rungs = std::iter::successors(Some(halving.min), |rung| rung.checked_mul(halving.eta));
            let mut expected = 0;
            let (mut left, mut before) = (trials, 0);
            for rung in rungs.take_while(|rung| *rung <= halving.max) {
                expected += left * (rung - before);
                (left, before) = (left / halving.eta, rung);
            }
            (trials.saturating_mul(halving.max), expected)
        });
        Budget {
            trials,
            points: counts.iter().flatten().fold(1, |points: u64, count| points.saturating_mul(*count)),
            continuous: counts.iter().filter(|count| count.is_none()).count(),
            varied: counts.iter().filter(|count| **count != Some(1)).count(),
            steps,
        }
    }

    fn document(&self) -> Value {
        json!({
            "trials": self.trials,
            "points": (self.continuous == 0).then_some(self.points),
            "continuous": self.continuous,
            "max_steps": self.steps.map(|(most, _)| most),
            "expected_steps": self.steps.map(|(_, expected)| expected),
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.trials {
            Some(trials) => write!(f, "{trials} trials")?,
            None => write!(f, "trials until it ends by itself")?,
        }
        let noun = if self.varied == 1 { "parameter" } else { "parameters" };
        write!(f, " over {} {noun} ", self.varied)?;
        match (self.continuous, self.points) {
            (0, points) => write!(f, "with {points} combinations")?,
            (1, points) => write!(f, "with {points} combinations and a continuous one")?,
            (continuous, points) => write!(f, "with {points} combinations and {continuous} continuous ones")?,
        }
        if let Some((most, expected)) = self.steps {
            write!(f, "; about {expected} steps of the {most} that all trials would take to the last rung")?;
        }
        Ok(())
    }
}

fn summary(spec: &JobSpec) -> String {
    let workers = spec.gang.workers;
    let count = if workers.min == workers.max {
        workers.max.to_string()
    } else {
        format!("{} to {}", workers.min, workers.max)
    };
    let noun = if workers.max == 1 { "worker" } else { "workers" };
    format!(": {}, {count} {noun} of {}", spec.name, spec.gang.each)
}

/// Asks the service whether its cluster could ever place it.
async fn plan(global: &Global, file: &JobFile, spec: &JobSpec) -> Result<String, Failure> {
    let client = Route::to_live_service(global)?.connect().await?;
    match file.is_sweep() {
        true => drop(submit::validate_sweep(&client, file).await?),
        false => drop(submit::validate(&client, file).await?),
    }
    let (workers, nodes) =
        (spec.gang.workers.min, client.cluster.clone().nodes(phalanx_api::v1::NodesRequest {}).await?);
    Ok(format!(
        "{workers} × ({}) can be placed on {} node(s)",
        spec.gang.each,
        nodes.into_inner().nodes.len()
    ))
}

fn document(valid: bool, problems: &Problems, file: &JobFile) -> Value {
    let problems = problems.0.iter().map(|problem| {
        let place = problem.place(&file.text);
        json!({
            "message": problem.message,
            "line": place.map(|(line, _)| line),
            "column": place.map(|(_, column)| column),
            "help": problem.help,
        })
    });
    json!({ "file": file.shown, "valid": valid, "problems": problems.collect::<Vec<_>>() })
}
