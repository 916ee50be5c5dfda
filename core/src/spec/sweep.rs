//! A sweep: a job file whose strings mention parameters, and how their values are searched.

use super::job::{self, JobSpec, MetricMode};
use super::params::{self, Domain, ParamSpec, ParamValue, Params};
use super::reader::{Sink, Table};
use super::search::{self, Search, Stopping};
use super::template::{self, Values};
use crate::diagnostic::{Problem, Problems};
use crate::id::SweepId;
use crate::limits::{SPEC_FILE_BYTES, SWEEP_CONSTRAINTS, SWEEP_LEARNS_FROM, SWEEP_OBJECTIVES, SWEEP_TRIALS};
use crate::report::check_metric_name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The tables that make a job file a sweep.
pub(super) const SWEEP_KEYS: [&str; 7] =
    ["sweep", "search", "stopping", "params", "enqueue", "objective", "constraint"];
/// Most trial jobs that reading a sweep tries out: the corners of the space, every choice once.
const TRIED_JOBS: u64 = 64;

/// What a sweep improves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// The metric that trials report.
    pub metric: String,
    /// Which direction is better.
    pub mode: MetricMode,
    /// The sweep may end once a trial is this good.
    pub target: Option<f64>,
    /// The worst value that counts in the hypervolume of a front; where it is `None`, the worst one seen.
    #[serde(default)]
    pub reference: Option<f64>,
}

/// What a trial has to keep to be feasible: its last report of a metric lies within bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    /// The metric that trials report.
    pub metric: String,
    /// The least that is allowed.
    pub min: Option<f64>,
    /// The most that is allowed.
    pub max: Option<f64>,
}

impl Constraint {
    /// By how much a value is outside of the bounds: 0 or less within, infinite for what is not a number.
    pub fn excess(&self, value: f64) -> f64 {
        if value.is_nan() {
            return f64::INFINITY;
        }
        let above = self.max.map_or(f64::NEG_INFINITY, |max| value - max);
        let below = self.min.map_or(f64::NEG_INFINITY, |min| min - value);
        above.max(below)
    }
}

/// A valid sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepSpec {
    /// What people call it.
    pub name: String,
    /// What it improves; one, or several of equal weight.
    pub objectives: Vec<Objective>,
    /// What its best trials have to keep.
    pub constraints: Vec<Constraint>,
    /// How many trials there are at most; `None` where the search or its driver ends it.
    pub trials: Option<u64>,
    /// How many run at once; `None` as many as resources allow.
    pub concurrency: Option<u32>,
    /// Seeds every random choice.
    pub seed: u64,
    /// It ends when more trials than this have failed.
    pub max_failed_trials: Option<u64>,
    /// It ends so long after its first trial has started.
    pub time_limit: Option<Duration>,
    /// What proposes parameters.
    pub search: Search,
    /// Which trials stop early.
    pub stopping: Stopping,
    /// The parameters, parents before those that depend on them.
    pub params: Vec<ParamSpec>,
    /// Points to try first, maybe in part; in the parameters' own forms.
    pub enqueue: Vec<Params>,
    /// Older sweeps of the same service whose complete trials the search begins with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learn_from: Vec<SweepId>,
    /// The job of a trial at one point of the space, where the file says what to run: name, queue, gang and all else
    /// that parameters cannot reach are every trial's.
    pub job: Option<JobSpec>,
    /// The file.
    source: String,
    default_name: String,
}

/// Whether a file is a sweep: it has a `[sweep]` table. `false` for what is no TOML at all.
pub fn is_sweep(text: &str) -> bool {
    if text.len() > SPEC_FILE_BYTES {
        return false;
    }
    let (document, _) = DeTable::parse_recoverable(text);
    sweep_table(&document).is_some()
}

/// The `[sweep]` table of a document.
pub(super) fn sweep_table<'a>(document: &'a Spanned<DeTable<'_>>) -> Option<&'a Spanned<DeValue<'a>>> {
    let value = document.get_ref().get("sweep")?;
    matches!(value.get_ref(), DeValue::Table(_)).then_some(value)
}

