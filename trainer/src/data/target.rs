//! Targets: what the cells of the target column mean under a loss.

use super::error::CellProblem;
use super::table::shown;
use phalanx_core::spec::Loss;
use std::collections::BTreeMap;

/// Integers with more distinct values than this are quantities, not classes, unless the loss says otherwise.
pub(super) const INTEGER_CLASSES: usize = 256;
/// Integers beyond this are not told apart by an f64.
const EXACT_INTEGER: f64 = (1u64 << 53) as f64;

/// What is to be predicted, a value for each row.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// The index of a row's class.
    Classes(Vec<u32>),
    /// A row's number.
    Values(Vec<f32>),
}

impl Targets {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Targets::Classes(classes) => classes.len(),
            Targets::Values(values) => values.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Targets {
    fn default() -> Targets {
        Targets::Classes(Vec::new())
    }
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

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|row| self.get(row))
    }

    pub(super) fn get(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start..self.ends[row]]
    }
}

/// A class as a file writes it, in the order that numbers the classes: integers by value, before texts by bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Integer(i64),
    Text(String),
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Class::Integer(value) => write!(f, "{value}"),
            Class::Text(text) => f.write_str(text),
        }
    }
}

/// What the cells of a column are when nobody says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Text,
    Integers,
    Fractions,
}

fn nature(cells: &Cells) -> Nature {
    let mut nature = Nature::Integers;
    for cell in cells.iter() {
        match cell.parse::<f64>() {
            Err(_) => return Nature::Text,
            Ok(value) if !is_integer(value) => nature = Nature::Fractions,
            Ok(_) => {}
        }
    }
    nature
}

fn is_integer(value: f64) -> bool {
    value.fract() == 0.0 && value.abs() <= EXACT_INTEGER
}

/// The loss that a column asks for: classes for text and for few distinct integers, squares for other numbers.
pub(super) fn default_loss(cells: &Cells) -> Loss {
    match nature(cells) {
        Nature::Text => Loss::CrossEntropy,
        Nature::Fractions => Loss::Mse,
        Nature::Integers => {
            let mut distinct = std::collections::BTreeSet::new();
            let few = cells.iter().all(|cell| {
                distinct.insert(cell);
                distinct.len() <= INTEGER_CLASSES
            });
            if few { Loss::CrossEntropy } else { Loss::Mse }
        }
    }
}

/// Whether a column of classes is one of text, because some cell is no number.
pub(super) fn is_text(cells: &Cells) -> bool {
    nature(cells) == Nature::Text
}

/// The class of every row, or the first row at fault; in a column of `text` numbers are texts too.
pub(super) fn classes(cells: &Cells, text: bool) -> Result<Vec<Class>, (usize, CellProblem)> {
    let mut classes = Vec::new();
    for (row, cell) in cells.iter().enumerate() {
        classes.push(match cell.parse::<f64>() {
            Ok(value) if !text && is_integer(value) => Class::Integer(value as i64),
            Ok(_) if !text => return Err((row, CellProblem::Fractional(shown(cell)))),
            _ => Class::Text(cell.to_owned()),
        });
    }
    Ok(classes)
}

/// The number of every row, or the first row at fault.
pub(super) fn values(cells: &Cells, loss: Loss) -> Result<Vec<f32>, (usize, CellProblem)> {
    let mut values = Vec::new();
    for (row, cell) in cells.iter().enumerate() {
        let value: f32 = cell.parse().map_err(|_| (row, CellProblem::TextTarget(shown(cell))))?;
        if loss == Loss::Bce && value != 0.0 && value != 1.0 {
            return Err((row, CellProblem::NotBinary(shown(cell))));
        }
        values.push(value);
    }
    Ok(values)
}

/// Numbers the classes of `rows` in their order.
pub(super) fn number_classes(classes: &[Class], rows: &[u32]) -> BTreeMap<Class, u32> {
    let mut numbered: BTreeMap<Class, u32> =
        rows.iter().map(|&row| (classes[row as usize].clone(), 0)).collect();
    for (number, entry) in numbered.values_mut().enumerate() {
        *entry = number as u32;
    }
    numbered
}
