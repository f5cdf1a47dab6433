//! The commands of the shell: what begins with a backslash.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use custody_query::{Answer, saved};
use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use super::{Next, Shell};
use crate::output::Output;
use crate::{Failure, answer, print, sql};

/// Each command, what comes behind it, and what it does.
pub(super) const COMMANDS: [(&str, &str, &str); 20] = [
    ("\\?", "", "this list"),
    ("\\q", "", "leave (so do Ctrl-D, quit and exit)"),
    ("\\d", "[NAME]", "tables, views and table functions, or the columns of one"),
    ("\\df", "[TEXT]", "functions, or those with TEXT in their name"),
    ("\\l", "", "saved queries: the questions that investigators ask first"),
    ("\\run", "NAME [name=value]...", "ask a saved query; what it needs, \\l tells"),
    (
        "\\evidence",
        "FILE",
        "write the last answer with the proofs and contents of its records; custody check verifies it",
    ),
    ("\\x", "[on|off]", "a column a line, for wide rows"),
    ("\\format", "[FORMAT]", "table, json, csv, arrow or parquet"),
    ("\\o", "[FILE]", "write answers to a file; without one, show them again"),
    ("\\i", "FILE", "ask what a file says"),
    ("\\set", "[NAME VALUE]", "a value for $NAME in statements; without one, show those that are set"),
    ("\\unset", "NAME", "forget a value"),
    ("\\timing", "[on|off]", "tell how long each answer took"),
    ("\\pager", "[on|off]", "show long answers with $PAGER, or less -S"),
    ("\\rows", "[N]", "rows beyond this are cut off"),
    ("\\timeout", "[SECONDS]", "queries are given up after this long"),
    ("\\r", "", "forget what was typed of a statement (so does Ctrl-C)"),
    ("\\dt", "", "the same as \\d"),
    ("\\h", "", "the same as \\?"),
];

const TABLES: &str =
    "SELECT usage AS name, kind, description FROM custody_tables ORDER BY kind = 'function', table_name";

const COLUMNS: &str = "SELECT column_name AS column, data_type AS type, CASE WHEN is_nullable THEN 'yes' END AS null, \
                       description FROM custody_columns WHERE table_name = lower($1) ORDER BY ordinal_position";

const FUNCTIONS: &str = "SELECT name, kind, usage, description FROM (\
     SELECT table_name AS name, 'table' AS kind, usage, description FROM custody_tables WHERE kind = 'function' \
     UNION ALL SELECT routine_name, lower(function_type), max(syntax_example), max(description) \
     FROM information_schema.routines WHERE function_type <> 'TABLE' GROUP BY 1, 2) AS functions \
     WHERE contains(name, lower($1)) ORDER BY kind = 'table' DESC, name, kind";

impl Shell {
    /// Does what a line says that begins with a backslash.
    pub(super) fn command(&mut self, line: &str) -> Result<Next, Failure> {
        let words = words(line).map_err(Failure::wrong)?;
        let (name, rest) = words.split_first().map_or(("", &[][..]), |(name, rest)| (name.as_str(), rest));
        let first = rest.first().map(String::as_str);
        match name {
            "\\?" | "\\h" => self.text(help())?,
            "\\q" => return Ok(Next::Leave),
            "\\d" | "\\dt" | "\\d+" => match first {
                None => self.own(TABLES, &json!([]))?,
                Some(table) => self.columns(table.trim_end_matches(';'))?,
            },
            "\\df" => self.own(FUNCTIONS, &json!([first.unwrap_or_default()]))?,
            "\\l" => self.saved()?,
            "\\run" => self.run_saved(first, rest.get(1..).unwrap_or_default())?,
            "\\evidence" => self.evidence(first)?,
            "\\x" => self.settings.expanded = switch("expanded", self.settings.expanded, first)?,
            "\\timing" => self.settings.timing = switch("timing", self.settings.timing, first)?,
            "\\pager" => self.settings.paging = switch("paging", self.settings.paging, first)?,
            "\\format" => self.format(first)?,
            "\\o" => self.out(first)?,
            "\\i" => self.file(&path(first)?)?,
            "\\set" => self.set(rest)?,
            "\\unset" => self.unset(first)?,
            "\\rows" => self.settings.max_rows = number("rows", self.settings.max_rows, first)?,
            "\\timeout" => {
                let seconds = number("seconds", self.settings.timeout_ms / 1000, first)?;
                self.settings.timeout_ms = first.map_or(self.settings.timeout_ms, |_| seconds.saturating_mul(1000));
            }
            other => return Err(Failure::wrong(format!("there is no command {other}; \\? lists them"))),
        }
        Ok(Next::Line)
    }

