//! The shell of `custody sql`: statements over as many lines as they take, commands that begin with a backslash,
//! history, completion, paging, and queries that Ctrl-C ends.
//!
//! It asks by the same API as everything else, and knows nothing that a query could not tell.

mod commands;
mod complete;
mod history;
mod pager;
mod running;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use custody_query::Answer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Behavior, CompletionType, Config, Editor};
use serde_json::{Map, Value, json};

use self::complete::Helper;
use self::history::History;
use self::running::{Asked, Interrupts};
use crate::output::{Output, Writing, expanded, say, table};
use crate::source::{Ended, Source};
use crate::statements::{Split, Within, says_something, split};
use crate::{Failure, print, sql};

/// What the commands of a session set.
pub struct Settings {
    format: Output,
    expanded: bool,
    timing: bool,
    paging: bool,
    max_rows: u64,
    timeout_ms: u64,
    params: BTreeMap<String, String>,
    out: Option<(PathBuf, File)>,
}

impl Settings {
    /// As the command line says.
    pub fn new(format: Output, max_rows: u64, timeout_ms: u64, params: Vec<(String, String)>, paging: bool) -> Self {
        let params = params.into_iter().collect();
        Self { format, expanded: false, timing: false, paging, max_rows, timeout_ms, params, out: None }
    }
}

/// What comes after a line.
enum Next {
    Line,
    Leave,
}

/// One session.
struct Shell {
    source: Arc<Source>,
    settings: Settings,
    editor: Editor<Helper, FileHistory>,
    interrupts: Interrupts,
    history: History,
    /// The last statement, for evidence of it.
    last: Option<(String, Value)>,
}

/// Asks what is typed, until whoever types leaves.
pub fn run(source: Source, settings: Settings, keeps_history: bool) -> Result<(), Failure> {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .history_ignore_space(true)
        .max_history_size(5000)
        .map_err(Failure::unable)?
        // Where only the input is a terminal, lines are still edited on it.
        .behavior(if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm })
        .build();
    let mut editor = Editor::with_config(config).map_err(Failure::unable)?;
    let source = Arc::new(source);
    editor.set_helper(Some(Helper::new(Arc::clone(&source))));
    let history = History::open(keeps_history, &mut editor);
    let interrupts = Interrupts::listen()?;
    let name = custody_query::format::plain(&source.name());
    print(&format!("custody {}, asking {name}\nType \\? for help, \\q to leave.\n", env!("CARGO_PKG_VERSION")))?;
    Shell { source, settings, editor, interrupts, history, last: None }.lines()
}

impl Shell {
    /// Reads lines until the end.
    fn lines(mut self) -> Result<(), Failure> {
        let mut begun = String::new();
        loop {
            if let Some(helper) = self.editor.helper_mut() {
                helper.begun(&begun);
            }
            match self.editor.readline(prompt(&begun)) {
                Ok(line) => match self.line(&mut begun, &line)? {
                    Next::Line => {}
                    Next::Leave => return Ok(()),
                },
                Err(ReadlineError::Interrupted) => begun.clear(),
                Err(ReadlineError::Eof) => return Ok(()),
                Err(ReadlineError::Signal(_)) => {}
                Err(error) => return Err(Failure::unable(format!("the terminal cannot be read: {error}"))),
            }
            // What was pressed while nothing ran ends nothing.
            self.interrupts.take();
        }
    }

    /// Takes one line: a command, or a piece of a statement.
    fn line(&mut self, begun: &mut String, line: &str) -> Result<Next, Failure> {
        let word = line.trim();
        if begun.is_empty() && matches!(word.trim_end_matches(';'), "quit" | "exit") {
            return Ok(Next::Leave);
        }
        let is_help = begun.is_empty() && word.trim_end_matches(';') == "help";
        if is_help || word.starts_with('\\') && split(begun).within == Within::Statement {
            self.history.add(&mut self.editor, line);
            let word = if is_help { "\\?" } else { word };
            if word == "\\r" {
                begun.clear();
                return Ok(Next::Line);
            }
            return match self.command(word) {
                Ok(next) => Ok(next),
                Err(failure) => self.told(&failure).map(|()| Next::Line),
            };
        }
        if begun.is_empty() && word.is_empty() {
            return Ok(Next::Line);
        }
        begun.push_str(line);
        begun.push('\n');
        let Split { ended, rest, within } = split(begun);
        if ended.is_empty() {
            return Ok(Next::Line);
        }
        // What is complete is one entry, however many lines it has.
        let complete = begun.len() - rest.len();
        let entry = begun.get(..complete).unwrap_or_default().trim_end().to_owned();
        let statements: Vec<String> = ended.into_iter().filter(|s| says_something(s)).map(str::to_owned).collect();
        let rest = if within == Within::Statement && !says_something(rest) { String::new() } else { rest.to_owned() };
        *begun = rest;
        self.history.add(&mut self.editor, &entry);
        self.statements(&statements)?;
        Ok(Next::Line)
    }

