//! How full a flow table is, told to the operator well before it matters.

use serde::{Deserialize, Serialize};

use super::TableCensus;

/// How full a flow table is, in steps. A step is left only once the use is clearly below it, so that each crossing is told once.
///
/// Embryos do not count: they give way to any flow, and a flood of SYNs is no reason to buy memory.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// As it should be.
    #[default]
    Low,
    /// Half of it is in use.
    Half,
    /// 70% is in use: close to 75%, above which idle flows are reclaimed.
    High,
}

impl Fill {
    /// Percent of use from which a step is reached.
    const fn threshold(self) -> u64 {
        match self {
            Self::Low => 0,
            Self::Half => 50,
            Self::High => 70,
        }
    }

    /// How far below that the use has to be for the step to be left, in percent.
    const SLACK: u64 = 5;

    /// The step after another census.
    #[must_use]
    pub fn next(self, table: &TableCensus) -> Self {
        let percent = table.counts.settled() * 100 / table.capacity.max(1);
        [Self::High, Self::Half]
            .into_iter()
            .find(|step| {
                let slack = if *step <= self { Self::SLACK } else { 0 };
                percent + slack >= step.threshold()
            })
            .unwrap_or_default()
    }

    /// As a number, for metrics: 0, 1, 2.
    pub fn level(self) -> u64 {
        self as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Counts;

    fn census(percent: u64) -> TableCensus {
        TableCensus {
            capacity: 1_000,
            counts: Counts {
                pin: percent * 10,
                embryo: 500,
                ..Counts::default()
            },
        }
    }

    #[test]
    fn each_crossing_is_one_change() {
        let mut fill = Fill::default();
        for (percent, expected) in [
            (0, Fill::Low),
            (49, Fill::Low),
            (50, Fill::Half),
            (46, Fill::Half),
            (51, Fill::Half),
            (44, Fill::Low),
            (70, Fill::High),
            (65, Fill::High),
            (64, Fill::Half),
            (100, Fill::High),
            (45, Fill::Half),
            (100, Fill::High),
            (10, Fill::Low),
        ] {
            fill = fill.next(&census(percent));
            assert_eq!(fill, expected, "at {percent}%");
        }
    }

    #[test]
    fn a_table_that_was_not_counted_yet_is_not_full() {
        assert_eq!(Fill::Low.next(&TableCensus::default()), Fill::Low);
    }
}
