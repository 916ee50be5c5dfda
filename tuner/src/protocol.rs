//! Ask, report and tell as lines of JSON: the protocol of `phalanx study`, without its reading and writing.

use crate::study::{Ask, Study};
use crate::trial::{Outcome, Trial};
use phalanx_core::report::Metric;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Answers one request. A bad one is answered with an error and changes nothing; what a good one changed is in the
/// study's records.
pub fn answer(study: &mut Study, line: &[u8]) -> Value {
    respond(study, line).unwrap_or_else(|error| json!({ "error": error }))
}

fn respond(study: &mut Study, line: &[u8]) -> Result<Value, String> {
    let request: Value =
        serde_json::from_slice(line).map_err(|error| format!("the line is no JSON: {error}"))?;
    let Value::Object(request) = request else { return Err("the line is no JSON object".to_owned()) };
    match request.get("op").and_then(Value::as_str) {
        Some("ask") => Ok(ask(study)),
        Some("report") => report(study, &request),
        Some("tell") => tell(study, &request),
        Some("best") => Ok(best(study)),
        Some("importance") => {
            Ok(json!({ "importance": study.importance().into_iter().collect::<BTreeMap<_, _>>() }))
        }
        Some(other) => Err(format!("unknown op `{other}`; known are {OPS}")),
        None => Err(format!("`op` is missing; known are {OPS}")),
    }
}

const OPS: &str = "ask, report, tell, best and importance";

fn ask(study: &mut Study) -> Value {
    let handed = match study.ask() {
        Ask::Trial(handed) => handed,
        // A member of a population waits for its own trial; to ask again later is worth it.
        Ask::Wait if study.is_population() => return json!({ "done": true, "wait": true }),
        Ask::Wait | Ask::Done => return json!({ "done": true }),
    };
    let mut trial = Map::new();
    trial.insert("number".to_owned(), handed.number.into());
    trial.insert("params".to_owned(), json!(handed.params));
    trial.insert("sampler".to_owned(), json!(study.trials()[handed.number as usize].origin));
    if handed.resumed {
        trial.insert("resumed".to_owned(), true.into());
    }
    if let Some(from) = handed.from {
        trial.insert("from".to_owned(), from.into());
    }
    json!({ "trial": trial })
}

fn report(study: &mut Study, request: &Map<String, Value>) -> Result<Value, String> {
    let (number, step) = (count(request, "number")?, count(request, "step")?);
    let value = number_in(request, "value")?.ok_or("`value` is missing")?;
    let decision = study.report(number, step, value).map_err(|error| error.to_string())?;
    Ok(json!({ "decision": decision }))
}

