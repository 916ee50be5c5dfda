//! The job of a sweep's trials: `{lr}` in any string of `[program]` and `[train]` becomes the trial's value.

use super::params::{ParamValue, Params};
use super::reader::Sink;
use crate::diagnostic::{Problem, suggest};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The tables in which parameters are put, and whether a whole string takes the parameter's type there: a command line
/// is made of texts.
const TABLES: [(&str, bool); 2] = [("program", false), ("train", true)];

/// What is put for every parameter.
pub(super) struct Values<'a> {
    params: &'a Params,
    /// All names of the sweep: one that is not in `params` is inactive.
    names: &'a [&'a str],
    /// Numbers as TOML writes them, kept here because the document borrows them.
    literals: BTreeMap<&'a str, String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(params: &'a Params, names: &'a [&'a str]) -> Self {
        let literals = params.iter().filter(|(_, value)| value.as_f64().is_some());
        let literals = literals.map(|(name, value)| (name.as_str(), value.to_string())).collect();
        Values { params, names, literals }
    }

    fn typed(&'a self, name: &str) -> Option<DeValue<'a>> {
        match self.params.get(name)? {
            ParamValue::Bool(flag) => Some(DeValue::Boolean(*flag)),
            ParamValue::Text(text) => Some(DeValue::String(text.as_str().into())),
            _ => DeValue::parse(self.literals.get(name)?).ok().map(Spanned::into_inner),
        }
    }
}

/// What a string turned into.
enum Filled<'a> {
    Same,
    Value(DeValue<'a>),
    /// It names a parameter that this trial does not have: the argument or key is left out.
    Absent,
}

/// Puts the values in place; spans stay those of the file, so that later problems point into it.
pub(super) fn fill<'a>(document: &mut DeTable<'a>, values: &'a Values<'a>, sink: &Sink) {
    for (key, value) in document.iter_mut() {
        if let Some((_, typed)) = TABLES.iter().find(|(table, _)| *table == key.get_ref()) {
            fill_value(value, &Filler { values, typed: *typed, sink });
        }
    }
}

struct Filler<'a, 's> {
    values: &'a Values<'a>,
    typed: bool,
    sink: &'s Sink,
}

/// Whether the value stays.
fn fill_value<'a>(value: &mut Spanned<DeValue<'a>>, filler: &Filler<'a, '_>) -> bool {
    let span = value.span();
    match value.get_mut() {
        DeValue::Array(items) => {
            let kept: Vec<bool> = items.iter_mut().map(|item| fill_value(item, filler)).collect();
            if kept.contains(&false) {
                let left = items.iter().zip(kept).filter(|(_, keep)| *keep).map(|(item, _)| item.clone());
                *items = left.collect();
            }
            true
        }
        DeValue::Table(table) => {
            let mut gone = Vec::new();
            for (key, item) in table.iter_mut() {
                if !fill_value(item, filler) {
                    gone.push(key.get_ref().to_string());
                }
            }
            for key in gone {
                table.remove(key.as_str());
            }
            true
        }
        DeValue::String(text) => match fill_text(text, span, filler) {
            Filled::Same => true,
            Filled::Absent => false,
            Filled::Value(filled) => {
                *value.get_mut() = filled;
                true
            }
        },
        _ => true,
    }
}

fn fill_text<'a>(text: &str, span: Range<usize>, filler: &Filler<'a, '_>) -> Filled<'a> {
    let values = filler.values;
    if !text.contains(['{', '}']) {
        return Filled::Same;
    }
    let whole = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    if let Some(name) = whole
        && filler.typed
        && values.names.contains(&name)
    {
        return values.typed(name).map_or(Filled::Absent, Filled::Value);
    }
    match fill_parts(text, values) {
        Ok(Some(filled)) => Filled::Value(DeValue::String(filled.into())),
        Ok(None) => Filled::Absent,
        Err(Unfit { message, help }) => {
            filler.sink.push(Problem { message, span: Some(span), help });
            Filled::Same
        }
    }
}

/// Puts the values into a file that keeps its form, for a job of its own. Only for values that [`fill`] takes.
pub(super) fn fill_file(file: &mut toml_edit::DocumentMut, values: &Values<'_>) {
    for (table, typed) in TABLES {
        if let Some(table) = file.get_mut(table).and_then(toml_edit::Item::as_table_like_mut) {
            fill_table(table, values, typed);
        }
    }
}

fn fill_table(table: &mut dyn toml_edit::TableLike, values: &Values<'_>, typed: bool) {
    let mut gone = Vec::new();
    for (key, item) in table.iter_mut() {
        let kept = match item {
            toml_edit::Item::Value(value) => fill_edited(value, values, typed),
            toml_edit::Item::Table(inner) => {
                fill_table(inner, values, typed);
                true
            }
            toml_edit::Item::ArrayOfTables(tables) => {
                tables.iter_mut().for_each(|inner| fill_table(inner, values, typed));
                true
            }
            toml_edit::Item::None => true,
        };
        if !kept {
            gone.push(key.get().to_owned());
        }
    }
    gone.iter().for_each(|key| drop(table.remove(key)));
}

/// Whether the value stays.
fn fill_edited(value: &mut toml_edit::Value, values: &Values<'_>, typed: bool) -> bool {
    use toml_edit::Value;
    match value {
        Value::Array(items) => {
            let kept: Vec<bool> = items.iter_mut().map(|item| fill_edited(item, values, typed)).collect();
            let mut kept = kept.into_iter();
            items.retain(|_| kept.next().unwrap_or(true));
        }
        Value::InlineTable(table) => fill_table(table, values, typed),
        Value::String(text) => {
            let text = text.value().clone();
            let whole = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
            let whole = whole.filter(|name| typed && values.names.contains(name));
            let filled = match whole {
                Some(name) => values.params.get(name).map(ParamValue::to_edit),
                None => fill_parts(&text, values).ok().flatten().map(Value::from),
            };
            let Some(mut filled) = filled else { return false };
            *filled.decor_mut() = value.decor().clone();
            *value = filled;
        }
        _ => {}
    }
    true
}

struct Unfit {
    message: String,
    help: Option<String>,
}

/// `{{` is a brace; behind one `}}` is a brace too. `None` where an inactive parameter is named.
fn fill_parts(text: &str, values: &Values<'_>) -> Result<Option<String>, Unfit> {
    let (mut out, mut rest, mut open, mut absent) = (String::with_capacity(text.len()), text, 0_usize, false);
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{") {
            out.push('{');
            open += 1;
            rest = after;
        } else if rest.starts_with('}') {
            let doubled = open > 0 && rest.starts_with("}}");
            open = open.saturating_sub(1);
            out.push('}');
            rest = &rest[if doubled { 2 } else { 1 }..];
        } else {
            let Some(end) = rest.find('}') else {
                let message = format!("`{}` opens a brace and never closes it", shown(rest));
                return Err(Unfit { message, help: Some("write `{{` for a brace".to_owned()) });
            };
            let name = &rest[1..end];
            if !values.names.contains(&name) {
                let message = format!("`{{{}}}` is no parameter of this sweep", shown(name));
                let close = suggest(name, values.names).filter(|help| help.starts_with("did you mean"));
                return Err(Unfit {
                    message,
                    help: close.or_else(|| Some("write `{{` for a brace".to_owned())),
                });
            }
            match values.params.get(name) {
                Some(value) => out.push_str(&value.to_string()),
                None => absent = true,
            }
            rest = &rest[end + 1..];
        }
    }
    out.push_str(rest);
    Ok((!absent).then_some(out))
}

fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    text.chars().take(SHOWN_CHARS).collect()
}
