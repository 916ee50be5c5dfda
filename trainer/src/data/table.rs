//! Tables: CSV files here, Parquet and Arrow files beside; numbers in columns, and one column of targets.

use super::assemble::{Found, Part, Wanted};
use super::batch::Sample;
use super::error::{CellProblem, DataError};
use super::source::{Places, Source};
use super::store::{Collector, Store};
use super::target::Cells;
use super::tokenizer::Vocabulary;
use super::{Dataset, arrow, assemble, parquet};
use phalanx_core::spec::{HeldOut, Loss, TableData};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Bytes read from a file at a time.
const READ_BUFFER_BYTES: usize = 1 << 20;
/// Names listed in a message.
const NAMES_SHOWN: usize = 8;
/// Characters of a cell shown in a message.
const CELL_CHARS: usize = 40;

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Csv,
    Parquet,
    Arrow,
}

/// What a file holds, row after row.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Names of the feature columns.
    pub(super) columns: Vec<String>,
    /// Cells of the column of text, if one is asked for.
    pub(super) texts: Cells,
    /// Target cells as written, trimmed.
    pub(super) targets: Cells,
    /// The byte that the reader was at before each row of a CSV file.
    pub(super) starts: Vec<u64>,
    /// The row at hand.
    pub(super) row: Vec<f32>,
}

/// What is read of a file.
pub(super) struct Columns<'a> {
    pub(super) target: &'a str,
    /// The one column beside the target that is read, as text.
    pub(super) text: Option<&'a str>,
    /// The features that the training file has, in their order; other columns are left unread.
    pub(super) features: Option<&'a [String]>,
}

/// Reads the files that `data` names.
pub(super) fn dataset(
    data: &TableData,
    format: Format,
    loss: Option<Loss>,
    seed: u64,
    base: &Path,
    scratch: &Path,
) -> Result<Dataset, DataError> {
    let text = data.text.as_ref();
    let mut values = Collector::new(data.memory_bytes, scratch);
    let mut texts = Vec::new();
    let mut read = |path: &str, features: Option<&[String]>| -> Result<(Part, Vec<String>), DataError> {
        let source = Source::new(base, path);
        let target = data.target.trim();
        let columns = Columns { target, text: text.map(|text| text.column.trim()), features };
        let table = match format {
            Format::Csv => read(&source, &columns, &mut values)?,
            Format::Parquet => parquet::read(&source, &columns, &mut values)?,
            Format::Arrow => arrow::read(&source, &columns, &mut values)?,
        };
        let places = match format {
            Format::Csv => Places::Bytes(table.starts, target.to_owned()),
            Format::Parquet | Format::Arrow => Places::Rows(target.to_owned()),
        };
        texts.push(table.texts);
        Ok((Part { source, targets: table.targets, places }, table.columns))
    };
    let (training, columns) = read(&data.path, None)?;
    let mut other = |held_out: &Option<HeldOut>| match held_out {
        Some(HeldOut::File(path)) => read(path, Some(&columns)).map(|(part, _)| Some(part)),
        Some(HeldOut::Files { path, .. }) => {
            let source = Source::new(base, path);
            Err(source.fail("a table has its targets in a column; name the file alone, without `target`"))
        }
        Some(HeldOut::Fraction(_)) | None => Ok(None),
    };
    let (validation, test) = (other(&data.validation)?, other(&data.test)?);
    let held_out = [data.validation.as_ref(), data.test.as_ref()];
    let (sample, store, vocabulary) = match text {
        None => (sample_of(data, columns.len(), &training.source)?, values.finish()?, Vec::new()),
        Some(text) => {
            let fractions = held_out.map(|held_out| match held_out {
                Some(HeldOut::Fraction(fraction)) => *fraction,
                _ => 0.0,
            });
            let rows = training.targets.len();
            let picked = assemble::pick(&training.source.shown, rows, fractions, seed)?;
            tokenize(text.tokenizer, text.context as usize, &texts, &picked.training)
        }
    };
    let wanted = Wanted { held_out, normalize: data.normalize, loss, seed };
    Found { sample, columns, vocabulary, store, training, validation, test }.assemble(&wanted)
}

/// Texts of several files as tokens. The vocabulary comes from the `training` rows of the first, as far as it is learnt.
fn tokenize(
    tokenizer: phalanx_core::spec::Tokenizer,
    context: usize,
    files: &[Cells],
    training: &[u32],
) -> (Sample, Store, Vec<String>) {
    let learnt = training.iter().map(|&row| files[0].get(row as usize));
    let vocabulary = Vocabulary::learn(tokenizer, learnt, files.iter().flat_map(Cells::iter));
    let (mut tokens, mut ends) = (Vec::new(), Vec::new());
    for text in files.iter().flat_map(Cells::iter) {
        let start = tokens.len();
        vocabulary.encode(text, &mut tokens);
        tokens.truncate(start + context);
        ends.push(tokens.len());
    }
    let sample = Sample::Tokens { vocabulary: vocabulary.len(), context };
    (sample, Store::Texts { tokens, ends }, vocabulary.into_names())
}