impl SweepSpec {
    /// Reads and checks a sweep file for `study` and `replay`, where nothing to run need be said. On failure every
    /// problem is told.
    pub fn parse(text: &str, default_name: &str) -> Result<SweepSpec, Problems> {
        Self::read(text, default_name, false)
    }

    /// The same for a sweep whose trials are jobs: a program or the trainer, a metric and an end have to be there.
    pub fn parse_runnable(text: &str, default_name: &str) -> Result<SweepSpec, Problems> {
        Self::read(text, default_name, true)
    }

    fn read(text: &str, default_name: &str, runnable: bool) -> Result<SweepSpec, Problems> {
        let document = job::parse_document(text, SPEC_FILE_BYTES)?;
        let sink = Sink::default();
        let root = Table::root(&document, &sink);
        let mut spec = read_sweep(&root, default_name, runnable);
        spec.source = text.to_owned();
        let has_work = ["program", "train"].iter().any(|key| document.get_ref().get(*key).is_some());
        let mut problems = sink.into_problems();
        if has_work || runnable {
            spec.job = try_jobs(text, &spec, &written_names(&document), &mut problems);
        } else {
            let sink = Sink::default();
            job::read_frame(&Table::root(&document, &sink), default_name);
            problems.0.extend(sink.into_problems().0);
        }
        let mut seen: Vec<Problem> = Vec::new();
        problems.0.retain(|problem| {
            let new = !seen.contains(problem);
            if new {
                seen.push(problem.clone());
            }
            new
        });
        problems.into_result(Some(spec))
    }

    /// The job of a trial with these parameters.
    pub fn trial_job(&self, params: &Params) -> Result<JobSpec, Problems> {
        let names: Vec<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
        job_of(&self.source, &self.default_name, &names, params)
    }

    /// The parameters in their own forms: `1` of a float becomes `1.0`. What is no value of its parameter stays.
    pub fn canonical(&self, params: &Params) -> Params {
        let own = |name: &String, value: &ParamValue| {
            let param = self.params.iter().find(|param| param.name == *name);
            param.and_then(|param| param.domain.canonical(value)).unwrap_or_else(|| value.clone())
        };
        params.iter().map(|(name, value)| (name.clone(), own(name, value))).collect()
    }

    /// The file as the job of one trial: without what makes it a sweep, its parameters put in place.
    pub fn job_file(&self, params: &Params) -> Result<String, Problems> {
        self.trial_job(params)?;
        let mut file: toml_edit::DocumentMut =
            self.source.parse().map_err(|error: toml_edit::TomlError| {
                Problems::one(Problem { message: error.message().to_owned(), span: error.span(), help: None })
            })?;
        SWEEP_KEYS.iter().for_each(|key| drop(file.remove(key)));
        let names: Vec<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
        template::fill_file(&mut file, &Values::new(params, &names));
        if !params.is_empty() {
            let table = params.iter().map(|(name, value)| (name, value.to_edit()));
            file.insert("params", toml_edit::Item::Table(table.collect()));
        }
        Ok(file.to_string())
    }

    /// The file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How many points a grid search visits at most: inactive parameters make it fewer. `None` for other searches.
    pub fn grid_size(&self) -> Option<u64> {
        if self.search != Search::Grid {
            return None;
        }
        self.params.iter().try_fold(1_u64, |points, param| points.checked_mul(param.domain.count()?))
    }

    /// Whether it improves several metrics at once.
    pub fn has_several_objectives(&self) -> bool {
        self.objectives.len() > 1
    }
}

/// The names in `[params]`, those with problems of their own too.
fn written_names<'a>(document: &'a Spanned<DeTable<'_>>) -> Vec<&'a str> {
    match document.get_ref().get("params").map(Spanned::get_ref) {
        Some(DeValue::Table(table)) => table.keys().map(|key| key.get_ref().as_ref()).collect(),
        _ => Vec::new(),
    }
}

