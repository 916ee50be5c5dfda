//! The sweep configuration of Weights & Biases (docs.wandb.ai, "Define a sweep configuration") as a sweep file.

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Trials where the configuration sets no `run_cap`.
const TRIALS: i64 = 50;
/// A normal distribution is cut off at so many deviations.
const DEVIATIONS: f64 = 3.0;
/// W&B's own default.
const ETA: i64 = 3;
/// Rungs above the first where a configuration does not say where they end.
const RUNGS: u32 = 4;

/// A sweep file, and what in it is not quite what the configuration says.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) toml: String,
    pub(super) notes: Vec<String>,
}

/// Converts a configuration.
///
/// # Errors
/// What is no such configuration, in words.
pub(super) fn convert(text: &str) -> Result<Converted, String> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| format!("it is no YAML: {error}"))?;
    let config = documents.first().filter(|config| config.as_hash().is_some());
    let config = config.ok_or("it is no mapping; a W&B sweep has `method`, `metric` and `parameters`")?;
    if config["parameters"].as_hash().is_none() {
        return Err("it has no `parameters`; is it the configuration of a W&B sweep?".to_owned());
    }
    let mut notes = Notes(Vec::new());
    let params = parameters(config, &mut notes)?;
    let names: Vec<&str> = params.iter().map(|(name, _)| name.as_str()).collect();
    let mut document = DocumentMut::new();
    document["version"] = toml_edit::value(1);
    if let Some(name) = config["name"].as_str() {
        document["name"] = toml_edit::value(name);
    }
    document["program"] = Item::Table(program(config, &names, &mut notes)?);
    document["sweep"] = Item::Table(sweep(config, &mut notes)?);
    document["search"] = Item::Table(search(config)?);
    if let Some(stopping) = stopping(&config["early_terminate"], &mut notes)? {
        document["stopping"] = Item::Table(stopping);
    }
    let mut table = Table::new();
    params.into_iter().for_each(|(name, value)| drop(table.insert(&name, toml_edit::value(value))));
    document["params"] = Item::Table(table);
    for (key, why) in [
        ("project", "where it is kept is the service's own"),
        ("entity", "where it is kept is the service's own"),
        ("controller", "the service itself decides"),
        ("imports", "the program imports what it needs"),
    ] {
        if !config[key].is_badvalue() {
            notes.add(format!("`{key}` is left out: {why}"));
        }
    }
    Ok(Converted { toml: document.to_string(), notes: notes.0 })
}

/// What a person has to know of the conversion.
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        self.0.push(note);
    }
}

fn search(config: &Yaml) -> Result<Table, String> {
    let kind = match config["method"].as_str() {
        Some("bayes") => "auto",
        Some(kind @ ("grid" | "random")) => kind,
        Some(other) => return Err(format!("`method` is `{other}`; known are bayes, grid and random")),
        None => return Err("`method` is missing; it is bayes, grid or random".to_owned()),
    };
    Ok(table([("kind", kind.into())]))
}

fn sweep(config: &Yaml, notes: &mut Notes) -> Result<Table, String> {
    let metric = &config["metric"];
    let mut sweep = Table::new();
    match metric["name"].as_str() {
        Some(name) => {
            sweep["metric"] = toml_edit::value(name);
            let mode = match metric["goal"].as_str() {
                None | Some("minimize") => "min",
                Some("maximize") => "max",
                Some(other) => return Err(format!("`metric.goal` is `{other}`; it is minimize or maximize")),
            };
            sweep["mode"] = toml_edit::value(mode);
        }
        None => {
            notes.add(
                "no `metric.name`: `sweep.metric` is set to \"loss\"; name the one you report".to_owned(),
            );
            sweep["metric"] = toml_edit::value("loss");
        }
    }
    if !metric["target"].is_badvalue() {
        notes.add("`metric.target` is left out: only [[objective]] tables have targets".to_owned());
    }
    match config["run_cap"].as_i64() {
        Some(trials) => sweep["trials"] = toml_edit::value(trials),
        None if config["method"].as_str() == Some("grid") => {}
        None => {
            notes.add(format!("no `run_cap`: `sweep.trials` is set to {TRIALS}"));
            sweep["trials"] = toml_edit::value(TRIALS);
        }
    }
    Ok(sweep)
}

