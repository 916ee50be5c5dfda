//! The best value after so many trials, one at a time and with several in flight.

use super::chart::{Chart, Line};
use super::objectives::{FUNCTIONS, Function, OFF_CENTRE, OTHER_SHAPES};
use super::statistics::{median, wilcoxon};
use super::{Options, study, verdict};
use phalanx_tuner::{Ask, Outcome};
use serde_json::Value;
use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

const TRIALS: usize = 200;
/// For pictures, so that what comes after 250 trials is seen too.
const TRIALS_DRAWN: usize = 500;
/// A trial and a hundred of its kind are compared here.
const MARKS: [usize; 2] = [100, 200];
/// Runs beside each other: (search, in flight).
const RUNS: [(&str, usize); 6] =
    [("random", 1), ("tpe", 1), ("tpe", 4), ("cmaes", 1), ("auto", 1), ("auto", 4)];

/// All but the Gaussian process cost little, and get so many times its seeds.
const CHEAP_SEEDS: u64 = 3;

/// What Optuna found, a run a line: `optuna_quality.py` made it. With a seed it always finds the same.
const OPTUNA: &str = include_str!("optuna_quality.jsonl");

/// Distances from the minimum at the marks, by seed.
type Runs = Vec<(u64, [f64; 2])>;

/// Medians over seeds; p is Wilcoxon's over the pairs of one seed, that ours is not better.
pub(crate) fn run(options: &Options) {
    let optuna: Vec<Value> =
        OPTUNA.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let version = optuna.first().and_then(|run| run["optuna"].as_str()).unwrap_or_default();
    println!("median distance from the minimum after 100 / 200 trials, beside Optuna {version}");
    let mut verdicts = Verdicts::default();
    for function in FUNCTIONS.iter().chain(&OFF_CENTRE).chain(&OTHER_SHAPES) {
        if options.only.as_ref().is_some_and(|only| !function.name.contains(only)) {
            continue;
        }
        println!("  {}", function.name);
        let peers = ["tpe", "gp"]
            .map(|sampler| (sampler, peer_runs(&optuna, function, sampler, CHEAP_SEEDS * options.seeds)));
        for (sampler, runs) in peers.iter().filter(|(_, runs)| !runs.is_empty()) {
            println!("    optuna {sampler:12}    {}   {} seeds", shown(runs), runs.len());
        }
        let in_flight = peer_runs(&optuna, function, "tpe@4", options.seeds);
        if !in_flight.is_empty() {
            println!("    optuna tpe, 4 in flight  {}   {} seeds", shown(&in_flight), in_flight.len());
        }
        let mut ours: Vec<((&str, usize), Runs)> = Vec::new();
        for (search, in_flight) in RUNS {
            let seeds = if search == "auto" { options.seeds } else { CHEAP_SEEDS * options.seeds };
            let runs = by_seed(seeds, |seed| {
                let best = best_so_far(function, search, seed, in_flight, TRIALS);
                (seed, MARKS.map(|mark| best[mark - 1]))
            });
            print!("    {search:8} {in_flight} in flight  {}   {seeds} seeds", shown(&runs));
            if let Some((_, alone)) = ours.iter().find(|(run, _)| *run == (search, 1)) {
                let times = |mark| match (middle(&runs, mark), middle(alone, mark)) {
                    // Where one at a time is at the minimum, there is no ratio.
                    (there, here) if here > 0.0 => format!("{:.2}", there / here),
                    _ => "-".to_owned(),
                };
                print!("   {} times as far as one at a time", [0, 1].map(times).join(" / "));
            }
            for (sampler, theirs) in peers.iter().filter(|(_, runs)| !runs.is_empty()) {
                print!("   p against {sampler} {}", [0, 1].map(|mark| p(&runs, theirs, mark)).join(" / "));
            }
            println!();
            ours.push(((search, in_flight), runs));
        }
        if FUNCTIONS.iter().any(|of_six| of_six.name == function.name) {
            verdicts.add(&ours, &peers);
        }
    }
    verdicts.print();
    if options.svg.is_some() {
        draw(options);
    }
}

/// What is found with each seed, as many of them at a time as there are processors.
fn by_seed<T: Send>(seeds: u64, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let work = || {
        let seeds =
            std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|seed| *seed < seeds);
        seeds.map(|seed| (seed, run(seed))).collect::<Vec<(u64, T)>>()
    };
    let mut found: Vec<(u64, T)> = std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("every run ends")).collect()
    });
    found.sort_by_key(|(seed, _)| *seed);
    found.into_iter().map(|(_, run)| run).collect()
}

fn peer_runs(optuna: &[Value], function: &Function, sampler: &str, seeds: u64) -> Runs {
    let theirs = optuna.iter().filter(|run| run["function"] == function.name && run["sampler"] == sampler);
    let read = |run: &Value| {
        let distance = |mark: usize| Some(run["best"][mark].as_f64()? - function.minimum);
        Some((run["seed"].as_u64().filter(|seed| *seed < seeds)?, [distance(0)?, distance(1)?]))
    };
    theirs.filter_map(read).collect()
}

