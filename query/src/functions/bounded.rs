//! Functions that say before they run how much they would give.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray as _, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// Most bytes that a function gives for one batch of rows.
pub(super) const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Most bytes of a constant: planning folds it into the plan, and copies that many times.
const CONSTANT_BYTES_MAX: u64 = 1 << 20;

/// Pairs of letters that are compared in about the time that a byte of a result takes.
const PAIRS_A_BYTE: u64 = 8;

/// What comparing two elements of lists costs, in bytes of a result.
const ELEMENT_PAIR_BYTES: u64 = 1;

/// Bytes that a byte of a format becomes at most: `%+` is 35 long.
const FORMATTED_BYTES: u64 = 18;

/// Bytes that a part of a list takes beside its text, also while the list grows.
const PART_BYTES: u64 = 8;

/// How large a result can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// Length times a number.
    Repeat,
    /// As many characters as a number says, or as there are.
    Pad,
    /// Each occurrence of the second replaced by the third.
    Replace,
    /// All of the first, each byte of it replaced by all of the third.
    Product,
    /// All arguments together.
    Sum,
    /// All arguments together, with the separator between elements.
    Join,
    /// A time as a format says: two letters of it can become a whole date.
    Format,
    /// A list of the parts between separators, or of all letters where there is none.
    Parts,
    /// What is left of the first without the letters of the second: each letter of one is compared with each of the other.
    Trim,
    /// A number, for which each letter of one is compared with each of the other: not room, but time, in which nobody can
    /// interrupt it.
    Pairs,
    /// The same for each element of one list with each of the other.
    ElementPairs,
}

/// A function that is asked how much it will give before it is called.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Bounded {
    pub(super) inner: Arc<ScalarUDF>,
    pub(super) growth: Growth,
}

/// An argument, row by row.
pub(super) struct Argument(ArrayRef, bool);

impl Argument {
    pub(super) fn of(value: &ColumnarValue) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Array(array) => Self(Arc::clone(array), false),
            ColumnarValue::Scalar(scalar) => Self(scalar.to_array()?, true),
        })
    }

    fn row(&self, i: usize) -> usize {
        if self.1 { 0 } else { i }
    }

    /// The texts, if it is one of text.
    fn texts(&self) -> Option<StringArray> {
        let is_text = matches!(self.0.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let texts = is_text.then(|| cast(&self.0, &DataType::Utf8).ok()).flatten()?;
        Some(texts.as_string::<i32>().clone())
    }

    fn numbers(&self) -> Option<datafusion::arrow::array::Int64Array> {
        Some(cast(&self.0, &DataType::Int64).ok()?.as_primitive::<Int64Type>().clone())
    }

    /// Bytes of all rows that a result takes of it.
    fn bytes(&self, rows: usize) -> u64 {
        let own = match self.texts() {
            Some(texts) => (0..texts.len()).map(|i| texts.value(i).len() as u64).sum(),
            None => self.0.to_data().get_slice_memory_size().unwrap_or_else(|_| self.0.get_array_memory_size()) as u64,
        };
        if self.1 { own.saturating_mul(rows as u64) } else { own }
    }

    /// The bytes of its longest text.
    fn longest(&self) -> u64 {
        self.texts().map_or(8, |texts| (0..texts.len()).map(|i| texts.value(i).len() as u64).max().unwrap_or(0))
    }

    /// How many elements the list of a row has.
    fn length(&self, i: usize) -> u64 {
        let i = self.row(i);
        match self.0.data_type() {
            DataType::List(_) => u64::from(self.0.as_list::<i32>().value_length(i).unsigned_abs()),
            DataType::LargeList(_) => self.0.as_list::<i64>().value_length(i).unsigned_abs(),
            DataType::FixedSizeList(_, length) => u64::from(length.unsigned_abs()),
            _ => 1,
        }
    }

    /// How many elements its lists have, in all rows.
    fn elements(&self, rows: usize) -> u64 {
        let own = match self.0.as_list_opt::<i32>() {
            Some(lists) => (0..lists.len()).map(|i| u64::from(lists.value_length(i).unsigned_abs())).sum(),
            None => self.0.len() as u64,
        };
        if self.1 { own.saturating_mul(rows as u64) } else { own }
    }
}

