//! Tables: fitted to the terminal, plain columns elsewhere.

use crate::output::Output;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use phalanx_api::json;

/// A table with these heads.
pub(crate) fn new(output: &Output, heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if output.stdout_is_terminal {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        // Scripts cut columns: never broken over lines.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    let heads = heads.iter().map(|head| {
        let cell = Cell::new(head);
        if output.color() { cell.add_attribute(Attribute::Bold) } else { cell }
    });
    table.set_header(heads.collect::<Vec<_>>());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The table as text, without blanks at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A point in time for people: to the second, in the machine's zone where it is known.
pub(crate) fn time(timestamp: Option<&prost_types::Timestamp>) -> String {
    match json::time(timestamp) {
        serde_json::Value::String(text) => {
            text.split('.').next().map(|text| text.replace('T', " ") + "Z").unwrap_or_default()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_plain_where_there_is_no_terminal() {
        let mut output = Output::new(false, false);
        output.stdout_is_terminal = false;
        let mut table = new(&output, &["A", "LONG"]);
        table.add_row(["1", "x y"]);
        table.add_row(["22", ""]);
        assert_eq!(text(&table), "A   LONG\n1   x y\n22");
    }
}
