//! Typed rows and their Arrow columns: one list of fields makes the struct, the
//! schema, the builder and the reader of a table. The doc comment of a field is
//! the column's documentation.

mod sparse;

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Float64Array, Float64Builder, Int64Array, Int64Builder, ListArray,
    ListBuilder, StringArray, StringBuilder, TimestampNanosecondArray, TimestampNanosecondBuilder, UInt32Array,
    UInt32Builder, UInt64Array, UInt64Builder,
};
use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::arrow::record_batch::RecordBatch;

pub use sparse::SparseTexts;
pub(crate) use sparse::{own_bytes, thinned};

/// A time in ns since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

/// How many rows a batch has, and how many bytes of text in each column.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extent {
    pub(crate) rows: usize,
    pub(crate) bytes: Vec<usize>,
}

/// Room for the texts of one column, at most.
pub(crate) const ROOM_BYTES_MAX: usize = 16 << 20;

/// What collects rows, with room for as many as it will get: columns that grow are copied again and again.
pub(crate) trait Roomy {
    /// With room for rows that are like those of a former batch.
    fn with_room(rows: usize, former: &Extent) -> Self;
    /// How much there is in a batch.
    fn extent(batch: &RecordBatch) -> Extent;
}

/// A row that says what it takes in memory.
pub(crate) trait Weighed {
    /// Bytes of its texts and lists, without the row itself.
    fn text_bytes(&self) -> usize;
}

/// A row some of whose columns can be made alone.
pub(crate) trait Columnar: Sized {
    /// A column of rows by its name; `None` if there is no such column.
    fn column(rows: &[&Self], name: &str) -> Option<ArrayRef>;
}

/// A value that can stand in a column.
pub trait Cell: Sized {
    /// What collects such values.
    type Builder: Default;
    /// Whether the column may have nulls.
    const NULLABLE: bool = false;
    /// The column's type.
    fn data_type() -> DataType;
    /// A builder that has room for so many values with so many bytes of text.
    fn with_room(_rows: usize, _bytes: usize) -> Self::Builder {
        Self::Builder::default()
    }
    /// Bytes of text in a column.
    fn text_bytes(_array: &dyn Array) -> usize {
        0
    }
    /// Bytes that the value has beside itself: of its text, or of its items.
    fn own_bytes(&self) -> usize {
        0
    }
    /// Adds a value.
    fn append(&self, builder: &mut Self::Builder);
    /// Takes what was added.
    fn finish(builder: &mut Self::Builder) -> ArrayRef;
    /// Reads a value back.
    fn read(array: &dyn Array, row: usize) -> Self;
}

/// The `i`-th value of a column of a known type; the default for another type.
fn typed<A: 'static, T: Default>(array: &dyn Array, read: impl FnOnce(&A) -> T) -> T {
    array.as_any().downcast_ref::<A>().map(read).unwrap_or_default()
}

macro_rules! cell {
    ($type:ty, $builder:ty, $array:ty, $data_type:expr, $t:ident => $to:expr, $f:ident => $from:expr, $room:expr
     $(, $own_bytes:expr)?) => {
        impl Cell for $type {
            type Builder = $builder;
            fn data_type() -> DataType {
                $data_type
            }
            fn with_room(rows: usize, bytes: usize) -> Self::Builder {
                $room(rows, bytes)
            }
            fn text_bytes(array: &dyn Array) -> usize {
                typed::<StringArray, usize>(array, |a| a.value_data().len())
            }
            $(fn own_bytes(&self) -> usize {
                $own_bytes(self)
            })?
            fn append(&self, builder: &mut Self::Builder) {
                let $t = self;
                builder.append_value($to);
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                Arc::new(builder.finish())
            }
            fn read(array: &dyn Array, row: usize) -> Self {
                typed::<$array, $type>(array, |a| {
                    let $f = a.value(row);
                    $from
                })
            }
        }
    };
}