/// Tries the jobs of a few points, so that what parameters make of the file is checked before any trial starts.
fn try_jobs(text: &str, spec: &SweepSpec, names: &[&str], problems: &mut Problems) -> Option<JobSpec> {
    let longest = spec.params.iter().map(|param| match &param.domain {
        Domain::Choice { values } | Domain::Ordinal { values } => values.len() as u64,
        _ => 2,
    });
    let rounds = longest.max().unwrap_or(1).clamp(1, TRIED_JOBS);
    let mut first = None;
    for round in 0..rounds {
        match job_of(text, &spec.default_name, names, &corner(&spec.params, round)) {
            Ok(job) => first = first.or(Some(job)),
            Err(found) => problems.0.extend(found.0),
        }
    }
    first
}

fn corner(params: &[ParamSpec], round: u64) -> Params {
    let mut point = Params::new();
    for param in params {
        if !param.is_active(&point) {
            continue;
        }
        let value = match &param.domain {
            Domain::Float { high, step: None, .. } if round % 2 == 1 => ParamValue::Float(*high),
            Domain::Choice { values } | Domain::Ordinal { values } => {
                values[(round % values.len() as u64) as usize].clone()
            }
            domain => domain.nth(if round % 2 == 1 { domain.count().unwrap_or(1) - 1 } else { 0 }),
        };
        point.insert(param.name.clone(), value);
    }
    point
}

fn job_of(text: &str, default_name: &str, names: &[&str], params: &Params) -> Result<JobSpec, Problems> {
    let values = Values::new(params, names);
    let sink = Sink::default();
    let mut document = job::parse_document(text, SPEC_FILE_BYTES)?;
    template::fill(document.get_mut(), &values, &sink);
    let spec = job::read(&Table::root(&document, &sink), default_name, &SWEEP_KEYS);
    sink.into_problems().into_result(spec)
}

fn read_sweep(root: &Table<'_>, default_name: &str, runnable: bool) -> SweepSpec {
    let params = root.table("params").map(|table| params::read(&table)).unwrap_or_default();
    let search = root.table("search").map(search::read_search).unwrap_or_default();
    let stopping = root.table("stopping").map(search::read_stopping).unwrap_or_default();
    let enqueue = root.tables("enqueue").iter().map(|table| params::read_point(table, &params)).collect();
    let several = read_objectives(root);
    root.require("sweep", "[sweep]");
    let mut spec = SweepSpec {
        name: root.name().unwrap_or_else(|| default_name.to_owned()),
        objectives: Vec::new(),
        constraints: read_constraints(root),
        trials: None,
        concurrency: None,
        seed: 0,
        max_failed_trials: None,
        time_limit: None,
        search,
        stopping,
        params,
        enqueue,
        learn_from: Vec::new(),
        job: None,
        source: String::new(),
        default_name: default_name.to_owned(),
    };
    if let Some(table) = root.table("sweep") {
        read_head(table, several, runnable, &mut spec);
    }
    check_together(root, &spec);
    spec
}

fn read_head(table: Table<'_>, several: Vec<Objective>, runnable: bool, spec: &mut SweepSpec) {
    let metric = table.text("metric");
    let mode = table.word("mode", &MODES);
    let target = table.number("target", "a finite number", |_| true);
    if let Some(Err(problem)) = metric.as_deref().map(check_metric_name) {
        table.problem(table.span_of("metric"), problem);
    }
    if !several.is_empty() {
        for key in ["metric", "mode", "target"].into_iter().filter(|key| table.has(key)) {
            table.problem(
                table.span_of(key),
                format!("`sweep.{key}` stands beside [[objective]]; keep one of the two"),
            );
        }
        spec.objectives = several;
    } else {
        if runnable {
            table.require("metric", "metric = \"val/loss\"");
        }
        // Asked and told, the value has no need of a name.
        let metric = metric.unwrap_or_else(|| "value".to_owned());
        spec.objectives = vec![Objective { metric, mode: mode.unwrap_or_default(), target, reference: None }];
    }
    let count = |key, range| table.integer(key, range).map(|count| count as u64);
    spec.trials = count("trials", 1..=SWEEP_TRIALS);
    spec.concurrency = count("concurrency", 1..=i64::from(u32::MAX)).map(|count| count as u32);
    spec.seed = count("seed", 0..=i64::MAX).unwrap_or(0);
    spec.max_failed_trials = count("max_failed_trials", 0..=i64::MAX);
    spec.time_limit = table.duration("time_limit");
    if spec.time_limit.is_some_and(|limit| limit.is_zero()) {
        table.problem(table.span_of("time_limit"), "`sweep.time_limit` must be longer than nothing");
    }
    spec.learn_from = read_learn_from(&table);
    if runnable && spec.search != Search::Grid && !matches!(spec.stopping, Stopping::Plateau { .. }) {
        table.require("trials", "trials = 50");
    }
    table.finish();
}

