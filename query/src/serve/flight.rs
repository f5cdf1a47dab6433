//! Arrow Flight SQL: queries, prepared statements with parameters, and the
//! metadata that ADBC and JDBC drivers ask for. Read-only, over the same engine.
//!
//! Handles carry the statement and its parameters themselves, so the server keeps
//! no state between calls, but for what is being sent and can be cancelled. A ticket is good for a
//! while, and for the identity that asked for it: nobody asks under another's name, and what it
//! finds is what its holder may see.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, CommandGetCatalogs,
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
    CommandPreparedStatementQuery, CommandStatementQuery, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor,
    FlightEndpoint, FlightInfo, HandshakeRequest, Ticket,
};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::scalar::ScalarValue;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::flight_about::{foreign_keys, message, primary_keys, sql_info, types, unmade};
use super::flight_handshake::{Shaken, shake};
use super::flight_running::Running;
use super::flight_ticket::{Statement, announced, cancelled, parameter, status};
use super::observe::{self, Observer};
use super::sql::scalar;
use crate::caller::Caller;
use crate::columns::with_remarks;
use crate::engine::{Engine, QueryLimits};

/// The catalog and schema that every table is in.
const CATALOG: &str = "datafusion";
const SCHEMA: &str = "public";

const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";

/// Rows and time of one query.
const ROWS_MAX: usize = 50_000_000;
const TIMEOUT: Duration = Duration::from_secs(300);

type DataStream = <Flight as FlightService>::DoGetStream;

/// The service behind a Flight SQL port.
pub struct Flight {
    engine: Engine,
    limits: QueryLimits,
    observer: Arc<dyn Observer>,
    running: Arc<Running>,
}

/// The gRPC service of an engine. The observer knows which requests are traced.
pub fn service(engine: Engine, observer: Arc<dyn Observer>, limits: &QueryLimits) -> FlightServiceServer<Flight> {
    // Rows are not kept here, but sent as they come: there may be more of them, and for longer.
    let limits = QueryLimits {
        rows_max: ROWS_MAX,
        timeout: TIMEOUT.min(limits.timeout_max),
        answer_bytes_max: usize::MAX,
        ..limits.clone()
    };
    FlightServiceServer::new(Flight { engine, limits, observer, running: Arc::default() })
}

impl Flight {
    async fn schema(&self, caller: &Caller, statement: &Statement) -> Result<SchemaRef, Status> {
        let params = statement.params.iter().map(scalar).collect::<Result<Vec<_>, _>>().map_err(status)?;
        let params = Some(params).filter(|params| !params.is_empty());
        self.engine.describe_bound(caller, &statement.sql, params, self.limits.clone()).await.map_err(status)
    }

    async fn run(&self, statement: Statement, request: Request<Ticket>) -> Result<Response<DataStream>, Status> {
        let caller = caller(&request)?;
        match self.observer.traced(&request.metadata().clone().into_headers()) {
            None => self.answer(&caller, statement).await,
            Some(parent) => {
                observe::call("arrow.flight.protocol.FlightService/DoGet", &parent, self.answer(&caller, statement))
                    .await
            }
        }
    }