fn sample_of(data: &TableData, columns: usize, source: &Source) -> Result<Sample, DataError> {
    let Some(shape) = data.shape.map(|shape| shape.map(|side| side as usize)) else {
        return Ok(Sample::Features(columns));
    };
    let values: usize = shape.iter().product();
    if values != columns {
        let [channels, height, width] = shape;
        return Err(source.fail(format!(
            "`data.shape` is {channels} × {height} × {width} = {values} values, and there are {columns} columns beside the target"
        )));
    }
    Ok(Sample::Image(shape))
}

/// Which columns of a file are read, and into what.
pub(super) struct Header {
    /// For each column of the file, in order.
    pub(super) names: Vec<String>,
    /// For each column of the file: where it goes.
    pub(super) roles: Vec<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Feature(usize),
    Text,
    Target,
    Unused,
}

/// Reads a CSV file; its features go to `values`.
pub(super) fn read(
    source: &Source,
    columns: &Columns<'_>,
    values: &mut Collector,
) -> Result<Table, DataError> {
    let file = File::open(&source.path).map_err(|error| source.unreadable(error))?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(READ_BUFFER_BYTES)
        .from_reader(file);
    let mut record = csv::ByteRecord::new();
    if !next(&mut reader, &mut record, source)? {
        return Err(source.fail("the file is empty; its first line must name the columns"));
    }
    let header = read_header(&record, source, columns)?;
    let mut table = Table { columns: header.features(), ..Table::default() };
    while next(&mut reader, &mut record, source)? {
        read_row(&header, &record, source, &mut table, values)?;
    }
    if table.starts.is_empty() {
        return Err(source.fail("the file has a header and no rows below it"));
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
    columns: &Columns<'_>,
) -> Result<Header, DataError> {
    let fail = |problem: String| source.fail_at(start_of(record), problem);
    let mut names = Vec::with_capacity(record.len());
    for (at, cell) in record.iter().enumerate() {
        let name = std::str::from_utf8(cell).map_err(|_| {
            fail(format!("the name of column {} is not UTF-8; save the file as UTF-8", at + 1))
        })?;
        names.push(name.trim().to_owned());
    }
    Header::new(names, columns).map_err(fail)
}

impl Header {
    /// Gives every column its role, or says what is wrong with them.
    pub(super) fn new(names: Vec<String>, columns: &Columns<'_>) -> Result<Header, String> {
        let mut seen = BTreeSet::new();
        for (at, name) in names.iter().enumerate() {
            if name.is_empty() {
                return Err(format!("column {} has no name; give it one or remove the column", at + 1));
            }
            if !seen.insert(name.as_str()) {
                return Err(format!("the column `{name}` is named twice; rename or remove one of them"));
            }
        }
        if !seen.contains(columns.target) {
            return Err(missing(&names, columns.target, " (`data.target`)"));
        }
        if let Some(text) = columns.text {
            if !seen.contains(text) {
                return Err(missing(&names, text, " (`data.text`)"));
            }
            if text == columns.target {
                return Err(format!("`data.text` and `data.target` are both the column `{text}`"));
            }
        }
        let wanted = columns.features.unwrap_or_default().iter();
        if let Some(name) = wanted.clone().find(|name| !seen.contains(name.as_str())) {
            return Err(missing(&names, name, ", which the training file has"));
        }
        if names.len() < 2 {
            let target = columns.target;
            return Err(format!("the only column is the target `{target}`; there is nothing to learn from"));
        }
        Ok(Header { roles: roles(&names, columns), names })
    }

    /// Names of the features in their order.
    pub(super) fn features(&self) -> Vec<String> {
        let mut features: Vec<(usize, &String)> = Vec::new();
        for (name, role) in self.names.iter().zip(&self.roles) {
            if let Role::Feature(at) = role {
                features.push((*at, name));
            }
        }
        features.sort_unstable();
        features.into_iter().map(|(_, name)| name.clone()).collect()
    }
}

fn roles(names: &[String], columns: &Columns<'_>) -> Vec<Role> {
    let places: Option<BTreeMap<&str, usize>> = columns
        .features
        .map(|wanted| wanted.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect());
    let mut features = 0..;
    let role = |name: &String| match &places {
        _ if name == columns.target => Role::Target,
        _ if columns.text == Some(name) => Role::Text,
        _ if columns.text.is_some() => Role::Unused,
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
    values: &mut Collector,
) -> Result<(), DataError> {
    let start = start_of(record);
    if record.len() != header.names.len() {
        return Err(source.fail_at(start, ragged(header, record.len())));
    }
    table.row.resize(table.columns.len(), 0.0);
    for (at, (cell, role)) in record.iter().zip(&header.roles).enumerate() {
        let outcome = match role {
            Role::Unused => Ok(()),
            Role::Feature(place) => number(cell).map(|value| table.row[*place] = value),
            Role::Text => text_cell(cell).map(|cell| table.texts.push(cell)),
            Role::Target => target_cell(cell).map(|cell| table.targets.push(cell)),
        };
        outcome.map_err(|problem| source.fail_in(start, &header.names[at], problem))?;
    }
    if !table.row.is_empty() {
        values.push(&table.row)?;
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

fn text_cell(cell: &[u8]) -> Result<&str, CellProblem> {
    let text = std::str::from_utf8(cell).map_err(|_| CellProblem::NotUtf8)?.trim();
    if text.is_empty() { Err(CellProblem::Empty) } else { Ok(text) }
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
