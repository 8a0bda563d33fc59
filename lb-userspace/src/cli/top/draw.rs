//! The board on a screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line as Text, Span},
    widgets::{Cell, Paragraph, Row, Sparkline, Table},
};

use super::board::{Board, Line, Mood, TREND, View, short};

/// Rows of the plot.
const PLOT: u16 = 3;
/// Eighths of a character's height.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The least screen: what does not fit a smaller one is cut off.
const KEYS: &str = "q quit  s sort  r reverse  v services or backends  space pause  arrows scroll";

/// Whether there are colours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ink(pub(super) bool);

impl Ink {
    fn of(self, mood: Mood) -> Style {
        let colour = match mood {
            Mood::Good => Color::Green,
            Mood::Doubtful => Color::Yellow,
            Mood::Bad => Color::Red,
        };
        if self.0 {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board, ink: Ink) {
    let warning = board.warning();
    let [heading, figures, plot, warned, table, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(PLOT),
        Constraint::Length(u16::from(warning.is_some())),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let strong = Style::new().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(board.heading()).style(strong), heading);
    frame.render_widget(Paragraph::new(board.figures()), figures);
    let trend = board.trend();
    let shown = trend.len().saturating_sub(usize::from(plot.width));
    frame.render_widget(
        Sparkline::default()
            .data(&trend[shown..])
            .style(ink.of(Mood::Good)),
        plot,
    );
    if let Some(text) = warning {
        frame.render_widget(Paragraph::new(text).style(ink.of(Mood::Bad)), warned);
    }
    let widths = [
        Constraint::Min(14),
        Constraint::Length(10),
        Constraint::Length(13),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(10),
    ];
    let first = match board.view {
        View::Backends => "BACKEND",
        View::Services => "SERVICE",
    };
    let heads = [
        first, "STATE", "SERVING", "ACTIVE", "IDLE", "PKT/S", "BIT/S", "TREND",
    ];
    let all = board.rows();
    let skip = board.skip.min(all.saturating_sub(1));
    let room = usize::from(table.height.saturating_sub(1));
    let lines = board.lines(skip, room);
    let rows = lines.iter().map(|line| row(line, ink));
    frame.render_widget(
        Table::new(rows, widths)
            .header(Row::new(heads).style(strong))
            .column_spacing(1),
        table,
    );
    let mut order = format!("  by {}", board.sort.name());
    if board.reverse {
        order += ", reversed";
    }
    if board.paused {
        order += ", PAUSED";
    }
    let rest = all.saturating_sub(skip + room);
    if rest > 0 || skip > 0 {
        order += &format!(", {skip} above, {rest} below");
    }
    // What changes comes first: the rest may be cut off.
    let footer = Text::from(vec![
        Span::styled(order.trim_start().to_owned(), strong),
        Span::raw("  "),
        Span::raw(KEYS),
    ]);
    frame.render_widget(Paragraph::new(footer), keys);
}

fn row(line: &Line, ink: Ink) -> Row<'static> {
    Row::new([
        Cell::from(line.name.clone()),
        Cell::from(line.state.clone()).style(ink.of(line.mood)),
        Cell::from(line.serving.clone()),
        Cell::from(short(line.active as f64)),
        Cell::from(short(line.idle as f64)),
        Cell::from(short(line.packets)),
        Cell::from(short(line.bits)),
        Cell::from(bars(&line.trend, TREND)),
    ])
}

/// The latest of these figures as bars, the greatest as high as a line. Nothing is no bar.
fn bars(figures: &[f64], width: usize) -> String {
    let shown = &figures[figures.len().saturating_sub(width)..];
    let most = shown.iter().copied().fold(0.0, f64::max);
    shown
        .iter()
        .map(|figure| {
            if *figure <= 0.0 || most <= 0.0 {
                return ' ';
            }
            let eighths = (figure / most * 8.0).ceil() as usize;
            BARS[eighths.clamp(1, 8) - 1]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use lb_common::backend::Serving;
    use ratatui::{Terminal, backend::TestBackend};

    use super::{
        super::board::{Sample, Sort, Wish},
        *,
    };
    use crate::{
        inventory::{self, Traffic, tests as shown},
        model::Health,
        status::Packets,
    };

    /// What the daemon would answer after so many seconds, in which `chat/b1` was sent 100 packets of 1,000 bytes a second, and the others nothing.
    fn sample(seconds: u64) -> Sample {
        let mut status = shown::a_status();
        let maps = shown::maps_of(&status);
        let packets = 100 * seconds;
        let forwarded = Packets {
            packets,
            bytes: packets * 1_000,
        };
        status.reasons.insert("established".into(), forwarded);
        status.services[0].backends[1].health = Health::Down;
        let mut backends = inventory::backends(&maps, &status, |_| true);
        backends[0].traffic = Traffic {
            packets,
            bytes: packets * 1_000,
        };
        Sample {
            at_ms: seconds * 1_000,
            services: inventory::services(&maps, &status),
            backends,
            status,
        }
    }

    fn board(seconds: u64) -> Board {
        let mut board = Board::default();
        for second in 0..=seconds {
            board.take(sample(second));
        }
        board
    }

    fn screen(board: &Board, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, board, Ink(true)))
            .unwrap();
        let buffer = terminal.backend().buffer().clone();
        (0..height)
            .map(|y| {
                let cells = (0..width).map(|x| buffer[(x, y)].symbol().to_owned());
                cells.collect::<String>().trim_end().to_owned()
            })
            .collect()
    }

    #[test]
    fn a_screen_of_80_by_24_holds_what_matters() {
        let screen = screen(&board(30), 80, 24);
        let text = screen.join("\n");
        assert_eq!(
            screen[0],
            "tether 0.1.0, up 9 s, generation 3, eth0 (native)"
        );
        assert_eq!(
            screen[1],
            "flows 0 (0.0% full), new 0/s, packets 100/s, 800kbit/s, lost 0/s"
        );
        assert!(screen[2..5].iter().any(|line| line.contains('█')), "{text}");
        assert_eq!(
            screen[5],
            "BACKEND          STATE      SERVING       ACTIVE IDLE   PKT/S  BIT/S  TREND"
        );
        assert_eq!(
            screen[6],
            "chat/b1          up         new           2      1      100    800k   ██████████"
        );
        assert_eq!(
            screen[7],
            "chat/b2          down       new           2      1      0      0"
        );
        assert!(
            screen[23].starts_with("by name  q quit  s sort  r reverse"),
            "{text}"
        );
    }

    #[test]
    fn keys_sort_reverse_scroll_and_switch() {
        let mut board = board(3);
        let names = |board: &Board| -> Vec<String> {
            board
                .lines(0, usize::MAX)
                .into_iter()
                .map(|line| line.name)
                .collect()
        };
        assert_eq!(names(&board), ["chat/b1", "chat/b2", "mail/m1"]);
        board.wish(Wish::Reverse);
        assert_eq!(names(&board)[0], "mail/m1");
        board.wish(Wish::Sort);
        assert_eq!(board.sort, Sort::Packets);
        assert_eq!(names(&board)[2], "chat/b1");
        board.wish(Wish::Reverse);
        while board.sort != Sort::State {
            board.wish(Wish::Sort);
        }
        assert_eq!(names(&board)[0], "chat/b2", "the worst first");
        board.wish(Wish::Down(10));
        let text = screen(&board, 80, 24);
        assert!(text[23].contains("2 above, 0 below"), "{text:?}");
        board.wish(Wish::View);
        assert_eq!(names(&board), ["chat", "mail"]);
        assert_eq!(board.skip, 0);
        // What comes while it is paused is not shown, and the first figure after it is a mean.
        board.wish(Wish::Pause);
        board.take(sample(4));
        assert_eq!(
            board.heading(),
            "tether 0.1.0, up 9 s, generation 3, eth0 (native)"
        );
        assert!(screen(&board, 80, 24)[23].contains("PAUSED"));
    }

    #[test]
    fn a_part_of_the_rows_is_the_same_as_of_all() {
        let mut board = board(2);
        assert_eq!(board.rows(), 3);
        let begun = board.sort;
        loop {
            for _ in 0..2 {
                board.wish(Wish::Reverse);
                let all = board.lines(0, usize::MAX);
                assert_eq!(all.len(), 3);
                for skip in 0..5 {
                    for count in 0..4 {
                        let part: Vec<_> = all.iter().skip(skip).take(count).cloned().collect();
                        assert_eq!(board.lines(skip, count), part, "{:?}", board.sort);
                    }
                }
            }
            board.wish(Wish::Sort);
            if board.sort == begun {
                break;
            }
        }
        // No row keeps more than it shows.
        let long = self::board(40);
        let trends = long
            .lines(0, usize::MAX)
            .into_iter()
            .map(|line| line.trend.len());
        assert_eq!(trends.max(), Some(TREND));
        assert_eq!(long.trend().len(), 40);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut board = board(1);
        assert_eq!(board.warning(), None);
        let mut bad = sample(2);
        bad.status.config.error = Some("a.toml:3:1: x is not known\nmore".into());
        board.take(bad);
        let text = screen(&board, 80, 24);
        assert_eq!(text[5], "configuration refused: a.toml:3:1: x is not known");
        board.trouble = Some("no daemon answers".into());
        assert_eq!(screen(&board, 80, 24)[5], "no daemon answers");
        board.take(sample(3));
        assert_eq!(board.warning(), None);
    }

    #[test]
    fn a_service_whose_backends_are_full_is_called_so() {
        let mut board = board(1);
        board.wish(Wish::View);
        let mut full = sample(2);
        full.status.services[0].full = true;
        for backend in &mut full.status.services[0].backends {
            backend.serving = Serving::ExistingOnly;
        }
        full.services = inventory::services(&shown::maps_of(&full.status), &full.status);
        board.take(full);
        let lines = board.lines(0, usize::MAX);
        assert_eq!((&*lines[0].name, &*lines[0].state), ("chat", "FULL"));
        assert_eq!(lines[0].serving, "0 of 2 new");
    }

    #[test]
    fn no_screen_is_too_small_and_no_board_too_empty() {
        for (width, height) in [(1, 1), (10, 3), (40, 6), (300, 90)] {
            screen(&board(2), width, height);
            screen(&Board::default(), width, height);
        }
        assert_eq!(
            screen(&Board::default(), 80, 24)[1],
            "waiting for the daemon"
        );
    }

    #[test]
    fn figures_are_short() {
        for (figure, text) in [
            (0.0, "0"),
            (0.4, "0.4"),
            (7.0, "7"),
            (99.96, "100"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (1_500.0, "1.5k"),
            (123_456.0, "123k"),
            (2.5e9, "2.5G"),
            (7e15, "7000T"),
        ] {
            assert_eq!(short(figure), text);
        }
    }

    #[test]
    fn bars_are_of_the_greatest() {
        assert_eq!(bars(&[0.0, 1.0, 4.0, 8.0], 10), " ▁▄█");
        assert_eq!(bars(&[8.0, 1.0, 2.0], 2), "▄█");
        assert_eq!(bars(&[], 5), "");
    }
}