fn tell(study: &mut Study, request: &Map<String, Value>) -> Result<Value, String> {
    let number = count(request, "number")?;
    let values = match (number_in(request, "value")?, request.get("values")) {
        (Some(_), Some(_)) => return Err("`value` and `values` are both there; keep one".to_owned()),
        (Some(value), None) => Some(vec![value]),
        (None, Some(values)) => {
            let numbers = values
                .as_array()
                .and_then(|values| values.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
            Some(numbers.filter(|values| !values.is_empty()).ok_or("`values` must be a list of numbers")?)
        }
        (None, None) => None,
    };
    let measured = measured(study, request)?;
    let outcome = match (state(request)?.as_deref(), values) {
        (None | Some("complete"), Some(values)) => Outcome::Measured { values, measured },
        (Some("complete"), None) if measured.is_empty() => Outcome::LastReport,
        (Some("complete"), None) => Outcome::Measured { values: Vec::new(), measured },
        (Some("stopped"), _) => Outcome::Stopped,
        (Some("failed"), _) => Outcome::Failed,
        (Some("cancelled"), _) => Outcome::Cancelled,
        (Some(other), _) => {
            return Err(format!(
                "unknown state `{other}`; known are complete, stopped, failed and cancelled"
            ));
        }
        (None, None) => return Err("`value` is missing; tell one, or a `state`".to_owned()),
    };
    study.tell(number, outcome).map_err(|error| error.to_string())?;
    Ok(match study.has_several_objectives() {
        true => json!({ "ok": true, "front": front(study) }),
        false => json!({ "ok": true, "best": study.best().map(|trial| described(trial, false)) }),
    })
}

fn front(study: &Study) -> Vec<Value> {
    study.front().map(|trial| described(trial, true)).collect()
}

fn best(study: &Study) -> Value {
    match study.has_several_objectives() {
        true => json!({ "front": front(study), "hypervolume": study.hypervolume().map(Metric) }),
        false => json!({ "best": study.best().map(|trial| described(trial, false)) }),
    }
}

/// The values of the constraints' metrics, in the order of the constraints.
fn measured(study: &Study, request: &Map<String, Value>) -> Result<Vec<f64>, String> {
    let Some(given) = request.get("constraints") else { return Ok(Vec::new()) };
    let given = given.as_object().ok_or("`constraints` must be an object: a number for each metric")?;
    let number = |(metric, value): (&String, &Value)| {
        let value = value.as_f64().ok_or_else(|| format!("`constraints.{metric}` must be a number"))?;
        Ok((metric.clone(), value))
    };
    let given: BTreeMap<String, f64> = given.iter().map(number).collect::<Result<_, String>>()?;
    study.measured(&given).map_err(|error| error.to_string())
}

fn described(trial: &Trial, several: bool) -> Value {
    let values: Vec<Metric> = trial.values.iter().copied().map(Metric).collect();
    match several {
        true => json!({ "number": trial.number, "params": trial.params, "values": values }),
        false => json!({ "number": trial.number, "params": trial.params, "value": values.first() }),
    }
}

fn state(request: &Map<String, Value>) -> Result<Option<String>, String> {
    match request.get("state") {
        None => Ok(None),
        Some(Value::String(state)) => Ok(Some(state.to_ascii_lowercase())),
        Some(_) => Err("`state` must be a text such as \"failed\"".to_owned()),
    }
}

fn count(request: &Map<String, Value>, key: &str) -> Result<u64, String> {
    let value = request.get(key).ok_or_else(|| format!("`{key}` is missing"))?;
    value.as_u64().ok_or_else(|| format!("`{key}` must be an integer, 0 or more"))
}

fn number_in(request: &Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    let number = |value: &Value| value.as_f64().ok_or_else(|| format!("`{key}` must be a number"));
    request.get(key).map(number).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::tests::sweep;

    fn line(study: &mut Study, request: &str) -> String {
        answer(study, request.as_bytes()).to_string()
    }

    #[test]
    fn the_contract_s_lines_get_the_contract_s_answers() {
        let mut study = Study::new(&sweep(
            "trials = 2\n[search]\nkind = \"grid\"\n[params]\nx = { kind = \"int\", low = 1, high = 3 }\n",
        ));
        let first = r#"{"trial":{"number":0,"params":{"x":1},"sampler":"grid"}}"#;
        assert_eq!(line(&mut study, r#"{"op":"ask"}"#), first);
        let report = r#"{"op":"report","number":0,"step":1,"value":0.5}"#;
        assert_eq!(line(&mut study, report), r#"{"decision":"continue"}"#);
        assert_eq!(
            line(&mut study, r#"{"op":"ask"}"#),
            first.replace("r\":0", "r\":1").replace("x\":1", "x\":2")
        );
        assert_eq!(line(&mut study, r#"{"op":"ask"}"#), r#"{"done":true}"#);
        let failed = r#"{"op":"tell","number":1,"state":"failed"}"#;
        assert_eq!(line(&mut study, failed), r#"{"ok":true,"best":null}"#);
        let told = r#"{"ok":true,"best":{"number":0,"params":{"x":1},"value":0.4}}"#;
        assert_eq!(line(&mut study, r#"{"op":"tell","number":0,"value":0.4}"#), told);
        assert_eq!(line(&mut study, r#"{"op":"tell","number":0,"values":[7]}"#), told);
        assert!(line(&mut study, report).contains("error"));
    }

    #[test]
    fn bad_lines_change_nothing() {
        let mut study = Study::new(&sweep("[params]\nx = 1\n"));
        line(&mut study, r#"{"op":"ask"}"#);
        line(&mut study, r#"{"op":"report","number":0,"step":4,"value":1}"#);
        study.take_records();
        for bad in [
            "",
            "hello",
            "[]",
            "3",
            "{}",
            r#"{"op":1}"#,
            r#"{"op":"askk"}"#,
            r#"{"op":"ask"}{"op":"ask"}"#,
            r#"{"op":"report","number":0,"value":1}"#,
            r#"{"op":"report","step":5,"value":1}"#,
            r#"{"op":"report","number":9,"step":5,"value":1}"#,
            r#"{"op":"report","number":-1,"step":5,"value":1}"#,
            r#"{"op":"report","number":0,"step":5.5,"value":1}"#,
            r#"{"op":"report","number":0,"step":-5,"value":1}"#,
            r#"{"op":"report","number":0,"step":"5","value":1}"#,
            r#"{"op":"report","number":0,"step":3,"value":1}"#,
            r#"{"op":"report","number":0,"step":5}"#,
            r#"{"op":"report","number":0,"step":5,"value":null}"#,
            r#"{"op":"report","number":0,"step":5,"value":"1"}"#,
            r#"{"op":"report","number":0,"step":5,"value":1e999}"#,
            r#"{"op":"report","number":0,"step":5,"value":NaN}"#,
            r#"{"op":"tell","number":0}"#,
            r#"{"op":"tell","number":0,"value":null}"#,
            r#"{"op":"tell","number":0,"value":true}"#,
            r#"{"op":"tell","number":0,"value":"0.5"}"#,
            r#"{"op":"tell","number":0,"values":[1,2]}"#,
            r#"{"op":"tell","number":0,"values":[null]}"#,
            r#"{"op":"tell","number":0,"values":0.5}"#,
            r#"{"op":"tell","number":0,"state":"broken"}"#,
            r#"{"op":"tell","number":0,"state":null}"#,
            r#"{"op":"tell","number":5,"state":"failed"}"#,
        ] {
            assert!(line(&mut study, bad).starts_with("{\"error\":\""), "{bad}");
        }
        assert!(answer(&mut study, b"\xff\xfe").get("error").is_some());
        assert!(study.take_records().is_empty());
    }

    #[test]
    fn constraints_are_told_by_name_and_the_best_keeps_them() {
        let lines =
            "[[constraint]]\nmetric = \"ms\"\nmax = 5\n[[constraint]]\nmetric = \"mb\"\nmin = 1\nmax = 9\n";
        let mut study = Study::new(&sweep(lines));
        (0..3).for_each(|_| drop(line(&mut study, r#"{"op":"ask"}"#)));
        for (constraints, expected) in [
            ("", "0 values for 2 constraints"),
            (r#","constraints":{"ms":1}"#, "lacks `mb`"),
            (r#","constraints":{"ms":1,"mb":"x"}"#, "must be a number"),
            (r#","constraints":{"ms":1,"mb":1,"kb":1}"#, "names `kb`"),
            (r#","constraints":[1,2]"#, "must be an object"),
        ] {
            let told = line(&mut study, &format!(r#"{{"op":"tell","number":0,"value":1{constraints}}}"#));
            assert!(told.contains(expected), "{told}");
        }
        let tell = |study: &mut Study, number: u64, value: f64, ms: f64| {
            line(
                study,
                &format!(
                    r#"{{"op":"tell","number":{number},"value":{value},"constraints":{{"mb":2,"ms":{ms}}}}}"#
                ),
            )
        };
        assert_eq!(tell(&mut study, 0, 0.1, 5.5), r#"{"ok":true,"best":null}"#);
        let best = r#""best":{"number":1,"params":{},"value":0.4}}"#;
        assert_eq!(tell(&mut study, 1, 0.4, 5.0), format!("{{\"ok\":true,{best}"));
        assert_eq!(tell(&mut study, 2, 0.2, 6.0), format!("{{\"ok\":true,{best}"));
        assert_eq!(line(&mut study, r#"{"op":"best"}"#), format!("{{{best}"));
    }

    #[test]
    fn several_objectives_answer_with_their_front() {
        let lines =
            "[params]\nx = 1\n[[objective]]\nmetric = \"a\"\n[[objective]]\nmetric = \"b\"\nmode = \"max\"\n";
        let text = format!("version = 1\n[sweep]\n{lines}");
        let mut study = Study::new(&phalanx_core::spec::SweepSpec::parse(&text, "x").unwrap());
        line(&mut study, r#"{"op":"ask"}"#);
        assert!(line(&mut study, r#"{"op":"tell","number":0,"value":1}"#).contains("2 objectives"));
        let told = line(&mut study, r#"{"op":"tell","number":0,"values":[1,2.5]}"#);
        let front = r#""front":[{"number":0,"params":{"x":1},"values":[1.0,2.5]}]"#;
        assert_eq!(told, format!("{{\"ok\":true,{front}}}"));
        line(&mut study, r#"{"op":"ask"}"#);
        line(&mut study, r#"{"op":"tell","number":1,"values":[2,2]}"#);
        let best = line(&mut study, r#"{"op":"best"}"#);
        assert_eq!(best, format!("{{{front},\"hypervolume\":0.5}}"));
    }
}
