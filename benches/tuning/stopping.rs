//! Epochs used against regret on families of learning curves.

use super::chart::{Chart, Line};
use super::objectives::{Curve, Family};
use super::statistics::{mean, median};
use super::{Options, peer, study, verdict};
use phalanx_tuner::{Ask, Decision, Outcome};
use std::collections::BTreeMap;

const CURVES: u64 = 100;
/// The published figures are of these seeds.
const MOST_SEEDS: u64 = 20;
/// With as many epochs as one likes: no search gets to more trials than this, and their best is what regret is from.
const STREAM: u64 = 2000;
/// Epochs that every rule may use.
const BUDGETS: [u64; 6] = [400, 712, 1000, 1500, 2500, 4000];
/// The budget that asha's two modes are compared at: what Optuna's rule spends on a hundred trials.
const COMPARED: usize = 1;
/// Median epochs and mean regret of Optuna's successive halving on these curves, as its own bench has them.
const OPTUNA: [(Family, f64, f64); 2] = [(Family::Curves, 712.0, 0.00027), (Family::Late, 702.0, 0.0118)];
/// How many times its epochs `asha` may take, at a regret that is no larger.
const EPOCHS_GOAL: f64 = 1.15;
const RULES: [&str; 7] = ["none", "median", "asha", "asha lower", "hyperband", "hyperband lower", "promote"];

pub(crate) fn run(options: &Options) {
    let seeds = options.seeds.min(MOST_SEEDS);
    println!(
        "early stopping, {CURVES} trials of {} epochs, {seeds} seeds: median epochs, median and mean regret",
        Curve::EPOCHS
    );
    for family in [Family::Curves, Family::Late] {
        for rule in RULES {
            let runs: Vec<Run> = (0..seeds).map(|seed| Run::whole(family, rule, seed)).collect();
            let epochs = median(&runs.iter().map(|run| run.epochs as f64).collect::<Vec<f64>>());
            let regrets: Vec<f64> =
                runs.iter().map(|run| run.best - least(family, run.seed, CURVES)).collect();
            let (middle, mean) = (median(&regrets), mean(&regrets));
            print!("  {family:?} {rule:15} {epochs:6.0} epochs, regret {middle:.5}, mean {mean:.5}");
            if rule.starts_with("asha") {
                print_goal(family, rule, epochs, mean);
            }
            let theirs = options.peer.then(|| peer::stopping(family, rule, seeds)).flatten();
            println!(
                "{}",
                theirs.map_or(String::new(), |[theirs, middle, mean]| {
                    format!(
                        "   optuna {theirs:6.0}, {middle:.5}, {mean:.5}   {:.2}x the epochs",
                        epochs / theirs
                    )
                })
            );
        }
    }
    equal_epochs(options, seeds);
    if options.svg.is_some() {
        draw_decisions(options);
    }
}

/// Beside Optuna's rule. Ours with `cutoff = "lower"` is the one like it; without, it spends more epochs on less regret.
fn print_goal(family: Family, rule: &str, epochs: f64, regret: f64) {
    for (_, their_epochs, their_regret) in OPTUNA.into_iter().filter(|(of, ..)| *of == family) {
        let (times, of_regret) = (epochs / their_epochs, regret / their_regret);
        print!("   {times:.2}x the epochs and {of_regret:.2}x the mean regret of Optuna's");
        if rule == "asha lower" {
            print!(" (goal {EPOCHS_GOAL} and 1: {})", verdict(times <= EPOCHS_GOAL && of_regret <= 1.0));
        }
    }
}

/// Every rule with the same epochs to spend, on as many trials as it likes.
fn equal_epochs(options: &Options, seeds: u64) {
    println!("at equal epochs, mean regret after {BUDGETS:?}");
    for family in [Family::Curves, Family::Late] {
        let references: Vec<f64> = (0..seeds).map(|seed| least(family, seed, STREAM)).collect();
        let (mut lines, mut by_rule) = (Vec::new(), BTreeMap::new());
        for rule in RULES {
            let runs: Vec<Run> = (0..seeds).map(|seed| Run::within(family, rule, seed)).collect();
            let regret = |at: usize| {
                mean(&runs.iter().zip(&references).map(|(run, r)| run.marks[at] - r).collect::<Vec<f64>>())
            };
            let regrets: Vec<f64> = (0..BUDGETS.len()).map(regret).collect();
            let shown: Vec<String> = regrets.iter().map(|regret| format!("{regret:.4}")).collect();
            print!("  {family:?} {rule:15} {}", shown.join(" "));
            let theirs = options.peer.then(|| peer::equal_epochs(family, rule, seeds, &BUDGETS)).flatten();
            println!(
                "{}",
                theirs.map_or(String::new(), |bests| {
                    let shown: Vec<String> =
                        bests.iter().map(|best| format!("{:.4}", best - mean(&references))).collect();
                    format!("   optuna {}", shown.join(" "))
                })
            );
            by_rule.insert(rule, regrets[COMPARED]);
            let points = BUDGETS.iter().zip(regrets).map(|(epochs, regret)| (*epochs as f64, regret));
            lines.push(Line { name: rule.to_owned(), points: points.filter(|(_, y)| *y < 1.0).collect() });
        }
        let stop = by_rule["asha"].min(by_rule["asha lower"]);
        let is_met = verdict(by_rule["promote"] < stop);
        println!("  {family:?} after {} epochs: promote less than asha ({is_met})", BUDGETS[COMPARED]);
        let title = format!("{}: mean of {seeds} seeds", family.as_str());
        let (x, y) = ("epochs spent", "regret");
        options.draw(
            &format!("stopping-{}", family.as_str()),
            &Chart { title: &title, x, y, log: (true, true), lines },
        );
    }
}

