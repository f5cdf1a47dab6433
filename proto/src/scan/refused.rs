//! What is said of records that can never be accepted, and how many they are.

use super::{Cursor, Range};
use crate::Signal;
use crate::schema::{self, Field, Kind, Message};

pub(super) fn misfit(signal: Signal, message: &Message) -> String {
    let record = signal.record_name();
    format!("a {record} has {} with an id of the wrong length; a trace_id has 16 bytes, a span_id 8", message.name)
}

/// How much a refused record counts in a partial success.
pub(super) fn counted(signal: Signal, request: &[u8], record: Range) -> u64 {
    match signal {
        Signal::Metrics => data_points(request, record),
        Signal::Traces | Signal::Logs => 1,
    }
}

/// How many data points a well-formed metric has.
pub(super) fn data_points(request: &[u8], metric: Range) -> u64 {
    let count = |data: Range, inner: &'static Message| {
        let mut cursor = Cursor::of(request, data);
        let mut points = 0;
        while let Ok(Some(key)) = cursor.key(inner) {
            points += u64::from(key.number == 1);
            if cursor.skip(key, inner, usize::MAX).is_err() {
                break;
            }
        }
        points
    };
    let mut cursor = Cursor::of(request, metric);
    let mut points = 0;
    while let Ok(Some(key)) = cursor.key(&schema::METRIC) {
        let read = match schema::METRIC.field(key.number) {
            // All but the metadata are the alternatives of `data`, whose first field is the points.
            Some(Field { number: 5..=11, kind: Kind::Message(inner), .. }) => {
                cursor.message(key, &schema::METRIC, inner).map(|data| points += count(data, inner))
            }
            _ => cursor.skip(key, &schema::METRIC, usize::MAX),
        };
        if read.is_err() {
            break;
        }
    }
    points
}

pub(super) fn wrong_id(record: &str, field: &str, len: usize, got: &[u8]) -> String {
    let what = if got.len() == len { "only zeros".to_owned() } else { format!("{} bytes", got.len()) };
    format!("{record}.{field} has {what}; it needs {len} bytes that are not all zero")
}