    /// Asks what is no statement of the user's: it is no evidence, and tells no time.
    fn own(&mut self, query: &str, params: &Value) -> Result<(), Failure> {
        let ask = json!({"sql": query, "params": params, "max_rows": 100_000});
        let answer = self.source.answer(&ask)?;
        self.shown(&answer)
    }

    /// Shows on the terminal, as a table.
    fn shown(&mut self, answer: &Answer) -> Result<(), Failure> {
        let text = crate::output::table(&answer.schema, &answer.batches, false)?;
        self.text(text)
    }

    fn text(&mut self, text: String) -> Result<(), Failure> {
        let size = self.editor.dimensions().filter(|_| self.settings.paging);
        super::pager::show(text.as_bytes(), size)?;
        self.interrupts.take();
        Ok(())
    }

    fn columns(&mut self, table: &str) -> Result<(), Failure> {
        let answer = self.source.answer(&json!({"sql": COLUMNS, "params": [table], "max_rows": 100_000}))?;
        if answer.rows == 0 {
            return Err(Failure::wrong(format!("there is no table {table}; \\d lists them")));
        }
        self.shown(&answer)
    }

    fn saved(&mut self) -> Result<(), Failure> {
        let params = |query: &saved::SavedQuery| {
            let one = |p: &saved::SavedParam| match p.default {
                None => format!("{}=...", p.name),
                Some(_) => format!("[{}=...]", p.name),
            };
            query.params.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(saved::all().iter().map(|q| q.name)));
        let given: ArrayRef = Arc::new(StringArray::from_iter_values(saved::all().iter().map(params)));
        let titles: ArrayRef = Arc::new(StringArray::from_iter_values(saved::all().iter().map(|q| q.title)));
        let columns = [("name", names), ("parameters", given), ("question", titles)];
        let batch = RecordBatch::try_from_iter(columns).map_err(Failure::unable)?;
        self.text(crate::output::table(&batch.schema(), &[batch], false)?)
    }

    fn run_saved(&mut self, name: Option<&str>, given: &[String]) -> Result<(), Failure> {
        let name = name.ok_or_else(|| Failure::wrong("say which: \\run NAME; \\l lists them"))?;
        let query = saved::find(name.trim_end_matches(';'))
            .ok_or_else(|| Failure::wrong(format!("there is no saved query {name}; \\l lists them")))?;
        let given: Vec<_> =
            given.iter().map(|text| sql::named(text)).collect::<Result<_, _>>().map_err(Failure::wrong)?;
        let params = query.bind(&given).map_err(|e| Failure::wrong(e.message.replace("say -p ", "say ")))?;
        let params = Value::Object(params);
        self.last = Some((query.sql.to_owned(), params.clone()));
        self.query(query.sql, &params).map(drop)
    }

    /// Asks the last statement once more, for evidence: an answer and its proofs are of one state of the log.
    fn evidence(&mut self, file: Option<&str>) -> Result<(), Failure> {
        let file = path(file)?;
        let (statement, params) = self
            .last
            .clone()
            .ok_or_else(|| Failure::wrong("ask something first; evidence is of the last statement"))?;
        let ask = self.asked(&statement, &params);
        match self.source.directory() {
            Some(dir) => answer::write(&file, dir, &ask),
            None => answer::fetch(&file, &self.source, &ask),
        }
    }

