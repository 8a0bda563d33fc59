//! The rows as a table for people.

use std::fmt::Write as _;

use crate::rows::Row;

/// One line a row: median, spread, the kernel's own figure, and the ratio to the floor with the mark to reach.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<34} {:>12} {:>12} {:>12} {:>8}  {:<8} {:>6}  {}\n",
        "row", "median ns", "min ns", "max ns", "kernel", "floor", "ratio", "mark"
    );
    for row in rows {
        let ratio = row
            .ratio
            .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let kernel = row.kernel_ns.map_or_else(String::new, |ns| ns.to_string());
        let mark = match (row.mark, row.reached()) {
            (Some(mark), Some(true)) => format!("at most {mark}: reached"),
            (Some(mark), _) => format!("at most {mark}: MISSED"),
            (None, _) => String::new(),
        };
        let _ = writeln!(
            text,
            "{:<34} {:>12.1} {:>12.1} {:>12.1} {:>8}  {:<8} {:>6}  {}",
            row.name,
            row.median_ns,
            row.min_ns,
            row.max_ns,
            kernel,
            row.floor.unwrap_or(""),
            ratio,
            mark
        );
    }
    text
}
