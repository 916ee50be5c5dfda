//! Reads tables of a TOML document field by field, collecting every problem instead of stopping at the first.
//!
//! A reading method answers `None` both where a key is absent and where its value is wrong; in the second case a
//! problem has been noted, so that the caller may go on with a default and the file is refused in the end.

use crate::diagnostic::{Problem, Problems, suggest};
use crate::limits::JOB_NAME_BYTES;
use crate::quantity;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where the readers of one document leave what they find wrong.
#[derive(Default)]
pub(crate) struct Sink(RefCell<Vec<Problem>>);

impl Sink {
    pub(crate) fn push(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub(crate) fn into_problems(self) -> Problems {
        Problems(self.0.into_inner())
    }
}

/// A value with its place in the text.
pub(crate) type Value<'d> = &'d Spanned<DeValue<'d>>;

/// One table of the document: what has been asked of it is what is known in it.
pub(crate) struct Table<'d> {
    table: &'d DeTable<'d>,
    span: Range<usize>,
    path: String,
    sink: &'d Sink,
    known: RefCell<BTreeSet<&'static str>>,
}

impl<'d> Table<'d> {
    /// The document itself.
    pub(crate) fn root(table: &'d Spanned<DeTable<'d>>, sink: &'d Sink) -> Self {
        Table { table: table.get_ref(), span: 0..0, path: String::new(), sink, known: RefCell::default() }
    }

    /// The place a problem of the whole table is shown at.
    pub(crate) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Notes a problem at a place.
    pub(crate) fn problem(&self, span: Range<usize>, message: impl Into<String>) {
        self.sink.push(Problem::at(span, message));
    }

    /// Notes a problem with advice.
    pub(crate) fn problem_with_help(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.sink.push(Problem::at(span, message).help(help));
    }

    /// Notes a problem that is put together already.
    pub(crate) fn note(&self, problem: Problem) {
        self.sink.push(problem);
    }

    /// The key as a person writes it: `gang.workers`.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The raw value of a key, which is known from now on.
    pub(crate) fn value(&self, key: &'static str) -> Option<Value<'d>> {
        self.known.borrow_mut().insert(key);
        self.table.get(key)
    }

    /// Whether the table has the key.
    pub(crate) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The place of a key's value, or of the table where the key is absent.
    pub(crate) fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or_else(|| self.span(), Spanned::span)
    }

    fn expected<T>(&self, key: &str, value: Value<'d>, wanted: &str) -> Option<T> {
        let found = describe(value.get_ref());
        self.problem(value.span(), format!("`{}` is {found}; expected {wanted}", self.path_of(key)));
        None
    }

    /// Notes that a key which must be there is not.
    pub(crate) fn require(&self, key: &'static str, example: &str) {
        if !self.has(key) {
            let message = format!("`{}` is missing", self.path_of(key));
            self.problem_with_help(self.span(), message, format!("add `{example}`"));
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => self.expected(key, value, "a text in quotes"),
        }
    }