    async fn answer(&self, caller: &Caller, statement: Statement) -> Result<Response<DataStream>, Status> {
        statement.admit(caller)?;
        let ticket = statement.ticket.as_ref().map_or_else(Running::number, |(number, ..)| *number);
        let sending = self.running.begin(ticket, &caller.identity).ok_or_else(cancelled)?;
        let params = statement.params.iter().map(scalar).collect::<Result<Vec<_>, _>>().map_err(status)?;
        let rows = tokio::select! {
            () = sending.cancelled() => return Err(cancelled()),
            rows = self.engine.stream(caller, &statement.sql, params, self.limits.clone()) => rows.map_err(status)?,
        };
        let schema = announced(&rows.schema);
        let shown = Arc::clone(&schema);
        let batches = stream::try_unfold((rows, sending), async |(mut rows, sending)| {
            let next = tokio::select! {
                () = sending.cancelled() => return Err(FlightError::Tonic(Box::new(cancelled()))),
                next = rows.next() => next,
            };
            match next {
                Ok(Some(batch)) => Ok(Some((batch, (rows, sending)))),
                Ok(None) if rows.truncated => {
                    let message = format!("there are more than {} rows; ask for fewer, or page by seq", rows.rows);
                    Err(FlightError::Tonic(Box::new(Status::resource_exhausted(message))))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(FlightError::Tonic(Box::new(status(error)))),
            }
        });
        let batches = batches.map(move |batch| Ok(batch?.with_schema(Arc::clone(&shown))?));
        let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
        Ok(Response::new(Box::pin(encoded.map_err(Status::from))))
    }

    /// Cancels what a ticket stands for, if it is his who asks.
    fn cancel(&self, ticket: &[u8], caller: &Caller) -> Result<(), Status> {
        let wrong = || Status::invalid_argument("this is no ticket of a query of this server");
        let command = Any::decode(ticket).map_err(|_| wrong())?;
        let statement = command.unpack::<TicketStatementQuery>().ok().flatten().map(|t| t.statement_handle);
        let prepared = || command.unpack::<CommandPreparedStatementQuery>().ok().flatten();
        let handle = statement.or_else(|| prepared().map(|p| p.prepared_statement_handle)).ok_or_else(wrong)?;
        let statement = Statement::decode(&handle)?;
        statement.admit(caller)?;
        let (number, ..) = statement.ticket.ok_or_else(wrong)?;
        self.running.cancel(number, &caller.identity);
        Ok(())
    }

    fn cancel_all(&self, info: &FlightInfo, caller: &Caller) -> Result<(), Status> {
        if info.endpoint.is_empty() {
            return Err(Status::invalid_argument("the FlightInfo has no endpoint"));
        }
        let tickets = info.endpoint.iter().map(|e| e.ticket.as_ref().map(|t| t.ticket.as_ref()).unwrap_or_default());
        tickets.into_iter().try_for_each(|ticket| self.cancel(ticket, caller))
    }

    /// Names of the tables, in order.
    async fn tables(&self, caller: &Caller) -> Result<Vec<(String, String)>, Status> {
        let sql =
            "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1";
        let answer = self.engine.sql(caller, sql, vec![], self.limits.clone()).await.map_err(status)?;
        let rows = crate::format::rows(&answer.batches).map_err(status)?;
        let text = |row: &serde_json::Map<String, serde_json::Value>, name: &str| {
            row[name].as_str().unwrap_or_default().to_owned()
        };
        Ok(rows.iter().map(|row| (text(row, "table_name"), text(row, "table_type"))).collect())
    }
}

/// Who asks: what authenticated the connection says so.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    super::called(request.extensions())
}

/// Batches as a stream of Flight data.
fn data(schema: SchemaRef, batches: Vec<RecordBatch>) -> Response<DataStream> {
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter(batches.into_iter().map(Ok)));
    Response::new(Box::pin(encoded.map_err(Status::from)))
}

/// Where to get what a command asks for: here, with the command as the ticket.
fn info(
    command: &impl ProstMessageExt,
    schema: &Schema,
    request: Request<FlightDescriptor>,
) -> Result<Response<FlightInfo>, Status> {
    let ticket = Ticket::new(command.as_any().encode_to_vec());
    let info = FlightInfo::new().try_with_schema(schema).map_err(|e| Status::internal(e.to_string()))?;
    let endpoint = FlightEndpoint::new().with_ticket(ticket);
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(request.into_inner())))
}

fn built(batch: Result<RecordBatch, FlightError>) -> Result<Response<DataStream>, Status> {
    let batch = batch.map_err(unmade)?;
    Ok(data(batch.schema(), vec![batch]))
}

#[tonic::async_trait]
impl FlightSqlService for Flight {
    type FlightService = Self;