/// W&B's stopping looks at brackets of iterations: successive halving that never comes back.
fn stopping(early: &Yaml, notes: &mut Notes) -> Result<Option<Table>, String> {
    if early.is_badvalue() || early.is_null() {
        return Ok(None);
    }
    match early["type"].as_str() {
        Some("hyperband") => {}
        Some(other) => return Err(format!("`early_terminate.type` is `{other}`; known is hyperband")),
        None => return Err("`early_terminate.type` is missing; known is hyperband".to_owned()),
    }
    let eta = early["eta"].as_i64().unwrap_or(ETA).max(2);
    let (min, max) = match (early["min_iter"].as_i64(), early["max_iter"].as_i64()) {
        (Some(min), Some(max)) => (min, max),
        (Some(min), None) => {
            let max = min.saturating_mul(eta.saturating_pow(RUNGS));
            notes.add(format!("`stopping.max` is set to {max}: set it to the last step of a trial"));
            (min, max)
        }
        (None, Some(max)) => {
            let brackets = early["s"].as_i64().and_then(|s| u32::try_from(s).ok()).unwrap_or(1);
            ((max / eta.saturating_pow(brackets)).max(1), max)
        }
        (None, None) => return Err("`early_terminate` needs `min_iter` or `max_iter`".to_owned()),
    };
    if early["strict"].as_bool() == Some(true) {
        notes.add(
            "`early_terminate.strict` is left out; `mode = \"promote\"` is the stricter way here".to_owned(),
        );
    }
    Ok(Some(table([
        ("kind", "asha".into()),
        ("mode", "stop".into()),
        ("min", min.into()),
        ("max", max.into()),
        ("eta", eta.into()),
    ])))
}

/// The command with its macros replaced.
fn program(config: &Yaml, names: &[&str], notes: &mut Notes) -> Result<Table, String> {
    let default = || ["${env}", "${interpreter}", "${program}", "${args}"].map(str::to_owned).to_vec();
    let words: Vec<String> = match &config["command"] {
        Yaml::Array(words) => {
            let word = |word: &Yaml| scalar_text(word).ok_or("`command` must be a list of texts");
            words.iter().map(word).collect::<Result<_, _>>()?
        }
        Yaml::BadValue | Yaml::Null => default(),
        _ => return Err("`command` must be a list of texts".to_owned()),
    };
    let mut command = Array::new();
    for word in words {
        match word.as_str() {
            // Programs are looked up in PATH anyway.
            "${env}" | "/usr/bin/env" => {}
            "${interpreter}" => command.push("python"),
            "${program}" => command.push(config["program"].as_str().ok_or("`program` is missing")?),
            "${args}" => names.iter().for_each(|name| command.push(format!("--{}={{{name}}}", braced(name)))),
            "${args_no_hyphens}" => {
                names.iter().for_each(|name| command.push(format!("{}={{{name}}}", braced(name))));
            }
            "${args_no_boolean_flags}" => {
                names.iter().for_each(|name| command.push(format!("--{}={{{name}}}", braced(name))));
                notes.add("`${args_no_boolean_flags}`: truth values are passed as `--name=true`".to_owned());
            }
            "${args_json}" | "${args_json_file}" => notes.add(format!(
                "`{word}` is left out: the parameters are in the JSON file that $PHALANX_PARAMS names"
            )),
            other if other.starts_with("${envvar:") => {
                notes.add(format!("`{word}` is left out: give the variable in `env` of the sweep file"));
            }
            other => command.push(braced(other)),
        }
    }
    let mut program = Table::new();
    program["command"] = toml_edit::value(command);
    Ok(program)
}

