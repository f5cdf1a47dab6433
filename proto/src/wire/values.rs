//! OTLP's values and attributes (`opentelemetry.proto.common.v1`), borrowed.

use super::fields::{Fields, Malformed};
use crate::otlp::common;

/// An attribute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyValue<'a> {
    /// Its name.
    pub key: &'a str,
    /// Its value.
    pub value: Option<AnyValue<'a>>,
}

/// A value, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnyValue<'a> {
    /// The one that was set last.
    pub value: Option<Value<'a>>,
}

/// What a value can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Text.
    StringValue(&'a str),
    /// Truth value.
    BoolValue(bool),
    /// Integer.
    IntValue(i64),
    /// Floating point.
    DoubleValue(f64),
    /// List.
    ArrayValue(ArrayValue<'a>),
    /// Map.
    KvlistValue(KeyValueList<'a>),
    /// Bytes.
    BytesValue(&'a [u8]),
    /// A place in a table of texts that only profiles have.
    StringValueStrindex(i32),
}

/// A list of values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArrayValue<'a> {
    /// Its values.
    pub values: Vec<AnyValue<'a>>,
}

/// A map, in the order of the wire; a key may come twice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyValueList<'a> {
    /// Its members.
    pub values: Vec<KeyValue<'a>>,
}

impl<'a> KeyValue<'a> {
    #[inline]
    pub(super) fn of(mut fields: Fields<'a>) -> Result<Self, Malformed> {
        let mut out = Self::default();
        while let Some(key) = fields.key()? {
            match key.number {
                1 => out.key = fields.text(key)?,
                2 => out.value.get_or_insert_default().merge(fields.message(key)?)?,
                3 => fields.varint(key).map(drop)?,
                _ => fields.skip(key)?,
            }
        }
        Ok(out)
    }
}

impl<'a> AnyValue<'a> {
    #[inline]
    pub(super) fn merge(&mut self, mut fields: Fields<'a>) -> Result<(), Malformed> {
        while let Some(key) = fields.key()? {
            self.value = Some(match key.number {
                1 => Value::StringValue(fields.text(key)?),
                2 => Value::BoolValue(fields.varint(key)? != 0),
                3 => Value::IntValue(fields.varint(key)? as i64),
                4 => Value::DoubleValue(f64::from_bits(fields.fixed64(key)?)),
                5 => Value::ArrayValue(self.list(fields.message(key)?)?),
                6 => Value::KvlistValue(self.map(fields.message(key)?)?),
                7 => Value::BytesValue(fields.bytes(key)?),
                8 => Value::StringValueStrindex(fields.varint(key)? as i32),
                _ => {
                    fields.skip(key)?;
                    continue;
                }
            });
        }
        Ok(())
    }

    /// What a list is with these behind it.
    fn list(&mut self, mut fields: Fields<'a>) -> Result<ArrayValue<'a>, Malformed> {
        let mut out = match self.value.take() {
            Some(Value::ArrayValue(begun)) => begun,
            _ => ArrayValue::default(),
        };
        while let Some(key) = fields.key()? {
            match key.number {
                1 => {
                    let mut value = AnyValue::default();
                    value.merge(fields.message(key)?)?;
                    out.values.push(value);
                }
                _ => fields.skip(key)?,
            }
        }
        Ok(out)
    }

    /// What a map is with these behind it.
    fn map(&mut self, mut fields: Fields<'a>) -> Result<KeyValueList<'a>, Malformed> {
        let mut out = match self.value.take() {
            Some(Value::KvlistValue(begun)) => begun,
            _ => KeyValueList::default(),
        };
        while let Some(key) = fields.key()? {
            match key.number {
                1 => out.values.push(KeyValue::of(fields.message(key)?)?),
                _ => fields.skip(key)?,
            }
        }
        Ok(out)
    }
}

/// Attributes that prost has read, as those of this reader.
impl<'a> From<&'a common::KeyValue> for KeyValue<'a> {
    fn from(from: &'a common::KeyValue) -> Self {
        Self { key: &from.key, value: from.value.as_ref().map(AnyValue::from) }
    }
}

/// A value that prost has read, as one of this reader.
impl<'a> From<&'a common::AnyValue> for AnyValue<'a> {
    fn from(from: &'a common::AnyValue) -> Self {
        use common::any_value::Value as Owned;
        let value = from.value.as_ref().map(|value| match value {
            Owned::StringValue(text) => Value::StringValue(text),
            Owned::BoolValue(flag) => Value::BoolValue(*flag),
            Owned::IntValue(number) => Value::IntValue(*number),
            Owned::DoubleValue(number) => Value::DoubleValue(*number),
            Owned::ArrayValue(list) => {
                Value::ArrayValue(ArrayValue { values: list.values.iter().map(AnyValue::from).collect() })
            }
            Owned::KvlistValue(map) => {
                Value::KvlistValue(KeyValueList { values: map.values.iter().map(KeyValue::from).collect() })
            }
            Owned::BytesValue(bytes) => Value::BytesValue(bytes),
            Owned::StringValueStrindex(place) => Value::StringValueStrindex(*place),
        });
        Self { value }
    }
}