fn least(family: Family, seed: u64, trials: u64) -> f64 {
    let end = |trial| Curve::new(family, seed, trial).clean(Curve::EPOCHS);
    (0..trials).map(end).fold(f64::INFINITY, f64::min)
}

/// One search.
struct Run {
    seed: u64,
    epochs: u64,
    /// The least loss, without noise, of a trial that went to its end; before there is one, that of a bad trial.
    best: f64,
    /// The same once each budget was spent.
    marks: Vec<f64>,
    /// Every trial's curve as far as it was run.
    curves: Vec<Vec<(f64, f64)>>,
}

impl Run {
    /// A hundred trials to their ends.
    fn whole(family: Family, rule: &str, seed: u64) -> Run {
        Run::of(family, rule, seed, CURVES, u64::MAX)
    }

    /// As many trials as the largest budget allows.
    fn within(family: Family, rule: &str, seed: u64) -> Run {
        Run::of(family, rule, seed, STREAM, BUDGETS[BUDGETS.len() - 1])
    }

    fn of(family: Family, rule: &str, seed: u64, trials: u64, budget: u64) -> Run {
        const BAD: f64 = 1.0;
        let lines = match rule {
            "none" | "median" => format!("kind = \"{rule}\""),
            "promote" => "kind = \"asha\"\nmode = \"promote\"\nmax = 81".to_owned(),
            "asha lower" => "kind = \"asha\"\ncutoff = \"lower\"\nmax = 81".to_owned(),
            "hyperband lower" => "kind = \"hyperband\"\ncutoff = \"lower\"\nmax = 81".to_owned(),
            _ => format!("kind = \"{rule}\"\nmode = \"stop\"\nmax = 81"),
        };
        let mut study = study(&format!(
            "seed = {seed}\ntrials = {trials}\n[search]\nkind = \"random\"\n[stopping]\n{lines}\n"
        ));
        let mut run = Run { seed, epochs: 0, best: f64::INFINITY, marks: Vec::new(), curves: Vec::new() };
        while run.epochs < budget
            && let Ask::Trial(trial) = study.ask()
        {
            let curve = Curve::new(family, seed, trial.number);
            run.curves.resize_with(study.trials().len(), Vec::new);
            let done = study.trials()[trial.number as usize].last_report().map_or(0, |(step, _)| step);
            let mut decision = Decision::Continue;
            for epoch in done + 1..=Curve::EPOCHS {
                if BUDGETS.contains(&run.epochs) && budget != u64::MAX {
                    run.marks.push(run.best.min(BAD));
                }
                run.epochs += 1;
                decision = study.report(trial.number, epoch, curve.loss(epoch)).expect("an open trial");
                run.curves[trial.number as usize].push((epoch as f64, curve.loss(epoch)));
                if decision != Decision::Continue {
                    break;
                }
            }
            if decision == Decision::Continue {
                run.best = run.best.min(curve.clean(Curve::EPOCHS));
            }
            if decision != Decision::Pause {
                study.tell(trial.number, Outcome::LastReport).expect("an open trial");
            }
            study.take_records();
        }
        run.marks.resize(BUDGETS.len(), run.best.min(BAD));
        run
    }
}

/// Which curves go on: all of one search, the best of those that were run to their ends in colour.
fn draw_decisions(options: &Options) {
    for (rule, title) in [("asha", "asha, mode = stop"), ("promote", "asha, mode = promote")] {
        let mut run = Run::whole(Family::Curves, rule, 0);
        let end = |curve: &Vec<(f64, f64)>| match curve.last() {
            Some((epoch, loss)) if *epoch == Curve::EPOCHS as f64 => *loss,
            _ => f64::INFINITY,
        };
        run.curves.sort_by(|a, b| end(b).total_cmp(&end(a)));
        let best = run.curves.pop().unwrap_or_default();
        let others = run.curves.into_iter().map(|points| Line { name: String::new(), points });
        let lines = others.chain([Line { name: "the best of all".to_owned(), points: best }]).collect();
        let title = format!("{title}: {} epochs of {}", run.epochs, CURVES * Curve::EPOCHS);
        let chart = Chart { title: &title, x: "epoch", y: "loss", log: (true, false), lines };
        options.draw(&format!("curves-{rule}"), &chart);
    }
}