    /// A truth value.
    pub(crate) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.expected(key, value, "true or false"),
        }
    }

    /// An integer in a range.
    pub(crate) fn integer(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.value(key)?;
        match as_integer(value.get_ref()) {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => self.out_of_range(key, value, &number.to_string(), &range),
            None => self.expected(key, value, "an integer"),
        }
    }

    fn out_of_range<T>(
        &self,
        key: &str,
        value: Value<'d>,
        number: &str,
        range: &RangeInclusive<i64>,
    ) -> Option<T> {
        let (low, high) = (range.start(), range.end());
        let bounds = if *high == i64::MAX { format!("at least {low}") } else { format!("{low} to {high}") };
        self.problem(value.span(), format!("`{}` is {number}; it must be {bounds}", self.path_of(key)));
        None
    }

    /// A finite number, integers included, that passes `check` (its error says what is wanted).
    pub(crate) fn number(&self, key: &'static str, wanted: &str, check: impl Fn(f64) -> bool) -> Option<f64> {
        let value = self.value(key)?;
        match as_number(value.get_ref()) {
            Some(number) if number.is_finite() && check(number) => Some(number),
            Some(number) => {
                let message = format!("`{}` is {number}; it must be {wanted}", self.path_of(key));
                self.problem(value.span(), message);
                None
            }
            None => self.expected(key, value, wanted),
        }
    }

    /// A duration such as `"90s"`, or a number of seconds.
    pub(crate) fn duration(&self, key: &'static str) -> Option<Duration> {
        let value = self.value(key)?;
        let parsed = match value.get_ref() {
            DeValue::String(text) => quantity::parse_duration(text),
            other => match as_number(other).map(Duration::try_from_secs_f64) {
                Some(Ok(duration)) => Ok(duration),
                _ => return self.expected(key, value, "a duration such as \"90s\" or \"2h\""),
            },
        };
        self.parsed(value, parsed)
    }

    /// A size such as `"512MiB"`, or a number of bytes.
    pub(crate) fn bytes(&self, key: &'static str) -> Option<u64> {
        let value = self.value(key)?;
        let parsed = match value.get_ref() {
            DeValue::String(text) => quantity::parse_bytes(text),
            other => match as_integer(other).map(u64::try_from) {
                Some(Ok(bytes)) => Ok(bytes),
                _ => return self.expected(key, value, "a size such as \"512MiB\""),
            },
        };
        self.parsed(value, parsed)
    }

    /// A non-negative amount in thousandths: `2`, `0.5`.
    pub(crate) fn milli(&self, key: &'static str) -> Option<u64> {
        self.value(key).and_then(|value| self.milli_value(key, value))
    }

    /// The same for a value at hand.
    pub(crate) fn milli_value(&self, key: &str, value: Value<'d>) -> Option<u64> {
        let written = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().replace('_', ""),
            DeValue::Float(number) => number.as_str().replace('_', ""),
            _ => return self.expected(key, value, "a number such as 1 or 0.5"),
        };
        let parsed = quantity::parse_milli(written.trim_start_matches('+'));
        self.parsed(value, parsed.map_err(|error| format!("`{}`: {error}, 0 or more", self.path_of(key))))
    }

    fn parsed<T>(&self, value: Value<'d>, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|message| self.problem(value.span(), message)).ok()
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&self, key: &'static str, words: &[(&'static str, T)]) -> Option<T> {
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            return self.expected(key, value, &all.join(" or "));
        };
        let found = words.iter().find(|(word, _)| word == text).map(|&(_, meaning)| meaning);
        if found.is_none() {
            let all: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
            let message = format!("`{}` cannot be \"{text}\"", self.path_of(key));
            self.sink.push(Problem { message, span: Some(value.span()), help: suggest(text, &all) });
        }
        found
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            return self.expected(key, value, "a list of texts");
        };
        let texts = items.iter().map(|item| match item.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => self.expected(key, item, "a list of texts"),
        });
        texts.collect()
    }

    /// A list of integers in a range.
    pub(crate) fn integers(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<Vec<i64>> {
        let value = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            return self.expected(key, value, "a list of integers");
        };
        let integers = items.iter().map(|item| match as_integer(item.get_ref()) {
            Some(number) if range.contains(&number) => Some(number),
            Some(number) => self.out_of_range(key, item, &number.to_string(), &range),
            None => self.expected(key, item, "a list of integers"),
        });
        integers.collect()
    }

    /// The tables of a list of tables.
    pub(crate) fn tables(&self, key: &'static str) -> Vec<Table<'d>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let _: Option<()> = self.expected(key, value, "a list of tables");
            return Vec::new();
        };
        let tables = items.iter().filter_map(|item| self.table_value(key, item));
        tables.collect()
    }

    /// A table within this one.
    pub(crate) fn table(&self, key: &'static str) -> Option<Table<'d>> {
        self.value(key).and_then(|value| self.table_value(key, value))
    }

    /// The same for a value at hand.
    pub(crate) fn table_value(&self, key: &str, value: Value<'d>) -> Option<Table<'d>> {
        let DeValue::Table(table) = value.get_ref() else {
            return self.expected(key, value, "a table");
        };
        let (sink, path) = (self.sink, self.path_of(key));
        Some(Table { table, span: value.span(), path, sink, known: RefCell::default() })
    }

    /// All entries of a table whose keys the user chooses.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'d str, Range<usize>, Value<'d>)> {
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
    }

    /// A table of texts whose keys the user chooses; numbers and truth values are taken as they are written.
    pub(crate) fn text_map(&self, key: &'static str) -> BTreeMap<String, String> {
        let Some(table) = self.table(key) else { return BTreeMap::new() };
        let pairs = table.entries().filter_map(|(name, _, value)| {
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(flag) => flag.to_string(),
                DeValue::Integer(number) => number.to_string(),
                DeValue::Float(number) => number.to_string(),
                _ => return table.expected(name, value, "a text in quotes"),
            };
            Some((name.to_owned(), text))
        });
        pairs.collect()
    }

    /// The keys that have been asked for.
    pub(crate) fn asked(&self) -> Vec<&'static str> {
        self.known.borrow().iter().copied().collect()
    }

    /// The name that the document gives itself.
    pub(crate) fn name(&self) -> Option<String> {
        let name = self.text("name")?;
        if name.is_empty() || name.len() > JOB_NAME_BYTES || name.chars().any(char::is_control) {
            let bytes = name.len();
            let message =
                format!("`name` has {bytes} bytes; it must have 1 to {JOB_NAME_BYTES}, none of them control");
            self.problem(self.span_of("name"), message);
            return None;
        }
        Some(name)
    }

    /// Notes every key that nobody has asked for.
    pub(crate) fn finish(self) {
        self.note_unknown();
    }

    /// The same for a table that is still needed.
    pub(crate) fn note_unknown(&self) {
        let known = self.known.borrow();
        let known: Vec<&str> = known.iter().copied().collect();
        for (key, span, _) in self.entries().filter(|(key, _, _)| !known.contains(key)) {
            let place = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
            let (message, help) = (format!("unknown key `{key}`{place}"), suggest(key, &known));
            self.sink.push(Problem { message, span: Some(span), help });
        }
    }
}

