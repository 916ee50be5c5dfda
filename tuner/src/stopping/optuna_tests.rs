//! Against what Optuna 5's pruners decide over the same histories, where the rules mean the same:
//! `tests/fixtures/pruners.py` made the fixture.

use super::tests::{run, study};
use serde::Deserialize;

const FIXTURE: &str = include_str!("../../tests/fixtures/pruners.json");

#[derive(Deserialize)]
struct Case {
    stopping: String,
    mode: String,
    curves: Vec<Vec<f64>>,
    /// The step after which a curve was stopped.
    stopped: Vec<Option<u64>>,
}

#[test]
fn decisions_are_optuna_s() {
    let cases: Vec<Case> = serde_json::from_str(FIXTURE).unwrap();
    assert!(cases.len() >= 16);
    for case in cases {
        let mut study = study(&case.stopping, &case.mode);
        let expected = case.stopped.iter().flatten().count();
        assert!(expected > 1 && expected < case.curves.len(), "{} decides nothing", case.stopping);
        for (at, (curve, stopped)) in case.curves.iter().zip(&case.stopped).enumerate() {
            let found = run(&mut study, curve).map(|(step, _)| step);
            assert_eq!(found, *stopped, "curve {at} of {} ({})", case.stopping, case.mode);
        }
    }
}