impl Growth {
    /// The most bytes of a result for these arguments; `None` if they are not of the expected types.
    pub(super) fn most(self, args: &[Argument], rows: usize) -> Option<u64> {
        let sum = || args.iter().map(|arg| arg.bytes(rows)).fold(0, u64::saturating_add);
        let each = |most: &dyn Fn(usize) -> u64| (0..rows).map(most).fold(0, u64::saturating_add);
        Some(match self {
            Self::Sum => sum(),
            Self::Join => {
                let separator = args.iter().map(Argument::longest).min().unwrap_or(0).max(args.first()?.longest());
                let separator = if args.len() > 1 { separator.max(args.get(1)?.longest()) } else { separator };
                let elements = args.iter().map(|arg| arg.elements(rows)).fold(0, u64::saturating_add);
                let is_list = args.first()?.0.as_list_opt::<i32>().is_some();
                let separator = if is_list { args.get(1..)?.iter().map(Argument::longest).max()? } else { separator };
                sum().saturating_add(elements.saturating_mul(separator))
            }
            Self::Repeat => {
                let (text, times) = (args.first()?.texts()?, args.get(1)?.numbers()?);
                each(&|i| {
                    let times = times.value(args[1].row(i)).max(0) as u64;
                    (text.value(args[0].row(i)).len() as u64).saturating_mul(times)
                })
            }
            Self::Pad => {
                let (text, length) = (args.first()?.texts()?, args.get(1)?.numbers()?);
                each(&|i| {
                    let length = (length.value(args[1].row(i)).max(0) as u64).saturating_mul(4);
                    length.max(text.value(args[0].row(i)).len() as u64)
                })
            }
            Self::Replace => {
                let (text, from, to) = (args.first()?.texts()?, args.get(1)?.texts()?, args.get(2)?.texts()?);
                each(&|i| {
                    let (text, from) = (text.value(args[0].row(i)), from.value(args[1].row(i)));
                    let to = to.value(args[2].row(i)).len() as u64;
                    let times = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() } as u64;
                    (text.len() as u64).saturating_add(times.saturating_mul(to))
                })
            }
            Self::Parts => {
                let (text, by) = (args.first()?.texts()?, args.get(1)?.texts());
                each(&|i| {
                    let text = text.value(args[0].row(i));
                    let by = by.as_ref().filter(|by| by.is_valid(args[1].row(i))).map(|by| by.value(args[1].row(i)));
                    let parts = match by {
                        None => text.len(),
                        Some("") => 1,
                        Some(by) => text.matches(by).count() + 1,
                    };
                    (text.len() as u64).saturating_add(parts as u64 * PART_BYTES)
                })
            }
            Self::Trim if args.len() < 2 => 0,
            Self::Format => args.get(1)?.bytes(rows).saturating_mul(FORMATTED_BYTES),
            Self::Pairs | Self::Trim => {
                let (a, b) = (args.first()?.texts()?, args.get(1)?.texts()?);
                let pairs = each(&|i| {
                    let (a, b) = (a.value(args[0].row(i)).len() as u64, b.value(args[1].row(i)).len() as u64);
                    a.saturating_mul(b)
                });
                pairs / PAIRS_A_BYTE
            }
            Self::ElementPairs => {
                let (a, b) = (args.first()?, args.get(1)?);
                each(&|i| a.length(i).saturating_mul(b.length(i)).saturating_mul(ELEMENT_PAIR_BYTES))
            }
            Self::Product => {
                let first = args.first()?.bytes(rows).saturating_add(rows as u64);
                first.saturating_mul(args.get(2)?.longest().saturating_add(1))
            }
        })
    }
}

impl Bounded {
    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let values = args.args.iter().map(Argument::of).collect::<Result<Vec<_>>>()?;
        let most = match values.is_empty() {
            true => Some(0),
            false => self.growth.most(&values, args.number_rows),
        };
        let is_constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let allowed = if is_constant { CONSTANT_BYTES_MAX } else { BATCH_BYTES_MAX };
        match most {
            Some(most) if most <= allowed => Ok(()),
            _ if self.growth == Growth::ElementPairs => Err(DataFusionError::ResourcesExhausted(format!(
                "{}() would compare more than {} million pairs of elements at once; unnest one list and join, or ask for \
                 shorter ones",
                self.inner.name(),
                (allowed / ELEMENT_PAIR_BYTES) >> 20
            ))),
            _ if matches!(self.growth, Growth::Pairs | Growth::Trim) => {
                Err(DataFusionError::ResourcesExhausted(format!(
                    "{}() would compare more than {} million pairs of letters at once; ask for fewer or shorter values",
                    self.inner.name(),
                    (allowed * PAIRS_A_BYTE) >> 20
                )))
            }
            most => Err(DataFusionError::ResourcesExhausted(format!(
                "{}() could give {} MiB at once, and {} are allowed; ask for fewer or shorter values",
                self.inner.name(),
                most.map_or_else(|| "any number of".into(), |most| (most >> 20).to_string()),
                allowed >> 20
            ))),
        }
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
