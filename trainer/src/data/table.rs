//! A CSV file as a table of numbers and one column of targets.

use super::error::{CellProblem, DataError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

/// Bytes read from a file at a time.
const READ_BUFFER_BYTES: usize = 1 << 20;
/// Names listed in a message.
const NAMES_SHOWN: usize = 8;
/// Characters of a cell shown in a message.
const CELL_CHARS: usize = 40;

/// What a file holds, row after row.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Names of the feature columns.
    pub(super) columns: Vec<String>,
    /// Features, row-major.
    pub(super) features: Vec<f32>,
    /// Target cells as written, trimmed.
    pub(super) targets: Cells,
    /// The byte that the reader was at before each row; [`Source::line`] makes a line of it.
    pub(super) starts: Vec<u64>,
}

/// Many short texts in one buffer.
#[derive(Debug, Default)]
pub(super) struct Cells {
    text: String,
    ends: Vec<usize>,
}

impl Cells {
    pub(super) fn push(&mut self, cell: &str) {
        self.text.push_str(cell);
        self.ends.push(self.text.len());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|row| self.get(row))
    }

    pub(super) fn get(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start..self.ends[row]]
    }
}

/// A file under the name that messages give it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// As the job file names it.
    pub(super) shown: PathBuf,
    /// Where it lies.
    pub(super) path: PathBuf,
}

