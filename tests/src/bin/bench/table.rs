//! The rows as a table for people.

use std::fmt::Write as _;

use crate::rows::Row;

/// One line a row: median, spread, the kernel's own figure, and the ratio to the floor with the mark to reach.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<34} {:>12} {:>12} {:>12} {:<4} {:>8}  {:<8} {:>6}  {}\n",
        "row", "median", "min", "max", "unit", "kernel", "floor", "ratio", "mark"
    );
    for row in rows {
        let ratio = row
            .ratio
            .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let kernel = row.kernel_ns.map_or_else(String::new, |ns| ns.to_string());
        let mark = match row.reached() {
            Some(true) => format!("{}: reached", mark(row)),
            Some(false) => format!("{}: MISSED", mark(row)),
            None => String::new(),
        };
        let decimals = if row.unit == "ns" { 1 } else { 2 };
        let _ = writeln!(
            text,
            "{:<34} {:>12.decimals$} {:>12.decimals$} {:>12.decimals$} {:<4} {:>8}  {:<8} {:>6}  {}",
            row.name,
            row.median,
            row.min,
            row.max,
            row.unit,
            kernel,
            row.floor.unwrap_or(""),
            ratio,
            mark
        );
    }
    text
}

/// What is to be reached, in words.
fn mark(row: &Row) -> String {
    match (row.mark, row.under) {
        (Some(mark), _) => format!("at most {mark}"),
        (None, Some(under)) if row.each => format!("each under {under} {}", row.unit),
        (None, Some(under)) => format!("under {under} {}", row.unit),
        (None, None) => String::new(),
    }
}

/// One line for each mark that was missed.
pub(crate) fn missed(rows: &[Row]) -> String {
    let missed = rows.iter().filter(|row| row.is_missed());
    missed.fold(String::new(), |mut text, row| {
        let figure = match (row.ratio, row.floor) {
            (Some(ratio), Some(floor)) => format!("{ratio:.2} times {floor}"),
            _ => format!("{:.2} {}", row.judged(), row.unit),
        };
        let _ = writeln!(text, "MISSED: {}: {figure}, {}", row.name, mark(row));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::absolute;

    #[test]
    fn what_was_missed_is_told_again() {
        let rows = [
            absolute("control/good", "ms", &[9.0], Some(10.0)),
            absolute("control/slow", "ms", &[12.5], Some(10.0)),
            absolute("control/once", "ms", &[9.0, 9.5, 11.0], Some(10.0)).for_each(),
            absolute("control/other", "MiB", &[70.0], None),
            Row {
                floor: Some("encap"),
                ratio: Some(2.5),
                mark: Some(2.0),
                ..absolute("established/slow", "ns", &[50.0], None)
            },
        ];
        let expected = "MISSED: control/slow: 12.50 ms, under 10 ms\n\
                        MISSED: control/once: 11.00 ms, each under 10 ms\n\
                        MISSED: established/slow: 2.50 times encap, at most 2\n";
        assert_eq!(missed(&rows), expected);
        let table = render(&rows);
        assert!(table.contains("under 10 ms: reached"), "{table}");
        assert!(table.contains("under 10 ms: MISSED"), "{table}");
        assert!(table.contains("at most 2: MISSED"), "{table}");
    }
}
