//! What TAB completes: keywords, tables, functions, the columns of the tables that a statement names, and the
//! commands of the shell with what they take. The names come from the source that is asked, when the first is wanted.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use custody_query::{format, saved};
use rustyline::Context;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use serde_json::json;

use super::commands::COMMANDS;
use crate::source::Source;
use crate::statements::{Within, split};

/// How long a TAB may wait for names.
const WAIT_MS: u64 = 5000;

const KEYWORDS: [&str; 58] = [
    "ALL",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "CROSS",
    "DESC",
    "DESCRIBE",
    "DISTINCT",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FALSE",
    "FILTER",
    "FIRST",
    "FROM",
    "FULL",
    "GROUP",
    "HAVING",
    "ILIKE",
    "IN",
    "INNER",
    "INTERSECT",
    "INTERVAL",
    "IS",
    "JOIN",
    "LAST",
    "LEFT",
    "LIKE",
    "LIMIT",
    "NOT",
    "NULL",
    "NULLS",
    "OFFSET",
    "ON",
    "OR",
    "ORDER",
    "OUTER",
    "OVER",
    "PARTITION",
    "RIGHT",
    "SELECT",
    "SHOW",
    "TABLES",
    "THEN",
    "TIMESTAMP",
    "TRUE",
    "UNION",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WITH",
];

/// What can be named.
#[derive(Debug, Default)]
struct Catalogue {
    /// Tables and views, with their columns.
    tables: BTreeMap<String, Vec<String>>,
    /// Table functions, with the columns of what they give.
    table_functions: BTreeMap<String, Vec<String>>,
    functions: BTreeSet<String>,
}

impl Catalogue {
    fn of(source: &Source) -> Option<Self> {
        let ask = |sql: &str| {
            let (_, batches, _) = source.sql(&json!({"sql": sql, "max_rows": 100_000, "timeout_ms": WAIT_MS})).ok()?;
            format::rows(&batches).ok()
        };
        let mut catalogue = Self::default();
        for row in ask("SELECT table_name, kind FROM custody_tables")? {
            let name = row["table_name"].as_str().unwrap_or_default().to_owned();
            let is_function = row["kind"] == "function";
            let of = if is_function { &mut catalogue.table_functions } else { &mut catalogue.tables };
            of.insert(name, Vec::new());
        }
        for row in ask("SELECT table_name, column_name FROM custody_columns ORDER BY table_name, ordinal_position")? {
            let (table, column) = (row["table_name"].as_str()?, row["column_name"].as_str()?);
            let of = catalogue.tables.get_mut(table).or_else(|| catalogue.table_functions.get_mut(table));
            if let Some(columns) = of {
                columns.push(column.to_owned());
            }
        }
        let functions = "SELECT DISTINCT routine_name FROM information_schema.routines WHERE function_type <> 'TABLE'";
        let names = ask(functions)?.into_iter().filter_map(|row| row["routine_name"].as_str().map(str::to_owned));
        catalogue.functions = names.filter(|name| name.chars().all(is_of_a_name)).collect();
        Some(catalogue)
    }

    fn columns(&self, table: &str) -> &[String] {
        self.tables.get(table).or_else(|| self.table_functions.get(table)).map_or(&[], Vec::as_slice)
    }

    fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table) || self.table_functions.contains_key(table)
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Completes what is typed at the prompt.
pub struct Helper {
    source: Arc<Source>,
    catalogue: OnceCell<Catalogue>,
    begun: RefCell<String>,
    files: FilenameCompleter,
}

impl Helper {
    /// Over the names that a source has.
    pub fn new(source: Arc<Source>) -> Self {
        Self { source, catalogue: OnceCell::new(), begun: RefCell::default(), files: FilenameCompleter::new() }
    }

    /// What stands before the line that is edited.
    pub fn begun(&self, text: &str) {
        text.clone_into(&mut self.begun.borrow_mut());
    }

    /// The names; those that could not be got are asked for again at the next TAB.
    fn catalogue(&self) -> Option<&Catalogue> {
        if self.catalogue.get().is_none() {
            let _ = self.catalogue.set(Catalogue::of(&self.source)?);
        }
        self.catalogue.get()
    }
}

impl Completer for Helper {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..pos).unwrap_or_default();
        let begun = self.begun.borrow();
        if typed.starts_with('\\') && begun.is_empty() {
            if ["\\o ", "\\i ", "\\evidence "].iter().any(|command| typed.starts_with(command)) {
                return self.files.complete(line, pos, context);
            }
            let start = typed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
            return Ok((start, pairs(typed, start, command(typed, || self.catalogue()))));
        }
        let text = format!("{begun}{typed}");
        let parts = split(&text);
        if parts.within != Within::Statement {
            return Ok((pos, Vec::new()));
        }
        let none = Catalogue::default();
        let start = typed.rfind(|c| !is_of_a_name(c)).map_or(0, |at| at + last_len(typed, at));
        let after = split(line.get(pos..).unwrap_or_default()).ended.first().copied();
        let after = after.unwrap_or_else(|| line.get(pos..).unwrap_or_default());
        let candidates = statement(parts.rest, after, self.catalogue().unwrap_or(&none));
        Ok((start, pairs(typed, start, candidates)))
    }
}

