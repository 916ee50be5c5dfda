//! Two objectives: how much of the space the front takes after so many trials.

use super::chart::{Chart, Line};
use super::objectives::FUNCTIONS;
use super::statistics::{median, wilcoxon};
use super::{Options, peer, study};
use phalanx_core::spec::Params;
use phalanx_tuner::{Ask, Outcome};

const TRIALS: usize = 400;
const EVERY: usize = 20;
const MARKS: [usize; 3] = [100, 200, 400];

/// Two losses, and the references of their hypervolume.
struct Problem {
    name: &'static str,
    params: String,
    losses: fn(&Params) -> [f64; 2],
    references: [f64; 2],
}

fn problems() -> Vec<Problem> {
    let floats = |dims: usize| {
        (0..dims)
            .map(|i| format!("x{i:02} = {{ kind = \"float\", low = 0, high = 1 }}\n"))
            .collect::<String>()
    };
    let zdt = |name, params, losses| Problem { name, params, losses, references: [1.1, 1.1] };
    let mixed = FUNCTIONS.iter().find(|function| function.name == "mixed7");
    vec![
        zdt("zdt1", floats(6), |params| with_distance(params, 0.0)),
        zdt("zdt1 off the bounds", floats(6), |params| with_distance(params, 0.3)),
        zdt("zdt1 in 12 dimensions", floats(12), |params| with_distance(params, 0.0)),
        Problem {
            name: "mixed7 and its size",
            params: mixed.map_or("", |function| function.params).to_owned(),
            losses: loss_and_size,
            references: [3.0, 16.0],
        },
    ]
}

/// ZDT1 (Zitzler, Deb & Thiele 2000), its front where all but the first are `best`.
fn with_distance(params: &Params, best: f64) -> [f64; 2] {
    let x: Vec<f64> = params.values().filter_map(|value| value.as_f64()).collect();
    let far: f64 = x[1..].iter().map(|x| (x - best).abs()).sum();
    let g = 1.0 + 9.0 * far / (x.len() - 1) as f64;
    [x[0], g * (1.0 - (x[0] / g).sqrt())]
}

/// The loss of mixed7, and what such a network would cost.
fn loss_and_size(params: &Params) -> [f64; 2] {
    let number = |name: &str| params[name].as_f64().unwrap_or(f64::NAN);
    let loss =
        FUNCTIONS.iter().find(|function| function.name == "mixed7").map(|function| (function.value)(params));
    [loss.unwrap_or(f64::NAN), number("width").log2() + 0.75 * number("layers")]
}

/// Median hypervolumes; p is Wilcoxon's over pairs of one seed, that ours is not larger, after all trials.
pub(crate) fn run(options: &Options) {
    println!("median hypervolume over {} seeds after 100 / 200 / 400 trials", options.seeds);
    for problem in problems() {
        println!("  {}", problem.name);
        let peers: Vec<(&str, Vec<[f64; 3]>)> = ["nsga2", "tpe"]
            .into_iter()
            .filter(|_| options.peer)
            .filter_map(|sampler| Some((sampler, peer::front(problem.name, sampler, options.seeds)?)))
            .collect();
        for (sampler, runs) in &peers {
            println!("    optuna {sampler:6} {}", shown(runs));
        }
        let mut lines = Vec::new();
        for search in ["random", "nsga2", "motpe", "auto"] {
            let runs: Vec<Vec<f64>> =
                (0..options.seeds).map(|seed| volumes(&problem, search, seed)).collect();
            let marked: Vec<[f64; 3]> =
                runs.iter().map(|run| MARKS.map(|mark| run[mark / EVERY - 1])).collect();
            print!("    {search:13} {}", shown(&marked));
            for (sampler, theirs) in &peers {
                let last = |runs: &[[f64; 3]]| runs.iter().map(|run| run[2]).collect::<Vec<f64>>();
                let p = wilcoxon(&last(theirs), &last(&marked));
                print!("   p against {sampler} {}", p.map_or("-".to_owned(), |p| format!("{p:.4}")));
            }
            println!();
            let median_at = |at: usize| median(&runs.iter().map(|run| run[at]).collect::<Vec<f64>>());
            let points = (0..TRIALS / EVERY).map(|at| (((at + 1) * EVERY) as f64, median_at(at)));
            lines.push(Line { name: search.to_owned(), points: points.collect() });
        }
        if problem.name == "zdt1 off the bounds" {
            let title = format!("two objectives: median of {} seeds", options.seeds);
            let chart = Chart { title: &title, x: "trials", y: "hypervolume", log: (false, false), lines };
            options.draw("fronts", &chart);
        }
    }
}

fn shown(runs: &[[f64; 3]]) -> String {
    let at = |index: usize| median(&runs.iter().map(|run| run[index]).collect::<Vec<f64>>());
    [0, 1, 2].map(|index| format!("{:.4}", at(index))).join(" / ")
}

/// The hypervolume after every so many trials.
fn volumes(problem: &Problem, search: &str, seed: u64) -> Vec<f64> {
    let [a, b] = problem.references;
    let mut study = study(&format!(
        "seed = {seed}\n[[objective]]\nmetric = \"a\"\nreference = {a}\n[[objective]]\nmetric = \"b\"\nreference = {b}\n\
         [search]\nkind = \"{search}\"\n[params]\n{}",
        problem.params
    ));
    let mut found = Vec::with_capacity(TRIALS / EVERY);
    for told in 1..=TRIALS {
        let Ask::Trial(trial) = study.ask() else { unreachable!("no bound was given") };
        let losses = (problem.losses)(&trial.params);
        study.tell(trial.number, Outcome::Values(losses.to_vec())).expect("an open trial");
        study.take_records();
        if told % EVERY == 0 {
            found.push(study.hypervolume().unwrap_or(0.0));
        }
    }
    found
}