impl Source {
    /// The 1-based line of the row before which the reader was at byte `start`. The reader's own count does not know
    /// blank lines and `\r\n`; looking again costs nothing until something is wrong.
    pub(super) fn line(&self, start: u64) -> u64 {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let at = (start as usize).min(bytes.len());
        let blank = bytes[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        1 + bytes[..at + blank].iter().filter(|byte| **byte == b'\n').count() as u64
    }

    pub(super) fn fail(&self, problem: String) -> DataError {
        DataError::File { path: self.shown.clone(), problem }
    }

    fn fail_at(&self, start: u64, problem: String) -> DataError {
        DataError::Line { path: self.shown.clone(), line: self.line(start), problem }
    }

    pub(super) fn fail_in(&self, start: u64, column: &str, problem: CellProblem) -> DataError {
        DataError::Cell {
            path: self.shown.clone(),
            line: self.line(start),
            column: column.to_owned(),
            problem,
        }
    }
}

/// Which columns of a file are read, and into what.
struct Header {
    /// For each column of the file, in order.
    names: Vec<String>,
    /// For each column of the file: where it goes.
    roles: Vec<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Feature(usize),
    Target,
    Unused,
}

/// Reads a file. With `wanted`, the features are these columns in this order and others are left unread; without,
/// they are all columns but the target.
pub(super) fn read(source: &Source, target: &str, wanted: Option<&[String]>) -> Result<Table, DataError> {
    let file = File::open(&source.path)
        .map_err(|error| DataError::Read { path: source.path.clone(), source: error })?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(READ_BUFFER_BYTES)
        .from_reader(file);
    let mut record = csv::ByteRecord::new();
    if !next(&mut reader, &mut record, source)? {
        return Err(source.fail("the file is empty; its first line must name the columns".to_owned()));
    }
    let header = read_header(&record, source, target, wanted)?;
    let features = header.roles.iter().filter(|role| matches!(role, Role::Feature(_))).count();
    let mut table = Table { columns: vec![String::new(); features], ..Table::default() };
    for (name, role) in header.names.iter().zip(&header.roles) {
        if let Role::Feature(at) = role {
            table.columns[*at].clone_from(name);
        }
    }
    while next(&mut reader, &mut record, source)? {
        read_row(&header, &record, source, &mut table)?;
    }
    if table.starts.is_empty() {
        return Err(source.fail("the file has a header and no rows below it".to_owned()));
    }
    Ok(table)
}

fn next(
    reader: &mut csv::Reader<File>,
    record: &mut csv::ByteRecord,
    source: &Source,
) -> Result<bool, DataError> {
    reader.read_byte_record(record).map_err(|error| match error.into_kind() {
        csv::ErrorKind::Io(error) => DataError::Read { path: source.path.clone(), source: error },
        other => source.fail(format!("not a CSV file: {other:?}")),
    })
}

fn start_of(record: &csv::ByteRecord) -> u64 {
    record.position().map_or(0, csv::Position::byte)
}

fn read_header(
    record: &csv::ByteRecord,
    source: &Source,
    target: &str,
    wanted: Option<&[String]>,
) -> Result<Header, DataError> {
    let fail = |problem: String| source.fail_at(start_of(record), problem);
    let mut names = Vec::with_capacity(record.len());
    let mut seen = BTreeSet::new();
    for (at, cell) in record.iter().enumerate() {
        let name = std::str::from_utf8(cell).map_err(|_| {
            fail(format!("the name of column {} is not UTF-8; save the file as UTF-8", at + 1))
        })?;
        let name = name.trim();
        if name.is_empty() {
            return Err(fail(format!("column {} has no name; give it one or remove the column", at + 1)));
        }
        if !seen.insert(name.to_owned()) {
            return Err(fail(format!("the column `{name}` is named twice; rename or remove one of them")));
        }
        names.push(name.to_owned());
    }
    let target = target.trim();
    if !seen.contains(target) {
        return Err(fail(missing(&names, target, " (`data.target`)")));
    }
    if let Some(name) = wanted.unwrap_or_default().iter().find(|name| !seen.contains(*name)) {
        return Err(fail(missing(&names, name, ", which the training file has")));
    }
    if names.len() < 2 {
        return Err(fail(format!(
            "the only column is the target `{target}`; there is nothing to learn from"
        )));
    }
    Ok(Header { roles: roles(&names, target, wanted), names })
}

fn roles(names: &[String], target: &str, wanted: Option<&[String]>) -> Vec<Role> {
    let places: Option<BTreeMap<&str, usize>> =
        wanted.map(|wanted| wanted.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect());
    let mut features = 0..;
    let role = |name: &String| match &places {
        _ if name == target => Role::Target,
        Some(places) => places.get(name.as_str()).map_or(Role::Unused, |&at| Role::Feature(at)),
        None => features.next().map_or(Role::Unused, Role::Feature),
    };
    names.iter().map(role).collect()
}

fn missing(names: &[String], name: &str, why: &str) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
    let more = match names.len().saturating_sub(NAMES_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("there is no column `{name}`{why}; the columns are {}{more}", shown.join(", "))
}

fn read_row(
    header: &Header,
    record: &csv::ByteRecord,
    source: &Source,
    table: &mut Table,
) -> Result<(), DataError> {
    let start = start_of(record);
    if record.len() != header.names.len() {
        return Err(source.fail_at(start, ragged(header, record.len())));
    }
    let first = table.features.len();
    table.features.resize(first + table.columns.len(), 0.0);
    for (at, (cell, role)) in record.iter().zip(&header.roles).enumerate() {
        let outcome = match role {
            Role::Unused => Ok(()),
            Role::Feature(place) => number(cell).map(|value| table.features[first + place] = value),
            Role::Target => target_cell(cell).map(|cell| table.targets.push(cell)),
        };
        outcome.map_err(|problem| source.fail_in(start, &header.names[at], problem))?;
    }
    table.starts.push(start);
    Ok(())
}

fn ragged(header: &Header, found: usize) -> String {
    let wanted = header.names.len();
    match header.names.get(found) {
        Some(name) => {
            format!("{found} cells where the header names {wanted} columns; column `{name}` has no cell")
        }
        None => format!(
            "{found} cells where the header names {wanted} columns; cell {} comes after the last column `{}`",
            wanted + 1,
            header.names[wanted - 1]
        ),
    }
}

/// A cell for a message: short and in one line.
pub(super) fn shown(cell: &str) -> String {
    let mut text: String = cell.chars().take(CELL_CHARS).flat_map(char::escape_debug).collect();
    if cell.chars().nth(CELL_CHARS).is_some() {
        text.push('…');
    }
    text
}

fn number(cell: &[u8]) -> Result<f32, CellProblem> {
    let text = std::str::from_utf8(cell).map_err(|_| CellProblem::NotUtf8)?;
    let text = text.trim();
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(value) if value.is_nan() => Err(CellProblem::Nan),
        Ok(_) => Err(CellProblem::Infinite(shown(text))),
        Err(_) if text.is_empty() => Err(CellProblem::Empty),
        Err(_) => Err(CellProblem::Text(shown(text))),
    }
}

/// A target may be text, but a number among them must be one that can be learnt.
fn target_cell(cell: &[u8]) -> Result<&str, CellProblem> {
    let text = std::str::from_utf8(cell).map_err(|_| CellProblem::NotUtf8)?.trim();
    if text.is_empty() {
        return Err(CellProblem::Empty);
    }
    match text.parse::<f32>() {
        Ok(value) if value.is_nan() => Err(CellProblem::Nan),
        Ok(value) if value.is_infinite() => Err(CellProblem::Infinite(shown(text))),
        _ => Ok(text),
    }
}
