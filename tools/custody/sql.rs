//! `custody sql`: queries, written or saved, answered by a server or off a data directory.

use std::io::IsTerminal as _;

use clap::Args;
use custody_query::saved::{self, SavedQuery};
use serde_json::{Map, Value, json};

use crate::output::{self, Output, Writing};
use crate::source::{From, Part, Source};
use crate::statements::statements;
use crate::{Failure, answer, print, print_or_end, shell};

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
    /// The query; - reads it from standard input. Left out, a terminal gets a shell (\? tells what it knows), and
    /// else standard input is read: statements, each ended by a semicolon.
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
    /// the log's own process: by --url, for which it takes the role export, or by its --data-dir.
    #[arg(long, value_name = "FILE")]
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
    /// The shell keeps no history, and reads none [default: sql_history in $XDG_STATE_HOME/custody].
    #[arg(long)]
    no_history: bool,
    /// The shell shows long answers without $PAGER.
    #[arg(long)]
    no_pager: bool,
}

/// `name=value`.
pub fn named(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("say it as name=value")?;
    Ok((name.trim().trim_start_matches('$').to_owned(), value.to_owned()))
}

/// What a value of -p is in a query that does not say of which type it is.
pub fn value(text: &str) -> Value {
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
        if self.query.is_none() && self.file.is_none() && std::io::stdin().is_terminal() {
            return self.interactive();
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

    /// Asks what a person types.
    fn interactive(self) -> Result<(), Failure> {
        if self.evidence.is_some() || !self.params.is_empty() {
            return Err(Failure::wrong("--evidence and --param are of one query; name it, or use \\evidence and -p"));
        }
        let settings = shell::Settings::new(self.format, self.max_rows, self.timeout_ms, self.p, !self.no_pager);
        shell::run(self.from.open()?, settings, !self.no_history)
    }

    /// Asks one query: of what is running, or for a file of evidence.
    fn one(&self, query: &str, params: &Value) -> Result<(), Failure> {
        match &self.evidence {
            Some(file) => {
                let ask = self.asked(query, params);
                match self.from.directory_to_change() {
                    Some(dir) => answer::write(file, dir, &ask),
                    None => answer::fetch(file, &self.from.open()?, &ask),
                }
            }
            None => self.ask(&self.from.open()?, query, params),
        }
    }

    fn ask(&self, source: &Source, query: &str, params: &Value) -> Result<(), Failure> {
        let ask = self.asked(query, params);
        if self.format == Output::Table {
            let answer = source.answer(&ask)?;
            print(&output::table(&answer.schema, &answer.batches, answer.truncated)?)?;
            output::say(&answer.notes);
            return Ok(());
        }
        let is_terminal = std::io::stdout().is_terminal();
        let mut writing = None;
        let ended = source.sql_each(&ask, &mut |part| match (part, &mut writing) {
            (Part::Columns(schema), writing) => {
                *writing = Some(Writing::new(self.format, &schema, is_terminal)?);
                Ok(())
            }
            (Part::Rows(batch), Some(writing)) => print_or_end(&writing.rows(&batch)?),
            (Part::Rows(_), None) => Err(Failure::unable("rows came before their columns")),
        })?;
        if let Some(writing) = &mut writing {
            print_or_end(&writing.end(&ended)?)?;
        }
        output::say(&ended.notes);
        if ended.truncated {
            eprintln!("custody sql: only the first {} rows; --max-rows allows more", ended.rows);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_numbers_and_ids_are_not() {
        assert_eq!((value("12"), value("012"), value("null")), (12.into(), "012".into(), Value::Null));
        assert_eq!(value("1e5"), Value::from("1e5"));
        assert_eq!(named("$a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(named("a").is_err());
    }
}
