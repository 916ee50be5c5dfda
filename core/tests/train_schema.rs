//! The JSON Schema of the `[train]` table and the reader of job files know the same keys and defaults.
#![allow(clippy::unwrap_used)]

use phalanx_core::JobSpec;
use phalanx_core::spec::{TrainSpec, Work};
use serde_json::{Map, Value, json};
use std::path::Path;

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/train.schema.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The smallest table there is.
fn smallest() -> Map<String, Value> {
    let table = json!({
        "model": { "kind": "linear" },
        "data": { "kind": "csv", "path": "data.csv", "target": "label" },
        "epochs": 10,
    });
    table.as_object().unwrap().clone()
}

fn read(table: &Map<String, Value>) -> Result<TrainSpec, String> {
    // A table of TOML in one line is JSON but for `=` between key and value.
    fn toml(value: &Value) -> String {
        match value {
            Value::Object(table) => {
                let pairs: Vec<String> =
                    table.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
                format!("{{ {} }}", pairs.join(", "))
            }
            Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
            other => other.to_string(),
        }
    }
    let lines: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
    let text = format!("version = 1\n[train]\n{}\n", lines.join("\n"));
    match JobSpec::parse(&text, "schema") {
        Err(problems) => Err(problems.render("job.toml", &text)),
        Ok(job) => match job.work {
            Work::Train(train) => Ok(*train),
            _ => Err("no training".to_owned()),
        },
    }
}

/// What a property shows as an example, and its default.
fn shown<'a>(property: &'a Value, what: &str) -> Option<&'a Value> {
    match what {
        "default" => property.get(what),
        "examples" => property[what].get(0),
        _ => None,
    }
}

/// The properties of one kind of a table, with their examples or their defaults.
fn filled(variant: &Value, kind: &Value, what: &str) -> Value {
    let required = variant["required"].as_array().unwrap();
    let mut table = Map::from_iter([("kind".to_owned(), kind.clone())]);
    for (key, property) in variant["properties"].as_object().unwrap() {
        let value =
            if required.contains(&json!(key)) { shown(property, "examples") } else { shown(property, what) };
        if let Some(value) = value.filter(|_| key != "kind") {
            table.insert(key.clone(), value.clone());
        }
    }
    Value::Object(table)
}

#[test]
fn every_key_of_the_schema_is_read_and_every_default_is_the_readers() {
    for (key, property) in schema()["properties"].as_object().unwrap() {
        let Some(variants) = property["oneOf"].as_array() else {
            let mut table = smallest();
            table.insert(key.clone(), shown(property, "examples").unwrap().clone());
            if key == "steps" {
                table.remove("epochs");
            }
            read(&table).unwrap_or_else(|error| panic!("{key}: {error}"));
            if let Some(default) = shown(property, "default") {
                table.insert(key.clone(), default.clone());
                assert_eq!(read(&table), read(&smallest()), "the default of {key}");
            }
            continue;
        };
        for variant in variants {
            let kind = &variant["properties"]["kind"];
            let kinds = kind["enum"].as_array().cloned().unwrap_or_else(|| vec![kind["const"].clone()]);
            for kind in kinds {
                let with = |value: Value| {
                    let mut table = smallest();
                    if variant["properties"].get("tokenizer").is_some() {
                        table.insert("model".to_owned(), json!({ "kind": "transformer" }));
                    }
                    if kind == "cnn" {
                        table.insert("data".to_owned(), json!({ "kind": "images", "path": "folder" }));
                    }
                    table.insert(key.clone(), value);
                    read(&table).unwrap_or_else(|error| panic!("{key} of kind {kind}: {error}"))
                };
                let mut examples = filled(variant, &kind, "examples");
                if let Some(tokenizer) = examples.get_mut("tokenizer") {
                    *tokenizer = json!("bpe"); // the one that has a vocabulary
                }
                with(examples);
                let mut defaults = filled(variant, &kind, "default");
                if let Value::Object(table) = &mut defaults {
                    table.remove("vocabulary");
                }
                let bare = filled(variant, &kind, "nothing");
                assert_eq!(with(defaults), with(bare), "the defaults of {key} of kind {kind}");
            }
        }
    }
}

#[test]
fn every_key_of_the_guide_is_in_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/training.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let table = guide.split("## `[train]`").nth(1).unwrap().split("###").next().unwrap();
    let schema = schema();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let keys: Vec<&str> =
        rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    let mut known: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    for key in &keys {
        assert!(known.iter().any(|known| known == key), "{key} is not in the schema");
        known.retain(|known| known != key);
    }
    assert!(known.is_empty(), "{known:?} is not in the guide");
}
