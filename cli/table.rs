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

/// The same with one line a row: on a terminal what does not fit its width is cut, and ends with `…`.
pub(crate) fn list(mut table: Table) -> String {
    if matches!(table.content_arrangement(), ContentArrangement::Dynamic) {
        for row in table.row_iter_mut() {
            row.max_height(1);
        }
    }
    text(&table)
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
    fn a_row_of_a_list_is_one_line_that_fits() {
        let mut output = Output::new(false, false);
        output.stdout_is_terminal = true;
        let mut table = new(&output, &["ID", "STATE", "REASON"]);
        table.set_width(60);
        let reason = "asks for 8 workers with 4 CPUs each; the largest node has 16 CPUs, of which 3 are free";
        for id in ["j1", "j12345"] {
            table.add_row([id, "QUEUED", reason]);
        }
        let shown = list(table);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines.iter().all(|line| line.chars().count() <= 60), "{shown}");
        assert!(
            lines[2].starts_with("j12345  QUEUED  asks for 8 workers") && lines[2].ends_with('…'),
            "{shown}"
        );
    }

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