    async fn do_handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Result<Shaken, Status> {
        shake(request.metadata())
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let statement = Statement::of(query.query);
        let schema = self.schema(&caller(&request)?, &statement).await?;
        let statement_handle = statement.ticket(&caller(&request)?).encode().into();
        info(&TicketStatementQuery { statement_handle }, &announced(&schema), request)
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.run(Statement::decode(&ticket.statement_handle)?, request).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let statement = Statement::of(query.query);
        let limits = self.limits.clone();
        let prepared = self.engine.prepare(&caller(&request)?, &statement.sql, limits).await;
        let (columns, parameters) = prepared.map_err(status)?;
        let prepared_statement_handle = statement.encode().into();
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle,
            dataset_schema: message(&announced(&columns))?,
            // JDBC counts the parameters by it; a query without any has an empty schema.
            parameter_schema: message(&parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        _: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Binds the first row of the batch; the answer is a handle that carries it.
    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let mut statement = Statement::decode(&query.prepared_statement_handle)?;
        let data = request.into_inner().map_err(FlightError::from);
        let mut batches = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(data);
        let batch = batches.next().await.transpose().map_err(|e| Status::invalid_argument(e.to_string()))?;
        let batch = batch.filter(|b| b.num_rows() == 1);
        let batch = batch.ok_or_else(|| Status::invalid_argument("bind exactly one row of parameters"))?;
        let values = batch.columns().iter().map(|column| {
            let value = ScalarValue::try_from_array(column, 0).map_err(|e| Status::invalid_argument(e.to_string()))?;
            parameter(&value)
        });
        statement.params = values.collect::<Result<_, Status>>()?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(statement.encode().into()) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let caller = caller(&request)?;
        let statement = Statement::decode(&query.prepared_statement_handle)?;
        let schema = self.schema(&caller, &statement).await?;
        let prepared_statement_handle = statement.ticket(&caller).encode().into();
        info(&CommandPreparedStatementQuery { prepared_statement_handle }, &announced(&schema), request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        self.run(Statement::decode(&query.prepared_statement_handle)?, request).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let mut builder = query.into_builder();
        builder.append(CATALOG);
        built(builder.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let mut builder = query.into_builder();
        builder.append(CATALOG, SCHEMA);
        built(builder.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.clone().into_builder().schema(), request)
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let caller = caller(&request)?;
        let wants_schema = query.include_schema;
        let mut builder = query.into_builder();
        for (name, kind) in self.tables(&caller).await? {
            let schema = match wants_schema {
                true => {
                    let all = Statement::of(format!("SELECT * FROM {name}"));
                    with_remarks(&name, &self.schema(&caller, &all).await?)
                }
                false => Arc::new(Schema::empty()),
            };
            let kind = if kind == "VIEW" { "VIEW" } else { "TABLE" };
            builder.append(CATALOG, SCHEMA, name, kind, &schema).map_err(|e| Status::internal(e.to_string()))?;
        }
        built(builder.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.into_builder().schema(), request)
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        let mut builder = query.into_builder();
        builder.append("TABLE");
        builder.append("VIEW");
        built(builder.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.clone().into_builder(sql_info()?).schema(), request)
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        built(query.into_builder(sql_info()?).build())
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &query.into_builder(types()?).schema(), request)
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        built(query.into_builder(types()?).build())
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &primary_keys(), request)
    }

    async fn do_get_primary_keys(
        &self,
        _: CommandGetPrimaryKeys,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(data(primary_keys(), vec![]))
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &foreign_keys(), request)
    }

    async fn do_get_exported_keys(
        &self,
        _: CommandGetExportedKeys,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(data(foreign_keys(), vec![]))
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &foreign_keys(), request)
    }

    async fn do_get_imported_keys(
        &self,
        _: CommandGetImportedKeys,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(data(foreign_keys(), vec![]))
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        info(&query, &foreign_keys(), request)
    }

    async fn do_get_cross_reference(
        &self,
        _: CommandGetCrossReference,
        _: Request<Ticket>,
    ) -> Result<Response<DataStream>, Status> {
        Ok(data(foreign_keys(), vec![]))
    }

    /// CancelFlightInfo, which took the place of CancelQuery.
    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Result<Response<<Self as FlightService>::DoActionStream>, Status> {
        let action = request.get_ref();
        if action.r#type != CANCEL_FLIGHT_INFO {
            return Err(Status::unimplemented(format!("there is no action {}", action.r#type)));
        }
        let wrong = |_| Status::invalid_argument("the body is no CancelFlightInfoRequest");
        let cancel = CancelFlightInfoRequest::decode(action.body.as_ref()).map_err(wrong)?;
        self.cancel_all(&cancel.info.unwrap_or_default(), &caller(&request)?)?;
        let body = CancelFlightInfoResult::new(CancelStatus::Cancelled).encode_to_vec().into();
        Ok(Response::new(Box::pin(stream::iter([Ok(arrow_flight::Result { body })]))))
    }

    async fn list_custom_actions(&self) -> Option<Vec<Result<ActionType, Status>>> {
        let description = "Cancels a query.\nRequest Message: CancelFlightInfoRequest\n\
                           Response Message: CancelFlightInfoResult";
        Some(vec![Ok(ActionType { r#type: CANCEL_FLIGHT_INFO.into(), description: description.into() })])
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        request: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let info = FlightInfo::decode(query.info).map_err(|_| Status::invalid_argument("this is no FlightInfo"))?;
        self.cancel_all(&info, &caller(&request)?)?;
        // CANCEL_RESULT_CANCELLED.
        Ok(ActionCancelQueryResult { result: 1 })
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}
