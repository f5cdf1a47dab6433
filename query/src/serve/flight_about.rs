//! What a Flight SQL server says of itself: GetSqlInfo, GetXdbcTypeInfo, and that there are no keys.

use std::sync::{Arc, LazyLock};

use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{Nullable, Searchable, SqlInfo as I, XdbcDataType, XdbcDatetimeSubcode};
use arrow_flight::{IpcMessage, SchemaAsIpc};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::ipc::writer::IpcWriteOptions;
use tonic::Status;

/// Words that a name must be quoted for, beside those of SQL:2003, which drivers know.
const KEYWORDS: &[&str] =
    &["ANALYZE", "ANTI", "DESCRIBE", "EXPLAIN", "ILIKE", "LIMIT", "OFFSET", "QUALIFY", "SEMI", "SHOW"];
const NUMERIC: &[&str] = &[
    "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cot", "degrees", "exp", "floor", "ln", "log", "log10",
    "pi", "power", "radians", "round", "sin", "sqrt", "tan", "trunc",
];
const STRING: &[&str] = &[
    "ascii",
    "btrim",
    "chr",
    "concat",
    "concat_ws",
    "left",
    "length",
    "lower",
    "lpad",
    "ltrim",
    "octet_length",
    "repeat",
    "replace",
    "right",
    "rpad",
    "rtrim",
    "split_part",
    "strpos",
    "substr",
    "trim",
    "upper",
];
const SYSTEM: &[&str] = &["coalesce", "greatest", "least", "nullif", "payload", "proof"];
const DATETIME: &[&str] =
    &["current_date", "current_time", "date_bin", "date_part", "date_trunc", "now", "to_timestamp"];

static SQL_INFO: LazyLock<Option<SqlInfoData>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info);
    language(&mut info);
    limits(&mut info);
    info.build().ok()
});

/// The answer to GetSqlInfo.
pub(super) fn sql_info() -> Result<&'static SqlInfoData, Status> {
    SQL_INFO.as_ref().ok_or_else(|| Status::internal("the server's own description cannot be built"))
}

