//! A CSV file as a table of numbers and one column of targets.

use super::error::{CellProblem, DataError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

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
    /// The 1-based line that each row starts on.
    pub(super) lines: Vec<u64>,
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

/// Reads `path`. With `wanted`, the features are these columns in this order and others are left unread; without,
/// they are all columns but the target.
pub(super) fn read(path: &Path, target: &str, wanted: Option<&[String]>) -> Result<Table, DataError> {
    let file = File::open(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(READ_BUFFER_BYTES)
        .from_reader(file);
    let mut record = csv::ByteRecord::new();
    if !next(&mut reader, &mut record, path)? {
        let problem = "the file is empty; its first line must name the columns".to_owned();
        return Err(DataError::File { path: path.to_owned(), problem });
    }
    let header = read_header(&record, path, target, wanted)?;
    let features = header.roles.iter().filter(|role| matches!(role, Role::Feature(_))).count();
    let mut table = Table { columns: vec![String::new(); features], ..Table::default() };
    for (name, role) in header.names.iter().zip(&header.roles) {
        if let Role::Feature(at) = role {
            table.columns[*at].clone_from(name);
        }
    }
    while next(&mut reader, &mut record, path)? {
        let line = record.position().map_or(0, csv::Position::line);
        read_row(&header, &record, line, path, &mut table)?;
    }
    if table.lines.is_empty() {
        let problem = "the file has a header and no rows below it".to_owned();
        return Err(DataError::File { path: path.to_owned(), problem });
    }
    Ok(table)
}

fn next(
    reader: &mut csv::Reader<File>,
    record: &mut csv::ByteRecord,
    path: &Path,
) -> Result<bool, DataError> {
    reader.read_byte_record(record).map_err(|error| match error.into_kind() {
        csv::ErrorKind::Io(source) => DataError::Read { path: path.to_owned(), source },
        other => DataError::File { path: path.to_owned(), problem: format!("not a CSV file: {other:?}") },
    })
}

fn read_header(
    record: &csv::ByteRecord,
    path: &Path,
    target: &str,
    wanted: Option<&[String]>,
) -> Result<Header, DataError> {
    let line = record.position().map_or(1, csv::Position::line);
    let fail = |problem: String| DataError::Line { path: path.to_owned(), line, problem };
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
    let missing = |name: &str, key: &str| {
        let shown =
            names.iter().take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let more = if names.len() > NAMES_SHOWN {
            format!(" and {} more", names.len() - NAMES_SHOWN)
        } else {
            String::new()
        };
        fail(format!("there is no column `{name}`{key}; the columns are {shown}{more}"))
    };
    let target = target.trim();
    if !seen.contains(target) {
        return Err(missing(target, " (`data.target`)"));
    }
    let places: Option<BTreeMap<&str, usize>> =
        wanted.map(|wanted| wanted.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect());
    if let Some(name) = wanted.unwrap_or_default().iter().find(|name| !seen.contains(*name)) {
        return Err(missing(name, ", which the training file has"));
    }
    let mut features = 0..;
    let roles = names.iter().map(|name| match &places {
        _ if name == target => Role::Target,
        Some(places) => places.get(name.as_str()).map_or(Role::Unused, |&at| Role::Feature(at)),
        None => features.next().map_or(Role::Unused, Role::Feature),
    });
    let roles: Vec<Role> = roles.collect();
    if roles.len() < 2 {
        return Err(fail(format!(
            "the only column is the target `{target}`; there is nothing to learn from"
        )));
    }
    Ok(Header { names, roles })
}

fn read_row(
    header: &Header,
    record: &csv::ByteRecord,
    line: u64,
    path: &Path,
    table: &mut Table,
) -> Result<(), DataError> {
    if record.len() != header.names.len() {
        return Err(DataError::Line { path: path.to_owned(), line, problem: ragged(header, record.len()) });
    }
    let start = table.features.len();
    table.features.resize(start + table.columns.len(), 0.0);
    for (at, (cell, role)) in record.iter().zip(&header.roles).enumerate() {
        let outcome = match role {
            Role::Unused => Ok(()),
            Role::Feature(place) => number(cell).map(|value| table.features[start + place] = value),
            Role::Target => target_cell(cell).map(|cell| table.targets.push(cell)),
        };
        outcome.map_err(|problem| DataError::Cell {
            path: path.to_owned(),
            line,
            column: header.names[at].clone(),
            problem,
        })?;
    }
    table.lines.push(line);
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
