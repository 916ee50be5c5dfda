//! The best value after so many trials, one at a time and with several in flight.

use super::chart::{Chart, Line};
use super::objectives::{FUNCTIONS, Function, OFF_CENTRE};
use super::statistics::{median, wilcoxon};
use super::{Options, peer, study};
use phalanx_tuner::{Ask, Outcome};
use std::collections::VecDeque;

const TRIALS: usize = 200;
/// For pictures, so that what comes after 250 trials is seen too.
const TRIALS_DRAWN: usize = 500;
/// A trial and a hundred of its kind are compared here.
const MARKS: [usize; 2] = [100, 200];
/// Runs beside each other: (search, in flight).
const RUNS: [(&str, usize); 6] =
    [("random", 1), ("tpe", 1), ("tpe", 4), ("cmaes", 1), ("auto", 1), ("auto", 4)];

/// Medians over seeds; p is Wilcoxon's over the pairs of one seed, that ours is not better.
pub(crate) fn run(options: &Options) {
    let seeds = options.seeds;
    println!("median distance from the minimum over {seeds} seeds after 100 / 200 trials");
    for function in FUNCTIONS.iter().chain(&OFF_CENTRE) {
        if options.only.as_ref().is_some_and(|only| !function.name.contains(only)) {
            continue;
        }
        println!("  {}", function.name);
        let peers: Vec<(&str, Vec<[f64; 2]>)> = [("tpe", options.peer), ("gp", options.peer_gp)]
            .into_iter()
            .filter(|(_, wanted)| *wanted)
            .filter_map(|(sampler, _)| {
                let runs = peer::quality(function.name, sampler, seeds)?;
                Some((sampler, runs.into_iter().map(|run| run.map(|best| best - function.minimum)).collect()))
            })
            .collect();
        for (sampler, runs) in &peers {
            println!("    optuna {sampler:12}    {}", shown(runs));
        }
        for (search, in_flight) in RUNS {
            let runs: Vec<[f64; 2]> = (0..seeds)
                .map(|seed| {
                    let best = best_so_far(function, search, seed, in_flight, TRIALS);
                    MARKS.map(|mark| best[mark - 1])
                })
                .collect();
            print!("    {search:8} {in_flight} in flight  {}", shown(&runs));
            for (sampler, theirs) in &peers {
                print!("   p against {sampler} {}", MARKS.map(|mark| p(&runs, theirs, mark)).join(" / "));
            }
            println!();
        }
    }
    if options.svg.is_some() {
        draw(options);
    }
}

fn at(runs: &[[f64; 2]], mark: usize) -> Vec<f64> {
    runs.iter().map(|run| run[usize::from(mark != MARKS[0])]).collect()
}

fn shown(runs: &[[f64; 2]]) -> String {
    MARKS.map(|mark| format!("{:.6}", median(&at(runs, mark)))).join(" / ")
}

fn p(ours: &[[f64; 2]], theirs: &[[f64; 2]], mark: usize) -> String {
    wilcoxon(&at(ours, mark), &at(theirs, mark)).map_or("-".to_owned(), |p| format!("{p:.4}"))
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
            let runs: Vec<Vec<f64>> =
                (0..options.seeds).map(|seed| best_so_far(function, search, seed, 1, TRIALS_DRAWN)).collect();
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
