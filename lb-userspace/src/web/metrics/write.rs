//! Writing samples. A large configuration has hundreds of thousands, so nothing is collected and labels are made text once.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, LabelSetEncoder, MetricEncoder,
        NoLabelSet,
    },
    metrics::MetricType,
};

/// What a metric is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Integer(u64),
    /// A part of a whole, or another number that need not be whole.
    Ratio(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

/// Labels that many samples share, as far as possible made text already.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    /// All but the last, as the text format writes them, and the name of the last: the encoder writes a name as it is.
    head: String,
    /// The value of the last.
    last: String,
}

impl Labels {
    /// Some labels, and one that stands behind them.
    pub(super) fn new(labels: &[(&str, &str)], (name, value): (&str, &str)) -> Self {
        let mut head = String::with_capacity(96);
        for (name, value) in labels {
            head.push_str(name);
            head.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => head.push_str("\\\\"),
                    '"' => head.push_str("\\\""),
                    '\n' => head.push_str("\\n"),
                    other => head.push(other),
                }
            }
            head.push_str("\",");
        }
        head.push_str(name);
        Self {
            head,
            last: value.to_owned(),
        }
    }

    /// One label.
    pub(super) fn one(name: &str, value: &str) -> Self {
        Self::new(&[], (name, value))
    }
}

/// Shared labels, and one more if there is.
struct Sample<'a> {
    labels: &'a Labels,
    more: Option<(&'static str, &'a str)>,
}

impl EncodeLabelSet for Sample<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let shared = (self.labels.head.as_str(), self.labels.last.as_str());
        shared.encode(encoder.encode_label())?;
        match self.more {
            Some(more) => more.encode(encoder.encode_label()),
            None => Ok(()),
        }
    }
}

/// A metric whose samples are being written.
pub(super) struct Family<'e> {
    metric: MetricEncoder<'e>,
    kind: Kind,
}

impl<'e> Family<'e> {
    /// Begins a metric that grows.
    pub(super) fn counter(
        encoder: &'e mut DescriptorEncoder<'_>,
        name: &'e str,
        help: &str,
    ) -> Result<Self, fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        let kind = Kind::Counter;
        Ok(Self { metric, kind })
    }

    /// Begins a metric that goes up and down.
    pub(super) fn gauge(
        encoder: &'e mut DescriptorEncoder<'_>,
        name: &'e str,
        help: &str,
    ) -> Result<Self, fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let kind = Kind::Gauge;
        Ok(Self { metric, kind })
    }

    /// Its only sample.
    pub(super) fn of(mut self, value: impl Into<Value>) -> fmt::Result {
        write(&mut self.metric, self.kind, value.into())
    }

    /// A sample.
    pub(super) fn add(&mut self, labels: &Labels, value: impl Into<Value>) -> fmt::Result {
        let sample = Sample { labels, more: None };
        let mut metric = self.metric.encode_family(&sample)?;
        write(&mut metric, self.kind, value.into())
    }

    /// A sample with one more label.
    pub(super) fn add_with(
        &mut self,
        labels: &Labels,
        more: (&'static str, &str),
        value: impl Into<Value>,
    ) -> fmt::Result {
        let more = Some(more);
        let sample = Sample { labels, more };
        let mut metric = self.metric.encode_family(&sample)?;
        write(&mut metric, self.kind, value.into())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    match (kind, value) {
        (Kind::Counter, Value::Integer(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (Kind::Counter, Value::Ratio(value)) => {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        }
        (Kind::Gauge, Value::Integer(value)) => metric.encode_gauge(&value),
        (Kind::Gauge, Value::Ratio(value)) => metric.encode_gauge(&value),
    }
}

/// A histogram whose samples are being written.
pub(super) struct Histogram<'e>(MetricEncoder<'e>);

impl<'e> Histogram<'e> {
    /// Begins it.
    pub(super) fn new(
        encoder: &'e mut DescriptorEncoder<'_>,
        name: &'e str,
        help: &str,
    ) -> Result<Self, fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        Ok(Self(metric))
    }

    /// One set of samples: sum, count, and how many fell into each bucket of this upper bound.
    pub(super) fn add(&mut self, labels: &Labels, sum: f64, buckets: &[(f64, u64)]) -> fmt::Result {
        let sample = Sample { labels, more: None };
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.0
            .encode_family(&sample)?
            .encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{collector::Collector, encoding::text, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Odd;

    impl Collector for Odd {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let odd = "a\"b\\c\nd";
            let labels = Labels::new(&[("first", odd), ("second", "x")], ("third", odd));
            let mut family = Family::counter(&mut encoder, "odd", "Odd")?;
            family.add(&labels, 1)?;
            family.add_with(&labels, ("fourth", odd), Value::Ratio(0.5))
        }
    }

    #[test]
    fn labels_are_escaped_wherever_they_stand() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Odd));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        let odd = r#""a\"b\\c\nd""#;
        let labels = format!(r#"first={odd},second="x",third={odd}"#);
        assert!(out.contains(&format!("odd_total{{{labels}}} 1\n")), "{out}");
        assert!(
            out.contains(&format!("odd_total{{{labels},fourth={odd}}} 0.5\n")),
            "{out}"
        );
    }
}
