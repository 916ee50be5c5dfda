use super::*;
use crate::space::tests::sweep;
use crate::{Ask, Outcome, Study};
use phalanx_core::spec::Params;

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

const MIXED: &str = "[search]\nkind = \"cmaes\"\n[params]\na = { kind = \"float\", low = -5, high = 10 }\n\
                     b = { kind = \"float\", low = 1e-4, high = 1, log = true }\nd = { kind = \"int\", low = 0, high = 20 }\n\
                     e = { kind = \"int\", low = 1, high = 2 }\n";

fn bowl(params: &Params) -> f64 {
    (x(params, "a") - 3.0).powi(2)
        + (x(params, "b").log10() + 2.0).powi(2)
        + 0.1 * (x(params, "d") - 7.0).powi(2)
        + (x(params, "e") - 2.0).powi(2)
}

#[test]
fn numbers_and_integers_are_found() {
    for seed in 0..5 {
        let mut study = Study::new(&sweep(&format!("seed = {seed}\n{MIXED}")));
        let best = run(&mut study, 400, bowl);
        assert!(best < 1e-4, "{best}");
        assert!(study.trials().iter().all(|trial| trial.origin == Origin::Cmaes));
        // The margin: neighbours of the integers are tried to the end.
        let late = &study.trials()[300..];
        assert!(late.iter().any(|trial| x(&trial.params, "e") == 1.0), "seed {seed}");
    }
}

#[test]
fn choices_are_the_estimator_s() {
    let lines = format!("{MIXED}c = {{ kind = \"choice\", values = [\"x\", \"y\", \"z\"] }}\n");
    let mut study = Study::new(&sweep(&lines));
    run(&mut study, 200, |params| {
        bowl(params) + f64::from(u8::from(format!("{:?}", params["c"]) != "Text(\"y\")"))
    });
    let late = &study.trials()[120..];
    let right = late.iter().filter(|trial| format!("{:?}", trial.params["c"]) == "Text(\"y\")").count();
    assert!(right > 40, "{right}");
    let mut study = Study::new(&sweep(
        "[search]\nkind = \"cmaes\"\n[params]\nc = { kind = \"choice\", values = [1, 2] }\n",
    ));
    run(&mut study, 12, |params| x(params, "c"));
    assert_eq!(study.trials()[11].origin, Origin::Tpe);
}

#[test]
fn trials_in_flight_are_learnt_from() {
    let mut study = Study::new(&sweep(MIXED));
    let mut open = std::collections::VecDeque::new();
    let mut best = f64::INFINITY;
    for _ in 0..500 {
        while open.len() < 5 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            open.push_back(trial);
        }
        let trial = open.pop_front().unwrap();
        let value = bowl(&trial.params);
        best = best.min(value);
        study.tell(trial.number, Outcome::Values(vec![value])).unwrap();
    }
    assert!(best < 1e-3, "{best}");
}

#[test]
fn a_flat_run_begins_again_with_twice_the_population() {
    let spec = sweep(MIXED);
    let space = Space::new(&spec.params);
    let mut cmaes = Cmaes::new(&space, 0).unwrap();
    let mut number = 0;
    while cmaes.run.as_ref().is_none_or(|run| run.restarts == 0) {
        let params = crate::space::Point::from([Some(0.0), Some(0.1), Some(3.0), Some(1.0)]);
        let mut trial = Trial::new(number, number as u64, Origin::Cmaes, Params::new(), params);
        cmaes.asked(&trial);
        (trial.state, trial.values) = (crate::TrialState::Complete, vec![1.0]);
        cmaes.moved(MetricMode::Min, &trial);
        number += 1;
        assert!(number < 2000);
    }
    let run = cmaes.run.unwrap();
    assert_eq!(run.distribution.population(), 2 * (4 + (3.0 * 4_f64.ln()) as usize));
}

#[test]
fn what_is_known_shapes_the_first_distribution() {
    // Far from the centre, where a run without knowledge begins.
    let corner = |params: &Params| {
        (x(params, "a") - 9.0).powi(2)
            + (x(params, "b").log10() + 0.5).powi(2)
            + (x(params, "d") - 18.0).powi(2)
    };
    let mut older = Study::new(&sweep(&MIXED.replace("cmaes", "random")));
    run(&mut older, 200, corner);
    let log = older.take_records();
    let medians = [false, true].map(|warm| {
        let mut found: Vec<f64> = (0..9)
            .map(|seed| {
                let mut study = Study::new(&sweep(&format!("seed = {seed}\n{MIXED}")));
                if warm {
                    assert_eq!(study.learn_from(&log), Ok(200));
                }
                run(&mut study, 24, corner)
            })
            .collect();
        found.sort_by(f64::total_cmp);
        found[4]
    });
    assert!(medians[1] < 0.5 * medians[0], "{medians:?}");
}

#[test]
fn hundreds_of_numbers_keep_to_the_axes() {
    let params: String =
        (0..150).map(|i| format!("p{i} = {{ kind = \"float\", low = 0, high = 1 }}\n")).collect();
    let mut study = Study::new(&sweep(&format!("[search]\nkind = \"cmaes\"\n[params]\n{params}")));
    let loss = |params: &Params| params.values().map(|v| (v.as_f64().unwrap() - 0.4).powi(2)).sum::<f64>();
    let first = run(&mut study, 20, loss);
    assert!(run(&mut study, 1500, loss) < 0.3 * first);
}
