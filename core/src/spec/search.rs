//! `[search]` and `[stopping]` of a sweep: which sampler proposes, which rule stops poor trials early.

use super::reader::Table;
use crate::diagnostic::Problem;
use crate::diagnostic::suggest;
use crate::limits::SWEEP_POPULATION;
use serde::{Deserialize, Serialize};

/// What proposes parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// Picks by the space, the objectives and how many trials are complete.
    #[default]
    Auto,
    /// Independent draws.
    Random,
    /// Every combination once.
    Grid,
    /// A scrambled low-discrepancy sequence.
    Sobol,
    /// Tree-structured Parzen estimator.
    Tpe,
    /// Gaussian process.
    Gp,
    /// Covariance matrix adaptation.
    Cmaes,
    /// Non-dominated sorting genetic algorithm.
    Nsga2,
    /// Tree-structured Parzen estimator for several objectives.
    Motpe,
    /// Population-based training: trials go on from the checkpoints of better ones.
    Pbt(Population),
}

/// The population of population-based training. A trial is one member over one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Population {
    /// How many members there are.
    pub members: u64,
    /// Steps after which a member is judged, and goes on as itself or from a better one's checkpoint.
    pub interval: u64,
}

impl Search {
    const WORDS: [(&'static str, Kind); 10] = [
        ("auto", Kind::Plain(Search::Auto)),
        ("random", Kind::Plain(Search::Random)),
        ("grid", Kind::Plain(Search::Grid)),
        ("sobol", Kind::Plain(Search::Sobol)),
        ("tpe", Kind::Plain(Search::Tpe)),
        ("gp", Kind::Plain(Search::Gp)),
        ("cmaes", Kind::Plain(Search::Cmaes)),
        ("nsga2", Kind::Plain(Search::Nsga2)),
        ("motpe", Kind::Plain(Search::Motpe)),
        ("pbt", Kind::Pbt),
    ];

    /// The word for it in a file.
    pub fn as_str(self) -> &'static str {
        let is_mine = |kind: &Kind| match (kind, self) {
            (Kind::Plain(search), _) => *search == self,
            (Kind::Pbt, search) => matches!(search, Search::Pbt(_)),
        };
        Search::WORDS.iter().find(|(_, kind)| is_mine(kind)).map_or("", |(word, _)| word)
    }

    /// Whether it can look for several objectives at once.
    pub fn takes_several_objectives(self) -> bool {
        !matches!(self, Search::Gp | Search::Cmaes | Search::Pbt(_))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Plain(Search),
    Pbt,
}

/// What happens to a trial at a rung.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HalvingMode {
    /// A poor one stops and never comes back.
    #[default]
    Stop,
    /// Every one pauses; the best go on from their checkpoints.
    Promote,
}

/// The rungs `min · eta^k ≤ max` of successive halving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halving {
    /// What happens at a rung.
    pub mode: HalvingMode,
    /// The step of the first rung.
    pub min: u64,
    /// A trial that gets here is complete.
    pub max: u64,
    /// One trial in so many goes on.
    pub eta: u64,
    /// How the cutoff of `stop` lies between two losses.
    #[serde(default)]
    pub cutoff: Cutoff,
}

/// Which number a quantile of a few losses is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cutoff {
    /// On the line between the two beside it.
    #[default]
    Linear,
    /// The better of the two: fewer trials go on, most of all where a rung has seen few.
    Lower,
}

/// When a trial is judged: from `warmup` on, once every `interval` steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Steps below it are not judged.
    pub warmup: u64,
    /// Steps between judgements.
    pub interval: u64,
}

