//! Ask + parameters + tell.

use super::statistics::{mean, median};
use super::{Options, peer, study, verdict};
use phalanx_tuner::{Ask, Outcome};
use std::time::Instant;

const TRIALS: usize = 1000;
/// For the Gaussian process, whose cost grows with the trials.
const TRIALS_GP: usize = 100;
/// For whether a long search gets dearer.
const TRIALS_LONG: usize = 10_000;
const DIMS: usize = 10;
const REPEATS: u64 = 5;
/// Milliseconds that a trial may cost, and how many times Optuna's speed that is to be at least.
const GOALS: [(&str, f64); 2] = [("tpe", 0.2), ("gp", 3.0)];
const OPTUNA_GOAL: f64 = 100.0;

/// Mean over the trials of a run, median over runs; then the first and the last thousand of a long search.
pub(crate) fn run(options: &Options) {
    println!(
        "cost of ask + tell, {DIMS} dimensions, mean over {TRIALS} trials ({TRIALS_GP} of gp), {REPEATS} runs"
    );
    for search in ["random", "sobol", "tpe", "cmaes", "nsga2", "motpe", "gp"] {
        let trials = if search == "gp" { TRIALS_GP } else { TRIALS };
        let means: Vec<f64> = (0..REPEATS).map(|seed| mean(&times(search, seed, trials))).collect();
        let ours = median(&means);
        let (least, most) = means.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), m| (a.min(*m), b.max(*m)));
        let goal = GOALS.iter().find(|(of, _)| *of == search).map(|(_, goal)| *goal);
        print!("  {search:8} {ours:.4} ms (min {least:.4}, max {most:.4}");
        match goal {
            Some(goal) => print!("; goal {goal}: {})", verdict(ours <= goal)),
            None => print!(")"),
        }
        for library in ["optuna", "rustuna"].into_iter().filter(|_| options.peer) {
            if let Some(theirs) = peer::cost(library, search, trials, DIMS) {
                let times = theirs / ours;
                print!("   {library} {theirs:.3} ms   {times:.1}x");
                if search == "tpe" && library == "optuna" {
                    print!(" (goal {OPTUNA_GOAL}: {})", verdict(times >= OPTUNA_GOAL));
                }
            }
        }
        println!();
    }
    println!("the first and the last thousand of {TRIALS_LONG} trials, mean");
    for search in ["random", "sobol", "tpe", "cmaes", "nsga2", "motpe", "auto"] {
        let all = times(search, 0, TRIALS_LONG);
        let (first, last) = (mean(&all[..1000]), mean(&all[TRIALS_LONG - 1000..]));
        println!("  {search:8} {first:.4} ms, {last:.4} ms   {:.2}x", last / first);
    }
}

/// Milliseconds of each trial.
fn times(search: &str, seed: u64, trials: usize) -> Vec<f64> {
    let several = matches!(search, "nsga2" | "motpe");
    let params: String =
        (0..DIMS).map(|i| format!("x{i} = {{ kind = \"float\", low = -5, high = 10 }}\n")).collect();
    let objectives = "[[objective]]\nmetric = \"a\"\n[[objective]]\nmetric = \"b\"\n";
    let head = if several { objectives } else { "" };
    let mut study = study(&format!("seed = {seed}\n{head}[search]\nkind = \"{search}\"\n[params]\n{params}"));
    let trial = |_| {
        let start = Instant::now();
        let Ask::Trial(trial) = study.ask() else { unreachable!("no bound was given") };
        let x: Vec<f64> = trial.params.values().filter_map(|value| value.as_f64()).collect();
        let squares = |centre: f64| x.iter().map(|x| (x - centre) * (x - centre)).sum::<f64>();
        let values = if several { vec![squares(0.0), squares(2.0)] } else { vec![squares(0.0)] };
        study.tell(trial.number, Outcome::Values(values)).expect("an open trial");
        study.take_records();
        1e3 * start.elapsed().as_secs_f64()
    };
    (0..trials).map(trial).collect()
}
