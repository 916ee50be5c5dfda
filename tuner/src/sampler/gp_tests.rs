use super::*;
use crate::space::tests::{EVERY_KIND, sweep};
use crate::{Ask, Origin, Outcome, Study};
use phalanx_core::spec::Params;
use std::collections::VecDeque;

fn x(params: &Params, name: &str) -> f64 {
    params[name].as_f64().unwrap()
}

fn run(study: &mut Study, trials: usize, loss: impl Fn(&Params) -> f64) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..trials {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        let value = loss(&trial.params);
        best = best.min(value);
        study.tell(trial.number, Outcome::Values(vec![value])).unwrap();
    }
    best
}

#[test]
fn a_smooth_valley_is_found_in_few_trials() {
    let spec = sweep(
        "seed = 4\n[search]\nkind = \"gp\"\n[params]\na = { kind = \"float\", low = -5, high = 10 }\n\
         b = { kind = \"float\", low = 1e-4, high = 1, log = true }\nc = { kind = \"choice\", values = [\"x\", \"y\", \"z\"] }\n\
         d = { kind = \"int\", low = 0, high = 20 }\n",
    );
    let mut study = Study::new(&spec);
    let best = run(&mut study, 60, |params| {
        let wrong = f64::from(u8::from(format!("{:?}", params["c"]) != "Text(\"y\")"));
        (x(params, "a") - 3.0).powi(2)
            + (x(params, "b").log10() + 2.0).powi(2)
            + wrong
            + 0.1 * (x(params, "d") - 7.0).powi(2)
    });
    assert!(best < 0.02, "{best}");
    assert!(study.trials()[10..].iter().all(|trial| trial.origin == Origin::Gp));
}

#[test]
fn trials_in_flight_keep_apart() {
    let spec = sweep(
        "[search]\nkind = \"gp\"\n[params]\na = { kind = \"float\", low = 0, high = 1 }\nb = { kind = \"float\", low = 0, high = 1 }\n",
    );
    let mut study = Study::new(&spec);
    run(&mut study, 15, |params| (x(params, "a") - 0.3).powi(2) + (x(params, "b") - 0.6).powi(2));
    let mut open: Vec<(f64, f64)> = Vec::new();
    for _ in 0..6 {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        open.push((x(&trial.params, "a"), x(&trial.params, "b")));
    }
    for (at, a) in open.iter().enumerate() {
        for b in &open[..at] {
            assert!((a.0 - b.0).abs().max((a.1 - b.1).abs()) > 1e-4, "{open:?}");
        }
    }
}

#[test]
fn one_in_flight_looks_far_and_the_others_near_the_best() {
    let params: String =
        (0..4).map(|i| format!("p{i} = {{ kind = \"float\", low = 0, high = 1 }}\n")).collect();
    let mut study = Study::new(&sweep(&format!("[search]\nkind = \"gp\"\n[params]\n{params}")));
    let loss =
        |params: &Params| params.values().map(|value| (value.as_f64().unwrap() - 0.4).powi(2)).sum::<f64>();
    run(&mut study, 16, loss);
    let mut open = VecDeque::new();
    for _ in 16..30 {
        let best: Vec<f64> = study.best().unwrap().params.values().filter_map(|v| v.as_f64()).collect();
        while open.len() < 4 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let far =
                trial.params.values().zip(&best).map(|(value, best)| (value.as_f64().unwrap() - best).abs());
            let far = far.fold(0.0, f64::max);
            if !trial.number.is_multiple_of(open.len() as u64 + 1) {
                assert!(far <= 0.5 * REGION_SIDE + 1e-9, "trial {}: {far}", trial.number);
            }
            open.push_back(trial);
        }
        let trial = open.pop_front().unwrap();
        study.tell(trial.number, Outcome::Values(vec![loss(&trial.params)])).unwrap();
    }
}

#[test]
fn looking_near_ends_where_it_brings_nothing() {
    let falling: Vec<f64> = (0..20).map(|at| 1.0 / f64::from(at + 1)).collect();
    let all = |losses: &[f64]| pays(losses, &vec![true; losses.len()], 3);
    assert!(all(&falling));
    let stuck = |trials| [falling.clone(), vec![0.05; trials]].concat();
    assert!(all(&stuck(3)) && !all(&stuck(4)));
    // A millionth of what lies between the median and the best is no gain, and what breaks a constraint is none either.
    assert!(!all(&[stuck(3), vec![0.05 - 1e-8]].concat()));
    let (losses, mut feasible) = ([stuck(3), vec![0.01]].concat(), vec![true; 24]);
    assert!(pays(&losses, &feasible, 3));
    feasible[23] = false;
    assert!(pays(&losses, &feasible, 3) && pays(&losses[..23], &feasible[..23], 3));
    feasible[19] = false;
    assert!(pays(&losses, &feasible, 3));
    assert!(!pays(&[1.0; 4], &[false; 4], 3));
}

#[test]
fn what_lies_near_is_not_repeated_in_flight() {
    let spec = sweep(
        "[search]\nkind = \"gp\"\n[params]\na = { kind = \"int\", low = 0, high = 9 }\nb = { kind = \"int\", low = 0, high = 9 }\n",
    );
    let mut study = Study::new(&spec);
    run(&mut study, 30, |params| (x(params, "a") - 4.0).powi(2) + (x(params, "b") - 4.0).powi(2));
    let mut seen: Vec<String> = study.trials()[10..].iter().map(|t| format!("{:?}", t.params)).collect();
    for _ in 0..30 {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        seen.push(format!("{:?}", trial.params));
    }
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
}

