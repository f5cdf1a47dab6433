//! The table `metrics`: one row per metric record, its data points as JSON.
//!
//! `points` is an object: `data_points`, and what holds for all of them
//! (`aggregation_temporality`, `is_monotonic`, `description`, `metadata`). Names are
//! those of OTLP in snake case; times are text, because they exceed what JSON readers
//! keep of a number; a float that JSON lacks is text too, as in `attributes`.

use std::borrow::Cow;

use custody_proto::otlp::common::KeyValue;
use custody_proto::otlp::metrics::{
    AggregationTemporality, Exemplar, ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint,
    SummaryDataPoint, exemplar, exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
};
use custody_proto::wire;
use serde_json::{Map, Value as Json, json};

use crate::attributes::{Attributes, attributes_json, hex_id};
use crate::mapping::RecordContext;
use crate::rows::{Time, table};

table! {
    /// One metric with its data points, as OTLP has it.
    MetricRow, MetricBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// Content commitment of the record, hex.
        record_hash: String,
        /// Name.
        name: String,
        /// Unit, as UCUM has it.
        unit: Option<String>,
        /// gauge, sum, histogram, exponential_histogram, summary or none.
        r#type: String,
        /// The service's own claim of its name.
        service_name: Option<String>,
        /// The data points and what holds for all of them, a JSON object.
        points: String,
        /// When the ledger took it.
        ingest_time: Time,
        /// Who sent it, as authenticated.
        submitter: String,
        /// Whose it is, as the sender says: tenant.id or custody.tenant of its metadata or resource.
        tenant: Option<String>,
        /// Workspace, as the sender says, of its metadata or resource.
        workspace: Option<String>,
    }
}

/// The row of a metric.
pub(crate) fn metric_row(context: &RecordContext<'_>, metric: &Metric) -> MetricRow {
    MetricRow {
        seq: context.seq,
        record_hash: context.record_hash.to_owned(),
        name: metric.name.clone(),
        unit: (!metric.unit.is_empty()).then(|| metric.unit.clone()),
        r#type: type_name(metric.data.as_ref()).to_owned(),
        service_name: Attributes(&context.resource.attributes).text("service.name"),
        points: Json::Object(points(metric)).to_string(),
        ingest_time: context.ingest_time,
        submitter: context.submitter.to_owned(),
        ..MetricRow::default()
    }
}

fn type_name(data: Option<&Data>) -> &'static str {
    match data {
        Some(Data::Gauge(_)) => "gauge",
        Some(Data::Sum(_)) => "sum",
        Some(Data::Histogram(_)) => "histogram",
        Some(Data::ExponentialHistogram(_)) => "exponential_histogram",
        Some(Data::Summary(_)) => "summary",
        None => "none",
    }
}

/// The number itself, where OTLP does not name it.
fn temporality_name(temporality: i32) -> Cow<'static, str> {
    match AggregationTemporality::try_from(temporality) {
        Ok(AggregationTemporality::Unspecified) => "unspecified".into(),
        Ok(AggregationTemporality::Delta) => "delta".into(),
        Ok(AggregationTemporality::Cumulative) => "cumulative".into(),
        Err(_) => temporality.to_string().into(),
    }
}

fn points(metric: &Metric) -> Map<String, Json> {
    let mut out = Map::new();
    if !metric.description.is_empty() {
        out.insert("description".into(), metric.description.as_str().into());
    }
    if !metric.metadata.is_empty() {
        out.insert("metadata".into(), object(&metric.metadata));
    }
    let temporality = match &metric.data {
        Some(Data::Sum(sum)) => Some(sum.aggregation_temporality),
        Some(Data::Histogram(histogram)) => Some(histogram.aggregation_temporality),
        Some(Data::ExponentialHistogram(histogram)) => Some(histogram.aggregation_temporality),
        Some(Data::Gauge(_) | Data::Summary(_)) | None => None,
    };
    if let Some(temporality) = temporality {
        out.insert("aggregation_temporality".into(), temporality_name(temporality).into());
    }
    let data_points: Vec<Json> = match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.iter().map(number).collect(),
        Some(Data::Sum(sum)) => {
            out.insert("is_monotonic".into(), sum.is_monotonic.into());
            sum.data_points.iter().map(number).collect()
        }
        Some(Data::Histogram(histogram)) => histogram.data_points.iter().map(histogram_point).collect(),
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.iter().map(exponential).collect(),
        Some(Data::Summary(summary)) => summary.data_points.iter().map(summary_point).collect(),
        None => Vec::new(),
    };
    out.insert("data_points".into(), data_points.into());
    out
}

