//! `check`: a file's problems, all at once, without running anything.

use crate::args::Global;
use crate::client::Route;
use crate::failure::{Failure, INFEASIBLE, USAGE};
use crate::file::JobFile;
use crate::machine::{NodeArgs, node_name};
use crate::output::Output;
use crate::submit;
use clap::Args;
use phalanx_api::v1 as pb;
use phalanx_core::spec::{Stopping, SweepSpec};
use phalanx_core::{JobId, JobSpec, Problems, Time};
use phalanx_scheduler::{Bundle, Cluster, Pending, Queue};
use phalanx_tuner::budget::{Budget, budget};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  phalanx check job.toml                          every problem, with its line
  phalanx check job.toml --set gang.workers=64    as it would be with a key changed
  phalanx check sweep.toml                        how large a sweep's space is, and what it may cost
  phalanx check job.toml --plan                   and what would be placed where, or why it would wait

Without a service --plan looks at this machine alone, as `run` would use it.")]
pub(crate) struct CheckArgs {
    /// The job or sweep file; `-` is stdin
    file: PathBuf,
    /// Ask the service too (without one, this machine): what would be placed where
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
            valid["sweep"] = Extent::of(sweep).document();
        }
        if let Some(planned) = planned {
            valid["plan"] = planned.json();
        }
        return output.document(&valid);
    }
    output.line(&match &spec {
        Checked::Job(job) => format!("{} is a valid job{}", file.shown, summary(job)),
        Checked::Sweep(sweep) => {
            format!("{} is a valid sweep: {}, {}", file.shown, sweep.name, Extent::of(sweep))
        }
    })?;
    planned.map_or(Ok(()), |planned| output.line(&planned.told()))
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
struct Extent {
    trials: Option<u64>,
    /// Combinations of the parameters that have a number of values.
    points: u64,
    /// Parameters that have no number of values.
    continuous: usize,
    varied: usize,
    /// Of all trials together, where the file says how many a trial has.
    steps: Option<Budget>,
    /// Whether a rule may end trials early.
    stops_early: bool,
}

impl Extent {
    fn of(sweep: &SweepSpec) -> Extent {
        let counts: Vec<Option<u64>> = sweep.params.iter().map(|param| param.domain.count()).collect();
        let trials = match (sweep.trials, sweep.grid_size()) {
            (Some(trials), Some(grid)) => Some(trials.min(grid)),
            (trials, grid) => trials.or(grid),
        };
        Extent {
            trials,
            points: counts.iter().flatten().fold(1, |points: u64, count| points.saturating_mul(*count)),
            continuous: counts.iter().filter(|count| count.is_none()).count(),
            varied: counts.iter().filter(|count| **count != Some(1)).count(),
            steps: trials.and_then(|trials| budget(sweep, trials)),
            // Several objectives have no order in which trials could be judged.
            stops_early: sweep.objectives.len() == 1
                && !matches!(sweep.stopping, Stopping::None | Stopping::Plateau { .. }),
        }
    }

    fn document(&self) -> Value {
        json!({
            "trials": self.trials,
            "points": (self.continuous == 0).then_some(self.points),
            "continuous": self.continuous,
            "max_steps": self.steps.map(|steps| steps.most),
            "expected_steps": self.steps.map(|steps| steps.expected),
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.trials {
            Some(trials) => write!(f, "{trials} trials")?,
            None => write!(f, "trials until it ends by itself")?,
        }
        let noun = if self.varied == 1 { "parameter" } else { "parameters" };
        match (self.continuous, self.points) {
            (continuous, _) if continuous > 0 && continuous == self.varied => {
                write!(f, " over {continuous} continuous {noun}")?
            }
            (0, points) => write!(f, " over {} {noun} with {points} combinations", self.varied)?,
            (1, points) => {
                write!(f, " over {} {noun} with {points} combinations and a continuous one", self.varied)?;
            }
            (continuous, points) => {
                let varied = self.varied;
                write!(
                    f,
                    " over {varied} {noun} with {points} combinations and {continuous} continuous ones"
                )?;
            }
        }
        match (self.steps, self.stops_early) {
            (Some(Budget { most, expected }), _) if most == expected => write!(f, "; {most} steps in all"),
            (Some(Budget { most, expected }), _) => {
                write!(f, "; about {expected} steps of the {most} that all trials would take to their ends")
            }
            (None, true) => write!(f, "; all run to their ends but those that `[stopping]` stops"),
            (None, false) => write!(f, "; all run to their ends"),
        }
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

/// What would come of a job if it were submitted now.
struct Planned {
    code: String,
    text: String,
    placement: Vec<pb::RankPlacement>,
}

/// Asks the service what would be placed where; without one, what this machine has.
async fn plan(global: &Global, file: &JobFile, spec: &JobSpec) -> Result<Planned, Failure> {
    let Some(route) = Route::to_service(global)? else { return plan_here(spec) };
    let client = route.connect().await?;
    if file.is_sweep() {
        submit::validate_sweep(&client, file).await?;
        let (code, text) = ("placeable".to_owned(), "a trial can be placed".to_owned());
        return Ok(Planned { code, text, placement: Vec::new() });
    }
    let job = submit::validate(&client, file).await?;
    let reason = job.reason.unwrap_or_default();
    Ok(Planned { code: reason.code, text: reason.text, placement: job.placement })
}

/// What an empty machine like this one would make of it.
fn plan_here(spec: &JobSpec) -> Result<Planned, Failure> {
    let (job, mut cluster, mut queue) = (JobId(1), Cluster::new(), Queue::new());
    cluster.set_node(node_name(), NodeArgs::default().capacity(BTreeMap::new()));
    let infeasible = |reason: phalanx_scheduler::Reason| Failure::new(INFEASIBLE, reason.text);
    phalanx_scheduler::check(&cluster, &spec.gang).map_err(infeasible)?;
    queue.insert(Pending::new(job, Time::ZERO, 1, spec.gang.clone()));
    let placed = phalanx_scheduler::plan(Time::ZERO, &mut cluster, &mut queue).placements.pop();
    let rank = |bundle: &Bundle| pb::RankPlacement {
        rank: bundle.rank as i32,
        node: bundle.node.to_string(),
        gpus: bundle.gpus.iter().map(|share| share.index as i32).collect(),
    };
    let placement = placed.map(|(_, bundles)| bundles.iter().map(rank).collect()).unwrap_or_default();
    let text = "would start at once on this machine; no service runs".to_owned();
    Ok(Planned { code: "would_start".to_owned(), text, placement })
}

impl Planned {
    fn json(&self) -> Value {
        let ranks = self
            .placement
            .iter()
            .map(|rank| json!({ "rank": rank.rank, "node": rank.node, "gpus": rank.gpus }));
        json!({ "reason": { "code": self.code, "text": self.text }, "placement": ranks.collect::<Vec<_>>() })
    }

    /// In words, a line a node.
    fn told(&self) -> String {
        let mut nodes: BTreeMap<&str, (Vec<i32>, Vec<i32>)> = BTreeMap::new();
        for rank in &self.placement {
            let (ranks, gpus) = nodes.entry(&rank.node).or_default();
            ranks.push(rank.rank);
            gpus.extend(&rank.gpus);
        }
        let mut text = self.text.clone();
        for (node, (ranks, gpus)) in nodes {
            let list = |numbers: &[i32]| numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
            let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
            text.push_str(&format!("\n  {node}: {noun} {}", list(&ranks)));
            if !gpus.is_empty() {
                text.push_str(&format!(" on GPU {}", list(&gpus)));
            }
        }
        text
    }
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