/// A brace of its own is written twice.
fn braced(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

fn parameters(config: &Yaml, notes: &mut Notes) -> Result<Vec<(String, Value)>, String> {
    let mut found = Vec::new();
    collect(&config["parameters"], "", &mut found, notes)?;
    if found.is_empty() {
        return Err("`parameters` is empty".to_owned());
    }
    Ok(found)
}

/// Nested parameters get names with dots.
fn collect(
    parameters: &Yaml,
    prefix: &str,
    found: &mut Vec<(String, Value)>,
    notes: &mut Notes,
) -> Result<(), String> {
    let Some(parameters) = parameters.as_hash() else {
        return Err(format!("`parameters{prefix}` must be a mapping"));
    };
    for (name, spec) in parameters {
        let name = scalar_text(name).ok_or("a parameter's name must be a text")?;
        let name =
            if prefix.is_empty() { name } else { format!("{}.{name}", prefix.trim_start_matches('.')) };
        if !spec["parameters"].is_badvalue() {
            notes.add(format!("`{name}` is nested: its parameters are named `{name}.…`"));
            collect(&spec["parameters"], &format!(".{name}"), found, notes)?;
            continue;
        }
        let domain =
            domain(spec, &name, notes).map_err(|problem| format!("`parameters.{name}`: {problem}"))?;
        found.push((name, domain));
    }
    Ok(())
}

fn domain(spec: &Yaml, name: &str, notes: &mut Notes) -> Result<Value, String> {
    if spec.as_hash().is_none() {
        return Err("must be a mapping with `value`, `values`, or `min` and `max`".to_owned());
    }
    let given = spec["distribution"].as_str();
    if given == Some("constant") || (given.is_none() && !spec["value"].is_badvalue()) {
        return scalar(&spec["value"]).ok_or("`value` must be a text, a number or a truth value".to_owned());
    }
    if given.is_some_and(|kind| kind.starts_with("categorical")) || !spec["values"].is_badvalue() {
        if !spec["probabilities"].is_badvalue() {
            notes
                .add(format!("`{name}`: probabilities are left out; every value is equally likely at first"));
        }
        return choice(&spec["values"]);
    }
    let integers = spec["min"].as_i64().is_some() && spec["max"].as_i64().is_some();
    let kind = given.unwrap_or(if integers { "int_uniform" } else { "uniform" });
    numbers(kind, spec, name, notes)
}

fn choice(values: &Yaml) -> Result<Value, String> {
    let values = values.as_vec().filter(|values| !values.is_empty());
    let values = values.ok_or("`values` must be a list that is not empty")?;
    let mut list = Array::new();
    for value in values {
        list.push(scalar(value).ok_or("a value must be a text, a number or a truth value")?);
    }
    Ok(inline([("kind", "choice".into()), ("values", list.into())]))
}

/// A range: where a distribution is none of ours, the range where it has almost all of its mass.
fn numbers(kind: &str, spec: &Yaml, name: &str, notes: &mut Notes) -> Result<Value, String> {
    let number = |key: &str| scalar_number(&spec[key]).ok_or(format!("`{key}` must be a number"));
    let or = |key: &str, default: f64| scalar_number(&spec[key]).unwrap_or(default);
    let (bare, step) = match kind.strip_prefix("q_") {
        Some(bare) => (bare, Some(or("q", 1.0))),
        None => (kind, None),
    };
    let mut cut = |low: f64, high: f64, log: bool| {
        let (low, high) = (tidy(low), tidy(high));
        notes.add(format!("`{name}`: `{kind}` becomes an even range from {low} to {high}"));
        (low, high, log)
    };
    let (mu, sigma) = (or("mu", 0.0), or("sigma", 1.0));
    let (low, high) = (mu - DEVIATIONS * sigma, mu + DEVIATIONS * sigma);
    let (low, high, log) = match bare {
        "int_uniform" => {
            let whole = |key: &str| spec[key].as_i64().ok_or(format!("`{key}` must be an integer"));
            return Ok(inline([
                ("kind", "int".into()),
                ("low", whole("min")?.into()),
                ("high", whole("max")?.into()),
            ]));
        }
        "uniform" => (number("min")?, number("max")?, false),
        "log_uniform" => (number("min")?.exp(), number("max")?.exp(), true),
        "log_uniform_values" | "inv_log_uniform_values" => (number("min")?, number("max")?, true),
        "inv_log_uniform" => ((-number("max")?).exp(), (-number("min")?).exp(), true),
        "normal" => cut(low, high, false),
        "log_normal" => cut(low.exp(), high.exp(), true),
        "beta" => cut(0.0, 1.0, false),
        other => return Err(format!("the distribution `{other}` is unknown")),
    };
    let mut range = inline([("kind", "float".into())]);
    let entries = range.as_inline_table_mut().ok_or("a range is a table")?;
    match step {
        // W&B rounds to multiples of q.
        Some(step) if step > 0.0 => {
            let least = if log { 1.0 } else { f64::NEG_INFINITY };
            entries.insert("low", ((low / step).ceil().max(least) * step).into());
            entries.insert("high", high.into());
            entries.insert("step", step.into());
        }
        Some(_) => return Err("`q` must be above 0".to_owned()),
        None => {
            entries.insert("low", low.into());
            entries.insert("high", high.into());
        }
    }
    if log {
        entries.insert("log", true.into());
    }
    Ok(range)
}

/// Without the digits that only rounding has made.
fn tidy(number: f64) -> f64 {
    format!("{number:.12e}").parse().unwrap_or(number)
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    let mut table = Table::new();
    entries.into_iter().for_each(|(key, value)| drop(table.insert(key, toml_edit::value(value))));
    table
}

fn inline<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let mut table = InlineTable::new();
    entries.into_iter().for_each(|(key, value)| drop(table.insert(key, value)));
    Value::InlineTable(table)
}