    /// Asks statements one after another, until one fails or is given up.
    fn statements(&mut self, statements: &[String]) -> Result<(), Failure> {
        for statement in statements {
            let params = self.params_in(statement);
            self.last = Some((statement.clone(), params.clone()));
            match self.query(statement, &params) {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    self.told(&failure)?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// The parameters that a statement names, of those that are set.
    fn params_in(&self, statement: &str) -> Value {
        let names = |name: &str| {
            let named = format!("${name}");
            statement.match_indices(&named).any(|(at, _)| {
                let next = statement.get(at + named.len()..).and_then(|rest| rest.chars().next());
                !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
        };
        let named = self.settings.params.iter().filter(|(name, _)| names(name));
        Value::Object(named.map(|(name, text)| (name.clone(), sql::value(text))).collect::<Map<_, _>>())
    }

    fn asked(&self, statement: &str, params: &Value) -> Value {
        let Settings { max_rows, timeout_ms, .. } = self.settings;
        json!({"sql": statement, "params": params, "max_rows": max_rows, "timeout_ms": timeout_ms})
    }

    /// Asks one statement, and shows its answer; whether there was one, and it was not given up.
    fn query(&mut self, statement: &str, params: &Value) -> Result<bool, Failure> {
        let ask = self.asked(statement, params);
        let progress = std::io::stderr().is_terminal();
        let Asked::Answered(answer, took) = running::ask(&self.source, &ask, &self.interrupts, progress)? else {
            eprintln!("cancelled");
            return Ok(false);
        };
        self.show(&answer)?;
        say(&answer.notes);
        if self.settings.timing {
            print(&format!("Time: {}\n", milliseconds(took)))?;
        }
        Ok(true)
    }

    /// Shows an answer, or writes it where it is to go.
    fn show(&mut self, answer: &Answer) -> Result<(), Failure> {
        let to_terminal = self.settings.out.is_none() && std::io::stdout().is_terminal();
        let Settings { format, .. } = self.settings;
        let Answer { schema, batches, truncated, .. } = answer;
        let text = match format {
            Output::Table if self.settings.expanded => expanded(schema, batches, *truncated)?.into_bytes(),
            Output::Table => table(schema, batches, *truncated)?.into_bytes(),
            _ => {
                let mut writing = Writing::new(format, schema, to_terminal)
                    .map_err(|failure| Failure { message: failure.message + ": \\o FILE", ..failure })?;
                let mut out = Vec::new();
                for batch in batches {
                    out.extend(writing.rows(batch)?);
                }
                let notes = answer.notes.clone();
                let ended = Ended { rows: answer.rows, truncated: *truncated, log_size: answer.as_of_size, notes };
                out.extend(writing.end(&ended)?);
                out
            }
        };
        let Some((path, file)) = &mut self.settings.out else {
            let size = self.editor.dimensions();
            pager::show(&text, size.filter(|_| to_terminal && self.settings.paging))?;
            self.interrupts.take();
            return Ok(());
        };
        let fail = |e: std::io::Error| Failure::unable(format!("{} cannot be written: {e}", path.display()));
        file.write_all(&text).map_err(fail)?;
        let said = format!("{} rows to {}\n", answer.rows, path.display());
        if format.is_binary() {
            // One file holds one answer: what comes next is shown again.
            self.settings.out = None;
        }
        print(&said)
    }

    /// Says what went wrong; the session goes on.
    fn told(&self, failure: &Failure) -> Result<(), Failure> {
        for line in failure.message.lines() {
            eprintln!("error: {}", custody_query::format::plain(line));
        }
        Ok(())
    }

    /// Asks what a file says.
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::wrong(format!("{} cannot be read: {e}", path.display())))?;
        let statements: Vec<String> = crate::statements::statements(&text).into_iter().map(str::to_owned).collect();
        self.statements(&statements)
    }
}

/// What stands before a line tells in what the statement is.
fn prompt(begun: &str) -> &'static str {
    if begun.is_empty() {
        return "custody=> ";
    }
    match split(begun).within {
        Within::Statement | Within::Line => "custody-> ",
        Within::Quote('"') => "custody\"> ",
        Within::Quote(_) => "custody'> ",
        Within::Comment => "custody*> ",
    }
}

fn milliseconds(took: Duration) -> String {
    format!("{:.3} ms", took.as_secs_f64() * 1000.0)
}