/// The same, where it may be absent.
macro_rules! option_cell {
    ($type:ty, $builder:ty, $t:ident => $to:expr, $room:expr) => {
        impl Cell for Option<$type> {
            type Builder = $builder;
            const NULLABLE: bool = true;
            fn data_type() -> DataType {
                <$type as Cell>::data_type()
            }
            fn with_room(rows: usize, bytes: usize) -> Self::Builder {
                $room(rows, bytes)
            }
            fn text_bytes(array: &dyn Array) -> usize {
                <$type as Cell>::text_bytes(array)
            }
            fn own_bytes(&self) -> usize {
                self.as_ref().map_or(0, Cell::own_bytes)
            }
            fn append(&self, builder: &mut Self::Builder) {
                builder.append_option(self.as_ref().map(|$t| $to));
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                Arc::new(builder.finish())
            }
            fn read(array: &dyn Array, row: usize) -> Self {
                array.is_valid(row).then(|| <$type as Cell>::read(array, row))
            }
        }
    };
}

cell!(String, StringBuilder, StringArray, DataType::Utf8, s => s.as_str(), s => s.to_owned(), StringBuilder::with_capacity, String::len);
cell!(u64, UInt64Builder, UInt64Array, DataType::UInt64, n => *n, n => n, |rows, _| UInt64Builder::with_capacity(rows));
cell!(u32, UInt32Builder, UInt32Array, DataType::UInt32, n => *n, n => n, |rows, _| UInt32Builder::with_capacity(rows));
cell!(i64, Int64Builder, Int64Array, DataType::Int64, n => *n, n => n, |rows, _| Int64Builder::with_capacity(rows));
cell!(f64, Float64Builder, Float64Array, DataType::Float64, n => *n, n => n, |rows, _| Float64Builder::with_capacity(rows));
cell!(bool, BooleanBuilder, BooleanArray, DataType::Boolean, b => *b, b => b, |rows, _| BooleanBuilder::with_capacity(rows));
cell!(
    Time,
    UtcBuilder,
    TimestampNanosecondArray,
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
    t => t.0,
    t => Time(t),
    |rows, _| UtcBuilder(TimestampNanosecondBuilder::with_capacity(rows).with_timezone("UTC"))
);

option_cell!(String, SparseTexts, s => s.as_str(), SparseTexts::with_room);
option_cell!(u64, UInt64Builder, n => *n, <u64 as Cell>::with_room);
option_cell!(u32, UInt32Builder, n => *n, <u32 as Cell>::with_room);
option_cell!(i64, Int64Builder, n => *n, <i64 as Cell>::with_room);
option_cell!(f64, Float64Builder, n => *n, <f64 as Cell>::with_room);
option_cell!(bool, BooleanBuilder, b => *b, <bool as Cell>::with_room);
option_cell!(Time, UtcBuilder, t => t.0, <Time as Cell>::with_room);

/// A builder of UTC timestamps.
pub struct UtcBuilder(TimestampNanosecondBuilder);

impl Default for UtcBuilder {
    fn default() -> Self {
        Self(TimestampNanosecondBuilder::new().with_timezone("UTC"))
    }
}

impl UtcBuilder {
    fn append_value(&mut self, value: i64) {
        self.0.append_value(value);
    }

    fn append_option(&mut self, value: Option<i64>) {
        self.0.append_option(value);
    }

    fn finish(&mut self) -> TimestampNanosecondArray {
        self.0.finish()
    }
}

