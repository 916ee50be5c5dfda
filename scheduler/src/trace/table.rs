//! Rows by the names of their columns.

use super::{LATEST, TraceError};
use std::collections::BTreeMap;

/// The columns of a table, by name in lower case.
pub(super) struct Head(BTreeMap<String, usize>);

/// One row.
pub(super) struct Fields<'a> {
    head: &'a Head,
    values: Vec<&'a str>,
    line: u64,
}

impl Head {
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().enumerate();
        Head(names.map(|(at, name)| (name.trim().to_ascii_lowercase(), at)).collect())
    }

    /// Whether there is a column by one of these names.
    pub(super) fn has(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0.contains_key(*name))
    }

    /// Refuses a table that has no column by any of these names.
    pub(super) fn require(&self, names: &[&str]) -> Result<(), TraceError> {
        if self.has(names) {
            return Ok(());
        }
        let wanted = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
        let found: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        Err(TraceError::NoColumn { wanted, found })
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(head: &'a Head, values: impl IntoIterator<Item = &'a str>, line: u64) -> Self {
        Fields { head, values: values.into_iter().map(str::trim).collect(), line }
    }

    /// What a column says, by the first of these names that there is; nothing where it is empty.
    pub(super) fn text(&self, names: &[&str]) -> Option<&'a str> {
        let at = names.iter().find_map(|name| self.head.0.get(*name))?;
        let value = self.values.get(*at).copied()?;
        let nothing = ["", "nan", "none", "null", "unknown", "n/a"];
        (!nothing.contains(&value.to_ascii_lowercase().as_str())).then_some(value)
    }

    pub(super) fn wrong(&self, value: &str, wanted: &str) -> TraceError {
        let shown: String = value.chars().take(40).collect();
        TraceError::Row { line: self.line, message: format!("`{shown}` is not {wanted}") }
    }

    /// A number, 0 or more.
    pub(super) fn number(&self, names: &[&str]) -> Result<Option<f64>, TraceError> {
        let Some(value) = self.text(names) else { return Ok(None) };
        match value.parse::<f64>() {
            Ok(number) if (0.0..=LATEST).contains(&number) => Ok(Some(number)),
            _ => Err(self.wrong(value, "a number, 0 or more")),
        }
    }

    /// A number times `scale`, rounded to a whole.
    pub(super) fn count(&self, names: &[&str], scale: f64) -> Result<Option<u64>, TraceError> {
        Ok(self.number(names)?.map(|number| (number * scale).round() as u64))
    }

    /// A moment in seconds: a number, or a date with a time of day.
    pub(super) fn moment(&self, names: &[&str]) -> Result<Option<f64>, TraceError> {
        let Some(value) = self.text(names) else { return Ok(None) };
        if let Some(number) = value.parse::<f64>().ok().filter(|number| (-LATEST..=LATEST).contains(number)) {
            return Ok(Some(number));
        }
        // `2017-10-03 02:22:00`, `2017-10-03T02:22:00`, `2017-10-03 02:22:00 PDT`: one zone for the whole trace.
        let date = value.get(..19).unwrap_or(value).parse::<jiff::civil::DateTime>();
        let zoned = date.and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC));
        zoned
            .map(|zoned| Some(zoned.timestamp().as_second() as f64))
            .map_err(|_| self.wrong(value, "a time, in seconds or as `2017-10-03 02:22:00`"))
    }
}

/// Hands the rows of a CSV to `each`; with `columns` it may have no head.
pub(super) fn csv(
    text: &str,
    columns: Option<&[&str]>,
    required: &[&[&str]],
    mut each: impl FnMut(&Fields<'_>) -> Result<(), TraceError>,
) -> Result<(), TraceError> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut head: Option<Head> = None;
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(TraceError::Row { line, message: error.to_string() }),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let Some(head) = &head else {
            let first = Head::new(record.iter());
            let bare = columns.filter(|columns| !first.has(columns));
            let known = bare.map_or(first, |columns| Head::new(columns.iter().copied()));
            required.iter().try_for_each(|names| known.require(names))?;
            if bare.is_some() {
                each(&Fields::new(&known, record.iter(), line))?;
            }
            head = Some(known);
            continue;
        };
        each(&Fields::new(head, record.iter(), line))?;
    }
    if head.is_none() {
        return Err(TraceError::Unfit("the trace is empty".to_owned()));
    }
    Ok(())
}
