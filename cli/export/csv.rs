//! Tables as comma-separated values: numbers in the shortest text that reads back to the same bits, times in RFC 3339.

use super::TableFile;
use super::file::WholeFile;
use super::frame::{Cells, Frame};
use crate::failure::Failure;
use csv::Writer;
use phalanx_api::{json, timestamp};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A table as comma-separated values.
pub(super) struct CsvFile {
    file: WholeFile,
    writer: Writer<BufWriter<File>>,
}

impl CsvFile {
    /// A table with the columns of `frame`, whose rows are not written yet.
    pub(super) fn create(path: &Path, frame: &Frame) -> Result<CsvFile, Failure> {
        let file = WholeFile::create(path)?;
        let open = file.open().map_err(|error| file.failed(&error))?;
        let mut writer = Writer::from_writer(BufWriter::with_capacity(BUFFER_BYTES, open));
        let heads = frame.0.iter().map(|column| column.name.as_str());
        writer.write_record(heads).map_err(|error| file.failed(&error))?;
        Ok(CsvFile { file, writer })
    }
}

impl TableFile for CsvFile {
    fn write(&mut self, frame: &Frame) -> Result<(), Failure> {
        for row in 0..frame.rows() {
            let cells = frame.0.iter().map(|column| text(&column.cells, row));
            self.writer.write_record(cells).map_err(|error| self.file.failed(&error))?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<PathBuf, Failure> {
        self.writer.flush().map_err(|error| self.file.failed(&error))?;
        self.file.commit()
    }
}

/// A cell as text; an empty one is empty.
fn text(cells: &Cells, row: usize) -> String {
    match cells {
        Cells::Text(cells) => cells[row].as_deref().unwrap_or_default().to_owned(),
        Cells::Int(cells) => cells[row].map(|number| number.to_string()).unwrap_or_default(),
        Cells::Count(cells) => cells[row].map(|number| number.to_string()).unwrap_or_default(),
        // Debug, unlike Display, writes large and small numbers with an exponent.
        Cells::Float(cells) => cells[row].map(|number| format!("{number:?}")).unwrap_or_default(),
        Cells::Time(cells) => {
            let time = json::time(cells[row].map(timestamp).as_ref());
            time.as_str().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::Column;
    use super::*;
    use phalanx_core::Time;

    #[test]
    fn cells_read_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let odd = [0.1 + 0.2, 1e300, 5e-324, -0.0, 2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let rows = odd.len();
        let column = |name: &str, cells| Column { name: name.to_owned(), cells };
        let frame = Frame(vec![
            column("a \"name\", quoted", Cells::Text(vec![Some("x,\ny".into()); rows])),
            column("value", Cells::Float(odd.iter().copied().map(Some).collect())),
            column("step", Cells::Count(vec![Some(u64::MAX); rows])),
            column("time", Cells::Time(vec![Some(Time::from_micros(1_700_000_000_000_120)); rows])),
            column("none", Cells::Int(vec![None; rows])),
        ]);
        let path = folder.path().join("a.csv");
        let mut table = Box::new(CsvFile::create(&path, &frame).unwrap());
        table.write(&frame).unwrap();
        table.finish().unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        assert_eq!(reader.headers().unwrap().get(0), Some("a \"name\", quoted"));
        let read: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
        assert_eq!(read.len(), rows);
        for (record, value) in read.iter().zip(odd) {
            assert_eq!(&record[0], "x,\ny");
            assert_eq!(record[1].parse::<f64>().unwrap().to_bits(), value.to_bits(), "{}", &record[1]);
            assert!(record[1].len() < 25, "{}", &record[1]);
            assert_eq!(&record[2], "18446744073709551615");
            assert_eq!(&record[3], "2023-11-14T22:13:20.000120Z");
            assert_eq!(&record[4], "");
        }
    }
}
