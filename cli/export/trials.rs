//! The trials of a sweep as a table: a row a trial, a column a parameter.

use super::frame::{Cells, Column, Frame};
use phalanx_api::{json, v1 as pb};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Put before the name of a metric or parameter that would be a second column of its name.
const OTHER: &str = "params.";

/// The table of these trials. `value` is that of the first objective; of several each has a column of its name. A
/// parameter that a trial does not have is an empty cell.
pub(super) fn frame(sweep: &pb::Sweep, trials: &[pb::Trial]) -> Frame {
    let text = |text: &str| Some(Arc::from(text)).filter(|text: &Arc<str>| !text.is_empty());
    let each = |name: &str, cells: Cells| Column { name: name.to_owned(), cells };
    let mut columns = vec![
        each("number", Cells::Count(trials.iter().map(|trial| Some(trial.number)).collect())),
        each("state", Cells::Text(trials.iter().map(|trial| text(trial.state_name())).collect())),
        each("value", Cells::Float(trials.iter().map(|trial| trial.value).collect())),
        each("step", Cells::Count(trials.iter().map(|trial| trial.step).collect())),
        each("job", Cells::Text(trials.iter().map(|trial| text(&trial.job)).collect())),
        each("sampler", Cells::Text(trials.iter().map(|trial| text(&trial.sampler)).collect())),
    ];
    if sweep.objectives.len() > 1 {
        for (at, objective) in sweep.objectives.iter().enumerate() {
            let values = trials.iter().map(|trial| trial.values.get(at).copied());
            add(&mut columns, &objective.metric, Cells::Float(values.collect()));
        }
    }
    let params: Vec<Map<String, Value>> = trials.iter().map(params).collect();
    for name in &sweep.params {
        let values: Vec<Option<&Value>> = params.iter().map(|params| params.get(name)).collect();
        add(&mut columns, name, cells(&values));
    }
    Frame(columns)
}

fn add(columns: &mut Vec<Column>, name: &str, cells: Cells) {
    let taken = columns.iter().any(|column| column.name == name);
    let name = if taken { format!("{OTHER}{name}") } else { name.to_owned() };
    columns.push(Column { name, cells });
}

fn params(trial: &pb::Trial) -> Map<String, Value> {
    match json::params(trial.params.as_ref()) {
        Value::Object(params) => params,
        _ => Map::new(),
    }
}

/// The cells of a parameter: whole numbers, numbers, or text where some value is neither.
fn cells(values: &[Option<&Value>]) -> Cells {
    let there = || values.iter().flatten();
    if there().all(|value| value.is_i64()) {
        return Cells::Int(values.iter().map(|value| value.and_then(Value::as_i64)).collect());
    }
    if there().all(|value| value.is_number()) {
        return Cells::Float(values.iter().map(|value| value.and_then(Value::as_f64)).collect());
    }
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(Arc::from(text.as_str())),
        value => Some(Arc::from(value.to_string())),
    };
    Cells::Text(values.iter().map(|value| value.and_then(text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_takes_the_type_of_its_values() {
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let of = |texts: [&str; 2]| {
            let values = texts.map(value);
            cells(&values.iter().map(Some).collect::<Vec<_>>())
        };
        assert_eq!(of(["1", "-2"]), Cells::Int(vec![Some(1), Some(-2)]));
        assert_eq!(of(["1", "0.5"]), Cells::Float(vec![Some(1.0), Some(0.5)]));
        assert_eq!(of(["\"sgd\"", "2"]), Cells::Text(vec![Some("sgd".into()), Some("2".into())]));
        assert_eq!(of(["true", "false"]), Cells::Text(vec![Some("true".into()), Some("false".into())]));
        assert_eq!(cells(&[Some(&value("3")), None]), Cells::Int(vec![Some(3), None]));
    }

    #[test]
    fn no_two_columns_have_one_name() {
        let objective =
            |metric: &str| pb::SweepObjective { metric: metric.into(), ..pb::SweepObjective::default() };
        let sweep = pb::Sweep {
            objectives: vec![objective("loss"), objective("step")],
            params: vec!["value".into(), "lr".into()],
            ..pb::Sweep::default()
        };
        let trial = pb::Trial { values: vec![0.5, 3.0], ..pb::Trial::default() };
        let Frame(columns) = frame(&sweep, &[trial]);
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let fixed = ["number", "state", "value", "step", "job", "sampler"];
        assert_eq!(names[..6], fixed);
        assert_eq!(names[6..], ["loss", "params.step", "params.value", "lr"]);
        assert_eq!(columns[7].cells, Cells::Float(vec![Some(3.0)]));
    }
}
