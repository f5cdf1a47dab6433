//! Values of attributes as Jaeger writes them: typed tags (API v1), and OTLP's JSON (API v3).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use custody_proto::otlp::common::any_value::Value;
use custody_proto::otlp::common::{AnyValue, KeyValue};
use serde_json::{Number, Value as Json, json};

use crate::attributes::conceal;

/// The greatest integer that JavaScript reads as it is written.
const SAFE_INTEGER: i64 = (1 << 53) - 1;

/// How deep a value is followed; the scanner lets nothing deeper in.
const DEPTH_MAX: usize = 100;

fn text(text: &str) -> String {
    conceal(text).unwrap_or_else(|| text.to_owned())
}

/// A number, or the word for one that JSON lacks.
fn double(number: f64) -> Json {
    let word = || {
        let word = if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        Json::from(word)
    };
    Number::from_f64(number).map_or_else(word, Json::Number)
}

/// A tag of a text.
pub(super) fn text_tag(key: &str, value: &str) -> Json {
    json!({"key": key, "type": "string", "value": value})
}

/// A tag of a whole number. One that JavaScript would round is written as text, as Jaeger does.
pub(super) fn whole_tag(key: &str, value: i64) -> Json {
    let number = match value.unsigned_abs() <= SAFE_INTEGER.unsigned_abs() {
        true => Json::from(value),
        false => Json::from(value.to_string()),
    };
    json!({"key": key, "type": "int64", "value": number})
}

/// A tag of an attribute (`attributeToJaegerProtoTag` of the OpenTelemetry Collector).
pub(super) fn tag(attribute: &KeyValue) -> Json {
    let key = &attribute.key;
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(value)) => text_tag(key, &text(value)),
        Some(Value::BoolValue(value)) => json!({"key": key, "type": "bool", "value": value}),
        Some(Value::IntValue(value)) => whole_tag(key, *value),
        Some(Value::DoubleValue(value)) => json!({"key": key, "type": "float64", "value": double(*value)}),
        Some(Value::BytesValue(bytes)) => json!({"key": key, "type": "binary", "value": STANDARD.encode(bytes)}),
        Some(value @ (Value::ArrayValue(_) | Value::KvlistValue(_))) => {
            text_tag(key, &plain(Some(value), DEPTH_MAX).to_string())
        }
        None | Some(Value::StringValueStrindex(_)) => text_tag(key, ""),
    }
}

/// A value as plain JSON, as it stands in the text of a list or an object.
fn plain(value: Option<&Value>, depth: usize) -> Json {
    let of = |value: &AnyValue| plain(value.value.as_ref(), depth - 1);
    match value {
        _ if depth == 0 => Json::Null,
        Some(Value::StringValue(value)) => text(value).into(),
        Some(Value::BoolValue(value)) => (*value).into(),
        Some(Value::IntValue(value)) => (*value).into(),
        Some(Value::DoubleValue(value)) => double(*value),
        Some(Value::BytesValue(bytes)) => STANDARD.encode(bytes).into(),
        Some(Value::ArrayValue(list)) => list.values.iter().map(of).collect(),
        Some(Value::KvlistValue(list)) => {
            let member = |member: &KeyValue| (member.key.clone(), member.value.as_ref().map_or(Json::Null, of));
            // In the order of their names, as Go writes a map.
            Json::Object(list.values.iter().map(member).collect::<BTreeMap<_, _>>().into_iter().collect())
        }
        None | Some(Value::StringValueStrindex(_)) => Json::Null,
    }
}

/// A value as OTLP's JSON has it (opentelemetry-proto, docs/specification.md, JSON Protobuf Encoding).
fn any(value: &AnyValue, depth: usize) -> Json {
    match &value.value {
        _ if depth == 0 => json!({}),
        Some(Value::StringValue(value)) => json!({"stringValue": text(value)}),
        Some(Value::BoolValue(value)) => json!({"boolValue": value}),
        Some(Value::IntValue(value)) => json!({"intValue": value.to_string()}),
        Some(Value::DoubleValue(value)) => json!({"doubleValue": double(*value)}),
        Some(Value::BytesValue(bytes)) => json!({"bytesValue": STANDARD.encode(bytes)}),
        Some(Value::ArrayValue(list)) => {
            let values: Vec<Json> = list.values.iter().map(|value| any(value, depth - 1)).collect();
            json!({"arrayValue": {"values": values}})
        }
        Some(Value::KvlistValue(list)) => json!({"kvlistValue": {"values": pairs(&list.values, depth - 1)}}),
        None | Some(Value::StringValueStrindex(_)) => json!({}),
    }
}

