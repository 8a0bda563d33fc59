//! Tables for people: columns of even width, and colours where a terminal shows them.

use std::fmt::Write as _;

use crate::logging;

/// How a cell looks where there are colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// As everything else.
    #[default]
    Plain,
    /// A heading.
    Strong,
    /// As it should be.
    Good,
    /// Worth a look.
    Doubtful,
    /// Bad.
    Bad,
    /// Beside the point.
    Faint,
}

impl Style {
    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    const fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Strong => Some("1"),
            Self::Good => Some("32"),
            Self::Doubtful => Some("33"),
            Self::Bad => Some("1;31"),
            Self::Faint => Some("2"),
        }
    }
}

/// Whether there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colours(pub(super) bool);

impl Colours {
    /// Where standard output shows them.
    pub(super) fn of_stdout() -> Self {
        Self(logging::shows_colours(&std::io::stdout()))
    }

    /// A text in a style.
    pub(super) fn paint(self, style: Style, text: &str) -> String {
        match style.code() {
            Some(code) if self.0 && !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self::styled(text, Style::Plain)
    }

    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        // What a backend says of itself must not reach the terminal as commands to it, nor break the line.
        let is_plain = |c: char| !c.is_control();
        let text = text
            .into()
            .chars()
            .map(|c| if is_plain(c) { c } else { ' ' })
            .collect();
        Self { text, style }
    }

    /// A heading.
    pub(super) fn heading(text: &str) -> Self {
        Self::styled(text, Style::Strong)
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Columns that are as wide as the rows seen first, so that a table can be printed before its end is known. Cells that are wider push
/// the rest of their row.
#[derive(Debug)]
pub(super) struct Columns<const N: usize> {
    widths: [usize; N],
    colours: Colours,
}

impl<const N: usize> Columns<N> {
    /// For these rows, and those that follow them.
    pub(super) fn of(rows: &[[Cell; N]], colours: Colours) -> Self {
        let widest = |at: usize| rows.iter().map(|row| row[at].width()).max();
        Self {
            widths: std::array::from_fn(|at| widest(at).unwrap_or(0)),
            colours,
        }
    }

    /// A row as a line.
    pub(super) fn line(&self, row: &[Cell; N]) -> String {
        let last = row.iter().rposition(|cell| !cell.text.is_empty());
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(self.widths).enumerate() {
            if last.is_none_or(|last| at > last) {
                break;
            }
            let separator = if at == 0 { "" } else { "  " };
            let painted = self.colours.paint(cell.style, &cell.text);
            let pad = if last == Some(at) {
                0
            } else {
                width.saturating_sub(cell.width())
            };
            // Writing to a String cannot fail.
            let _ = write!(line, "{separator}{painted}{:pad$}", "");
        }
        line
    }
}

/// A whole table.
pub(super) fn table<const N: usize>(rows: &[[Cell; N]], colours: Colours) -> String {
    let columns = Columns::of(rows, colours);
    let lines = rows.iter().map(|row| columns.line(row) + "\n");
    lines.collect()
}

/// A whole table in the midst of a text: without colours, and indented by two.
pub(super) fn indented_table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| row.each_ref().map(Cell::new))
        .collect();
    let columns = Columns::of(&rows, Colours(false));
    let lines = rows.iter().map(|row| format!("  {}\n", columns.line(row)));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<[Cell; 3]> {
        vec![
            ["NAME", "STATE", "ERROR"].map(Cell::heading),
            [
                Cell::new("b1"),
                Cell::styled("up", Style::Good),
                Cell::new(""),
            ],
            [
                Cell::new("backend"),
                Cell::styled("down", Style::Bad),
                Cell::new("no\x1b[31m answer\n"),
            ],
        ]
    }

    #[test]
    fn columns_line_up_and_lines_end_with_their_text() {
        let expected = "\
NAME     STATE  ERROR
b1       up
backend  down   no [31m answer \n";
        assert_eq!(table(&rows(), Colours(false)), expected);
    }

    #[test]
    fn colours_change_no_width() {
        let coloured = table(&rows(), Colours(true));
        assert!(
            coloured.contains("b1       \x1b[32mup\x1b[0m\n"),
            "{coloured:?}"
        );
        let mut plain = coloured.clone();
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[1;31m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, table(&rows(), Colours(false)));
    }

    #[test]
    fn rows_that_come_later_may_be_wider() {
        let rows = rows();
        let columns = Columns::of(&rows[..2], Colours(false));
        assert_eq!(columns.line(&rows[2]), "backend  down   no [31m answer ");
    }
}
