//! `--set key.path=value`: changes to a file before it is read.

use crate::diagnostic::{Problem, Problems};
use toml_edit::{DocumentMut, Item, Table, Value};

/// Applies `key.path=value` settings to a TOML text, one after the other. The value is read as TOML, and as text where
/// that fails. Whether a key means anything is found when the result is read.
pub fn apply(text: &str, settings: &[String]) -> Result<String, Problems> {
    if settings.is_empty() {
        return Ok(text.to_owned());
    }
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        Problems::one(Problem { message: error.message().to_owned(), span: error.span(), help: None })
    })?;
    for setting in settings {
        set(&mut document, setting).map_err(|message| Problems::one(Problem::of_file(message)))?;
    }
    Ok(document.to_string())
}

fn set(document: &mut DocumentMut, setting: &str) -> Result<(), String> {
    let shape = || format!("`--set {setting}` is not of the form key.path=value");
    let (path, value) = setting.split_once('=').ok_or_else(shape)?;
    let keys = toml_edit::Key::parse(path.trim()).map_err(|_| shape())?;
    let (last, parents) = keys.split_last().ok_or_else(shape)?;
    let mut item: &mut Item = document.as_item_mut();
    for key in parents {
        let table = item
            .as_table_like_mut()
            .ok_or_else(|| format!("`--set {setting}`: `{path}` is not in a table"))?;
        item = table.entry(key.get()).or_insert_with(|| Item::Table(Table::new()));
    }
    let table =
        item.as_table_like_mut().ok_or_else(|| format!("`--set {setting}`: `{path}` is not in a table"))?;
    let value = value.trim().parse::<Value>().unwrap_or_else(|_| Value::from(value));
    table.insert(last.get(), Item::Value(value));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, setting: &str) -> String {
        apply(text, &[setting.to_owned()]).unwrap()
    }

    #[test]
    fn values_are_toml_or_text() {
        assert_eq!(applied("a = 1\n", "a=2"), "a = 2\n");
        assert_eq!(applied("", "name=digits run"), "name = \"digits run\"\n");
        assert_eq!(
            applied("[gang]\ncpus = 1\n", "gang.workers={ min = 1, max = 2 }"),
            "[gang]\ncpus = 1\nworkers = { min = 1, max = 2 }\n"
        );
        assert_eq!(applied("t = { lr = 1 }\n", "t.lr=0.5"), "t = { lr = 0.5 }\n");
    }

    #[test]
    fn a_setting_within_a_value_is_refused() {
        assert!(apply("a = 1\n", &["a.b=2".to_owned()]).is_err());
        assert!(apply("a = 1\n", &["nonsense".to_owned()]).is_err());
    }
}