macro_rules! list_cell {
    ($item:ty, $builder:ty, $data_type:expr) => {
        impl Cell for Vec<$item> {
            type Builder = ListBuilder<$builder>;
            fn data_type() -> DataType {
                DataType::List(Arc::new(Field::new("item", $data_type, true)))
            }
            fn own_bytes(&self) -> usize {
                self.iter().map(|item| size_of::<$item>() + item.own_bytes()).sum()
            }
            fn append(&self, builder: &mut Self::Builder) {
                for item in self {
                    item.append(builder.values());
                }
                builder.append(true);
            }
            fn finish(builder: &mut Self::Builder) -> ArrayRef {
                Arc::new(builder.finish())
            }
            fn read(array: &dyn Array, row: usize) -> Self {
                let items = typed::<ListArray, Option<ArrayRef>>(array, |a| Some(a.value(row)));
                let items = items.filter(|_| array.is_valid(row));
                items.map_or_else(Vec::new, |items| (0..items.len()).map(|i| <$item>::read(&items, i)).collect())
            }
        }
    };
}

/// A list that may be absent, which says something else than an empty one.
impl Cell for Option<Vec<String>> {
    type Builder = ListBuilder<StringBuilder>;
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        <Vec<String> as Cell>::data_type()
    }
    fn own_bytes(&self) -> usize {
        self.as_ref().map_or(0, Cell::own_bytes)
    }
    fn append(&self, builder: &mut Self::Builder) {
        match self {
            Some(list) => list.append(builder),
            None => builder.append(false),
        }
    }
    fn finish(builder: &mut Self::Builder) -> ArrayRef {
        Arc::new(builder.finish())
    }
    fn read(array: &dyn Array, row: usize) -> Self {
        array.is_valid(row).then(|| <Vec<String> as Cell>::read(array, row))
    }
}

list_cell!(String, StringBuilder, DataType::Utf8);
list_cell!(u64, UInt64Builder, DataType::UInt64);

/// Declares a table: its row struct, schema, builder and reader.
macro_rules! table {
    ($(#[doc = $about:literal])+ $row:ident, $builder:ident { $($(#[doc = $doc:literal])+ $name:ident: $type:ty),+ $(,)? }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $row {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        impl $row {
            /// The columns, each with its documentation as the metadata `doc`.
            pub fn schema() -> datafusion::arrow::datatypes::SchemaRef {
                static SCHEMA: std::sync::LazyLock<datafusion::arrow::datatypes::SchemaRef> =
                    std::sync::LazyLock::new(|| {
                        use datafusion::arrow::datatypes::{Field, Schema};
                        let fields = vec![$(
                            Field::new(
                                // A column may be named as a keyword is: `r#type` is `type`.
                                stringify!($name).trim_start_matches("r#"),
                                <$type as $crate::rows::Cell>::data_type(),
                                <$type as $crate::rows::Cell>::NULLABLE,
                            )
                            .with_metadata([("doc".to_owned(), [$($doc.trim()),+].join(" "))].into()),
                        )+];
                        std::sync::Arc::new(Schema::new(fields))
                    });
                SCHEMA.clone()
            }

            /// The rows as one batch.
            pub fn batch(rows: &[Self]) -> datafusion::arrow::record_batch::RecordBatch {
                let mut builder = $builder::default();
                rows.iter().for_each(|row| builder.push(row));
                builder.finish()
            }

            /// Reads rows back from a batch of this schema.
            pub fn read(batch: &datafusion::arrow::record_batch::RecordBatch) -> Vec<Self> {
                let mut columns = batch.columns().iter();
                $(let $name = columns.next();)+
                (0..batch.num_rows())
                    .map(|row| Self {
                        $($name: $name.map(|c| <$type as $crate::rows::Cell>::read(c, row)).unwrap_or_default(),)+
                    })
                    .collect()
            }
        }

        impl $crate::rows::Weighed for $row {
            fn text_bytes(&self) -> usize {
                0 $(+ <$type as $crate::rows::Cell>::own_bytes(&self.$name))+
            }
        }

        impl $crate::rows::Columnar for $row {
            fn column(rows: &[&Self], name: &str) -> Option<datafusion::arrow::array::ArrayRef> {
                $(if name == stringify!($name).trim_start_matches("r#") {
                    let bytes = rows.iter().map(|row| <$type as $crate::rows::Cell>::own_bytes(&row.$name)).sum();
                    let mut column = <$type as $crate::rows::Cell>::with_room(rows.len(), bytes);
                    rows.iter().for_each(|row| $crate::rows::Cell::append(&row.$name, &mut column));
                    return Some(<$type as $crate::rows::Cell>::finish(&mut column));
                })+
                None
            }
        }

        impl $crate::rows::Roomy for $builder {
            fn with_room(rows: usize, former: &$crate::rows::Extent) -> Self {
                let mut bytes = former.bytes.iter().map(|b| (b * rows).div_ceil(former.rows.max(1)).min($crate::rows::ROOM_BYTES_MAX));
                Self { $($name: <$type as $crate::rows::Cell>::with_room(rows, bytes.next().unwrap_or(0)),)+ }
            }

            fn extent(batch: &datafusion::arrow::record_batch::RecordBatch) -> $crate::rows::Extent {
                let mut columns = batch.columns().iter();
                let bytes = vec![$(columns.next().map_or(0, |c| <$type as $crate::rows::Cell>::text_bytes(c)),)+];
                $crate::rows::Extent { rows: batch.num_rows(), bytes }
            }
        }

        #[doc = concat!("Collects rows of [`", stringify!($row), "`].")]
        #[derive(Default)]
        pub struct $builder {
            $($name: <$type as $crate::rows::Cell>::Builder,)+
        }

        impl $builder {
            /// Adds a row.
            pub fn push(&mut self, row: &$row) {
                $($crate::rows::Cell::append(&row.$name, &mut self.$name);)+
            }

            /// Takes the rows as a batch.
            pub fn finish(&mut self) -> datafusion::arrow::record_batch::RecordBatch {
                let columns = vec![$(<$type as $crate::rows::Cell>::finish(&mut self.$name),)+];
                datafusion::arrow::record_batch::RecordBatch::try_new($row::schema(), columns)
                    .expect("the columns are those of the schema, all of one length")
            }
        }
    };
}

