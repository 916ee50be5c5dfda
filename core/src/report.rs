//! The lines a job's process exchanges with its agent over `$PHALANX_SOCKET`: newline-delimited JSON.

use crate::limits::{METRIC_NAME_BYTES, METRICS_PER_REPORT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A line from a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Metrics of a step.
    Report(Report),
    /// A finished checkpoint folder to take over.
    Checkpoint(Checkpoint),
    /// A rank wants to stand in a group with the others; answered once it is known in which. On the same connection a second
    /// answer says `leave` when that group is over.
    Meet(Meet),
}

/// Metrics of one step of one rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The step, as the program counts; without it, one more than the rank's last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Values by name.
    pub metrics: BTreeMap<String, Metric>,
}

/// A metric's value. JSON has no NaN and no infinity, so these travel as the texts `nan`, `inf` and `-inf`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric(pub f64);

impl Serialize for Metric {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_finite() => serializer.serialize_f64(value),
            value if value.is_nan() => serializer.serialize_str("nan"),
            value if value > 0.0 => serializer.serialize_str("inf"),
            _ => serializer.serialize_str("-inf"),
        }
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Metric;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, \"nan\", \"inf\" or \"-inf\"")
            }

            fn visit_f64<E>(self, value: f64) -> Result<Metric, E> {
                Ok(Metric(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Metric, E> {
                match text.to_ascii_lowercase().as_str() {
                    "nan" => Ok(Metric(f64::NAN)),
                    "inf" | "infinity" | "+inf" => Ok(Metric(f64::INFINITY)),
                    "-inf" | "-infinity" => Ok(Metric(f64::NEG_INFINITY)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A checkpoint folder that its writer has finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The step the checkpoint was made at.
    pub step: u64,
    /// The folder, absolute; it is copied, so that later changes do not reach the copy.
    pub path: PathBuf,
    /// Nobody will touch the folder any more: it may be moved away, which spares the copy.
    #[serde(default, rename = "move", skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

/// A rank without a group: at its start, or because the group it stood in has lost one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meet {
    /// The group that it has left; 0 for none.
    pub epoch: u32,
    /// The port at which the others would find it, if they were to meet there.
    pub port: u16,
}

/// A rank's place in a group of an elastic gang.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Counts the groups of the attempt, from 1.
    pub epoch: u32,
    /// The rank's place in it, from 0.
    pub rank: u32,
    /// How many stand in it.
    pub world: u32,
    /// Where they meet.
    pub master_addr: String,
    /// The port that the first of them has offered.
    pub master_port: u16,
}

/// The answer to a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// The line was taken.
    Taken {
        /// Always true.
        ok: bool,
        /// The process should end soon: the tuner or a person wants the job to stop.
        stop: bool,
        /// To a rank that wants to meet others: its place. None in a gang of a fixed size, whose ranks stand as their
        /// environment says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Place>,
        /// The group that was answered on this connection is over: the rank is to leave it after its next step, and to ask
        /// again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        leave: bool,
        /// With `leave`: a member is lost, so that the step under way will not come to its end.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lost: bool,
    },
    /// The line was refused and changed nothing.
    Refused {
        /// Why.
        error: String,
    },
}

impl Answer {
    /// A line was taken, and there is no more to it.
    pub fn taken(stop: bool) -> Answer {
        Answer::Taken { ok: true, stop, group: None, leave: false, lost: false }
    }
}

/// Reads one line; the error is what its writer is told.
pub fn parse_line(line: &[u8]) -> Result<Request, String> {
    let request: Request = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match &request {
        Request::Report(report) => check_metrics(&report.metrics)?,
        Request::Checkpoint(checkpoint) if !checkpoint.path.is_absolute() => {
            return Err(format!("checkpoint path `{}` is not absolute", checkpoint.path.display()));
        }
        Request::Meet(Meet { port: 0, .. }) => {
            return Err("port 0 is no port at which others could find a rank".to_owned());
        }
        Request::Checkpoint(_) | Request::Meet(_) => {}
    }
    Ok(request)
}

fn check_metrics(metrics: &BTreeMap<String, Metric>) -> Result<(), String> {
    if metrics.is_empty() {
        return Err("a report needs at least one metric".to_owned());
    }
    if metrics.len() > METRICS_PER_REPORT {
        return Err(format!("{} metrics in one report; the limit is {METRICS_PER_REPORT}", metrics.len()));
    }
    metrics.keys().try_for_each(|name| check_metric_name(name))
}

/// A metric's name is any text of 1 to 256 bytes without control characters.
pub fn check_metric_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > METRIC_NAME_BYTES {
        return Err(format!("a metric's name has 1 to {METRIC_NAME_BYTES} bytes, this one {}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("the metric name {name:?} contains a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_contract_shows() {
        let line = br#"{"report":{"step":3,"metrics":{"loss":0.2,"n":4}}}"#;
        let Ok(Request::Report(report)) = parse_line(line) else { panic!("not a report") };
        assert_eq!(report.step, Some(3));
        assert_eq!(report.metrics["n"], Metric(4.0));
        let line = br#"{"checkpoint":{"step":3,"path":"/a/b"}}"#;
        let kept = Checkpoint { step: 3, path: "/a/b".into(), moves: false };
        assert_eq!(parse_line(line), Ok(Request::Checkpoint(kept.clone())));
        let line = br#"{"checkpoint":{"step":3,"path":"/a/b","move":true}}"#;
        assert_eq!(parse_line(line), Ok(Request::Checkpoint(Checkpoint { moves: true, ..kept })));
        let Ok(Request::Report(report)) = parse_line(br#"{"report":{"step":1,"metrics":{"x":"nan"}}}"#)
        else {
            panic!("not a report")
        };
        assert!(report.metrics["x"].0.is_nan());
    }

    #[test]
    fn refuses_bad_lines() {
        for line in [
            "",
            "hello",
            "[]",
            "{}",
            r#"{"report":{"step":-1,"metrics":{"a":1}}}"#,
            r#"{"report":{"step":1.5,"metrics":{"a":1}}}"#,
            r#"{"report":{"step":1,"metrics":{}}}"#,
            r#"{"report":{"step":1,"metrics":{"a":"1"}}}"#,
            r#"{"report":{"step":1,"metrics":{"a":null}}}"#,
            r#"{"report":{"step":1,"metrics":{"":1}}}"#,
            r#"{"report":{"step":1,"metrics":{"a\nb":1}}}"#,
            r#"{"report":{"step":1,"metrics":{"a":1},"x":2}}"#,
            r#"{"report":{"step":1,"metrics":{"a":1}},"checkpoint":{"step":1,"path":"/a"}}"#,
            r#"{"checkpoint":{"step":1,"path":"a"}}"#,
            r#"{"unknown":1}"#,
            r#"{"meet":{"epoch":0,"port":0}}"#,
            r#"{"meet":{"epoch":-1,"port":5}}"#,
            r#"{"meet":{"port":5}}"#,
        ] {
            assert!(parse_line(line.as_bytes()).is_err(), "{line}");
        }
        let long = "n".repeat(METRIC_NAME_BYTES + 1);
        assert!(
            parse_line(format!(r#"{{"report":{{"step":1,"metrics":{{"{long}":1}}}}}}"#).as_bytes()).is_err()
        );
    }

    #[test]
    fn answers_are_one_of_two_shapes() {
        let taken = serde_json::to_string(&Answer::taken(false)).unwrap();
        assert_eq!(taken, r#"{"ok":true,"stop":false}"#);
        assert_eq!(serde_json::from_str::<Answer>(&taken).unwrap(), Answer::taken(false));
        let refused = serde_json::to_string(&Answer::Refused { error: "no".into() }).unwrap();
        assert_eq!(refused, r#"{"error":"no"}"#);
    }
}
