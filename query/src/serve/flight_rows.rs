//! The rows of an answer as messages of Flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_flight::FlightData;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::utils::batches_to_flight_data;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::Status;

/// The columns, and then the batches as they come.
pub(super) fn encoded(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> Result<impl Stream<Item = Result<FlightData, Status>> + Send, Status> {
    let without_rows = no_rows(&schema)?;
    let has_rows = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&has_rows);
    let batches = batches.inspect_ok(move |batch| {
        seen.fetch_or(batch.num_rows() > 0, Ordering::Relaxed);
    });
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
    let last = stream::once(async move { (!has_rows.load(Ordering::Relaxed)).then_some(Ok(without_rows)) });
    Ok(encoded.map_err(Status::from).chain(last.filter_map(std::future::ready)))
}

/// A batch of no rows. JDBC's driver takes the columns of an answer from its first batch, and of one that has none it
/// shows each column twice (arrow-java, issue 44).
fn no_rows(schema: &SchemaRef) -> Result<FlightData, Status> {
    let batch = RecordBatch::new_empty(Arc::clone(schema));
    let data = batches_to_flight_data(schema, vec![batch]).ok().and_then(|mut data| data.pop());
    data.ok_or_else(|| Status::internal("an answer without rows cannot be sent"))
}
