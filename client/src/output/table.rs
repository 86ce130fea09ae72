//! Tables for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table with the given headings; columns in `right` are numbers.
pub(crate) fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|h| h.to_string()).collect::<Vec<_>>());
    for index in right {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Prints a table, without blanks at the ends of lines.
pub(crate) fn print(table: &Table) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    for line in table.to_string().lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// `1.5 s`, `3 min`, `2 h`, `5 d`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => parts(s, (60, "min"), "s"),
        s if s < 2.0 * 86_400.0 => parts(s / 60.0, (60, "h"), "min"),
        s => parts(s / 3600.0, (24, "d"), "h"),
    }
}

/// So many small units, as large ones and the rest: a large one alone is too coarse where times are compared.
fn parts(small: f64, (each, large): (u64, &str), name: &str) -> String {
    let small = small.round() as u64;
    match small % each {
        0 => format!("{} {large}", small / each),
        rest => format!("{} {large} {rest} {name}", small / each),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        assert_eq!(duration(1.25), "1.2 s");
        assert_eq!(duration(600.0), "10 min");
        assert_eq!(duration(133.3), "2 min 13 s");
        assert_eq!(duration(7200.0), "2 h");
        assert_eq!(duration(7340.0), "2 h 2 min");
        assert_eq!(duration(864_000.0), "10 d");
    }
}
