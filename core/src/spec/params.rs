//! The `[params]` of a sweep: what may vary, within which bounds, and under which condition.

use super::reader::{Table, Value, as_integer, as_number};
use crate::diagnostic::{Problem, suggest};
use crate::limits::{NAME_BYTES, SWEEP_CHOICES, SWEEP_PARAMS};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use toml::de::DeValue;

/// Integers of a parameter stay where `f64` counts exactly, so that samplers may work in floats.
const MAX_EXACT_INTEGER: i64 = 1 << 53;
/// How far off a grid point, in steps, a written value may lie.
const STEP_TOLERANCE: f64 = 1e-6;

/// One value of one parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ParamValue {
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A finite number.
    Float(f64),
    /// A text.
    Text(String),
}

/// The parameters of a trial by name; those whose condition does not hold are absent.
pub type Params = BTreeMap<String, ParamValue>;

impl ParamValue {
    /// The number it is, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            ParamValue::Int(number) => Some(number as f64),
            ParamValue::Float(number) => Some(number),
            _ => None,
        }
    }

    /// Whether both mean the same; `1` and `1.0` do.
    pub fn means(&self, other: &ParamValue) -> bool {
        match (self.as_f64(), other.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => self == other,
        }
    }

    /// As a value of a file.
    pub(super) fn to_edit(&self) -> toml_edit::Value {
        match self {
            ParamValue::Bool(flag) => (*flag).into(),
            ParamValue::Int(number) => (*number).into(),
            ParamValue::Float(number) => (*number).into(),
            ParamValue::Text(text) => text.as_str().into(),
        }
    }

    fn read(value: &DeValue<'_>) -> Option<ParamValue> {
        match value {
            DeValue::String(text) => Some(ParamValue::Text(text.to_string())),
            DeValue::Boolean(flag) => Some(ParamValue::Bool(*flag)),
            DeValue::Integer(_) => as_integer(value).map(ParamValue::Int),
            DeValue::Float(_) => as_number(value).filter(|number| number.is_finite()).map(ParamValue::Float),
            _ => None,
        }
    }
}

impl fmt::Display for ParamValue {
    /// As it stands in a command line: texts bare, floats so that they read back as the same float.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParamValue::Bool(flag) => write!(f, "{flag}"),
            ParamValue::Int(number) => write!(f, "{number}"),
            ParamValue::Float(number) => write!(f, "{number:?}"),
            ParamValue::Text(text) => f.write_str(text),
        }
    }
}

/// The values a parameter may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Domain {
    /// Numbers from `low` to `high`, both included.
    Float {
        /// The least.
        low: f64,
        /// The largest.
        high: f64,
        /// Equal ratios count as equally far apart.
        log: bool,
        /// Only `low + k · step`.
        step: Option<f64>,
    },
    /// Integers from `low` to `high`, both included.
    Int {
        /// The least.
        low: i64,
        /// The largest.
        high: i64,
        /// Equal ratios count as equally far apart.
        log: bool,
        /// Only `low + k · step`.
        step: i64,
    },
    /// One of these, in no order.
    Choice {
        /// The values, all different.
        values: Vec<ParamValue>,
    },
    /// One of these, neighbours being alike.
    Ordinal {
        /// The values in their order, all different.
        values: Vec<ParamValue>,
    },
    /// Always the same.
    Fixed {
        /// The value.
        value: ParamValue,
    },
}

impl Domain {
    /// How many values there are; `None` where they are a continuum.
    pub fn count(&self) -> Option<u64> {
        match self {
            Domain::Float { low, high, .. } if low == high => Some(1),
            Domain::Float { step: None, .. } => None,
            Domain::Float { low, high, step: Some(step), .. } => {
                Some(((high - low) / step + STEP_TOLERANCE) as u64 + 1)
            }
            Domain::Int { low, high, step, .. } => Some(high.abs_diff(*low) / step.unsigned_abs() + 1),
            Domain::Choice { values } | Domain::Ordinal { values } => Some(values.len() as u64),
            Domain::Fixed { .. } => Some(1),
        }
    }

