//! `proof(seq)` and `payload(seq)`: what proves a row, and the bytes that it was made from.

use std::sync::Arc;

use custody_store::{Block, Reader};
use datafusion::arrow::array::{ArrayRef, AsArray as _, BinaryBuilder, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::caller::RowFilter;
use crate::tenancy::Tenancy;

/// Most bytes that one batch of rows gives.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Proof,
    Payload,
}

/// A function of a seq that reads the log.
struct OfSeq {
    what: What,
    reader: Reader,
    rows: RowFilter,
    signature: Signature,
}

impl std::fmt::Debug for OfSeq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfSeq").field("what", &self.what).finish_non_exhaustive()
    }
}

impl PartialEq for OfSeq {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what
    }
}

impl Eq for OfSeq {}

impl std::hash::Hash for OfSeq {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.what.hash(state);
    }
}

/// Both functions, over one log.
pub(crate) fn functions(reader: &Reader, rows: &RowFilter) -> [ScalarUDF; 2] {
    [What::Proof, What::Payload].map(|what| {
        let integers = [DataType::UInt64, DataType::Int64].map(|t| TypeSignature::Exact(vec![t]));
        // Not immutable: a record may be erased, and its checkpoint changes.
        let signature = Signature::one_of(integers.to_vec(), Volatility::Volatile);
        ScalarUDF::from(OfSeq { what, reader: reader.clone(), rows: rows.clone(), signature })
    })
}

impl OfSeq {
    fn compute(&self, seqs: &ArrayRef) -> Result<ArrayRef> {
        let seqs = cast(seqs, &DataType::UInt64)?;
        let seqs = seqs.as_primitive::<UInt64Type>();
        let mut bytes = 0;
        let mut room = |more: usize| {
            bytes += more;
            if bytes <= BATCH_BYTES_MAX { Ok(()) } else { Err(too_much(self.name())) }
        };
        match self.what {
            What::Proof => {
                let mut out = StringBuilder::new();
                for seq in seqs {
                    let seq = match seq {
                        Some(seq) if self.shows(seq)? => Some(seq),
                        _ => None,
                    };
                    let proof = seq.and_then(|seq| self.reader.proof(seq, true).ok()).map(|proof| proof.to_string());
                    room(proof.as_ref().map_or(0, String::len))?;
                    out.append_option(proof);
                }
                Ok(Arc::new(out.finish()))
            }
            What::Payload => {
                let mut out = BinaryBuilder::new();
                for seq in seqs {
                    let record = match seq {
                        Some(seq) => self.record(seq)?,
                        None => None,
                    };
                    room(record.as_ref().map_or(0, Vec::len))?;
                    out.append_option(record);
                }
                Ok(Arc::new(out.finish()))
            }
        }
    }

    /// Whether the caller may know of a record. One whose content is erased can be of anybody: it is
    /// hidden from whom not everything is shown to.
    fn shows(&self, seq: u64) -> Result<bool> {
        if self.rows.is_open() {
            return Ok(true);
        }
        let block = self.reader.block_at(seq).map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(block.is_some_and(|block| self.of_block(&block, (seq - block.commitments.first_seq) as usize)))
    }

    fn of_block(&self, block: &Block, at: usize) -> bool {
        let sees = |t: Tenancy| self.rows.sees(t.tenant.as_deref(), t.workspace.as_deref());
        self.rows.is_open() || Tenancy::of_block(block, at).is_some_and(sees)
    }

    /// The bytes of a record; `None` if it is erased or hidden, or there is none.
    fn record(&self, seq: u64) -> Result<Option<Vec<u8>>> {
        let block = self.reader.block_at(seq).map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(block.and_then(|block| {
            let at = (seq - block.commitments.first_seq) as usize;
            if !self.of_block(&block, at) {
                return None;
            }
            block.content.filter(|content| !content.is_erased(at)).map(|content| content.record(at).to_vec())
        }))
    }
}

fn too_much(name: &str) -> DataFusionError {
    DataFusionError::ResourcesExhausted(format!("{name}() gives more than 64 MiB at once; ask for fewer rows"))
}

impl ScalarUDFImpl for OfSeq {
    fn name(&self) -> &str {
        match self.what {
            What::Proof => "proof",
            What::Payload => "payload",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.what {
            What::Proof => DataType::Utf8,
            What::Payload => DataType::Binary,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match &args.args[0] {
            ColumnarValue::Array(seqs) => self.compute(seqs).map(ColumnarValue::Array),
            ColumnarValue::Scalar(seq) => {
                let made = self.compute(&seq.to_array()?)?;
                ScalarValue::try_from_array(&made, 0).map(ColumnarValue::Scalar)
            }
        }
    }
}
