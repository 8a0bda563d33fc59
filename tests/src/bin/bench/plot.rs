//! The rows as a plot: nanoseconds per packet over the number of flows.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::rows::Row;

/// Size of the image, in pixels.
const SIZE: (u32, u32) = (960, 540);

/// Draws every group of rows whose names end in a number of flows as a line, with its spread, and dashed the floor that was measured in turn
/// with it.
///
/// # Errors
/// When there is nothing to draw, or the file cannot be written.
pub(crate) fn draw(rows: &[Row], path: &Path) -> Result<()> {
    let mut lines: BTreeMap<&str, Vec<(u32, &Row)>> = BTreeMap::new();
    for row in rows {
        if let Some((name, flows)) = row.name.rsplit_once('/')
            && let Ok(flows) = flows.parse()
            && row.ratio.is_some()
        {
            lines.entry(name).or_default().push((flows, row));
        }
    }
    let all = || lines.values().flatten();
    let most = all().map(|(flows, _)| *flows).max();
    let slowest = all().map(|(_, row)| row.max).reduce(f64::max);
    let (Some(most), Some(slowest)) = (most, slowest) else {
        anyhow::bail!("no row was measured with a number of flows");
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Time of a packet", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d((1u32..most).log_scale(), 0f64..slowest)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("flows, in random order")
        .y_desc("nanoseconds of CPU time")
        .draw()
        .map_err(|error| failed(&error))?;
    for (index, (name, points)) in lines.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(
                points.iter().map(|(flows, row)| (*flows, row.median)),
                colour.stroke_width(2),
            ))
            .map_err(|error| failed(&error))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let floor = |row: &Row| row.ratio.map_or(0.0, |ratio| row.median / ratio);
        chart
            .draw_series(DashedLineSeries::new(
                points.iter().map(|(flows, row)| (*flows, floor(row))),
                4,
                4,
                colour.stroke_width(1),
            ))
            .map_err(|error| failed(&error))?;
        chart
            .draw_series(points.iter().map(|(flows, row)| {
                PathElement::new([(*flows, row.min), (*flows, row.max)], colour)
            }))
            .map_err(|error| failed(&error))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .position(SeriesLabelPosition::UpperLeft)
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        Row {
            name: name.to_owned(),
            unit: "ns",
            median: 40.0,
            min: 39.0,
            max: 44.0,
            kernel_ns: Some(40),
            floor: Some("encap"),
            ratio: Some(2.0),
            mark: None,
            under: None,
            each: false,
        }
    }

    #[test]
    fn each_group_of_rows_is_a_line_by_name() {
        let path = std::env::temp_dir().join(format!("tether-plot-{}.svg", std::process::id()));
        let rows = ["a/ipip/1", "a/ipip/1000", "b/l2/1", "b/l2/1000"].map(row);
        draw(&rows, &path).unwrap();
        let image = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(image.contains("a/ipip") && image.contains("b/l2"));
        assert!(draw(&[row("maglev/without")], &path).is_err());
        assert!(!path.exists());
    }
}