/// The bytes of the character at a place.
fn last_len(text: &str, at: usize) -> usize {
    text.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
}

/// Those that begin like the word at the cursor, in its case.
fn pairs(typed: &str, start: usize, mut candidates: Vec<String>) -> Vec<Pair> {
    let word = typed.get(start..).unwrap_or_default().to_lowercase();
    candidates.retain(|name| name.to_lowercase().starts_with(&word));
    candidates.sort_by_key(|name| name.to_lowercase());
    candidates.dedup();
    candidates.into_iter().map(|name| Pair { display: name.trim_end().to_owned(), replacement: name }).collect()
}

/// What can stand behind a command, or the commands.
fn command<'a>(typed: &str, catalogue: impl FnOnce() -> Option<&'a Catalogue>) -> Vec<String> {
    let words: Vec<&str> = typed.split_whitespace().collect();
    let whole = words.len() - usize::from(!typed.ends_with(char::is_whitespace));
    let tables = |c: &Catalogue| c.tables.keys().chain(c.table_functions.keys()).cloned().collect();
    let functions = |c: &Catalogue| c.functions.iter().chain(c.table_functions.keys()).cloned().collect();
    match (words.first().copied().unwrap_or_default(), whole) {
        (_, 0) => {
            let name =
                |(name, takes, _): &(&str, &str, &str)| format!("{name}{}", if takes.is_empty() { "" } else { " " });
            COMMANDS.iter().map(name).collect()
        }
        ("\\d" | "\\dt" | "\\d+", 1) => catalogue().map(tables).unwrap_or_default(),
        ("\\df", 1) => catalogue().map(functions).unwrap_or_default(),
        ("\\format", 1) => ["table", "json", "csv", "arrow", "parquet"].map(str::to_owned).to_vec(),
        ("\\x" | "\\timing" | "\\pager", 1) => ["on", "off"].map(str::to_owned).to_vec(),
        ("\\run", 1) => saved::all().iter().map(|query| format!("{} ", query.name)).collect(),
        ("\\run", _) => {
            let query = words.get(1).and_then(|name| saved::find(name));
            query.iter().flat_map(|query| &query.params).map(|p| format!("{}=", p.name)).collect()
        }
        _ => Vec::new(),
    }
}

/// What can stand at the end of a text; what comes after it may name tables, too.
fn statement(text: &str, after: &str, catalogue: &Catalogue) -> Vec<String> {
    let word = text.len() - text.trim_end_matches(is_of_a_name).len();
    let (before, word) = text.split_at(text.len() - word);
    let tokens = tokens(before);
    let in_case = |keyword: &str| match word.chars().next().is_some_and(char::is_lowercase) {
        true => format!("{} ", keyword.to_lowercase()),
        false => format!("{keyword} "),
    };
    let all: Vec<String> = tokens.iter().cloned().chain(self::tokens(after)).collect();
    if before.ends_with('.') {
        let alias = tokens.iter().rev().nth(1).map_or("", String::as_str);
        return catalogue.columns(table_of(alias, &all, catalogue)).to_vec();
    }
    let table_functions = catalogue.table_functions.keys().map(|name| format!("{name}("));
    if wants_table(&tokens) {
        return catalogue.tables.keys().map(|name| format!("{name} ")).chain(table_functions).collect();
    }
    let named: Vec<&str> = all.iter().map(String::as_str).filter(|name| catalogue.has(name)).collect();
    let mut out: Vec<String> = match named.is_empty() {
        // The columns come before the tables in a statement: any will do.
        true => catalogue.tables.values().flatten().cloned().collect(),
        false => named.iter().flat_map(|table| catalogue.columns(table).iter().cloned()).collect(),
    };
    out.extend(catalogue.functions.iter().map(|name| format!("{name}(")));
    out.extend(KEYWORDS.iter().map(|keyword| in_case(keyword)));
    out
}

/// Whether a table is to be named: behind FROM, JOIN, DESCRIBE, or a comma among the tables of FROM.
fn wants_table(tokens: &[String]) -> bool {
    let is_clause = |token: &&String| {
        ["select", "from", "where", "group", "order", "having", "on", "join", "limit"].contains(&token.as_str())
    };
    match tokens.last().map(String::as_str) {
        Some("from" | "join" | "describe") => true,
        Some(",") => tokens.iter().rev().find(is_clause).is_some_and(|clause| clause == "from"),
        _ => false,
    }
}