    fn format(&mut self, name: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = name {
            let known = <Output as clap::ValueEnum>::from_str(name, true);
            self.settings.format = known.map_err(|_| {
                Failure::wrong(format!("there is no format {name}; there are table, json, csv, arrow and parquet"))
            })?;
        }
        print(&format!("format is {}\n", self.settings.format.name()))
    }

    fn out(&mut self, file: Option<&str>) -> Result<(), Failure> {
        self.settings.out = None;
        if file.is_some() {
            let path = path(file)?;
            let made = std::fs::File::create(&path);
            let made = made.map_err(|e| Failure::wrong(format!("{} cannot be written: {e}", path.display())))?;
            self.settings.out = Some((path, made));
        }
        Ok(())
    }

    fn set(&mut self, words: &[String]) -> Result<(), Failure> {
        match words {
            [] => {
                let lines = self.settings.params.iter().map(|(name, value)| format!("{name} = {value}\n"));
                print(&lines.map(|line| custody_query::format::plain(line.trim_end()) + "\n").collect::<String>())
            }
            [name] => Err(Failure::wrong(format!("say which value: \\set {name} VALUE"))),
            [name, value @ ..] => {
                let name = name.trim_start_matches('$');
                if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
                    return Err(Failure::wrong("a name is letters, digits and _"));
                }
                self.settings.params.insert(name.to_owned(), value.join(" "));
                Ok(())
            }
        }
    }

    fn unset(&mut self, name: Option<&str>) -> Result<(), Failure> {
        let name = name.ok_or_else(|| Failure::wrong("say which: \\unset NAME"))?.trim_start_matches('$');
        match self.settings.params.remove(name) {
            Some(_) => Ok(()),
            None => Err(Failure::wrong(format!("{name} is not set"))),
        }
    }
}

fn help() -> String {
    let mut out = String::from(
        "Statements end with a semicolon, over as many lines as they take. TAB completes, Ctrl-R searches the \
         history,\nCtrl-C ends the query that runs, or forgets the line.\n\n",
    );
    for (name, takes, what) in COMMANDS {
        out += &format!("  {:<28} {what}\n", format!("{name} {takes}"));
    }
    out
}

/// On or off; without a word, the other of the two.
fn switch(what: &str, is: bool, word: Option<&str>) -> Result<bool, Failure> {
    let wanted = match word {
        None => !is,
        Some("on") => true,
        Some("off") => false,
        Some(other) => return Err(Failure::wrong(format!("{what} is on or off, and not {other}"))),
    };
    print(&format!("{what} is {}\n", if wanted { "on" } else { "off" }))?;
    Ok(wanted)
}

/// A number; without a word, the one that is set, which is told.
fn number(what: &str, is: u64, word: Option<&str>) -> Result<u64, Failure> {
    let wanted = match word {
        None => is,
        Some(word) => word.parse().map_err(|_| Failure::wrong(format!("{word} is no number of {what}")))?,
    };
    print(&format!("{wanted} {what}\n"))?;
    Ok(wanted)
}

fn path(word: Option<&str>) -> Result<PathBuf, Failure> {
    let word = word.ok_or_else(|| Failure::wrong("say which file"))?;
    match (word.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Ok(Path::new(&home).join(rest)),
        _ => Ok(word.into()),
    }
}

/// The words of a line; quotes hold spaces together.
fn words(line: &str) -> Result<Vec<String>, String> {
    let (mut out, mut word, mut quote, mut has_word) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => (quote, has_word) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if std::mem::take(&mut has_word) {
                    out.push(std::mem::take(&mut word));
                }
            }
            (_, c) => {
                word.push(c);
                has_word = true;
            }
        }
    }
    if let Some(quote) = quote {
        return Err(format!("the quote {quote} is not closed"));
    }
    out.extend(has_word.then_some(word));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn quotes_hold_words_together() {
        let told = words("\\run  grant_chain grant='a b' x=\"it's\" ''").unwrap();
        assert_eq!(told, ["\\run", "grant_chain", "grant=a b", "x=it's", ""]);
        assert!(words("\\o 'a").is_err());
    }
}