fn server(info: &mut SqlInfoDataBuilder) {
    info.append(I::FlightSqlServerName, "Custody");
    info.append(I::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(I::FlightSqlServerArrowVersion, "1.3");
    for (what, is_so) in [
        (I::FlightSqlServerReadOnly, true),
        (I::FlightSqlServerSql, true),
        (I::FlightSqlServerSubstrait, false),
        (I::FlightSqlServerCancel, true),
        (I::FlightSqlServerBulkIngestion, false),
        (I::FlightSqlServerIngestTransactionsSupported, false),
        (I::SqlDdlCatalog, false),
        (I::SqlDdlSchema, false),
        (I::SqlDdlTable, false),
        (I::SqlAllTablesAreSelectable, true),
        (I::SqlTransactionsSupported, false),
        (I::SqlDataDefinitionCausesTransactionCommit, false),
        (I::SqlDataDefinitionsInTransactionsIgnored, true),
        (I::SqlBatchUpdatesSupported, false),
        (I::SqlSavepointsSupported, false),
        (I::SqlNamedParametersSupported, false),
        (I::SqlLocatorsUpdateCopy, false),
        (I::SqlSelectForUpdateSupported, false),
        (I::SqlStoredProceduresSupported, false),
        (I::SqlStoredFunctionsUsingCallSyntaxSupported, false),
    ] {
        info.append(what, is_so);
    }
    for (what, number) in [
        (I::FlightSqlServerTransaction, 0),
        (I::FlightSqlServerStatementTimeout, 0),
        (I::FlightSqlServerTransactionTimeout, 0),
        (I::SqlDefaultTransactionIsolation, 0),
        (I::SqlSupportedTransactionsIsolationLevels, 1),
        (I::SqlSchemasSupportedActions, 0),
        (I::SqlCatalogsSupportedActions, 0),
        (I::SqlSupportedPositionedCommands, 0),
        // Unspecified and forward only.
        (I::SqlSupportedResultSetTypes, 0b11),
        (I::SqlSupportedConcurrenciesForResultSetUnspecified, 0b10),
        (I::SqlSupportedConcurrenciesForResultSetForwardOnly, 0b10),
        (I::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
        (I::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
    ] {
        info.append(what, number);
    }
}

fn language(info: &mut SqlInfoDataBuilder) {
    for (what, text) in [
        (I::SqlIdentifierQuoteChar, "\""),
        (I::SqlSearchStringEscape, "\\"),
        (I::SqlExtraNameCharacters, ""),
        (I::SqlSchemaTerm, "schema"),
        (I::SqlProcedureTerm, ""),
        (I::SqlCatalogTerm, "catalog"),
    ] {
        info.append(what, text);
    }
    for (what, list) in [
        (I::SqlKeywords, KEYWORDS),
        (I::SqlNumericFunctions, NUMERIC),
        (I::SqlStringFunctions, STRING),
        (I::SqlSystemFunctions, SYSTEM),
        (I::SqlDatetimeFunctions, DATETIME),
    ] {
        info.append(what, list);
    }
    for (what, is_so) in [
        (I::SqlSupportsColumnAliasing, true),
        (I::SqlNullPlusNullIsNull, true),
        (I::SqlSupportsTableCorrelationNames, true),
        (I::SqlSupportsDifferentTableCorrelationNames, false),
        (I::SqlSupportsExpressionsInOrderBy, true),
        (I::SqlSupportsOrderByUnrelated, true),
        (I::SqlSupportsLikeEscapeClause, true),
        (I::SqlSupportsNonNullableColumns, true),
        (I::SqlSupportsIntegrityEnhancementFacility, false),
        (I::SqlCatalogAtStart, true),
        (I::SqlCorrelatedSubqueriesSupported, true),
    ] {
        info.append(what, is_so);
    }
    for (what, number) in [
        // Names are folded to lower case; quoted ones are as written.
        (I::SqlIdentifierCase, 3),
        (I::SqlQuotedIdentifierCase, 0),
        // Nulls are the highest: last ascending, first descending.
        (I::SqlNullOrdering, 0),
        // Bits: unrelated columns and beyond the selected ones; minimum, core and extended; entry level; all
        // kinds of subqueries; UNION and UNION ALL.
        (I::SqlSupportedGroupBy, 0b11),
        (I::SqlSupportedGrammar, 0b111),
        (I::SqlAnsi92SupportedLevel, 0b1),
        (I::SqlOuterJoinsSupportLevel, 2),
        (I::SqlSupportedSubqueries, 0b1111),
        (I::SqlSupportedUnions, 0b11),
    ] {
        info.append(what, number);
    }
    info.append(I::SqlSupportsConvert, std::collections::BTreeMap::<i32, Vec<i32>>::new());
}

/// 0 is: none, or not known.
fn limits(info: &mut SqlInfoDataBuilder) {
    info.append(I::SqlMaxRowSizeIncludesBlobs, true);
    for what in [
        I::SqlMaxBinaryLiteralLength,
        I::SqlMaxCharLiteralLength,
        I::SqlMaxColumnNameLength,
        I::SqlMaxColumnsInGroupBy,
        I::SqlMaxColumnsInIndex,
        I::SqlMaxColumnsInOrderBy,
        I::SqlMaxColumnsInSelect,
        I::SqlMaxColumnsInTable,
        I::SqlMaxConnections,
        I::SqlMaxCursorNameLength,
        I::SqlMaxIndexLength,
        I::SqlDbSchemaNameLength,
        I::SqlMaxProcedureNameLength,
        I::SqlMaxCatalogNameLength,
        I::SqlMaxRowSize,
        I::SqlMaxTableNameLength,
        I::SqlMaxTablesInSelect,
        I::SqlMaxUsernameLength,
        I::SqlMaxStatements,
    ] {
        info.append(what, 0i64);
    }
    info.append(I::SqlMaxStatementLength, 256i64 << 10);
}

static TYPES: LazyLock<Option<XdbcTypeInfoData>> = LazyLock::new(|| {
    use XdbcDataType as X;
    let mut builder = XdbcTypeInfoDataBuilder::new();
    let quote = Some("'");
    for (name, kind, size, quote, radix) in [
        ("BOOLEAN", X::XdbcBit, 1, None, None),
        ("INTEGER", X::XdbcInteger, 32, None, Some(2)),
        ("INTEGER UNSIGNED", X::XdbcInteger, 32, None, Some(2)),
        ("BIGINT", X::XdbcBigint, 64, None, Some(2)),
        ("BIGINT UNSIGNED", X::XdbcBigint, 64, None, Some(2)),
        ("DOUBLE", X::XdbcDouble, 53, None, Some(2)),
        ("VARCHAR", X::XdbcVarchar, i32::MAX, quote, None),
        ("TIMESTAMP", X::XdbcTimestamp, 29, quote, None),
    ] {
        let is_time = kind == X::XdbcTimestamp;
        builder.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type: kind,
            column_size: Some(size),
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            create_params: None,
            nullable: Nullable::NullabilityNullable,
            case_sensitive: kind == X::XdbcVarchar,
            searchable: if kind == X::XdbcVarchar { Searchable::Full } else { Searchable::Basic },
            unsigned_attribute: radix.map(|_| name.ends_with("UNSIGNED")),
            fixed_prec_scale: false,
            auto_increment: Some(false),
            local_type_name: Some(name.into()),
            minimum_scale: is_time.then_some(9),
            maximum_scale: is_time.then_some(9),
            sql_data_type: if is_time { X::XdbcDatetime } else { kind },
            datetime_subcode: is_time.then_some(XdbcDatetimeSubcode::XdbcSubcodeTimestamp),
            num_prec_radix: radix,
            interval_precision: None,
        });
    }
    builder.build().ok()
});

/// The answer to GetXdbcTypeInfo.
pub(super) fn types() -> Result<&'static XdbcTypeInfoData, Status> {
    TYPES.as_ref().ok_or_else(|| Status::internal("the description of types cannot be built"))
}