fn scalar(value: &Yaml) -> Option<Value> {
    match value {
        Yaml::String(text) => Some(text.as_str().into()),
        Yaml::Boolean(flag) => Some((*flag).into()),
        Yaml::Integer(number) => Some((*number).into()),
        Yaml::Real(_) => value.as_f64().filter(|number| number.is_finite()).map(Value::from),
        _ => None,
    }
}

fn scalar_number(value: &Yaml) -> Option<f64> {
    match value {
        Yaml::Integer(number) => Some(*number as f64),
        // 1e-5 is a text to some readers of YAML.
        Yaml::Real(text) | Yaml::String(text) => text.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    }
}

fn scalar_text(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::spec::{Domain, ParamValue, Search, Stopping, SweepSpec, Work};

    const WHOLE: &str = r#"
program: train.py
name: a {small} one
method: bayes
metric:
  name: val/accuracy
  goal: maximize
run_cap: 30
parameters:
  lr: { distribution: log_uniform_values, min: 1e-5, max: 0.1 }
  wd: { distribution: log_uniform, min: -9, max: -2 }
  layers: { min: 1, max: 8 }
  dropout: { distribution: q_uniform, min: 0.02, max: 0.5, q: 0.1 }
  momentum: { min: 0.5, max: 0.99 }
  opt: { values: [sgd, adamw, true, 3, 0.5] }
  epochs: { value: 10 }
  noise: { distribution: normal, mu: 0.0, sigma: 0.1 }
  model:
    parameters:
      width: { distribution: q_log_uniform_values, min: 16, max: 512, q: 16 }
early_terminate: { type: hyperband, s: 2, eta: 3, max_iter: 27 }
command: ["${env}", python, -u, "${program}", "${args}", "--x={y}"]
project: p
"#;

    fn param<'a>(spec: &'a SweepSpec, name: &str) -> &'a Domain {
        &spec.params.iter().find(|param| param.name == name).unwrap().domain
    }

    #[test]
    fn a_whole_configuration_becomes_a_valid_sweep() {
        let converted = convert(WHOLE).unwrap();
        let spec = SweepSpec::parse_runnable(&converted.toml, "x")
            .unwrap_or_else(|problems| panic!("{}", problems.render("x", &converted.toml)));
        assert_eq!((spec.search, spec.trials), (Search::Auto, Some(30)));
        assert_eq!(spec.objectives[0].metric, "val/accuracy");
        let float = |low, high, log, step| Domain::Float { low, high, log, step };
        assert_eq!(*param(&spec, "lr"), float(1e-5, 0.1, true, None));
        assert_eq!(*param(&spec, "wd"), float((-9_f64).exp(), (-2_f64).exp(), true, None));
        assert_eq!(*param(&spec, "layers"), Domain::Int { low: 1, high: 8, log: false, step: 1 });
        assert_eq!(*param(&spec, "dropout"), float(0.1, 0.5, false, Some(0.1)));
        assert_eq!(*param(&spec, "momentum"), float(0.5, 0.99, false, None));
        assert_eq!(*param(&spec, "noise"), float(-0.3, 0.3, false, None));
        assert_eq!(*param(&spec, "model.width"), float(16.0, 512.0, true, Some(16.0)));
        assert_eq!(*param(&spec, "epochs"), Domain::Fixed { value: ParamValue::Int(10) });
        assert_eq!(param(&spec, "opt").count(), Some(5));
        let Stopping::Asha(halving) = &spec.stopping else { panic!("{:?}", spec.stopping) };
        assert_eq!((halving.min, halving.max, halving.eta), (3, 27, 3));
        let Work::Program(program) = spec.job.unwrap().work else { panic!("no program") };
        assert_eq!(program.command[..3], ["python", "-u", "train.py"]);
        assert!(program.command.contains(&"--layers=1".to_owned()), "{:?}", program.command);
        assert_eq!(program.command.last().unwrap(), "--x={y}");
        assert_eq!(converted.notes.len(), 3, "{:?}", converted.notes);
    }

    #[test]
    fn what_is_missing_is_filled_in_and_told() {
        let converted =
            convert("program: a.py\nmethod: random\nparameters: { x: { min: 0.0, max: 1 } }\n").unwrap();
        assert!(SweepSpec::parse_runnable(&converted.toml, "x").is_ok(), "{}", converted.toml);
        let notes = converted.notes.join("\n");
        assert!(
            notes.contains("`sweep.trials` is set to 50") && notes.contains("set to \"loss\""),
            "{notes}"
        );
        let grid =
            convert("program: a.py\nmethod: grid\nmetric: {name: a}\nparameters: {x: {values: [1]}}\n")
                .unwrap();
        assert!(grid.notes.is_empty() && SweepSpec::parse_runnable(&grid.toml, "x").is_ok());
    }

    #[test]
    fn what_cannot_be_converted_is_refused_with_its_place() {
        for (text, expected) in [
            ("a: [", "no YAML"),
            ("- 1", "no mapping"),
            ("method: bayes", "no `parameters`"),
            ("method: bayes\nparameters: {}", "is empty"),
            ("method: hill\nprogram: p\nparameters: {x: {value: 1}}", "`method` is `hill`"),
            ("program: p\nparameters: {x: {value: 1}}", "`method` is missing"),
            ("method: grid\nparameters: {x: {value: 1}}", "`program` is missing"),
            ("method: grid\nprogram: p\nparameters: {x: 3}", "`parameters.x`"),
            ("method: grid\nprogram: p\nparameters: {x: {values: []}}", "not empty"),
            ("method: grid\nprogram: p\nparameters: {x: {min: 1}}", "`max` must be a number"),
            ("method: grid\nprogram: p\nparameters: {x: {distribution: zipf}}", "`zipf` is unknown"),
            (
                "method: grid\nprogram: p\nmetric: {name: a, goal: up}\nparameters: {x: {value: 1}}",
                "`metric.goal`",
            ),
            (
                "method: grid\nprogram: p\nparameters: {x: {value: 1}}\nearly_terminate: {type: median}",
                "`early_terminate.type` is `median`",
            ),
        ] {
            let problem = convert(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