#[test]
fn equal_values_fall_back_and_say_so() {
    let spec = sweep("[search]\nkind = \"gp\"\n[params]\na = { kind = \"float\", low = 0, high = 1 }\n");
    let mut study = Study::new(&spec);
    run(&mut study, 14, |_| 1.0);
    assert_eq!(study.trials()[13].origin, Origin::Tpe);
    // One that differs is enough to go on with.
    run(&mut study, 1, |_| 0.5);
    run(&mut study, 1, |_| 1.0);
    assert_eq!(study.trials()[15].origin, Origin::Gp);
}

#[test]
fn a_discrete_space_is_not_repeated_while_it_lasts() {
    let spec = sweep(
        "[search]\nkind = \"gp\"\n[params]\na = { kind = \"int\", low = 0, high = 5 }\nc = { kind = \"choice\", values = [1, 2, 3, 4] }\n",
    );
    let mut study = Study::new(&spec);
    run(&mut study, 22, |params| x(params, "a") * x(params, "c"));
    let mut seen: Vec<String> = study.trials()[10..].iter().map(|t| format!("{:?}", t.params)).collect();
    let all = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), all);
    run(&mut study, 10, |_| 0.0);
}

#[test]
fn many_dimensions_are_searched_near_the_best() {
    let params: String =
        (0..24).map(|i| format!("p{i} = {{ kind = \"float\", low = 0, high = 1 }}\n")).collect();
    let mut study = Study::new(&sweep(&format!("[search]\nkind = \"gp\"\n[params]\n{params}")));
    let best =
        run(&mut study, 60, |params| params.values().map(|v| (v.as_f64().unwrap() - 0.4).powi(2)).sum());
    assert!(best < 0.5, "{best}");
}

#[test]
fn constraints_are_learnt_and_the_edge_is_found() {
    let text = "version = 1\n[sweep]\nmetric = \"loss\"\n[search]\nkind = \"gp\"\n[[constraint]]\nmetric = \"g\"\nmax = 0.5\n\
                [params]\na = { kind = \"float\", low = 0, high = 1 }\nb = { kind = \"float\", low = 0, high = 1 }\n";
    let spec = phalanx_core::spec::SweepSpec::parse(text, "x").unwrap();
    let mut study = Study::new(&spec);
    for _ in 0..40 {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        let (a, b) = (x(&trial.params, "a"), x(&trial.params, "b"));
        // The best of the square is at its corner; a² + b² ≤ 1/2 leaves 1 at a = b = 1/2.
        let outcome = Outcome::Measured { values: vec![-a - b], measured: vec![a * a + b * b] };
        study.tell(trial.number, outcome).unwrap();
    }
    let best = study.best().unwrap();
    assert!(best.is_feasible() && best.values[0] < -0.98, "{best:?}");
    let late = &study.trials()[20..];
    assert!(late.iter().all(|trial| trial.origin == Origin::Gp));
    assert!(late.iter().filter(|trial| trial.violation < 0.1).count() > 7);
}

#[test]
fn before_any_trial_is_feasible_that_alone_counts() {
    let text = "version = 1\n[sweep]\nmetric = \"loss\"\n[search]\nkind = \"gp\"\n[[constraint]]\nmetric = \"g\"\nmin = 0.9\n\
                [params]\na = { kind = \"float\", low = 0, high = 1 }\nb = { kind = \"float\", low = 0, high = 1 }\n";
    let spec = phalanx_core::spec::SweepSpec::parse(text, "x").unwrap();
    let mut study = Study::new(&spec);
    for _ in 0..25 {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        let (a, b) = (x(&trial.params, "a"), x(&trial.params, "b"));
        study.tell(trial.number, Outcome::Measured { values: vec![a], measured: vec![a * b] }).unwrap();
    }
    assert!(study.best().is_some());
}

#[test]
fn a_rebuilt_study_proposes_the_same() {
    for rule in ["none\"\n", "asha\"\nmax = 9\neta = 2\n"] {
        let spec = sweep(&format!("[search]\nkind = \"gp\"\n[stopping]\nkind = \"{rule}{EVERY_KIND}"));
        let mut study = Study::new(&spec);
        for number in 0..30_u64 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let loss = x(&trial.params, "plain").powi(2) + x(&trial.params, "stepped");
            for step in 1..=4 {
                if study.report(number, step, loss + 1.0 / step as f64).unwrap() != crate::Decision::Continue
                {
                    break;
                }
            }
            study.tell(number, if number % 6 == 5 { Outcome::Failed } else { Outcome::LastReport }).unwrap();
        }
        let mut again = Study::rebuild(&spec, study.take_records()).unwrap();
        assert_eq!(again.ask(), study.ask());
        assert_eq!(study.trials()[30].origin, Origin::Gp);
    }
}

#[test]
fn the_sequence_of_fits_is_dense_at_first() {
    assert_eq!([0, 1, 12, 13, 50, 51, 100].map(fit_size), [0, 1, 12, 13, 48, 51, 97]);
}

#[test]
fn the_region_shrinks_without_success() {
    let dims = 21;
    assert_eq!(region_side(&[3.0, 2.0], dims), 0.8);
    assert_eq!(region_side(&[3.0, 2.0, 1.0], dims), 1.6);
    assert_eq!(region_side(&[1.0; 22], dims), 0.4);
}
