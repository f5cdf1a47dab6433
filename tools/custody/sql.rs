//! `custody sql`: one query, answered by a server or off a data directory.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use custody_query::{Answer, format};

use crate::source::From;
use crate::{Failure, print};

/// Ask in SQL.
///
/// Tables: spans, logs, metrics, events, grants, denials, tool_calls, retrievals, decisions,
/// alerts, violations, dwell_time, alert_outcomes, coverage, blast_radius,
/// authority_coverage, ledger, checkpoints. Functions: delegation_chain('grant'),
/// replay('trace, grant, agent, conversation or alert'), both with an optional
/// second argument: a seq or a time, for what the ledger knew then. All of them, column by
/// column: SELECT * FROM custody_tables, SELECT * FROM custody_columns.
#[derive(Args)]
pub struct Sql {
    /// The query; - reads it from standard input.
    query: String,
    #[command(flatten)]
    from: From,
    /// How to print the answer.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    format: Output,
    /// Rows beyond this are cut off.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_rows: u64,
    /// Give up after this many milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    timeout_ms: u64,
    /// A value for $1, $2 and so on; repeat it for more.
    #[arg(long = "param", value_name = "TEXT")]
    params: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
    Csv,
    Arrow,
    Parquet,
}

impl Sql {
    /// Runs the query and prints the answer.
    pub fn run(self) -> Result<(), Failure> {
        let query = match self.query.as_str() {
            "-" => std::io::read_to_string(std::io::stdin()).map_err(Failure::unable)?,
            text => text.to_owned(),
        };
        let ask = serde_json::json!({
            "sql": query, "params": self.params, "max_rows": self.max_rows, "timeout_ms": self.timeout_ms,
        });
        let (schema, batches, truncated) = self.from.open()?.sql(&ask)?;
        let rows = batches.iter().map(|b| b.num_rows()).sum();
        let answer = Answer { schema, batches, rows, truncated, as_of_size: 0, elapsed: Duration::ZERO };
        let bytes = match self.format {
            Output::Table => return print_table(&answer),
            Output::Json => {
                let rows = format::rows(&answer.batches).map_err(Failure::unable)?;
                let lines = rows.into_iter().map(|row| serde_json::Value::Object(row).to_string() + "\n");
                lines.collect::<String>().into_bytes()
            }
            Output::Csv => format::csv(&answer).map_err(Failure::unable)?,
            Output::Arrow => format::arrow(&answer).map_err(Failure::unable)?,
            Output::Parquet => format::parquet(&answer).map_err(Failure::unable)?,
        };
        if truncated {
            eprintln!("custody sql: only the first {rows} rows; --max-rows allows more");
        }
        std::io::stdout().write_all(&bytes).map_err(Failure::unable)
    }
}

fn print_table(answer: &Answer) -> Result<(), Failure> {
    print(&format::table(&answer.schema, &answer.batches).map_err(Failure::unable)?)?;
    let more = if answer.truncated { " (there are more; --max-rows allows them)" } else { "" };
    let noun = if answer.rows == 1 { "row" } else { "rows" };
    print(&format!("\n{} {noun}{more}\n", answer.rows))
}
