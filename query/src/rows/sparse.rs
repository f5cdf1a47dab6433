//! Columns that may be null, and mostly are: of some fifty columns of an event a record fills half. A null costs
//! nothing until a value comes, and a column without any value has no memory of its own.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray, StringBuilder};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::record_batch::RecordBatch;

/// Rows of the longest column of nulls that shares its memory.
const SHARED_ROWS_MAX: usize = 32_768;

/// Zeros: offsets of texts that are not there, and their validity.
static ZEROS: LazyLock<Buffer> = LazyLock::new(|| Buffer::from_vec(vec![0i32; SHARED_ROWS_MAX + 1]));

/// Collects texts that may be null.
#[derive(Debug, Default)]
pub struct SparseTexts {
    /// Nulls before the first value.
    nulls: usize,
    texts: Option<StringBuilder>,
    /// Rows and bytes of text to make room for when the first value comes.
    room: (usize, usize),
}

impl SparseTexts {
    /// With room for so many rows with so many bytes of text, once there is a text.
    pub(super) fn with_room(rows: usize, bytes: usize) -> Self {
        Self { room: (rows, bytes), ..Self::default() }
    }

    /// Adds a text.
    #[inline]
    pub(crate) fn append_value(&mut self, text: impl AsRef<str>) {
        match &mut self.texts {
            Some(texts) => texts.append_value(text),
            None => self.begin().append_value(text),
        }
    }

    /// Adds a null.
    #[inline]
    pub(crate) fn append_null(&mut self) {
        match &mut self.texts {
            Some(texts) => texts.append_null(),
            None => self.nulls += 1,
        }
    }

    /// Adds a text or a null.
    #[inline]
    pub(crate) fn append_option(&mut self, text: Option<impl AsRef<str>>) {
        match text {
            Some(text) => self.append_value(text),
            None => self.append_null(),
        }
    }

    #[cold]
    fn begin(&mut self) -> &mut StringBuilder {
        let (rows, bytes) = self.room;
        let texts = self.texts.insert(StringBuilder::with_capacity(rows.max(self.nulls + 1), bytes));
        (0..std::mem::take(&mut self.nulls)).for_each(|_| texts.append_null());
        texts
    }

    /// Takes what was added.
    pub(super) fn finish(&mut self) -> StringArray {
        match self.texts.take() {
            Some(mut texts) => texts.finish(),
            None => no_texts(std::mem::take(&mut self.nulls)),
        }
    }
}

/// A column of so many nulls.
fn no_texts(rows: usize) -> StringArray {
    if rows > SHARED_ROWS_MAX {
        return StringArray::new_null(rows);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::new(ZEROS.clone(), 0, rows + 1));
    let nulls = NullBuffer::new(BooleanBuffer::new(ZEROS.clone(), 0, rows));
    StringArray::new(offsets, Buffer::default(), Some(nulls))
}

/// Gives columns of texts that are all null the memory that all such columns share.
pub(crate) fn thinned(batch: RecordBatch) -> RecordBatch {
    let is_empty = |column: &ArrayRef| {
        column.as_string_opt::<i32>().is_some()
            && column.null_count() == column.len()
            && column.len() <= SHARED_ROWS_MAX
            && !is_shared(column)
    };
    if !batch.columns().iter().any(is_empty) {
        return batch;
    }
    let thin = |column: &ArrayRef| match is_empty(column) {
        true => Arc::new(no_texts(column.len())),
        false => Arc::clone(column),
    };
    let columns = batch.columns().iter().map(thin).collect();
    RecordBatch::try_new(batch.schema(), columns).unwrap_or(batch)
}

/// Whether a column has no memory of its own.
fn is_shared(column: &ArrayRef) -> bool {
    column
        .as_string_opt::<i32>()
        .is_some_and(|texts| std::ptr::eq(texts.value_offsets().as_ptr().cast(), ZEROS.as_ptr()))
}

/// Bytes that a batch takes, without what it shares with all others.
pub(crate) fn own_bytes(batch: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| if is_shared(column) { 0 } else { column.get_array_memory_size() };
    batch.columns().iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use proptest::prelude::*;

    use super::*;

    fn collected(texts: &[Option<String>]) -> StringArray {
        let mut column = SparseTexts::with_room(3, 5);
        texts.iter().for_each(|text| column.append_option(text.as_deref()));
        let array = column.finish();
        assert_eq!(column.finish().len(), 0, "all was taken");
        array
    }

    proptest! {
        #[test]
        fn texts_and_nulls_are_as_arrow_collects_them(texts in prop::collection::vec(prop::option::of("[a-z]{0,4}"), 0..40)) {
            prop_assert_eq!(collected(&texts), StringArray::from(texts));
        }
    }

    #[test]
    fn nulls_alone_take_no_memory_whatever_made_them() {
        for rows in [0, 1, 8192, SHARED_ROWS_MAX, SHARED_ROWS_MAX + 1] {
            let nulls = collected(&vec![None; rows]);
            assert_eq!(nulls, StringArray::new_null(rows));
            assert_eq!(nulls.to_data().validate_full().map_err(|e| e.to_string()), Ok(()));
        }
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        let schema = Arc::new(Schema::new(vec![field("none"), field("some")]));
        let made: [ArrayRef; 2] =
            [Arc::new(StringArray::new_null(1000)), Arc::new(StringArray::from(vec![Some("a"); 1000]))];
        let batch = RecordBatch::try_new(schema, made.into()).unwrap();
        let thin = thinned(batch.clone());
        assert_eq!(thin, batch);
        assert_eq!(own_bytes(&thin), batch.column(1).get_array_memory_size());
        assert!(own_bytes(&batch) > own_bytes(&thin));
    }
}