pub(crate) use table;

#[cfg(test)]
mod tests {
    use super::*;

    table! {
        /// A row with every kind of cell.
        Sample, SampleBuilder {
            /// A number.
            seq: u64,
            /// Text,
            /// perhaps.
            text: Option<String>,
            /// A time.
            time: Option<Time>,
            /// Words.
            words: Vec<String>,
            /// Numbers.
            seqs: Vec<u64>,
            /// Yes or no.
            flag: bool,
        }
    }

    #[test]
    fn rows_survive_the_round_trip() {
        let full = Sample {
            seq: 7,
            text: Some("t".into()),
            time: Some(Time(-3)),
            words: vec!["a".into(), String::new()],
            seqs: vec![1, 2],
            flag: true,
        };
        let rows = vec![full, Sample::default()];
        assert_eq!(Sample::read(&Sample::batch(&rows)), rows);
        assert_eq!(Sample::schema().field(1).metadata()["doc"], "Text, perhaps.");
        assert!(Sample::schema().field(1).is_nullable() && !Sample::schema().field(0).is_nullable());
    }

    /// No column of text is forgotten, whatever columns a row gets.
    #[test]
    fn a_row_knows_what_its_texts_take() {
        let full = Sample { text: Some("text".into()), words: vec!["ab".into(), "c".into()], ..Sample::default() };
        assert_eq!(full.text_bytes(), 4 + 3 + 2 * size_of::<String>());
        let numbers = Sample { seqs: vec![1, 2, 3], seq: 9, flag: true, time: Some(Time(1)), ..Sample::default() };
        assert_eq!((numbers.text_bytes(), Sample::default().text_bytes()), (24, 0));
        // Columns that a list by hand once left out.
        let row = crate::event::EventRow {
            agent_version: Some("2".into()),
            policy_version: Some("v".into()),
            trust: Some("t".into()),
            ..Default::default()
        };
        assert_eq!(row.text_bytes(), 3);
    }
}
