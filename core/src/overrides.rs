//! `--set key.path=value`: changes to a file before it is read.

use crate::diagnostic::{Problem, Problems};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Key, Table, TableLike, Value};

/// Names of a list that a message has.
const NAMES_TOLD: usize = 5;

/// Applies `key.path=value` settings to a TOML text, one after the other. The value is read as TOML, and as text where
/// that fails. In a list of tables a key is the name of one: `queue.research.weight=3`. Whether a key means anything is found
/// when the result is read.
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
    let value = value.trim().parse::<Value>().unwrap_or_else(|_| Value::from(value));
    insert(document.as_table_mut(), &keys, value).map_err(|problem| format!("`--set {setting}`: {problem}"))
}

/// Sets the value below a table by the keys that lead there; tables that are not there are made.
fn insert(table: &mut dyn TableLike, keys: &[Key], value: Value) -> Result<(), String> {
    let (key, rest) = keys.split_first().ok_or("it names no key")?;
    if rest.is_empty() {
        table.insert(key.get(), Item::Value(value));
        return Ok(());
    }
    let item = table.entry(key.get()).or_insert_with(|| Item::Table(Table::new()));
    if let Item::ArrayOfTables(list) = item {
        return insert(named(list, key.get(), rest)?, &rest[1..], value);
    }
    let inner = item.as_table_like_mut().ok_or_else(|| format!("`{}` is not a table", key.get()))?;
    insert(inner, rest, value)
}

/// The table of a list whose name is the next key.
fn named<'a>(list: &'a mut ArrayOfTables, key: &str, rest: &[Key]) -> Result<&'a mut Table, String> {
    let wanted = rest.first().map(Key::get).filter(|_| rest.len() > 1).unwrap_or_default();
    let name_of = |table: &Table| table.get("name").and_then(Item::as_str).unwrap_or_default().to_owned();
    let names: Vec<String> = list.iter().map(name_of).collect();
    let at = names.iter().position(|name| name == wanted);
    at.and_then(|at| list.get_mut(at)).ok_or_else(|| {
        let some = names.iter().take(NAMES_TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
        format!("write it as {key}.NAME.key=value; there are {some}")
    })
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
    fn a_table_of_a_list_is_named() {
        let text = "[[queue]]\nname = \"a\"\n[[queue]]\nname = \"b\"\nweight = 1\n";
        assert!(applied(text, "queue.b.weight=3").ends_with("name = \"b\"\nweight = 3\n"));
        assert!(applied(text, "queue.a.quota.gpus=2").contains("name = \"a\"\n"));
        for setting in ["queue.c.weight=3", "queue.weight=3"] {
            let told = apply(text, &[setting.to_owned()]).unwrap_err().to_string();
            assert!(told.contains("queue.NAME.key=value; there are a, b"), "{told}");
        }
    }

    #[test]
    fn a_setting_within_a_value_is_refused() {
        assert!(apply("a = 1\n", &["a.b=2".to_owned()]).is_err());
        assert!(apply("a = 1\n", &["nonsense".to_owned()]).is_err());
    }
}