/// Which trials are stopped early.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Stopping {
    /// None.
    #[default]
    None,
    /// Asynchronous successive halving.
    Asha(Halving),
    /// Successive halving from every rung, trials spread over the brackets.
    Hyperband(Halving),
    /// Those whose best so far is worse than a percentile of the completed trials at that step; `median` is 50.
    Percentile {
        /// Of 100, how many of the completed trials are better than one that is stopped.
        percentile: f64,
        /// Completed trials before any is judged.
        startup: u64,
        /// When it is judged.
        pace: Pace,
    },
    /// Those worse than the best completed trial, by Wilcoxon's signed-rank test over common steps.
    Wilcoxon {
        /// Stops below this probability.
        p: f64,
        /// Common steps before any is judged.
        startup_steps: u64,
    },
    /// Those that have not improved for a while.
    Patient {
        /// Reports without improvement that are borne.
        patience: u64,
        /// Less than this is no improvement.
        min_delta: f64,
    },
    /// Those that leave an interval.
    Threshold {
        /// Below it a trial stops.
        lower: Option<f64>,
        /// Above it a trial stops.
        upper: Option<f64>,
        /// When it is judged.
        pace: Pace,
    },
    /// No trial; the whole sweep ends when its best no longer improves.
    Plateau {
        /// So many completed trials in a row.
        trials: u64,
        /// No more than this is no improvement.
        min_delta: f64,
    },
}

impl Stopping {
    /// The word for it in a file; `median` is `percentile`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Stopping::None => "none",
            Stopping::Asha(_) => "asha",
            Stopping::Hyperband(_) => "hyperband",
            Stopping::Percentile { .. } => "percentile",
            Stopping::Wilcoxon { .. } => "wilcoxon",
            Stopping::Patient { .. } => "patient",
            Stopping::Threshold { .. } => "threshold",
            Stopping::Plateau { .. } => "plateau",
        }
    }
}

pub(super) fn read_search(table: Table<'_>) -> Search {
    table.require("kind", "kind = \"auto\"");
    let search = match table.word("kind", &Search::WORDS) {
        Some(Kind::Plain(search)) => search,
        Some(Kind::Pbt) => {
            table.require("interval", "interval = 5");
            Search::Pbt(Population {
                members: table.integer("population", 2..=SWEEP_POPULATION).map_or(POPULATION, |n| n as u64),
                interval: table.integer("interval", 1..=i64::MAX).map_or(1, |steps| steps as u64),
            })
        }
        // The other keys cannot be judged without a kind.
        None => {
            for key in SEARCH_KEYS {
                table.has(key);
            }
            Search::Auto
        }
    };
    explain_foreign_keys(&table, "search", search.as_str(), &SEARCH_KEYS);
    search
}

/// Every key of every sampler.
const SEARCH_KEYS: [&str; 2] = ["population", "interval"];
/// Members of a population where the file does not say.
const POPULATION: u64 = 10;

#[derive(Clone, Copy)]
enum RuleKind {
    None,
    Asha,
    Hyperband,
    Median,
    Percentile,
    Wilcoxon,
    Patient,
    Threshold,
    Plateau,
}

const KINDS: [(&str, RuleKind); 9] = [
    ("none", RuleKind::None),
    ("asha", RuleKind::Asha),
    ("hyperband", RuleKind::Hyperband),
    ("median", RuleKind::Median),
    ("percentile", RuleKind::Percentile),
    ("wilcoxon", RuleKind::Wilcoxon),
    ("patient", RuleKind::Patient),
    ("threshold", RuleKind::Threshold),
    ("plateau", RuleKind::Plateau),
];

/// Every key of every kind: where the kind itself is wrong none of them is called unknown.
const KEYS: [&str; 16] = [
    "mode",
    "cutoff",
    "min",
    "max",
    "eta",
    "startup",
    "warmup",
    "interval",
    "percentile",
    "p",
    "startup_steps",
    "patience",
    "min_delta",
    "lower",
    "upper",
    "trials",
];

