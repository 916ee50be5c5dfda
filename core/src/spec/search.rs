//! `[search]` and `[stopping]` of a sweep: which sampler proposes, which rule stops poor trials early.

use super::reader::Table;
use crate::diagnostic::Problem;
use crate::diagnostic::suggest;
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

/// What proposes parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// Picks by the space and by how many trials are complete.
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
}

impl Search {
    /// What this build has, with the words for it.
    pub const WORDS: [(&'static str, Search); 6] = [
        ("auto", Search::Auto),
        ("random", Search::Random),
        ("grid", Search::Grid),
        ("sobol", Search::Sobol),
        ("tpe", Search::Tpe),
        ("gp", Search::Gp),
    ];
    /// What the file format knows and this build lacks.
    const ABSENT: [&'static str; 4] = ["cmaes", "nsga2", "motpe", "pbt"];

    /// The word for it in a file.
    pub fn as_str(self) -> &'static str {
        Search::WORDS.iter().find(|(_, search)| *search == self).map_or("", |(word, _)| word)
    }

    /// Whether it can look for several objectives at once.
    pub fn takes_several_objectives(self) -> bool {
        !matches!(self, Search::Tpe | Search::Gp)
    }
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

pub(super) fn read_search(table: Table<'_>) -> Search {
    table.require("kind", "kind = \"auto\"");
    let absent = table.value("kind").and_then(|value| match value.get_ref() {
        DeValue::String(word) => {
            Search::ABSENT.iter().find(|absent| *absent == word).map(|word| (word, value.span()))
        }
        _ => None,
    });
    let search = match absent {
        Some((word, span)) => {
            let has: Vec<&str> = Search::WORDS.iter().map(|(word, _)| *word).collect();
            let message = format!("`search.kind` is \"{word}\", which this build does not have");
            table.problem_with_help(span, message, format!("it has {}", has.join(", ")));
            Search::Auto
        }
        None => table.word("kind", &Search::WORDS).unwrap_or_default(),
    };
    table.finish();
    search
}

#[derive(Clone, Copy)]
enum Kind {
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

const KINDS: [(&str, Kind); 9] = [
    ("none", Kind::None),
    ("asha", Kind::Asha),
    ("hyperband", Kind::Hyperband),
    ("median", Kind::Median),
    ("percentile", Kind::Percentile),
    ("wilcoxon", Kind::Wilcoxon),
    ("patient", Kind::Patient),
    ("threshold", Kind::Threshold),
    ("plateau", Kind::Plateau),
];

/// Every key of every kind: where the kind itself is wrong none of them is called unknown.
const KEYS: [&str; 15] = [
    "mode",
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
        Kind::None => Stopping::None,
        Kind::Asha => Stopping::Asha(read_halving(&table)),
        Kind::Hyperband => Stopping::Hyperband(read_halving(&table)),
        Kind::Median => Stopping::Percentile {
            percentile: 50.0,
            startup: count("startup", 0, 5),
            pace: read_pace(&table),
        },
        Kind::Percentile => {
            table.require("percentile", "percentile = 25");
            let percentile = table.number("percentile", "from 0 to 100", |p| (0.0..=100.0).contains(&p));
            let percentile = percentile.unwrap_or(50.0);
            Stopping::Percentile { percentile, startup: count("startup", 0, 5), pace: read_pace(&table) }
        }
        Kind::Wilcoxon => Stopping::Wilcoxon {
            p: table.number("p", "above 0 and at most 1", |p| p > 0.0 && p <= 1.0).unwrap_or(0.1),
            startup_steps: count("startup_steps", 0, 2),
        },
        Kind::Patient => {
            table.require("patience", "patience = 5");
            Stopping::Patient { patience: count("patience", 0, 0), min_delta: min_delta() }
        }
        Kind::Threshold => read_threshold(&table),
        Kind::Plateau => {
            table.require("trials", "trials = 20");
            Stopping::Plateau { trials: count("trials", 1, 1), min_delta: min_delta() }
        }
    };
    explain_foreign_keys(&table, word);
    stopping
}

/// A key of another rule is more than an unknown word: say that it is this rule which does not have it.
fn explain_foreign_keys(table: &Table<'_>, word: &str) {
    let mine = table.asked();
    for (key, span, _) in table.entries().filter(|(key, _, _)| !mine.contains(key)) {
        let message = if KEYS.contains(&key) {
            format!("`stopping.kind = \"{word}\"` has no key `{key}`")
        } else {
            format!("unknown key `{key}` in [stopping]")
        };
        table.note(Problem { message, span: Some(span), help: suggest(key, &mine) });
    }
}

fn read_halving(table: &Table<'_>) -> Halving {
    const MODES: [(&str, HalvingMode); 2] = [("promote", HalvingMode::Promote), ("stop", HalvingMode::Stop)];
    table.require("max", "max = 81");
    let min = table.integer("min", 1..=i64::MAX).unwrap_or(1) as u64;
    let max = table.integer("max", 1..=i64::MAX).map_or(u64::MAX, |max| max as u64);
    if min > max {
        table.problem(table.span_of("min"), format!("`stopping.min` is {min}, above `max` {max}"));
    }
    let eta = table.integer("eta", 2..=i64::MAX).unwrap_or(3) as u64;
    Halving { mode: table.word("mode", &MODES).unwrap_or_default(), min, max, eta }
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
