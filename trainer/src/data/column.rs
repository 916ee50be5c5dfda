//! Pieces of tables that come by columns, taken row by row.

use super::error::{CellProblem, DataError};
use super::source::Source;
use super::store::Collector;
use super::table::{Header, Role, Table, shown};

/// Cells of one column, as many as the piece has rows.
pub(super) enum Column {
    /// Numbers; `None` where there is none.
    Numbers(Vec<Option<f64>>),
    /// Texts; `None` where there is none.
    Texts(Vec<Option<Vec<u8>>>),
}

/// Takes row `at` of a piece, which is row `row` of the file, from the columns that are read.
pub(super) fn take_row(
    header: &Header,
    columns: &[Option<Column>],
    at: usize,
    row: usize,
    source: &Source,
    table: &mut Table,
    values: &mut Collector,
) -> Result<(), DataError> {
    table.row.resize(table.columns.len(), 0.0);
    for ((column, role), name) in columns.iter().zip(&header.roles).zip(&header.names) {
        let Some(column) = column else { continue };
        take_cell(column, *role, at, table)
            .map_err(|problem| source.fail_cell(format!("row {}, column `{name}`", row + 1), problem))?;
    }
    if table.row.is_empty() { Ok(()) } else { values.push(&table.row) }
}

fn take_cell(column: &Column, role: Role, at: usize, table: &mut Table) -> Result<(), CellProblem> {
    let text = |cells: &[Option<Vec<u8>>]| -> Result<String, CellProblem> {
        let bytes = cells[at].as_ref().ok_or(CellProblem::Empty)?;
        let text = std::str::from_utf8(bytes).map_err(|_| CellProblem::NotUtf8)?.trim();
        if text.is_empty() { Err(CellProblem::Empty) } else { Ok(text.to_owned()) }
    };
    let number = |cells: &[Option<f64>]| -> Result<f64, CellProblem> {
        let value = cells[at].ok_or(CellProblem::Empty)?;
        match value as f32 {
            single if single.is_nan() => Err(CellProblem::Nan),
            single if single.is_infinite() => Err(CellProblem::Infinite(value.to_string())),
            _ => Ok(value),
        }
    };
    match (role, column) {
        (Role::Feature(place), Column::Numbers(cells)) => table.row[place] = number(cells)? as f32,
        (Role::Feature(_), Column::Texts(cells)) => return Err(CellProblem::Text(shown(&text(cells)?))),
        (Role::Target, Column::Numbers(cells)) => table.targets.push(&number(cells)?.to_string()),
        (Role::Target, Column::Texts(cells)) => table.targets.push(&text(cells)?),
        (Role::Text, Column::Texts(cells)) => table.texts.push(&text(cells)?),
        (Role::Text, Column::Numbers(cells)) => table.texts.push(&number(cells)?.to_string()),
        (Role::Unused, _) => {}
    }
    Ok(())
}
