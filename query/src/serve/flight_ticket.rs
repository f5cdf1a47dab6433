//! Handles and tickets of Flight SQL: a statement with its parameters, for whom and until when.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::scalar::ScalarValue;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::flight_running::Running;
use crate::caller::Caller;
use crate::error::{Error, ErrorKind};

/// How long a ticket is good for.
const TICKET: Duration = Duration::from_secs(900);

/// What a handle carries.
#[derive(Deserialize, Serialize)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) params: Vec<serde_json::Value>,
    /// Of a ticket: its number, for whom it is, and until when, in seconds since 1970.
    pub(super) ticket: Option<(u64, String, u64)>,
}

impl Statement {
    pub(super) fn of(sql: String) -> Self {
        Self { sql, params: Vec::new(), ticket: None }
    }

    pub(super) fn decode(handle: &[u8]) -> Result<Self, Status> {
        serde_json::from_slice(handle).map_err(|_| Status::invalid_argument("this handle is not of this server"))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The same as a ticket for somebody.
    pub(super) fn ticket(self, caller: &Caller) -> Self {
        let until = seconds(SystemTime::now()) + TICKET.as_secs();
        Self { ticket: Some((Running::number(), caller.identity.to_string(), until)), ..self }
    }

    /// Whether a ticket is still good, and his who shows it. Prepared statements are none.
    pub(super) fn admit(&self, caller: &Caller) -> Result<(), Status> {
        match &self.ticket {
            Some((_, whose, _)) if **whose != *caller.identity => {
                Err(Status::permission_denied("this ticket is somebody else's; ask yourself"))
            }
            Some((_, _, until)) if *until < seconds(SystemTime::now()) => {
                Err(Status::failed_precondition("this ticket has expired; ask again with GetFlightInfo"))
            }
            _ => Ok(()),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// An error as the gRPC code that says what to do.
pub(super) fn status(error: Error) -> Status {
    let message = error.to_string();
    match error.kind {
        ErrorKind::Invalid => Status::invalid_argument(message),
        ErrorKind::ReadOnly | ErrorKind::Forbidden => Status::permission_denied(message),
        ErrorKind::Timeout => Status::deadline_exceeded(message),
        ErrorKind::Resources | ErrorKind::Busy => Status::resource_exhausted(message),
        ErrorKind::Unavailable => Status::unavailable(message),
        ErrorKind::Internal => Status::internal(message),
    }
}

/// Why a cancelled query has no more rows.
pub(super) fn cancelled() -> Status {
    Status::cancelled("the query was cancelled")
}

/// The columns of an answer as they are announced, and sent: any may be null. Which may not, planning finds out more
/// exactly than parsing does, and drivers refuse rows whose columns are not those that were announced.
pub(super) fn announced(schema: &Schema) -> SchemaRef {
    let nullable = |field: &FieldRef| field.as_ref().clone().with_nullable(true);
    Arc::new(Schema::new_with_metadata(
        schema.fields().iter().map(nullable).collect::<Vec<_>>(),
        schema.metadata().clone(),
    ))
}

/// A bound value as a handle carries it.
pub(super) fn parameter(value: &ScalarValue) -> Result<serde_json::Value, Status> {
    use serde_json::Value as V;
    Ok(match value {
        value if value.is_null() => V::Null,
        ScalarValue::Boolean(Some(b)) => V::Bool(*b),
        ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)) => {
            V::String(s.clone())
        }
        ScalarValue::UInt64(Some(n)) => V::from(*n),
        other => return number_or_time(other),
    })
}

/// A number, or a time: that goes as text, which is compared with times as a time.
fn number_or_time(value: &ScalarValue) -> Result<serde_json::Value, Status> {
    let kind = value.data_type();
    let to = match &kind {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => DataType::Utf8,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        kind if kind.is_decimal() => DataType::Float64,
        kind if kind.is_integer() => DataType::Int64,
        _ => return Err(unbindable()),
    };
    match value.cast_to(&to) {
        Ok(ScalarValue::Int64(Some(number))) => Ok(number.into()),
        Ok(ScalarValue::Utf8(Some(time))) => Ok(time.into()),
        // JSON has no other numbers, and nothing may become null on its way.
        Ok(ScalarValue::Float64(Some(number))) if number.is_finite() => Ok(number.into()),
        _ => Err(unbindable()),
    }
}

fn unbindable() -> Status {
    Status::invalid_argument("parameters are texts, finite numbers, times, truth values or null")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_is_what_arrives() {
        let bound = |value: ScalarValue| parameter(&value).map_err(|e| e.code());
        assert_eq!(bound(ScalarValue::UInt64(Some(u64::MAX))).unwrap(), u64::MAX);
        assert_eq!(bound(ScalarValue::Int8(Some(-3))).unwrap(), -3);
        assert_eq!(bound(ScalarValue::Float32(Some(0.5))).unwrap(), 0.5);
        assert_eq!(bound(ScalarValue::Decimal128(Some(125), 10, 2)).unwrap(), 1.25);
        let time = ScalarValue::TimestampMillisecond(Some(1_795_165_200_123), Some("UTC".into()));
        assert_eq!(bound(time).unwrap(), "2026-11-20T09:00:00.123Z");
        assert_eq!(bound(ScalarValue::Date32(Some(20_777))).unwrap(), "2026-11-20");
        assert_eq!(bound(ScalarValue::Float64(None)).unwrap(), serde_json::Value::Null);
        for wrong in [ScalarValue::Float64(Some(f64::NAN)), ScalarValue::Binary(Some(vec![1]))] {
            assert_eq!(bound(wrong), Err(tonic::Code::InvalidArgument));
        }
    }

    #[test]
    fn a_ticket_is_good_for_a_while_and_for_who_asked() {
        let ada = Caller::local(None);
        let bob = Caller { identity: "bob".into(), ..Caller::local(None) };
        let ticket = Statement::of("SELECT 1".into()).ticket(&ada);
        let mut ticket = Statement::decode(&ticket.encode()).unwrap();
        assert!(ticket.admit(&ada).is_ok());
        assert_eq!(ticket.admit(&bob).unwrap_err().code(), tonic::Code::PermissionDenied);
        if let Some((_, _, until)) = &mut ticket.ticket {
            *until = 1;
        }
        assert_eq!(ticket.admit(&ada).unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(Statement::decode(b"x").err().unwrap().code(), tonic::Code::InvalidArgument);
    }
}
