//! What is wrong with a data file: always the file, and where it applies the 1-based line (the header is line 1) and the column.

use std::fmt;
use std::path::PathBuf;

/// Data that cannot be learnt from.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}; `data.path` is relative to the job file's folder", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file as a whole is no table, or not one that can be learnt from.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What it lacks, and what to change.
        problem: String,
    },
    /// One line has not the header's shape, or the header is at fault.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its 1-based line.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// One cell is at fault.
    #[error("{}, {at}: {problem}", path.display())]
    Cell {
        /// The file.
        path: PathBuf,
        /// Its line, row or entry, and the column's name where columns have one.
        at: String,
        /// What is wrong with it.
        problem: CellProblem,
    },
    /// The file that takes what is too much for memory cannot be written.
    #[error("cannot keep data in {}: {source}; make room there, or raise `data.memory`", path.display())]
    Scratch {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What is wrong with one cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CellProblem {
    /// Nothing in it.
    Empty,
    /// Words where a number is needed.
    Text(String),
    /// Not a number.
    Nan,
    /// Infinite, or beyond what 32 bits hold.
    Infinite(String),
    /// Bytes that are no UTF-8.
    NotUtf8,
    /// A fraction where classes are needed.
    Fractional(String),
    /// A class that the training part does not have.
    UnseenClass(String),
    /// A target that is no number, under a loss of numbers.
    TextTarget(String),
    /// Neither 0 nor 1, under binary cross-entropy.
    NotBinary(String),
}

impl fmt::Display for CellProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CellProblem::Empty => f.write_str("the cell is empty; fill it in or remove the line"),
            CellProblem::Text(text) => {
                write!(f, "`{text}` is text, not a number; encode it as a number or remove the column")
            }
            CellProblem::Nan => f.write_str("the cell is NaN; fill it in or remove the line"),
            CellProblem::Infinite(text) => {
                write!(f, "`{text}` is infinite or too large for 32 bits; correct it or remove the line")
            }
            CellProblem::NotUtf8 => f.write_str("the cell is not UTF-8; save the file as UTF-8"),
            CellProblem::Fractional(text) => write!(
                f,
                "`{text}` is a fraction, and cross-entropy needs classes (text or integers); use `loss = \"mse\"` or another target"
            ),
            CellProblem::UnseenClass(text) => write!(
                f,
                "the class `{text}` is held out but not in the training part; add training rows of it, or hold out others (where they are drawn, another `seed` does)"
            ),
            CellProblem::TextTarget(text) => write!(
                f,
                "`{text}` is text, and the loss is one of numbers; use `loss = \"cross-entropy\"` or another target"
            ),
            CellProblem::NotBinary(text) => {
                write!(
                    f,
                    "`{text}` is neither 0 nor 1, which `loss = \"bce\"` needs; use `loss = \"cross-entropy\"`"
                )
            }
        }
    }
}
