//! Tables as Parquet: text, 64-bit integers, doubles and UTC times in microseconds, compressed with Snappy.

use super::TableFile;
use super::file::WholeFile;
use super::frame::{Cells, Column, Frame};
use crate::failure::Failure;
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as Outcome};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The definition level of a cell that is there; 0 is that of an empty one.
const THERE: i16 = 1;

/// A table as Parquet.
pub(super) struct ParquetFile {
    file: WholeFile,
    writer: SerializedFileWriter<File>,
}

impl ParquetFile {
    /// A table with the columns of `frame`, whose rows are not written yet.
    pub(super) fn create(path: &Path, frame: &Frame) -> Result<ParquetFile, Failure> {
        let file = WholeFile::create(path)?;
        let open = file.open().map_err(|error| file.failed(&error))?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let fields = frame.0.iter().map(field).collect::<Outcome<Vec<_>>>();
        let schema = fields.and_then(|fields| Type::group_type_builder("schema").with_fields(fields).build());
        let writer =
            schema.and_then(|schema| SerializedFileWriter::new(open, Arc::new(schema), Arc::new(properties)));
        let writer = writer.map_err(|error| file.failed(&error))?;
        Ok(ParquetFile { file, writer })
    }

    fn write_group(&mut self, frame: &Frame) -> Outcome<()> {
        let mut group = self.writer.next_row_group()?;
        for column in &frame.0 {
            let missing = || ParquetError::General(format!("no place for the column {}", column.name));
            let mut writer = group.next_column()?.ok_or_else(missing)?;
            write_cells(&mut writer, &column.cells)?;
            writer.close()?;
        }
        group.close().map(drop)
    }
}

impl TableFile for ParquetFile {
    fn write(&mut self, frame: &Frame) -> Result<(), Failure> {
        if frame.rows() == 0 {
            return Ok(());
        }
        self.write_group(frame).map_err(|error| self.file.failed(&error))
    }

    fn finish(self: Box<Self>) -> Result<PathBuf, Failure> {
        self.writer.close().map_err(|error| self.file.failed(&error))?;
        self.file.commit()
    }
}

fn field(column: &Column) -> Outcome<Arc<Type>> {
    let (physical, logical) = match &column.cells {
        Cells::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Cells::Int(_) => (Physical::INT64, None),
        Cells::Count(_) => (Physical::INT64, Some(LogicalType::integer(64, false))),
        Cells::Float(_) => (Physical::DOUBLE, None),
        Cells::Time(_) => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
    };
    let builder = Type::primitive_type_builder(&column.name, physical);
    builder.with_repetition(Repetition::OPTIONAL).with_logical_type(logical).build().map(Arc::new)
}

/// Writes the cells of one column: which are there, and those.
fn write_cells(column: &mut SerializedColumnWriter<'_>, cells: &Cells) -> Outcome<()> {
    match (column.untyped(), cells) {
        (ColumnWriter::ByteArrayColumnWriter(writer), Cells::Text(cells)) => {
            let (values, levels) = present(cells, |text| ByteArray::from(&**text));
            writer.write_batch(&values, Some(&levels), None)?;
        }
        (ColumnWriter::DoubleColumnWriter(writer), Cells::Float(cells)) => {
            let (values, levels) = present(cells, |&number| number);
            writer.write_batch(&values, Some(&levels), None)?;
        }
        (ColumnWriter::Int64ColumnWriter(writer), cells) => {
            let (values, levels) = match cells {
                Cells::Int(cells) => present(cells, |&number| number),
                Cells::Count(cells) => present(cells, |&number| number.cast_signed()),
                Cells::Time(cells) => present(cells, |time| time.as_micros().cast_signed()),
                Cells::Text(_) | Cells::Float(_) => return Err(other_type()),
            };
            writer.write_batch(&values, Some(&levels), None)?;
        }
        _ => return Err(other_type()),
    }
    Ok(())
}

fn other_type() -> ParquetError {
    ParquetError::General("a column changed its type".to_owned())
}

/// The cells that are there, and for each cell its level.
fn present<T, V>(cells: &[Option<T>], value: impl Fn(&T) -> V) -> (Vec<V>, Vec<i16>) {
    let levels = cells.iter().map(|cell| if cell.is_some() { THERE } else { 0 }).collect();
    (cells.iter().flatten().map(value).collect(), levels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use phalanx_core::Time;

    #[test]
    fn a_table_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let column = |name: &str, cells| Column { name: name.to_owned(), cells };
        let frame = Frame(vec![
            column("metric", Cells::Text(vec![Some("loss".into()), None])),
            column("number", Cells::Int(vec![Some(-1), None])),
            column("step", Cells::Count(vec![None, Some(u64::MAX)])),
            column("value", Cells::Float(vec![Some(0.1 + 0.2), Some(f64::INFINITY)])),
            column("time", Cells::Time(vec![None, Some(Time::from_micros(7))])),
        ]);
        let path = folder.path().join("a.parquet");
        let mut table = Box::new(ParquetFile::create(&path, &frame).unwrap());
        table.write(&frame).unwrap();
        table.write(&frame).unwrap();
        table.finish().unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string());
        let first = r#"{metric: "loss", number: -1, step: null, value: 0.30000000000000004, time: null}"#;
        let rows: Vec<String> = rows.collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0], first);
        assert!(rows[1].contains("step: 18446744073709551615, value: inf"), "{}", rows[1]);
        assert_eq!((&rows[2], &rows[3]), (&rows[0], &rows[1]));
    }

    #[test]
    fn a_table_without_rows_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let frame = Frame(vec![Column { name: "value".to_owned(), cells: Cells::Float(Vec::new()) }]);
        let path = folder.path().join("a.parquet");
        let mut table = Box::new(ParquetFile::create(&path, &frame).unwrap());
        table.write(&frame).unwrap();
        table.finish().unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }
}
