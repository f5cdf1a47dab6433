//! Families as text, by the reference encoder of OpenMetrics.

use std::fmt;

use custody_query::serve::observe::MetricsFormat;
use custody_store::measure::{Family, Labels, Value};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Writes families in a format.
pub fn render(families: Vec<Family>, format: MetricsFormat) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut out = String::with_capacity(16 << 10);
    // Writing to a String does not fail.
    let _ = text::encode(&mut out, &registry);
    match format {
        MetricsFormat::OpenMetrics => out,
        MetricsFormat::Prometheus => prometheus(&out),
    }
}

/// In Prometheus' own format the name of a counter's family ends in `_total` like its
/// samples, and there is no end mark.
fn prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let ending = if kind == "counter" { "_total" } else { "" };
            let help = help.strip_prefix(name).unwrap_or_default();
            out.push_str(&format!("# HELP {name}{ending}{help}\n# TYPE {name}{ending} {kind}\n"));
        } else if !line.starts_with("# ") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let Some((_, first)) = family.rows.first() else { continue };
            let kind = match first {
                Value::Counter(_) => MetricType::Counter,
                Value::Gauge(_) => MetricType::Gauge,
                Value::Histogram { .. } => MetricType::Histogram,
            };
            let help = format!("{}.", family.help);
            let mut metric = encoder.encode_descriptor(family.name, &help, None, kind)?;
            for (labels, value) in &family.rows {
                row(&mut metric, labels, value)?;
            }
        }
        Ok(())
    }
}

fn row(metric: &mut MetricEncoder<'_>, labels: &Labels, value: &Value) -> fmt::Result {
    if labels.is_empty() {
        return put(metric, value);
    }
    let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
    put(&mut metric.encode_family(&labels.as_slice())?, value)
}

fn put(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Counter(count) => match whole(*count) {
            Some(count) => metric.encode_counter::<NoLabelSet, u64, f64>(&count, None),
            None => metric.encode_counter::<NoLabelSet, f64, f64>(count, None),
        },
        Value::Gauge(value) => match whole(*value) {
            Some(value) => metric.encode_gauge(&value),
            None => metric.encode_gauge(value),
        },
        Value::Histogram { sum, buckets } => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

/// A count as people write it: without a fraction that is always 0.
fn whole(value: f64) -> Option<u64> {
    (value.fract() == 0.0 && (0.0..9e15).contains(&value)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let labels = vec![("reason", "a \"b\"\\\n".to_owned())];
        let buckets = vec![(0.5, 1), (f64::INFINITY, 2)];
        let families = || {
            vec![
                Family { name: "c_things", help: "Things", rows: vec![(labels.clone(), Value::Counter(2.0))] },
                Family::one("h_seconds", "Times", Value::Histogram { sum: 3.5, buckets: buckets.clone() }),
                Family { name: "none", help: "Nothing", rows: vec![] },
            ]
        };
        let open = render(families(), MetricsFormat::OpenMetrics);
        assert!(open.starts_with("# HELP c_things Things.\n# TYPE c_things counter\nc_things_total{reason="), "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");
        let plain = render(families(), MetricsFormat::Prometheus);
        let expected = "# HELP c_things_total Things.\n# TYPE c_things_total counter\n\
                        c_things_total{reason=\"a \\\"b\\\"\\\\\\n\"} 2\n\
                        # HELP h_seconds Times.\n# TYPE h_seconds histogram\nh_seconds_sum 3.5\nh_seconds_count 3\n\
                        h_seconds_bucket{le=\"0.5\"} 1\nh_seconds_bucket{le=\"+Inf\"} 3\n";
        assert_eq!(plain, expected);
    }
}