    /// The value at an index below `count`; a continuum has only its `low`.
    pub fn nth(&self, index: u64) -> ParamValue {
        match self {
            Domain::Float { low, high, step, .. } => {
                let value = step.map_or(*low, |step| grid_point(*low, step, index));
                ParamValue::Float(value.min(*high))
            }
            Domain::Int { low, step, .. } => ParamValue::Int(low + step * index as i64),
            Domain::Choice { values } | Domain::Ordinal { values } => values[index as usize].clone(),
            Domain::Fixed { value } => value.clone(),
        }
    }

    /// The parameter's own form of a written value, or `None` where it is not one of its values.
    pub fn canonical(&self, value: &ParamValue) -> Option<ParamValue> {
        match self {
            Domain::Float { low, high, step: None, .. } => {
                value.as_f64().filter(|x| (*low..=*high).contains(x)).map(ParamValue::Float)
            }
            Domain::Float { low, step: Some(step), .. } => {
                let index = (value.as_f64()? - low) / step;
                let near = (index - index.round()).abs() <= STEP_TOLERANCE && index.round() >= 0.0;
                let index = index.round() as u64;
                (near && index < self.count()?).then(|| self.nth(index))
            }
            Domain::Int { low, high, step, .. } => {
                let number =
                    value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= MAX_EXACT_INTEGER as f64)?
                        as i64;
                let inside = (*low..=*high).contains(&number) && (number - low) % step == 0;
                inside.then_some(ParamValue::Int(number))
            }
            Domain::Choice { values } | Domain::Ordinal { values } => {
                values.iter().find(|v| v.means(value)).cloned()
            }
            Domain::Fixed { value: only } => only.means(value).then(|| only.clone()),
        }
    }
}

/// `low + index · step` with no more decimals than the two have as written, so that 0.05 · 3 is 0.15.
fn grid_point(low: f64, step: f64, index: u64) -> f64 {
    const MAX_DECIMALS: usize = 17;
    let decimals = |x: f64| {
        let text = format!("{x}");
        text.split_once('.').map_or(0, |(_, digits)| digits.len())
    };
    let places = decimals(low).max(decimals(step));
    let point = low + step * index as f64;
    if places > MAX_DECIMALS { point } else { format!("{point:.places$}").parse().unwrap_or(point) }
}

/// A parameter is there only if another one has one of some values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// The other parameter.
    pub parent: String,
    /// Its values that count; never empty.
    pub values: Vec<ParamValue>,
}

/// One parameter of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// Its name.
    pub name: String,
    /// Its values.
    pub domain: Domain,
    /// All of these must hold for it to be there.
    pub when: Vec<Condition>,
}

impl ParamSpec {
    /// Whether its own conditions hold among parameters that are decided already (parents come first).
    pub fn is_active(&self, decided: &Params) -> bool {
        self.when.iter().all(|condition| {
            decided
                .get(&condition.parent)
                .is_some_and(|value| condition.values.iter().any(|v| v.means(value)))
        })
    }
}

/// Reads `[params]`; the answer has parents before the parameters that depend on them, else the file's order.
pub(super) fn read(table: &Table<'_>) -> Vec<ParamSpec> {
    let mut entries: Vec<_> = table.entries().collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    if entries.len() > SWEEP_PARAMS {
        let message = format!("{} parameters; a sweep has at most {SWEEP_PARAMS}", entries.len());
        table.problem(table.span(), message);
        return Vec::new();
    }
    let mut found = Vec::new();
    for (name, span, value) in entries {
        if name.is_empty()
            || name.len() > NAME_BYTES
            || name.chars().any(|c| c.is_control() || c == '{' || c == '}')
        {
            table.problem(
                span,
                format!("a parameter's name has 1 to {NAME_BYTES} bytes, no braces, none of them control"),
            );
            continue;
        }
        found.push(Read::param(table, name, value));
    }
    check_conditions(table, &found);
    let ordered = order(table, &found);
    ordered.into_iter().filter_map(|index| found[index].spec()).collect()
}

