//! Against what Optuna 5 computes from the same observations: `tests/fixtures/parzen.py` made the fixture.

use super::*;
use serde::Deserialize;

const FIXTURE: &str = include_str!("../../tests/fixtures/parzen.json");
const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Fixture {
    gamma: Vec<(usize, usize)>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    space: Vec<Shape>,
    observed: Vec<Vec<f64>>,
    weights: Vec<f64>,
    sigmas: Vec<Vec<f64>>,
    points: Vec<Vec<f64>>,
    log_pdf: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Shape {
    Choices { choices: usize },
    Numbers { low: f64, high: f64, log: bool, step: f64 },
}

impl Case {
    fn empty(&self) -> Parzen {
        Parzen::new(self.space.iter().map(|shape| match *shape {
            Shape::Choices { choices } => Axis::Categories(choices),
            Shape::Numbers { low, high, log, step } => Axis::Numeric(Scale { low, high, log, step }),
        }))
    }

    fn parzen(&self) -> Parzen {
        let mut parzen = self.empty();
        for (number, floats) in self.observed.iter().enumerate() {
            parzen.insert(number as u64, floats.iter().copied());
        }
        parzen.refresh();
        parzen
    }
}

fn assert_close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * b.abs().max(1.0), "{what}, {index}: {a} is not {b}");
    }
}

#[test]
fn weights_widths_and_densities_are_optuna_s() {
    let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
    assert!(fixture.cases.len() > 50);
    for case in &fixture.cases {
        let parzen = case.parzen();
        assert_close(&parzen.weights, &case.weights, &format!("weights of {}", case.name));
        for (dim, sigmas) in parzen.dims.iter().zip(&case.sigmas) {
            if let Dim::Numeric(kernels) = dim {
                assert_close(&kernels.sigma, sigmas, &format!("widths of {}", case.name));
            }
        }
        assert_close(&parzen.log_pdf(&case.points), &case.log_pdf, &format!("densities of {}", case.name));
    }
}

#[test]
fn the_good_share_is_optuna_s() {
    let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
    for (count, expected) in fixture.gamma {
        assert_eq!(super::super::tpe::good_count(count), expected, "of {count}");
    }
}

#[test]
fn observations_that_came_and_went_leave_nothing_behind() {
    let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
    for case in fixture.cases.iter().filter(|case| case.observed.len() > 5) {
        // Backwards, with strangers among them, refreshed in between.
        let mut parzen = case.empty();
        for (number, floats) in case.observed.iter().enumerate().rev() {
            parzen.insert(2 * number as u64, floats.iter().copied());
            parzen.insert(2 * number as u64 + 1, case.observed[0].iter().copied());
            parzen.refresh();
        }
        for number in 0..case.observed.len() as u64 {
            parzen.remove(2 * number + 1);
        }
        parzen.refresh();
        assert_eq!(parzen.log_pdf(&case.points), case.parzen().log_pdf(&case.points), "{}", case.name);
    }
}

#[test]
fn dimension_by_dimension_the_density_is_the_same() {
    let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
    for case in fixture.cases.iter().filter(|case| case.points.len() > 1) {
        let parzen = case.parzen();
        let (from, to) = (&case.points[0], &case.points[1]);
        let mut along = Along::new(&parzen, from);
        let mut point = from.clone();
        for dim in 0..from.len() {
            let whole = |float: f64| {
                let mut point = point.clone();
                point[dim] = float;
                point
            };
            let expected = parzen.log_pdf(&[whole(from[dim]), whole(to[dim])]);
            assert_close(&along.log_pdf(&[from[dim], to[dim]]), &expected, &case.name);
            along.settle(to[dim]);
            point[dim] = to[dim];
        }
    }
}

#[test]
fn draws_follow_the_density() {
    let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
    for name in ["choice 7", "int 7", "step 7"] {
        let case = fixture.cases.iter().find(|case| case.name == name).unwrap();
        let parzen = case.parzen();
        let mut counts = std::collections::BTreeMap::new();
        const DRAWS: u32 = 40_000;
        for trial in 0..DRAWS {
            let mut stream = crate::random::Stream::new(1, u64::from(trial), "test", "");
            let kernel = parzen.pick(stream.unit());
            *counts.entry((parzen.draw(0, kernel, stream.unit()) * 1000.0) as i64).or_insert(0_u32) += 1;
        }
        for (value, count) in counts {
            let expected = parzen.log_pdf(&[vec![value as f64 / 1000.0]])[0].exp();
            let share = f64::from(count) / f64::from(DRAWS);
            assert!((share - expected).abs() < 0.012, "{name}: {value} came {share}, not {expected}");
        }
    }
}
