//! JSON as TOML, so that one reader checks both.

use std::fmt::Write as _;

/// A text as a basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            _ if letter.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(letter));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// Appends a JSON value as TOML; the message says what TOML cannot say.
pub(super) fn to_toml(value: &serde_json::Value, out: &mut String) -> Result<(), String> {
    use serde_json::Value as Json;
    match value {
        Json::Null => return Err("null is no value here; leave the key out".to_owned()),
        Json::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Json::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Json::String(text) => out.push_str(&quoted(text)),
        Json::Array(items) => {
            out.push('[');
            for item in items {
                to_toml(item, out)?;
                out.push(',');
            }
            out.push(']');
        }
        Json::Object(fields) => {
            out.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                let comma = if at > 0 { ", " } else { "" };
                let _ = write!(out, "{comma}{} = ", quoted(name));
                to_toml(field, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}
