//! Parquet files as tables, a row group at a time.

use super::column::{Column, take_row};
use super::error::DataError;
use super::source::Source;
use super::store::Collector;
use super::table::{Columns, Header, Role, Table};
use parquet::basic::ConvertedType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{AsBytes, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use std::fs::File;

/// Reads a file; its features go to `values`.
pub(super) fn read(
    source: &Source,
    columns: &Columns<'_>,
    values: &mut Collector,
) -> Result<Table, DataError> {
    let damaged = |error: ParquetError| source.fail(format!("not readable as Parquet: {error}"));
    let file = File::open(&source.path).map_err(|error| source.unreadable(error))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let names = (0..schema.num_columns()).map(|at| schema.column(at).path().string()).collect();
    let header = Header::new(names, columns).map_err(|problem| source.fail(problem))?;
    for (at, role) in header.roles.iter().enumerate() {
        if *role != Role::Unused {
            check_type(&schema.column(at)).map_err(|problem| source.fail(problem))?;
        }
    }
    let mut table = Table { columns: header.features(), ..Table::default() };
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let mut cells = Vec::with_capacity(header.roles.len());
        for (at, role) in header.roles.iter().enumerate() {
            cells.push(match role {
                Role::Unused => None,
                _ => Some(column(&*group, at, schema.column(at).max_def_level()).map_err(damaged)?),
            });
        }
        let rows = group.metadata().num_rows() as usize;
        for at in 0..rows {
            take_row(&header, &cells, at, row + at, source, &mut table, values)?;
        }
        row += rows;
    }
    if row == 0 {
        return Err(source.fail("the file has columns and no rows"));
    }
    Ok(table)
}

fn check_type(column: &ColumnDescriptor) -> Result<(), String> {
    let fail = |what: &str| {
        let name = column.path().string();
        Err(format!("column `{name}` is {what}; store it as a number or a text, or remove it"))
    };
    if column.max_rep_level() > 0 {
        return fail("a list");
    }
    match column.converted_type() {
        ConvertedType::NONE
        | ConvertedType::UTF8
        | ConvertedType::ENUM
        | ConvertedType::INT_8
        | ConvertedType::INT_16
        | ConvertedType::INT_32
        | ConvertedType::INT_64
        | ConvertedType::UINT_8
        | ConvertedType::UINT_16
        | ConvertedType::UINT_32
        | ConvertedType::UINT_64 => Ok(()),
        other => fail(&format!("of the type {other}")),
    }
}

/// All cells of a column of a row group. A cell is there where its level is the column's highest, `present`.
fn column(group: &dyn RowGroupReader, at: usize, present: i16) -> Result<Column, ParquetError> {
    let shape = (group.metadata().num_rows() as usize, present);
    Ok(match group.get_column_reader(at)? {
        ColumnReader::BoolColumnReader(reader) => {
            Column::Numbers(cells(reader, shape, |value| f64::from(u8::from(value)))?)
        }
        ColumnReader::Int32ColumnReader(reader) => Column::Numbers(cells(reader, shape, f64::from)?),
        ColumnReader::Int64ColumnReader(reader) => {
            Column::Numbers(cells(reader, shape, |value| value as f64)?)
        }
        ColumnReader::FloatColumnReader(reader) => Column::Numbers(cells(reader, shape, f64::from)?),
        ColumnReader::DoubleColumnReader(reader) => Column::Numbers(cells(reader, shape, |value| value)?),
        ColumnReader::ByteArrayColumnReader(reader) => {
            Column::Texts(cells(reader, shape, |value| value.as_bytes().to_vec())?)
        }
        ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
            let name = group.metadata().column(at).column_path().string();
            return Err(ParquetError::General(format!("column `{name}` holds neither numbers nor texts")));
        }
    })
}

fn cells<T: DataType, U>(
    mut reader: ColumnReaderImpl<T>,
    (rows, present): (usize, i16),
    of: impl Fn(T::T) -> U,
) -> Result<Vec<Option<U>>, ParquetError> {
    let (mut levels, mut values) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let mut read = 0;
    while read < rows {
        let levels = (present > 0).then_some(&mut levels);
        let (records, ..) = reader.read_records(rows - read, levels, None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::EOF(format!("{read} of {rows} rows")));
        }
        read += records;
    }
    let mut values = values.into_iter().map(of);
    Ok(match present {
        0 => values.map(Some).collect(),
        _ => levels.iter().map(|&level| if level == present { values.next() } else { None }).collect(),
    })
}