/// Reads the `[params]` of a single job: bare values.
pub(super) fn read_fixed(table: &Table<'_>) -> Params {
    let mut params = Params::new();
    for param in read(table) {
        match param.domain {
            Domain::Fixed { value } => drop(params.insert(param.name, value)),
            _ => table.problem_with_help(
                table.span_of(&param.name),
                format!("`params.{}` varies, and a single job has bare values", param.name),
                "add [sweep] to search over it, or give it a value",
            ),
        }
    }
    params
}

/// A parameter as read, valid or not; `domain` is `None` where a problem was noted.
struct Read {
    name: String,
    domain: Option<Domain>,
    when: Vec<(Condition, Range<usize>)>,
    span: Range<usize>,
}

impl Read {
    fn param(params: &Table<'_>, name: &str, value: Value<'_>) -> Read {
        let mut read = Read { name: name.to_owned(), domain: None, when: Vec::new(), span: value.span() };
        match value.get_ref() {
            DeValue::Table(_) => {
                if let Some(table) = params.table_value(name, value) {
                    read.domain = read_domain(&table);
                    read.when = read_when(&table);
                    table.finish();
                }
            }
            DeValue::Array(_) => {
                let help = "write { kind = \"choice\", values = [..] }";
                params.problem_with_help(value.span(), format!("`{}` is a list", params.path_of(name)), help);
            }
            bare => match ParamValue::read(bare) {
                Some(value) => read.domain = Some(Domain::Fixed { value }),
                None => params.problem(
                    value.span(),
                    format!("`{}` must be a text, a finite number or a truth value", params.path_of(name)),
                ),
            },
        }
        read
    }

    fn spec(&self) -> Option<ParamSpec> {
        let when = self.when.iter().map(|(condition, _)| condition.clone()).collect();
        self.domain.clone().map(|domain| ParamSpec { name: self.name.clone(), domain, when })
    }
}

fn read_domain(table: &Table<'_>) -> Option<Domain> {
    #[derive(Clone, Copy)]
    enum Kind {
        Float,
        Int,
        Choice,
        Ordinal,
        Fixed,
    }
    const KINDS: [(&str, Kind); 5] = [
        ("float", Kind::Float),
        ("int", Kind::Int),
        ("choice", Kind::Choice),
        ("ordinal", Kind::Ordinal),
        ("fixed", Kind::Fixed),
    ];
    table.require("kind", "kind = \"float\"");
    let kind = table.word("kind", &KINDS);
    match kind {
        Some(Kind::Float) => read_float(table),
        Some(Kind::Int) => read_int(table),
        Some(Kind::Choice) => read_values(table).map(|values| Domain::Choice { values }),
        Some(Kind::Ordinal) => read_values(table).map(|values| Domain::Ordinal { values }),
        Some(Kind::Fixed) => {
            table.require("value", "value = 1");
            let value = table.value("value")?;
            let read = ParamValue::read(value.get_ref());
            if read.is_none() {
                let message =
                    format!("`{}` must be a text, a finite number or a truth value", table.path_of("value"));
                table.problem(value.span(), message);
            }
            read.map(|value| Domain::Fixed { value })
        }
        None => {
            // The other keys cannot be judged without a kind.
            for key in ["low", "high", "log", "step", "values", "value"] {
                table.has(key);
            }
            None
        }
    }
}

fn read_float(table: &Table<'_>) -> Option<Domain> {
    table.require("low", "low = 0.0");
    table.require("high", "high = 1.0");
    let finite = |key| table.number(key, "a finite number", |_| true);
    let (low, high) = (finite("low"), finite("high"));
    let log = table.boolean("log").unwrap_or(false);
    let step = table.number("step", "above 0", |step| step > 0.0);
    let (low, high) = (low?, high?);
    let domain = Domain::Float { low, high, log, step };
    let sound = check_bounds(table, low, high, log, step);
    sound.then_some(domain)
}

