//! `custody sql`: queries, written or saved, answered by a server or off a data directory.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use custody_query::saved::{self, SavedQuery};
use custody_query::{Answer, format};
use serde_json::{Map, Value, json};

use crate::source::{From, Source};
use crate::{Failure, answer, print};

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
    /// The query; - reads it from standard input, and so does leaving it out: statements there end with a semicolon.
    #[arg(conflicts_with_all = ["list", "run", "file"])]
    query: Option<String>,
    /// List the saved queries: the questions that investigators ask first.
    #[arg(long, conflicts_with_all = ["run", "file"])]
    list: bool,
    /// Ask a saved query; its parameters come by -p.
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    run: Option<String>,
    /// Ask what a file says: statements, each ended by a semicolon.
    #[arg(short, long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
    /// A value for $name in the query; repeat it for more. A whole number is one, null is null, all
    /// else is text.
    #[arg(short, long = "params", value_name = "NAME=VALUE", value_parser = named, conflicts_with = "params")]
    p: Vec<(String, String)>,
    /// Write the answer to a file, with the query and the proofs and contents of all records that its
    /// columns seq, seqs and evidence name; custody check verifies it anywhere. The records are proved by
    /// the log's own process: name its directory by --data-dir.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    evidence: Option<std::path::PathBuf>,
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

/// `name=value`.
fn named(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("say it as name=value")?;
    Ok((name.trim().trim_start_matches('$').to_owned(), value.to_owned()))
}

/// What a value of -p is in a query that does not say of which type it is.
fn value(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => number.into(),
        _ if text == "null" => Value::Null,
        _ => text.into(),
    }
}

impl Sql {
    /// Runs the queries and prints the answers.
    pub fn run(self) -> Result<(), Failure> {
        if self.list {
            return list();
        }
        if let Some(name) = &self.run {
            let query = saved::find(name).ok_or_else(|| {
                Failure::wrong(format!("there is no saved query {name}; custody sql --list tells which there are"))
            })?;
            let params = query.bind(&self.p).map_err(|e| Failure::wrong(e.message))?;
            return self.one(query.sql, &Value::Object(params));
        }
        if let Some(query) = self.query.as_deref().filter(|text| *text != "-") {
            return self.one(query, &self.given());
        }
        let text = match &self.file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|e| Failure::unable(format!("{} cannot be read: {e}", file.display())))?,
            None => std::io::read_to_string(std::io::stdin()).map_err(Failure::unable)?,
        };
        let statements = statements(&text);
        if let (Some(_), [statement]) = (&self.evidence, statements.as_slice()) {
            return self.one(statement, &self.given());
        }
        if self.evidence.is_some() {
            return Err(Failure::wrong("evidence is of one query"));
        }
        let source = self.from.open()?;
        if statements.is_empty() {
            return Err(Failure::wrong("there is no query to ask"));
        }
        statements.iter().try_for_each(|statement| self.ask(&source, statement, &self.given()))
    }

    /// The parameters as they are sent.
    fn given(&self) -> Value {
        if self.p.is_empty() {
            return json!(self.params);
        }
        Value::Object(self.p.iter().map(|(name, text)| (name.clone(), value(text))).collect::<Map<_, _>>())
    }

    fn asked(&self, query: &str, params: &Value) -> Value {
        json!({"sql": query, "params": params, "max_rows": self.max_rows, "timeout_ms": self.timeout_ms})
    }

    /// Asks one query: of what is running, or for a file of evidence.
    fn one(&self, query: &str, params: &Value) -> Result<(), Failure> {
        match &self.evidence {
            Some(file) => {
                let dir = self.from.data_dir().unwrap_or_else(|| std::path::Path::new("custody-data"));
                answer::write(file, dir, &self.asked(query, params))
            }
            None => self.ask(&self.from.open()?, query, params),
        }
    }

    fn ask(&self, source: &Source, query: &str, params: &Value) -> Result<(), Failure> {
        let ask = self.asked(query, params);
        let (schema, batches, truncated) = source.sql(&ask)?;
        let rows = batches.iter().map(|b| b.num_rows()).sum();
        let answer = Answer { schema, batches, rows, truncated, as_of_size: 0, elapsed: Duration::ZERO };
        let bytes = match self.format {
            Output::Table => return print_table(&answer),
            Output::Json => {
                let rows = format::rows(&answer.batches).map_err(Failure::unable)?;
                let lines = rows.into_iter().map(|row| Value::Object(row).to_string() + "\n");
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

/// Every saved query, with what it needs.
fn list() -> Result<(), Failure> {
    let line = |query: &SavedQuery| {
        let params = query.params.iter().map(|p| match p.default {
            None => format!(" -p {}=...", p.name),
            Some(_) => format!(" [-p {}=...]", p.name),
        });
        format!("{}{}\n    {} {}\n", query.name, params.collect::<String>(), query.title, query.shows)
    };
    saved::all().iter().try_for_each(|query| print(&line(query)))
}

/// The statements of a text: a semicolon ends one, unless it stands in a quoted text or a comment.
fn statements(text: &str) -> Vec<&str> {
    let (mut out, mut start, mut quote) = (Vec::new(), 0, None);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, c)| *c);
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (None, '-') if next == Some('-') => quote = Some('\n'),
            (None, '/') if next == Some('*') => {
                chars.next();
                quote = Some('*');
            }
            (None, ';') => {
                out.extend(text.get(start..at));
                start = at + 1;
            }
            (Some('*'), '*') if next == Some('/') => quote = None,
            (Some('*'), _) => {}
            (Some(end), c) if end == c => quote = None,
            _ => {}
        }
    }
    out.extend(text.get(start..));
    out.retain(|statement| says_something(statement));
    out
}

/// Whether there is more than comments.
fn says_something(statement: &str) -> bool {
    statement.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with("--"))
}

fn print_table(answer: &Answer) -> Result<(), Failure> {
    print(&format::table(&answer.schema, &answer.batches).map_err(Failure::unable)?)?;
    let more = if answer.truncated { " (there are more; --max-rows allows them)" } else { "" };
    let noun = if answer.rows == 1 { "row" } else { "rows" };
    print(&format!("\n{} {noun}{more}\n", answer.rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semicolon_ends_a_statement_unless_it_is_quoted() {
        let text = "SELECT ';', \"a;b\" -- ; it's\n; /* ; ' */ SELECT 2;\n-- the end\n";
        assert_eq!(statements(text), ["SELECT ';', \"a;b\" -- ; it's\n", " /* ; ' */ SELECT 2"]);
        assert!(statements(" ;; \n-- nothing").is_empty());
        assert_eq!(statements("SELECT 'it''s; so'"), ["SELECT 'it''s; so'"]);
    }

    #[test]
    fn whole_numbers_are_numbers_and_ids_are_not() {
        assert_eq!((value("12"), value("012"), value("null")), (12.into(), "012".into(), Value::Null));
        assert_eq!(value("1e5"), Value::from("1e5"));
        assert_eq!(named("$a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(named("a").is_err());
    }
}