/// What every data point has.
fn point(attributes: &[KeyValue], start: u64, time: u64, flags: u32) -> Map<String, Json> {
    let mut out = Map::new();
    if start != 0 {
        out.insert("start_time_unix_nano".into(), start.to_string().into());
    }
    out.insert("time_unix_nano".into(), time.to_string().into());
    out.insert("attributes".into(), object(attributes));
    if flags != 0 {
        out.insert("flags".into(), flags.into());
    }
    out
}

fn number(p: &NumberDataPoint) -> Json {
    let mut out = point(&p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags);
    let value = match p.value {
        Some(number_data_point::Value::AsInt(i)) => i.into(),
        Some(number_data_point::Value::AsDouble(d)) => float(d),
        None => Json::Null,
    };
    out.insert("value".into(), value);
    with_exemplars(out, &p.exemplars)
}

fn histogram_point(p: &HistogramDataPoint) -> Json {
    let mut out = point(&p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags);
    with_extent(&mut out, p.count, p.sum, p.min, p.max);
    out.insert("bucket_counts".into(), p.bucket_counts.clone().into());
    out.insert("explicit_bounds".into(), p.explicit_bounds.iter().copied().map(float).collect());
    with_exemplars(out, &p.exemplars)
}

fn exponential(p: &ExponentialHistogramDataPoint) -> Json {
    let mut out = point(&p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags);
    with_extent(&mut out, p.count, p.sum, p.min, p.max);
    out.insert("scale".into(), p.scale.into());
    out.insert("zero_count".into(), p.zero_count.into());
    out.insert("zero_threshold".into(), float(p.zero_threshold));
    let buckets = |b: &Buckets| json!({"offset": b.offset, "bucket_counts": b.bucket_counts});
    for (name, side) in [("positive", &p.positive), ("negative", &p.negative)] {
        if let Some(side) = side {
            out.insert(name.into(), buckets(side));
        }
    }
    with_exemplars(out, &p.exemplars)
}

fn summary_point(p: &SummaryDataPoint) -> Json {
    let mut out = point(&p.attributes, p.start_time_unix_nano, p.time_unix_nano, p.flags);
    with_extent(&mut out, p.count, Some(p.sum), None, None);
    let quantiles = p.quantile_values.iter().map(|q| json!({"quantile": float(q.quantile), "value": float(q.value)}));
    out.insert("quantile_values".into(), quantiles.collect());
    Json::Object(out)
}

fn with_extent(out: &mut Map<String, Json>, count: u64, sum: Option<f64>, min: Option<f64>, max: Option<f64>) {
    out.insert("count".into(), count.into());
    for (name, value) in [("sum", sum), ("min", min), ("max", max)] {
        if let Some(value) = value {
            out.insert(name.into(), float(value));
        }
    }
}

fn with_exemplars(mut out: Map<String, Json>, exemplars: &[Exemplar]) -> Json {
    let one = |e: &Exemplar| {
        let value = match e.value {
            Some(exemplar::Value::AsInt(i)) => i.into(),
            Some(exemplar::Value::AsDouble(d)) => float(d),
            None => Json::Null,
        };
        json!({"time_unix_nano": e.time_unix_nano.to_string(), "value": value, "trace_id": hex_id(&e.trace_id),
               "span_id": hex_id(&e.span_id), "filtered_attributes": object(&e.filtered_attributes)})
    };
    if !exemplars.is_empty() {
        out.insert("exemplars".into(), exemplars.iter().map(one).collect());
    }
    Json::Object(out)
}

fn object(attributes: &[KeyValue]) -> Json {
    let lent: Vec<_> = attributes.iter().map(wire::KeyValue::from).collect();
    serde_json::from_str(&attributes_json(&lent)).unwrap_or_default()
}