fn read_int(table: &Table<'_>) -> Option<Domain> {
    table.require("low", "low = 1");
    table.require("high", "high = 10");
    let range = -MAX_EXACT_INTEGER..=MAX_EXACT_INTEGER;
    let (low, high) = (table.integer("low", range.clone()), table.integer("high", range));
    let log = table.boolean("log").unwrap_or(false);
    let step = table.integer("step", 1..=MAX_EXACT_INTEGER);
    let (low, high) = (low?, high?);
    let sound = check_bounds(table, low as f64, high as f64, log, step.map(|step| step as f64));
    sound.then_some(Domain::Int { low, high, log, step: step.unwrap_or(1) })
}

fn check_bounds(table: &Table<'_>, low: f64, high: f64, log: bool, step: Option<f64>) -> bool {
    let name = table.path_of("low");
    let problem = if low > high {
        Some((table.span_of("low"), format!("`{name}` is {low}, above `high` {high}")))
    } else if log && low <= 0.0 {
        Some((table.span_of("low"), format!("`{name}` is {low}; a `log` scale starts above 0")))
    } else if !(high - low).is_finite() {
        Some((table.span_of("high"), format!("the range from {low} to {high} is too wide for a float")))
    } else {
        step.filter(|&step| step > high - low && high > low).map(|step| {
            (table.span_of("step"), format!("`{}` is {step}, wider than the range", table.path_of("step")))
        })
    };
    if let Some((span, message)) = problem {
        table.problem(span, message);
        return false;
    }
    true
}

fn read_values(table: &Table<'_>) -> Option<Vec<ParamValue>> {
    table.require("values", "values = [\"a\", \"b\"]");
    let list = table.value("values")?;
    let name = table.path_of("values");
    let DeValue::Array(items) = list.get_ref() else {
        table.problem(list.span(), format!("`{name}` must be a list"));
        return None;
    };
    if items.is_empty() || items.len() > SWEEP_CHOICES {
        table.problem(list.span(), format!("`{name}` must have 1 to {SWEEP_CHOICES} values"));
        return None;
    }
    let mut values: Vec<ParamValue> = Vec::with_capacity(items.len());
    let mut sound = true;
    for item in items.iter() {
        let problem = match ParamValue::read(item.get_ref()) {
            None => format!("a value of `{name}` must be a text, a finite number or a truth value"),
            Some(value) if values.iter().any(|v| v.means(&value)) => format!("`{name}` has {value} twice"),
            Some(value) => {
                values.push(value);
                continue;
            }
        };
        table.problem(item.span(), problem);
        sound = false;
    }
    sound.then_some(values)
}

fn read_when(table: &Table<'_>) -> Vec<(Condition, Range<usize>)> {
    let Some(when) = table.table("when") else { return Vec::new() };
    let mut conditions = Vec::new();
    for (parent, span, value) in when.entries() {
        let values: Option<Vec<ParamValue>> = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| ParamValue::read(item.get_ref())).collect(),
            single => ParamValue::read(single).map(|value| vec![value]),
        };
        match values {
            Some(values) if !values.is_empty() => {
                let span = span.start..value.span().end;
                conditions.push((Condition { parent: parent.to_owned(), values }, span));
            }
            _ => when.problem(
                value.span(),
                format!("`{}` must be a value of `{parent}` or a list of them", when.path_of(parent)),
            ),
        }
    }
    if conditions.is_empty() && when.entries().next().is_none() {
        when.problem(when.span(), format!("`{}` names no parameter", table.path_of("when")));
    }
    conditions
}