fn read_learn_from(table: &Table<'_>) -> Vec<SweepId> {
    let names = table.texts("learn_from").unwrap_or_default();
    let span = || table.span_of("learn_from");
    if names.len() > SWEEP_LEARNS_FROM {
        table.problem(
            span(),
            format!("{} older sweeps; one learns from at most {SWEEP_LEARNS_FROM}", names.len()),
        );
    }
    let mut ids: Vec<SweepId> = Vec::new();
    for name in names {
        match name.parse() {
            Ok(id) if ids.contains(&id) => {
                table.problem(span(), format!("`sweep.learn_from` names {id} twice"));
            }
            Ok(id) => ids.push(id),
            Err(_) => {
                let message = format!("`sweep.learn_from` has \"{name}\", which is no sweep's id");
                table.problem_with_help(
                    span(),
                    message,
                    "`phalanx ps -a --sweeps` lists ids, such as \"s3\"",
                );
            }
        }
    }
    ids
}

const MODES: [(&str, MetricMode); 2] = [("min", MetricMode::Min), ("max", MetricMode::Max)];

fn read_objectives(root: &Table<'_>) -> Vec<Objective> {
    let tables = root.tables("objective");
    if tables.len() > SWEEP_OBJECTIVES {
        let message = format!("{} objectives; a sweep has at most {SWEEP_OBJECTIVES}", tables.len());
        root.problem(root.span_of("objective"), message);
    }
    let mut names = BTreeSet::new();
    let mut objectives = Vec::new();
    for table in tables {
        table.require("metric", "metric = \"val/loss\"");
        let metric = table.text("metric").unwrap_or_default();
        if table.has("metric") {
            if let Err(problem) = check_metric_name(&metric) {
                table.problem(table.span_of("metric"), problem);
            } else if !names.insert(metric.clone()) {
                table.problem(table.span_of("metric"), format!("the objective `{metric}` is there twice"));
            }
        }
        let mode = table.word("mode", &MODES).unwrap_or_default();
        let target = table.number("target", "a finite number", |_| true);
        let reference = table.number("reference", "a finite number", |_| true);
        table.finish();
        objectives.push(Objective { metric, mode, target, reference });
    }
    objectives
}

fn read_constraints(root: &Table<'_>) -> Vec<Constraint> {
    let tables = root.tables("constraint");
    if tables.len() > SWEEP_CONSTRAINTS {
        let message = format!("{} constraints; a sweep has at most {SWEEP_CONSTRAINTS}", tables.len());
        root.problem(root.span_of("constraint"), message);
    }
    let mut constraints: Vec<Constraint> = Vec::new();
    for table in tables {
        table.require("metric", "metric = \"latency_ms\"");
        let metric = table.text("metric").unwrap_or_default();
        if let Some(problem) = table.has("metric").then(|| check_metric_name(&metric).err()).flatten() {
            table.problem(table.span_of("metric"), problem);
        } else if constraints.iter().any(|other| other.metric == metric) {
            let message = format!("`{metric}` is constrained twice; give one table both `min` and `max`");
            table.problem(table.span_of("metric"), message);
        }
        let bound = |key| table.number(key, "a finite number", |_| true);
        let (min, max) = (bound("min"), bound("max"));
        if !table.has("min") && !table.has("max") {
            let message = "`constraint` has neither `min` nor `max`";
            table.problem_with_help(table.span(), message, "add `max = 10.0` or `min = 0.0`");
        }
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            table.problem(table.span_of("min"), format!("`constraint.min` is {min}, above `max` {max}"));
        }
        table.finish();
        constraints.push(Constraint { metric, min, max });
    }
    constraints
}