fn names(list: &[&str], more: Vec<Field>) -> SchemaRef {
    let nullable = |name: &str| !name.ends_with("table_name") && !name.ends_with("column_name");
    let fields = list.iter().map(|name| Field::new(*name, DataType::Utf8, nullable(name)));
    Arc::new(Schema::new(fields.chain(more).collect::<Vec<_>>()))
}

/// The columns of GetPrimaryKeys.
pub(super) fn primary_keys() -> SchemaRef {
    names(
        &["catalog_name", "db_schema_name", "table_name", "column_name"],
        vec![Field::new("key_sequence", DataType::Int32, false), Field::new("key_name", DataType::Utf8, true)],
    )
}

/// The columns of GetExportedKeys, GetImportedKeys and GetCrossReference.
pub(super) fn foreign_keys() -> SchemaRef {
    names(
        &[
            "pk_catalog_name",
            "pk_db_schema_name",
            "pk_table_name",
            "pk_column_name",
            "fk_catalog_name",
            "fk_db_schema_name",
            "fk_table_name",
            "fk_column_name",
        ],
        vec![
            Field::new("key_sequence", DataType::Int32, false),
            Field::new("fk_key_name", DataType::Utf8, true),
            Field::new("pk_key_name", DataType::Utf8, true),
            Field::new("update_rule", DataType::UInt8, false),
            Field::new("delete_rule", DataType::UInt8, false),
        ],
    )
}

/// What could not be made, as a status.
pub(super) fn unmade(error: FlightError) -> Status {
    Status::internal(error.to_string())
}

/// A schema as the bytes of an IPC message.
pub(super) fn message(schema: &Schema) -> Result<bytes::Bytes, Status> {
    let message = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    let IpcMessage(bytes) =
        message.map_err(|e: datafusion::arrow::error::ArrowError| Status::internal(e.to_string()))?;
    Ok(bytes)
}