fn check_conditions(table: &Table<'_>, found: &[Read]) {
    let names: Vec<&str> = found.iter().map(|read| read.name.as_str()).collect();
    for read in found {
        for (condition, span) in &read.when {
            let Some(parent) = found.iter().find(|other| other.name == condition.parent) else {
                let message =
                    format!("`{}` waits for `{}`, which is no parameter", read.name, condition.parent);
                table.note(Problem {
                    message,
                    span: Some(span.clone()),
                    help: suggest(&condition.parent, &names),
                });
                continue;
            };
            let Some(domain) = &parent.domain else { continue };
            if matches!(domain, Domain::Float { step: None, .. }) {
                let message =
                    format!("`{}` waits for a value of `{}`, which is continuous", read.name, parent.name);
                table.problem_with_help(span.clone(), message, "give it a `step`, or wait for a choice");
                continue;
            }
            for value in condition.values.iter().filter(|value| domain.canonical(value).is_none()) {
                table.problem(
                    span.clone(),
                    format!("`{}` waits for `{}` to be {value}, which it never is", read.name, parent.name),
                );
            }
        }
    }
}

/// Indices with parents first; parameters on a cycle are a problem and left out.
fn order(table: &Table<'_>, found: &[Read]) -> Vec<usize> {
    let names: BTreeSet<&str> = found.iter().map(|read| read.name.as_str()).collect();
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    let mut ordered = Vec::with_capacity(found.len());
    let mut left: Vec<usize> = (0..found.len()).collect();
    loop {
        let ready = |index: &usize| {
            let parents = found[*index].when.iter().map(|(condition, _)| condition.parent.as_str());
            parents.into_iter().all(|parent| placed.contains(parent) || !names.contains(parent))
        };
        let Some(position) = left.iter().position(ready) else { break };
        let index = left.remove(position);
        placed.insert(&found[index].name);
        ordered.push(index);
    }
    for index in left {
        let read = &found[index];
        let span = read.when.first().map_or(read.span.clone(), |(_, span)| span.clone());
        table.problem(span, format!("the `when` of `{}` goes in a circle", read.name));
    }
    ordered
}

/// Reads one `[[enqueue]]` point; parents that it leaves out are set so that what it names can be there.
pub(super) fn read_point(table: &Table<'_>, params: &[ParamSpec]) -> Params {
    let names: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
    let mut point = Params::new();
    for (name, span, value) in table.entries() {
        let Some(param) = params.iter().find(|param| param.name == name) else {
            let message = format!("unknown parameter `{name}` in [[enqueue]]");
            table.note(Problem { message, span: Some(span), help: suggest(name, &names) });
            continue;
        };
        let read = ParamValue::read(value.get_ref());
        match read.as_ref().and_then(|value| param.domain.canonical(value)) {
            Some(value) => drop(point.insert(name.to_owned(), value)),
            None => {
                let written = read.map_or_else(|| "this".to_owned(), |value| format!("{value}"));
                table.problem(
                    value.span(),
                    format!("`{name}` cannot be {written}: outside of its values in [params]"),
                );
            }
        }
    }
    // Children come after their parents, so that going backwards settles grandparents too.
    for param in params.iter().rev().filter(|param| table_has(table, &param.name)) {
        imply_parents(table, params, param, &mut point);
    }
    point
}

fn table_has(table: &Table<'_>, name: &str) -> bool {
    table.entries().any(|(key, _, _)| key == name)
}

fn imply_parents(table: &Table<'_>, params: &[ParamSpec], param: &ParamSpec, point: &mut Params) {
    for condition in &param.when {
        match point.get(&condition.parent) {
            Some(value) if condition.values.iter().any(|v| v.means(value)) => {}
            Some(value) => {
                let message = format!("`{}` is not there when `{}` is {value}", param.name, condition.parent);
                table.problem(table.span_of(&param.name), message);
            }
            None => {
                let parent = params.iter().find(|other| other.name == condition.parent);
                let value = parent.and_then(|parent| parent.domain.canonical(&condition.values[0]));
                if let (Some(parent), Some(value)) = (parent, value) {
                    point.insert(condition.parent.clone(), value);
                    imply_parents(table, params, parent, point);
                }
            }
        }
    }
}