fn float(number: f64) -> Json {
    serde_json::Number::from_f64(number).map_or_else(|| Json::String(number.to_string()), Json::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use custody_proto::otlp::metrics::{
        ExponentialHistogram, Gauge, Histogram, Sum, Summary, summary_data_point::ValueAtQuantile,
    };
    use custody_proto::wire::Resource;

    fn row(data: Data) -> (String, Json) {
        let context = RecordContext {
            seq: 3,
            record_hash: "ab",
            ingest_time: Time(5),
            submitter: "s",
            resource: &Resource::default(),
            scope: &Default::default(),
        };
        let metric = Metric { name: "m".into(), unit: "s".into(), data: Some(data), ..Metric::default() };
        let row = metric_row(&context, &metric);
        assert_eq!((row.seq, row.name.as_str(), row.unit.as_deref()), (3, "m", Some("s")));
        (row.r#type, serde_json::from_str(&row.points).unwrap())
    }

    #[test]
    fn numbers_keep_their_kind() {
        let int = NumberDataPoint {
            time_unix_nano: u64::MAX,
            value: Some(number_data_point::Value::AsInt(i64::MIN)),
            ..Default::default()
        };
        let nan = NumberDataPoint { value: Some(number_data_point::Value::AsDouble(f64::NAN)), ..Default::default() };
        let none = NumberDataPoint { flags: 1, ..Default::default() };
        let (name, points) = row(Data::Gauge(Gauge { data_points: vec![int, nan, none] }));
        assert_eq!(name, "gauge");
        assert_eq!(points["data_points"][0]["value"], json!(i64::MIN));
        assert_eq!(points["data_points"][0]["time_unix_nano"], json!(u64::MAX.to_string()));
        assert_eq!(points["data_points"][1]["value"], json!("NaN"));
        assert_eq!(
            points["data_points"][2],
            json!({"time_unix_nano": "0", "attributes": {}, "flags": 1, "value": null})
        );
        assert_eq!(points.get("is_monotonic"), None);
    }

    #[test]
    fn a_sum_says_whether_it_is_monotonic_and_since_when() {
        let exemplar = Exemplar {
            value: Some(exemplar::Value::AsDouble(0.5)),
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            ..Default::default()
        };
        let one = NumberDataPoint { start_time_unix_nano: 7, exemplars: vec![exemplar], ..Default::default() };
        let sum = Sum { data_points: vec![one], aggregation_temporality: 2, is_monotonic: true };
        let (name, points) = row(Data::Sum(sum));
        assert_eq!(name, "sum");
        assert_eq!((&points["is_monotonic"], &points["aggregation_temporality"]), (&json!(true), &json!("cumulative")));
        assert_eq!(points["data_points"][0]["start_time_unix_nano"], json!("7"));
        let shown = &points["data_points"][0]["exemplars"][0];
        assert_eq!((&shown["value"], &shown["span_id"]), (&json!(0.5), &json!("0202020202020202")));
    }

    #[test]
    fn a_temporality_without_a_name_is_shown_by_its_number() {
        for (temporality, shown) in [(0, "unspecified"), (1, "delta"), (2, "cumulative"), (9, "9"), (-1, "-1")] {
            let sum = Sum { aggregation_temporality: temporality, ..Sum::default() };
            let histogram = Histogram { aggregation_temporality: temporality, ..Histogram::default() };
            let exponential =
                ExponentialHistogram { aggregation_temporality: temporality, ..ExponentialHistogram::default() };
            for data in [Data::Sum(sum), Data::Histogram(histogram), Data::ExponentialHistogram(exponential)] {
                assert_eq!(row(data).1["aggregation_temporality"], shown);
            }
        }
    }

    #[test]
    fn distributions_keep_their_buckets() {
        let point = HistogramDataPoint {
            count: 3,
            sum: Some(1.5),
            bucket_counts: vec![1, 2],
            explicit_bounds: vec![f64::INFINITY],
            max: Some(1.0),
            ..Default::default()
        };
        let (name, points) = row(Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality: 1 }));
        assert_eq!(name, "histogram");
        assert_eq!(points["aggregation_temporality"], "delta");
        let want = json!({"time_unix_nano": "0", "attributes": {}, "count": 3, "sum": 1.5, "max": 1.0,
                          "bucket_counts": [1, 2], "explicit_bounds": ["inf"]});
        assert_eq!(points["data_points"][0], want);

        let point = ExponentialHistogramDataPoint {
            scale: -2,
            zero_count: 4,
            positive: Some(Buckets { offset: -1, bucket_counts: vec![5] }),
            ..Default::default()
        };
        let histogram = ExponentialHistogram { data_points: vec![point], aggregation_temporality: 0 };
        let (name, points) = row(Data::ExponentialHistogram(histogram));
        assert_eq!(name, "exponential_histogram");
        assert_eq!(points["aggregation_temporality"], "unspecified");
        assert_eq!(points["data_points"][0]["positive"], json!({"offset": -1, "bucket_counts": [5]}));
        assert_eq!(points["data_points"][0].get("negative"), None);

        let quantile_values = vec![ValueAtQuantile { quantile: 0.99, value: 2.0 }];
        let point = SummaryDataPoint { count: 1, sum: 2.0, quantile_values, ..Default::default() };
        let (name, points) = row(Data::Summary(Summary { data_points: vec![point] }));
        assert_eq!(name, "summary");
        assert_eq!(points["data_points"][0]["quantile_values"], json!([{"quantile": 0.99, "value": 2.0}]));
    }
}