/// On how many of the functions a median is as small as it should be, at each mark.
#[derive(Default)]
struct Verdicts {
    functions: usize,
    tpe: [usize; 2],
    auto: [usize; 2],
    tpe_in_flight: [usize; 2],
    auto_in_flight: [usize; 2],
}

impl Verdicts {
    fn add(&mut self, ours: &[((&str, usize), Runs)], peers: &[(&str, Runs)]) {
        /// Trials in flight may cost so much.
        const DEARER: f64 = 1.1;
        self.functions += 1;
        for mark in [0, 1] {
            let of = |wanted| {
                let runs = ours.iter().find(|(run, _)| *run == wanted);
                runs.map_or(f64::NAN, |(_, runs)| middle(runs, mark))
            };
            let theirs = |at: usize| middle(&peers[at].1, mark);
            self.tpe[mark] += usize::from(of(("tpe", 1)) <= theirs(0));
            // Without runs there is no median, and the other one counts.
            self.auto[mark] += usize::from(of(("auto", 1)) <= theirs(0).min(theirs(1)));
            self.tpe_in_flight[mark] += usize::from(of(("tpe", 4)) <= DEARER * of(("tpe", 1)));
            self.auto_in_flight[mark] += usize::from(of(("auto", 4)) <= DEARER * of(("auto", 1)));
        }
    }

    fn print(&self) {
        println!("  of {} functions, at 100 / 200 trials", self.functions);
        // What goes from one good trial to the next, as tpe does, cannot keep its pace with some of them in flight: no goal.
        for (what, counts, goal) in [
            ("tpe is at least as near as Optuna's TPE on", self.tpe, Some(4)),
            ("auto is at least as near as the better of Optuna's TPE and GP on", self.auto, Some(5)),
            ("tpe with 4 in flight is at most 10 % further than without on", self.tpe_in_flight, None),
            ("auto with 4 in flight is at most 10 % further than without on", self.auto_in_flight, Some(6)),
        ] {
            print!("    {what} {} / {}", counts[0], counts[1]);
            match goal.filter(|_| self.functions == FUNCTIONS.len()) {
                Some(goal) => {
                    println!(" (goal {goal}: {})", verdict(counts.iter().all(|count| *count >= goal)))
                }
                None => println!(),
            }
        }
    }
}

fn middle(runs: &Runs, mark: usize) -> f64 {
    if runs.is_empty() {
        f64::NAN
    } else {
        median(&runs.iter().map(|(_, run)| run[mark]).collect::<Vec<f64>>())
    }
}

fn shown(runs: &Runs) -> String {
    let digits = |distance: f64| match distance {
        small if small < 1e-3 => format!("{small:.1e}"),
        _ => format!("{distance:.4}"),
    };
    [0, 1].map(|mark| digits(middle(runs, mark))).join(" / ")
}

fn p(ours: &Runs, theirs: &Runs, mark: usize) -> String {
    let pair = |(seed, run): &(u64, [f64; 2])| {
        let (_, other) = theirs.iter().find(|(other, _)| other == seed)?;
        Some((run[mark], other[mark]))
    };
    let (ours, theirs): (Vec<f64>, Vec<f64>) = ours.iter().filter_map(pair).unzip();
    wilcoxon(&ours, &theirs).map_or("-".to_owned(), |p| format!("{p:.4}"))
}

/// The distance from the minimum after each trial.
fn best_so_far(function: &Function, search: &str, seed: u64, in_flight: usize, trials: usize) -> Vec<f64> {
    let mut study =
        study(&format!("seed = {seed}\n[search]\nkind = \"{search}\"\n[params]\n{}", function.params));
    let (mut best, mut found, mut open) = (f64::INFINITY, Vec::with_capacity(trials), VecDeque::new());
    for _ in 0..trials {
        while open.len() < in_flight {
            let Ask::Trial(trial) = study.ask() else { unreachable!("no bound was given") };
            open.push_back(trial);
        }
        let Some(trial) = open.pop_front() else { unreachable!("at least one is open") };
        let value = (function.value)(&trial.params);
        best = best.min(value - function.minimum);
        found.push(best);
        study.tell(trial.number, Outcome::Values(vec![value])).expect("an open trial");
        study.take_records();
    }
    found
}

fn draw(options: &Options) {
    for function in FUNCTIONS.iter().filter(|f| ["rosenbrock10", "mixed7"].contains(&f.name)) {
        let line = |search: &str| {
            let runs = by_seed(options.seeds, |seed| best_so_far(function, search, seed, 1, TRIALS_DRAWN));
            let median_at = |at: usize| median(&runs.iter().map(|run| run[at]).collect::<Vec<f64>>());
            let points = (0..TRIALS_DRAWN).step_by(5).map(|at| ((at + 1) as f64, median_at(at)));
            Line { name: search.to_owned(), points: points.collect() }
        };
        let title = format!("{}: median of {} seeds", function.name, options.seeds);
        let lines = ["random", "sobol", "tpe", "cmaes", "auto"].map(line).into();
        let (x, y) = ("trials", "distance from the minimum");
        options.draw(function.name, &Chart { title: &title, x, y, log: (false, true), lines });
    }
}