/// The table that an alias stands for, anywhere in the statement.
fn table_of<'a>(alias: &'a str, tokens: &'a [String], catalogue: &'a Catalogue) -> &'a str {
    if catalogue.has(alias) {
        return alias;
    }
    let names = tokens.iter().enumerate().filter(|(_, token)| catalogue.has(token));
    let mut aliased = names.filter(|(at, _)| {
        // Behind the arguments of a function.
        let mut rest = tokens.iter().skip(at + 1).peekable();
        if rest.peek().is_some_and(|token| *token == "(") {
            rest.by_ref().find(|token| *token == ")");
        }
        rest.find(|token| *token != "as").is_some_and(|token| token == alias)
    });
    aliased.next().map_or("", |(_, table)| table)
}

/// Words in lower case and single signs, without texts and comments.
fn tokens(text: &str) -> Vec<String> {
    let (mut out, mut rest): (Vec<String>, &str) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '\'' => rest.get(1..).and_then(|r| r.find('\'')).map_or(rest.len(), |at| at + 2),
            '-' if rest.starts_with("--") => rest.find('\n').map_or(rest.len(), |at| at + 1),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            c if is_of_a_name(c) => rest.find(|c| !is_of_a_name(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(len);
        if !c.is_whitespace() && !token.starts_with(['\'']) && !token.starts_with("--") && !token.starts_with("/*") {
            out.push(token.to_lowercase());
        }
        rest = after;
    }
    out
}

impl Hinter for Helper {
    type Hint = String;
}

impl Highlighter for Helper {}

impl Validator for Helper {}

impl rustyline::Helper for Helper {}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Catalogue {
            tables: [
                ("spans".to_owned(), columns(&["seq", "trace_id", "name"])),
                ("grants".to_owned(), columns(&["grant_id", "issuer"])),
            ]
            .into(),
            table_functions: [("replay".to_owned(), columns(&["step", "tool"]))].into(),
            functions: ["count".to_owned(), "concat".to_owned()].into(),
        }
    }

    fn completed(text: &str) -> Vec<String> {
        completed_before(text, "")
    }

    fn completed_before(text: &str, after: &str) -> Vec<String> {
        let start = text.rfind(|c| !is_of_a_name(c)).map_or(0, |at| at + 1);
        pairs(text, start, statement(text, after, &catalogue())).into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn tables_stand_behind_from_and_columns_are_those_of_the_tables_named() {
        assert_eq!(completed("SELECT * FROM sp"), ["spans "]);
        assert_eq!(completed("select * from spans, gr"), ["grants "]);
        assert_eq!(completed("SELECT * FROM spans JOIN "), ["grants ", "replay(", "spans "]);
        assert_eq!(completed("SELECT * FROM spans WHERE tr"), ["trace_id", "true "]);
        assert_eq!(completed("SELECT * FROM grants WHERE iss"), ["issuer"]);
        assert_eq!(completed("SELECT tra"), ["trace_id"], "before any table is named");
        assert!(completed_before("SELECT tra", " FROM grants").is_empty(), "tables behind the cursor count");
        assert!(completed("SELECT * FROM grants ORDER BY tra").is_empty());
        assert_eq!(completed("SELECT co"), ["concat(", "count("]);
    }

    #[test]
    fn an_alias_stands_for_its_table() {
        assert_eq!(completed("SELECT * FROM spans s JOIN grants AS g ON s.tr"), ["trace_id"]);
        assert_eq!(completed("SELECT * FROM spans s JOIN grants AS g ON g."), ["grant_id", "issuer"]);
        assert_eq!(completed("SELECT * FROM replay('x, y') r WHERE r.to"), ["tool"]);
        assert_eq!(completed("SELECT * FROM spans WHERE spans.na"), ["name"]);
    }

    #[test]
    fn keywords_come_in_the_case_of_what_is_typed() {
        assert_eq!((completed("SEL"), completed("sel")), (vec!["SELECT ".to_owned()], vec!["select ".to_owned()]));
        assert_eq!(completed("SELECT 'FROM ' || na"), ["name"], "texts are no keywords");
    }

    #[test]
    fn commands_are_completed_with_what_they_take() {
        let catalogue = catalogue();
        let told = |typed: &str| command(typed, || Some(&catalogue));
        assert!(told("\\ti").contains(&"\\timing ".to_owned()));
        assert_eq!(told("\\d "), ["grants", "spans", "replay"]);
        assert!(told("\\run gr").contains(&"grant_chain ".to_owned()));
        assert_eq!(told("\\run grant_chain "), ["grant="]);
    }
}