/// What each table allows and the tables together do not.
fn check_together(root: &Table<'_>, spec: &SweepSpec) {
    if spec.search == Search::Grid {
        let params = root.table("params");
        let span_of = |name: &str| params.as_ref().map_or_else(|| root.span(), |table| table.span_of(name));
        for param in spec.params.iter().filter(|param| param.domain.count().is_none()) {
            let message = format!("`{}` is continuous, and a grid has no end on it", param.name);
            root.problem_with_help(
                span_of(&param.name),
                message,
                "give it a `step`, or another `search.kind`",
            );
        }
    }
    if let Search::Pbt(population) = spec.search {
        if !matches!(spec.stopping, Stopping::None | Stopping::Plateau { .. }) {
            let message = "`pbt` decides by itself which trials go on, and so would early stopping";
            root.problem_with_help(root.span_of("stopping"), message, "use `kind = \"none\"`");
        }
        if let Some(trials) = spec.trials.filter(|trials| *trials < population.members) {
            let message = format!("{trials} trials are less than the {} members", population.members);
            let help = "a trial is one member over one interval; `trials` counts all of them";
            root.problem_with_help(root.span_of("search"), message, help);
        }
    }
    if spec.has_several_objectives() {
        if spec.stopping != Stopping::None {
            let message = "early stopping judges one metric, and this sweep has several objectives";
            root.problem_with_help(root.span_of("stopping"), message, "use `kind = \"none\"`");
        }
        if !spec.search.takes_several_objectives() {
            let message =
                format!("`search.kind = \"{}\"` improves one objective, not several", spec.search.as_str());
            root.problem_with_help(root.span_of("search"), message, "use `kind = \"auto\"`");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cutoff, Halving, HalvingMode, Work};
    use super::*;

    const CONTRACT: &str = r#"
version = 1
name = "digits"
[program]
command = ["python", "train.py", "--lr", "{lr}", "--opt={opt}", "--beta2={beta2}", "{{{epochs}}}"]
[sweep]
metric = "val/accuracy"
mode = "max"
trials = 50
concurrency = 8
seed = 7
max_failed_trials = 3
[search]
kind = "auto"
[stopping]
kind = "asha"
mode = "promote"
min = 1
max = 81
eta = 3
[params]
lr      = { kind = "float", low = 1e-5, high = 1e-1, log = true }
dropout = { kind = "float", low = 0.0, high = 0.5, step = 0.05 }
layers  = { kind = "int", low = 1, high = 8 }
beta2   = { kind = "float", low = 0.9, high = 0.999, when = { opt = "adamw" } }
opt     = { kind = "choice", values = ["sgd", "adamw"] }
batch   = { kind = "ordinal", values = [32, 64, 128] }
epochs  = 50
[[enqueue]]
lr = 1e-3
beta2 = 0.95
"#;

    fn problems(text: &str) -> String {
        SweepSpec::parse(text, "x").unwrap_err().render("s.toml", text)
    }

    /// The problems of a sweep with these lines behind the usual head.
    fn problems_of(lines: &str) -> String {
        problems(&format!("version = 1\n[sweep]\nmetric = \"m\"\ntrials = 3\n{lines}"))
    }

    #[test]
    fn the_contract_is_read() {
        let sweep = SweepSpec::parse_runnable(CONTRACT, "x").unwrap();
        assert_eq!(
            sweep.objectives,
            [Objective {
                metric: "val/accuracy".into(),
                mode: MetricMode::Max,
                target: None,
                reference: None
            }]
        );
        let asha = Halving { mode: HalvingMode::Promote, min: 1, max: 81, eta: 3, cutoff: Cutoff::default() };
        assert_eq!(sweep.stopping, Stopping::Asha(asha));
        let names: Vec<&str> = sweep.params.iter().map(|param| param.name.as_str()).collect();
        assert_eq!(names, ["lr", "dropout", "layers", "opt", "beta2", "batch", "epochs"]);
        // The parent that a point leaves out is settled by the child that it names.
        assert_eq!(sweep.enqueue[0]["opt"], ParamValue::Text("adamw".into()));
        assert!(is_sweep(CONTRACT));
        assert!(sweep.job.is_some());
    }

    #[test]
    fn strings_are_filled_and_arguments_of_absent_parameters_left_out() {
        let sweep = SweepSpec::parse(CONTRACT, "x").unwrap();
        let mut params = Params::from([
            ("lr".to_owned(), ParamValue::Float(1e-5)),
            ("opt".to_owned(), ParamValue::Text("adamw".to_owned())),
            ("beta2".to_owned(), ParamValue::Float(0.9)),
            ("epochs".to_owned(), ParamValue::Int(50)),
        ]);
        let command = |params: &Params| match sweep.trial_job(params) {
            Ok(JobSpec { work: Work::Program(program), .. }) => program.command,
            other => panic!("{other:?}"),
        };
        assert_eq!(command(&params)[3..], ["1e-5", "--opt=adamw", "--beta2=0.9", "{50}"]);
        params.remove("beta2");
        params.insert("opt".to_owned(), ParamValue::Text("sgd".to_owned()));
        assert_eq!(command(&params)[3..], ["1e-5", "--opt=sgd", "{50}"]);
    }

    #[test]
    fn a_trial_becomes_a_job_file() {
        let sweep = SweepSpec::parse(CONTRACT, "x").unwrap();
        let params = Params::from([
            ("lr".to_owned(), ParamValue::Int(0)),
            ("opt".to_owned(), ParamValue::Text("sgd".to_owned())),
            ("epochs".to_owned(), ParamValue::Int(50)),
        ]);
        let file = sweep.job_file(&params).unwrap();
        assert!(
            file.contains("[\"python\", \"train.py\", \"--lr\", \"0\", \"--opt=sgd\", \"{50}\"]"),
            "{file}"
        );
        let job = JobSpec::parse(&file, "x").unwrap();
        assert_eq!(job, JobSpec { params: params.clone(), ..sweep.trial_job(&params).unwrap() });
        let varies = "version = 1\n[program]\ncommand = [\"x\"]\n[params]\nlr = { kind = \"int\", low = 1, high = 2 }\n";
        assert!(
            JobSpec::parse(varies, "x").unwrap_err().to_string().contains("a single job has bare values")
        );
    }

    #[test]
    fn a_whole_string_keeps_its_type_in_train() {
        let text = r#"
version = 1
[train]
model = { kind = "mlp", hidden = ["{width}", 16] }
data = { kind = "csv", path = "{{a}}{{b}.csv", target = "y" }
optimizer = { kind = "sgd", lr = "{lr}", momentum = "{momentum}" }
epochs = 2
[sweep]
metric = "val/loss"
trials = 4
[params]
width = { kind = "int", low = 8, high = 64, log = true, step = 8 }
lr = { kind = "float", low = 0.1, high = 0.3 }
momentum = { kind = "float", low = 0.1, high = 0.3, when = { width = [16, 24] } }
"#;
        let sweep = SweepSpec::parse_runnable(text, "x").unwrap();
        let params =
            Params::from([("width".into(), ParamValue::Int(32)), ("lr".into(), ParamValue::Float(0.25))]);
        let Work::Train(train) = sweep.trial_job(&params).unwrap().work else { panic!("no trainer") };
        let expected = super::super::Optimizer::Sgd { lr: 0.25, momentum: 0.0, weight_decay: 0.0 };
        assert_eq!(train.optimizer, expected);
        let data = format!("{:?}", train.data);
        assert!(data.contains("{a}{b}.csv"), "{data}");
        assert!(format!("{:?}", train.model).contains("[32, 16]"));
        // What parameters can make of the file is checked before any trial starts, at the place where it stands.
        let report = problems(&text.replace("low = 0.1, high = 0.3 }\nmom", "low = -0.1, high = 0.3 }\nmom"));
        assert!(report.contains("s.toml:6:34") && report.contains("train.optimizer.lr"), "{report}");
    }

    #[test]
    fn older_sweeps_are_named_by_their_ids() {
        let text = "version = 1\n[sweep]\nlearn_from = [\"s3\", \"s12\"]\n";
        assert_eq!(SweepSpec::parse(text, "x").unwrap().learn_from, [SweepId(3), SweepId(12)]);
        let report = problems_of("learn_from = [\"s3\", \"j4\", \"s3\"]");
        for problem in ["has \"j4\", which is no sweep's id", "names s3 twice", "s.toml:5:1"] {
            assert!(report.contains(problem), "{problem}\n{report}");
        }
        assert!(problems_of("learn_from = \"s3\"").contains("a list of texts"));
        let many: Vec<String> = (0..17).map(|n| format!("\"s{n}\"")).collect();
        assert!(problems_of(&format!("learn_from = [{}]", many.join(", "))).contains("at most 16"));
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let report = problems_of(concat!(
            "[search]\nkind = \"grid\"\n",
            "[stopping]\nkind = \"asha\"\nmin = 9\nmax = 3\neta = 1\nstartup = 2\n",
            "[params]\n",
            "a = { kind = \"float\", low = 2, high = 1 }\n",
            "b = { kind = \"int\", low = 0, high = 9, log = true }\n",
            "c = { kind = \"float\", low = 0, high = 1 }\n",
            "d = { kind = \"choice\", values = [1, 1.0] }\n",
            "e = { kind = \"int\", low = 1, high = 3, when = { f = \"x\" } }\n",
            "f = { kind = \"choice\", values = [\"x\"], when = { e = 2 } }\n",
            "g = { kind = \"int\", low = 1, high = 3, when = { choise = 1 } }\n",
            "choice = { kind = \"choice\", values = [1, 2] }\n",
            "h = { kind = \"int\", low = 1, high = 3, when = { choice = 7, c = 0.5 } }\n",
            "i = { kind = \"flaot\", low = 1 }\n",
            "j = [1, 2]\n",
            "k = { kind = \"float\", low = 0, high = 1, stepp = 0.5, step = 7 }\n",
            "[[enqueue]]\nzz = 1\nchoice = 9\n",
        ));
        for expected in [
            "`stopping.min` is 9, above `max` 3",
            "`stopping.eta` is 1; it must be at least 2",
            "`stopping.kind = \"asha\"` has no key `startup`",
            "`params.a.low` is 2, above `high` 1",
            "`params.b.low` is 0; a `log` scale starts above 0",
            "`c` is continuous, and a grid has no end on it",
            "`params.d.values` has 1.0 twice",
            "the `when` of `e` goes in a circle",
            "the `when` of `f` goes in a circle",
            "`g` waits for `choise`, which is no parameter",
            "did you mean `choice`?",
            "`h` waits for `choice` to be 7, which it never is",
            "`h` waits for a value of `c`, which is continuous",
            "`params.i.kind` cannot be \"flaot\"",
            "did you mean `float`?",
            "`params.j` is a list",
            "unknown key `stepp` in [params.k]",
            "`params.k.step` is 7, wider than the range",
            "unknown parameter `zz` in [[enqueue]]",
            "`choice` cannot be 9",
        ] {
            assert!(report.contains(expected), "{expected}\n---\n{report}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (lines, expected) in [
            ("[search]\nkind = \"pbtt\"", "did you mean `pbt`?"),
            ("[search]\nkind = \"pbt\"", "`search.interval` is missing"),
            ("[search]\nkind = \"pbt\"\ninterval = 0", "at least 1"),
            ("[search]\nkind = \"pbt\"\ninterval = 1\npopulation = 1", "it must be 2 to 10000"),
            ("[search]\nkind = \"pbt\"\ninterval = 1", "3 trials are less than the 10 members"),
            ("[search]\nkind = \"tpe\"\ninterval = 1", "`search.kind = \"tpe\"` has no key `interval`"),
            (
                "[search]\nkind = \"pbt\"\ninterval = 1\n[stopping]\nkind = \"median\"",
                "decides by itself which trials go on",
            ),
            ("[[constraint]]\nmetric = \"a\"", "neither `min` nor `max`"),
            ("[[constraint]]\nmax = 1", "`constraint.metric` is missing"),
            ("[[constraint]]\nmetric = \"a\"\nmin = 2\nmax = 1", "`constraint.min` is 2, above `max` 1"),
            ("[[constraint]]\nmetric = \"a\"\nmax = inf", "it must be a finite number"),
            (
                "[[constraint]]\nmetric = \"a\"\nmin = 2\n[[constraint]]\nmetric = \"a\"\nmax = 1",
                "constrained twice",
            ),
            ("[stopping]\nkind = \"asha\"\nmax = 9\ncutoff = \"upper\"", "`stopping.cutoff` cannot be"),
            (
                "[stopping]\nkind = \"asha\"\nmax = 9\nmode = \"promote\"\ncutoff = \"lower\"",
                "belongs to `mode = \"stop\"`",
            ),
            ("[stopping]\nkind = \"threshold\"", "neither `lower` nor `upper`"),
            ("[stopping]\nkind = \"threshold\"\nlower = 2\nupper = 1", "above `upper`"),
            ("[stopping]\nkind = \"patient\"", "`stopping.patience` is missing"),
            ("[stopping]\nkind = \"asha\"", "`stopping.max` is missing"),
            ("[stopping]\nkind = \"wilcoxon\"\np = 0", "above 0 and at most 1"),
            ("[stopping]\nkind = \"percentile\"\npercentile = 101", "from 0 to 100"),
            ("[stopping]\nkind = \"median\"\ninterval = 0", "at least 1"),
            ("[[objective]]\nmetric = \"a\"", "stands beside [[objective]]"),
            ("[params]\na = nan", "finite"),
            ("[params]\na = { kind = \"float\", low = -1e308, high = 1e308 }", "too wide"),
            ("[params]\na = 1\n[[enqueue]]\na = 2", "`a` cannot be 2"),
            ("[sweeps]", "unknown key `sweeps`"),
        ] {
            let report = problems_of(lines);
            assert!(report.contains(expected), "{lines}\n---\n{report}");
        }
        assert!(problems("version = 1\n").contains("`sweep` is missing"));
        let text = "version = 1\n[sweep]\nmetric = \"m\"\n[program]\ncommand = [\"{lrr}\", \"{x\", \"{y}\"]\n[params]\nlr = 1\n";
        let report = problems(text);
        assert!(report.contains("did you mean `lr`?"), "{report}");
        assert!(report.contains("never closes it"), "{report}");
        let runnable = SweepSpec::parse_runnable("version = 1\n[sweep]\n", "x").unwrap_err().to_string();
        for missing in ["says nothing to run", "`sweep.metric` is missing", "`sweep.trials` is missing"] {
            assert!(runnable.contains(missing), "{runnable}");
        }
        let job = JobSpec::parse(CONTRACT, "x").unwrap_err().to_string();
        assert!(job.contains("this file is a sweep"), "{job}");
    }

    #[test]
    fn domains_count_and_name_their_values() {
        let float = Domain::Float { low: 0.0, high: 0.5, log: false, step: Some(0.05) };
        assert_eq!((float.count(), float.nth(3)), (Some(11), ParamValue::Float(0.15)));
        assert_eq!(float.canonical(&ParamValue::Float(0.1 + 0.2)), Some(ParamValue::Float(0.3)));
        assert_eq!(float.canonical(&ParamValue::Float(0.31)), None);
        assert_eq!(float.canonical(&ParamValue::Float(0.55)), None);
        let uneven = Domain::Int { low: 1, high: 10, log: false, step: 4 };
        assert_eq!((uneven.count(), uneven.nth(2)), (Some(3), ParamValue::Int(9)));
        assert_eq!(uneven.canonical(&ParamValue::Int(10)), None);
        assert_eq!(uneven.canonical(&ParamValue::Float(5.0)), Some(ParamValue::Int(5)));
    }
}
