//! Arrow IPC files (which is Feather, version 2) and streams as tables, a record batch at a time.

use super::column::{Column, take_row};
use super::error::DataError;
use super::source::Source;
use super::store::Collector;
use super::table::{Columns, Header, Role, Table};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use std::fs::File;
use std::io::{Read, Seek};

/// What a file begins with; a stream does not.
const MAGIC: &[u8; 6] = b"ARROW1";

/// Record batches one after the other.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Reads a file; its features go to `values`.
pub(super) fn read(
    source: &Source,
    columns: &Columns<'_>,
    values: &mut Collector,
) -> Result<Table, DataError> {
    let damaged = |error: ArrowError| source.fail(format!("not readable as Arrow IPC: {error}"));
    let file = File::open(&source.path).map_err(|error| source.unreadable(error))?;
    let (schema, batches) = open(file).map_err(damaged)?;
    let names = schema.fields().iter().map(|field| field.name().clone()).collect();
    let header = Header::new(names, columns).map_err(|problem| source.fail(problem))?;
    for (field, role) in schema.fields().iter().zip(&header.roles) {
        if *role != Role::Unused && !is_read(field.data_type()) {
            return Err(source.fail(format!(
                "column `{}` is of the type {}; store it as a number or a text, or remove it",
                field.name(),
                field.data_type()
            )));
        }
    }
    let mut table = Table { columns: header.features(), ..Table::default() };
    let mut row = 0;
    for batch in batches {
        let batch = batch.map_err(damaged)?;
        let cells: Vec<Option<Column>> = header
            .roles
            .iter()
            .zip(batch.columns())
            .map(|(role, column)| (*role != Role::Unused).then(|| cells(column)))
            .collect();
        for at in 0..batch.num_rows() {
            take_row(&header, &cells, at, row + at, source, &mut table, values)?;
        }
        row += batch.num_rows();
    }
    if row == 0 {
        return Err(source.fail("the file has columns and no rows"));
    }
    Ok(table)
}

fn open(mut file: File) -> Result<(SchemaRef, Batches), ArrowError> {
    let mut magic = [0; MAGIC.len()];
    let is_file = file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
    file.rewind()?;
    Ok(if is_file {
        let reader = FileReader::try_new_buffered(file, None)?;
        (reader.schema(), Box::new(reader))
    } else {
        let reader = StreamReader::try_new_buffered(file, None)?;
        (reader.schema(), Box::new(reader))
    })
}

/// Numbers and texts, and texts as a dictionary, which is how categories are stored.
fn is_read(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, values) => is_read(values),
        DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        of => of.is_integer(),
    }
}

fn cells(column: &dyn Array) -> Column {
    match column.data_type() {
        DataType::Boolean => {
            let values = column.as_boolean().iter();
            Column::Numbers(values.map(|value| value.map(|value| f64::from(u8::from(value)))).collect())
        }
        DataType::Int8 => numbers::<Int8Type>(column, f64::from),
        DataType::Int16 => numbers::<Int16Type>(column, f64::from),
        DataType::Int32 => numbers::<Int32Type>(column, f64::from),
        DataType::Int64 => numbers::<Int64Type>(column, |value| value as f64),
        DataType::UInt8 => numbers::<UInt8Type>(column, f64::from),
        DataType::UInt16 => numbers::<UInt16Type>(column, f64::from),
        DataType::UInt32 => numbers::<UInt32Type>(column, f64::from),
        DataType::UInt64 => numbers::<UInt64Type>(column, |value| value as f64),
        DataType::Float16 => numbers::<Float16Type>(column, f64::from),
        DataType::Float32 => numbers::<Float32Type>(column, f64::from),
        DataType::Float64 => numbers::<Float64Type>(column, |value| value),
        DataType::Utf8 => texts(column.as_string::<i32>().iter()),
        DataType::LargeUtf8 => texts(column.as_string::<i64>().iter()),
        DataType::Utf8View => texts(column.as_string_view().iter()),
        DataType::Dictionary(..) => categories(column),
        other => unreachable!("columns of {other} are refused before"),
    }
}

fn numbers<T: ArrowPrimitiveType>(column: &dyn Array, of: impl Fn(T::Native) -> f64) -> Column {
    Column::Numbers(column.as_primitive::<T>().iter().map(|value| value.map(&of)).collect())
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> Column {
    Column::Texts(values.map(|value| value.map(|value| value.as_bytes().to_vec())).collect())
}

fn categories(column: &dyn Array) -> Column {
    let column = column.as_any_dictionary();
    // Without values there is nothing for a key to stand for.
    let keys = if column.values().is_empty() { vec![0; column.len()] } else { column.normalized_keys() };
    let places = keys.iter().enumerate().map(|(at, &key)| column.is_valid(at).then_some(key));
    fn pick<T: Clone>(places: impl Iterator<Item = Option<usize>>, from: &[Option<T>]) -> Vec<Option<T>> {
        places.map(|place| from.get(place?)?.clone()).collect()
    }
    match cells(column.values()) {
        Column::Numbers(values) => Column::Numbers(pick(places, &values)),
        Column::Texts(values) => Column::Texts(pick(places, &values)),
    }
}