fn pairs(attributes: &[KeyValue], depth: usize) -> Vec<Json> {
    let pair = |attribute: &KeyValue| {
        let value = attribute.value.as_ref().map_or_else(|| json!({}), |value| any(value, depth));
        json!({"key": attribute.key, "value": value})
    };
    attributes.iter().map(pair).collect()
}

/// Attributes as OTLP's JSON has them.
pub(super) fn otlp_attributes(attributes: &[KeyValue]) -> Vec<Json> {
    pairs(attributes, DEPTH_MAX)
}

#[cfg(test)]
mod tests {
    use custody_proto::otlp::common::{ArrayValue, KeyValueList};

    use super::*;

    fn of(value: Value) -> KeyValue {
        KeyValue { key: "k".into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    #[test]
    fn each_type_of_value_is_a_tag_and_otlp() {
        let list = |values: Vec<KeyValue>| {
            Value::ArrayValue(ArrayValue { values: values.into_iter().filter_map(|pair| pair.value).collect() })
        };
        let first = KeyValue { key: "a".into(), ..of(Value::IntValue(1)) };
        let nested =
            Value::KvlistValue(KeyValueList { values: vec![of(list(vec![of(Value::BoolValue(true))])), first] });
        for (value, tag_type, tag_value, any_value) in [
            (Value::StringValue("s".into()), "string", json!("s"), json!({"stringValue": "s"})),
            (Value::BoolValue(false), "bool", json!(false), json!({"boolValue": false})),
            (Value::IntValue(-7), "int64", json!(-7), json!({"intValue": "-7"})),
            (
                Value::IntValue(i64::MAX),
                "int64",
                json!(i64::MAX.to_string()),
                json!({"intValue": i64::MAX.to_string()}),
            ),
            (
                Value::IntValue(i64::MIN),
                "int64",
                json!(i64::MIN.to_string()),
                json!({"intValue": i64::MIN.to_string()}),
            ),
            (Value::DoubleValue(1.5), "float64", json!(1.5), json!({"doubleValue": 1.5})),
            (Value::DoubleValue(f64::NAN), "float64", json!("NaN"), json!({"doubleValue": "NaN"})),
            (Value::DoubleValue(f64::NEG_INFINITY), "float64", json!("-Infinity"), json!({"doubleValue": "-Infinity"})),
            (Value::BytesValue(vec![1, 2]), "binary", json!("AQI="), json!({"bytesValue": "AQI="})),
            (
                nested,
                "string",
                json!(r#"{"a":1,"k":[true]}"#),
                json!({"kvlistValue": {"values": [{"key": "k", "value": {"arrayValue": {"values": [{"boolValue": true}]}}},
                    {"key": "a", "value": {"intValue": "1"}}]}}),
            ),
        ] {
            let attribute = of(value);
            assert_eq!(tag(&attribute), json!({"key": "k", "type": tag_type, "value": tag_value}));
            assert_eq!(otlp_attributes(&[attribute]), [json!({"key": "k", "value": any_value})]);
        }
        let empty = KeyValue { key: "k".into(), ..KeyValue::default() };
        assert_eq!(tag(&empty), text_tag("k", ""));
        assert_eq!(otlp_attributes(&[empty]), [json!({"key": "k", "value": {}})]);
    }

    #[test]
    fn a_token_cannot_be_used_by_who_reads_it() {
        let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
        for json in [
            tag(&of(Value::StringValue(token.into()))),
            any(&AnyValue { value: Some(Value::StringValue(token.into())) }, DEPTH_MAX),
        ] {
            let told = json.to_string();
            assert!(!told.contains("c2lnbmF0dXJl") && told.contains("blake3:"), "{told}");
        }
    }

    #[test]
    fn what_is_too_deep_ends() {
        let mut value = AnyValue { value: Some(Value::BoolValue(true)) };
        for _ in 0..300 {
            value = AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![value] })) };
        }
        assert!(any(&value, DEPTH_MAX).to_string().len() < 10_000);
        let attribute = KeyValue { key: "k".into(), value: Some(value), ..KeyValue::default() };
        assert!(tag(&attribute).to_string().len() < 10_000);
    }
}