/// Latest time that a number of seconds may mean.
pub(crate) const LATEST_SECONDS: f64 = 1e12;

/// A number of seconds, 0 or more.
pub(crate) fn read_seconds(table: &Table<'_>, key: &'static str) -> Option<Duration> {
    read_seconds_to(table, key, LATEST_SECONDS, "a number of seconds, 0 or more")
}

/// A number of seconds up to a bound.
pub(crate) fn read_seconds_to(
    table: &Table<'_>,
    key: &'static str,
    most: f64,
    wanted: &str,
) -> Option<Duration> {
    let seconds = table.number(key, wanted, |seconds| (0.0..=most).contains(&seconds))?;
    Some(Duration::from_micros((seconds * 1e6).round() as u64))
}

/// A number of seconds above 0.
pub(crate) fn read_positive(table: &Table<'_>, key: &'static str) -> Option<Duration> {
    let seconds = read_seconds(table, key)?;
    if seconds.is_zero() {
        table.problem(table.span_of(key), format!("`{}` must be longer than nothing", table.path_of(key)));
        return None;
    }
    Some(seconds)
}

/// Amounts in thousandths by names that the user chooses.
pub(crate) fn read_amounts(table: &Table<'_>) -> BTreeMap<String, u64> {
    let amounts = table
        .entries()
        .filter_map(|(name, _, value)| Some((name.to_owned(), table.milli_value(name, value)?)));
    amounts.collect()
}

/// Reads a TOML integer of any radix; `None` for another type or where it does not fit.
pub(crate) fn as_integer(value: &DeValue<'_>) -> Option<i64> {
    let DeValue::Integer(number) = value else { return None };
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Reads a TOML integer or float.
pub(crate) fn as_number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => as_integer(value).map(|number| number as f64),
    }
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.len() <= 40 => format!("the text \"{text}\""),
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(number) => format!("the integer {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(flag) => format!("{flag}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