pub(super) fn read_stopping(table: Table<'_>) -> Stopping {
    table.require("kind", "kind = \"asha\"");
    let Some(kind) = table.word("kind", &KINDS) else {
        for key in KEYS {
            table.has(key);
        }
        table.finish();
        return Stopping::None;
    };
    let word = KINDS[kind as usize].0;
    let count =
        |key, least: i64, default: u64| table.integer(key, least..=i64::MAX).map_or(default, |n| n as u64);
    let min_delta = || table.number("min_delta", "0 or more", |delta| delta >= 0.0).unwrap_or(0.0);
    let stopping = match kind {
        RuleKind::None => Stopping::None,
        RuleKind::Asha => Stopping::Asha(read_halving(&table)),
        RuleKind::Hyperband => Stopping::Hyperband(read_halving(&table)),
        RuleKind::Median => Stopping::Percentile {
            percentile: 50.0,
            startup: count("startup", 0, 5),
            pace: read_pace(&table),
        },
        RuleKind::Percentile => {
            table.require("percentile", "percentile = 25");
            let percentile = table.number("percentile", "from 0 to 100", |p| (0.0..=100.0).contains(&p));
            let percentile = percentile.unwrap_or(50.0);
            Stopping::Percentile { percentile, startup: count("startup", 0, 5), pace: read_pace(&table) }
        }
        RuleKind::Wilcoxon => Stopping::Wilcoxon {
            p: table.number("p", "above 0 and at most 1", |p| p > 0.0 && p <= 1.0).unwrap_or(0.1),
            startup_steps: count("startup_steps", 0, 2),
        },
        RuleKind::Patient => {
            table.require("patience", "patience = 5");
            Stopping::Patient { patience: count("patience", 0, 0), min_delta: min_delta() }
        }
        RuleKind::Threshold => read_threshold(&table),
        RuleKind::Plateau => {
            table.require("trials", "trials = 20");
            Stopping::Plateau { trials: count("trials", 1, 1), min_delta: min_delta() }
        }
    };
    explain_foreign_keys(&table, "stopping", word, &KEYS);
    stopping
}

/// A key of another kind is more than an unknown word: say that it is this kind which does not have it.
fn explain_foreign_keys(table: &Table<'_>, name: &str, word: &str, all: &[&str]) {
    let mine = table.asked();
    for (key, span, _) in table.entries().filter(|(key, _, _)| !mine.contains(key)) {
        let message = if all.contains(&key) {
            format!("`{name}.kind = \"{word}\"` has no key `{key}`")
        } else {
            format!("unknown key `{key}` in [{name}]")
        };
        table.note(Problem { message, span: Some(span), help: suggest(key, &mine) });
    }
}

fn read_halving(table: &Table<'_>) -> Halving {
    const MODES: [(&str, HalvingMode); 2] = [("promote", HalvingMode::Promote), ("stop", HalvingMode::Stop)];
    const CUTOFFS: [(&str, Cutoff); 2] = [("linear", Cutoff::Linear), ("lower", Cutoff::Lower)];
    table.require("max", "max = 81");
    let min = table.integer("min", 1..=i64::MAX).unwrap_or(1) as u64;
    let max = table.integer("max", 1..=i64::MAX).map_or(u64::MAX, |max| max as u64);
    if min > max {
        table.problem(table.span_of("min"), format!("`stopping.min` is {min}, above `max` {max}"));
    }
    let eta = table.integer("eta", 2..=i64::MAX).unwrap_or(3) as u64;
    let mode = table.word("mode", &MODES).unwrap_or_default();
    let cutoff = table.word("cutoff", &CUTOFFS);
    if cutoff.is_some() && mode == HalvingMode::Promote {
        table.problem(table.span_of("cutoff"), "`stopping.cutoff` belongs to `mode = \"stop\"`");
    }
    Halving { mode, min, max, eta, cutoff: cutoff.unwrap_or_default() }
}

fn read_pace(table: &Table<'_>) -> Pace {
    Pace {
        warmup: table.integer("warmup", 0..=i64::MAX).unwrap_or(0) as u64,
        interval: table.integer("interval", 1..=i64::MAX).unwrap_or(1) as u64,
    }
}

fn read_threshold(table: &Table<'_>) -> Stopping {
    let finite = |key| table.number(key, "a finite number", |_| true);
    let (lower, upper) = (finite("lower"), finite("upper"));
    if !table.has("lower") && !table.has("upper") {
        let help = "add `upper = 10.0` or `lower = 0.0`";
        table.problem_with_help(
            table.span(),
            "`stopping.kind = \"threshold\"` has neither `lower` nor `upper`",
            help,
        );
    }
    if let (Some(lower), Some(upper)) = (lower, upper)
        && lower > upper
    {
        table.problem(table.span_of("lower"), format!("`stopping.lower` is {lower}, above `upper` {upper}"));
    }
    Stopping::Threshold { lower, upper, pace: read_pace(table) }
}
