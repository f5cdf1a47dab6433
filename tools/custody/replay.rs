//! `custody replay`: what happened, step by step, under which authority.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use custody_query::replay::StepRow;
use custody_query::{format, tree};

use crate::source::{From, Source};
use crate::{Failure, print, print_bytes};

/// Replay a trace, a grant, an agent, a conversation or an alert.
///
/// Every step in causal order: who, under which grant, what was decided, which
/// tool, with which result, when. Evidence that is missing is marked with ??.
#[derive(Args)]
pub struct Replay {
    #[command(flatten)]
    what: What,
    /// What the ledger knew then: a seq, or a time such as 2026-11-20T09:00:00Z.
    #[arg(long, value_name = "SEQ|TIME")]
    as_of: Option<String>,
    #[command(flatten)]
    from: From,
    /// A tree for people, or the steps as JSON.
    #[arg(long, value_enum, default_value_t = Output::Tree)]
    format: Output,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A trace id, 32 hexadecimal digits.
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// A grant: the traces in which it, or a grant derived from it, was used.
    #[arg(long, value_name = "ID")]
    grant: Option<String>,
    /// An agent.
    #[arg(long, value_name = "ID")]
    agent: Option<String>,
    /// A conversation or session.
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// An alert: the traces of the records that it cites.
    #[arg(long, value_name = "ID")]
    alert: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Tree,
    Json,
}

impl Replay {
    /// Prints the replay. Nothing found is status 1.
    pub fn run(self) -> Result<(), Failure> {
        let what = self.what;
        let named = [
            ("trace", what.trace),
            ("grant", what.grant),
            ("agent", what.agent),
            ("conversation", what.conversation),
            ("alert", what.alert),
        ];
        let asked = named.into_iter().find_map(|(of, id)| Some((of, id?)));
        // clap wants exactly one.
        let Some((of, id)) = asked else { return Err(Failure::wrong("say what to replay, such as --trace ID")) };
        let mut tree = tree::Tree::new(std::io::stdout().is_terminal());
        let mut count = 0;
        self.from.open()?.replay((&id, of), self.as_of.as_deref(), &mut |batch| {
            let mut text = String::new();
            match self.format {
                Output::Tree => text.extend(StepRow::read(&batch).iter().map(|step| tree.draw(step))),
                Output::Json => {
                    for row in format::rows(std::slice::from_ref(&batch)).map_err(Failure::unable)? {
                        text.push_str(if count == 0 && text.is_empty() { "[\n" } else { ",\n" });
                        text.push_str(&serde_json::to_string(&row).map_err(Failure::unable)?);
                    }
                }
            }
            count += batch.num_rows();
            // The tree is harmless as it is drawn, and has colours.
            if self.format == Output::Json { print(&text) } else { print_bytes(text.as_bytes()) }
        })?;
        if count == 0 {
            let then = self.as_of.map_or_else(String::new, |at| format!(" as of {at}"));
            // Only a trace has plain spans, which are no steps.
            let spans = match of {
                "trace" => format!("; its plain spans: custody sql \"SELECT * FROM spans WHERE trace_id = '{id}'\""),
                _ => String::new(),
            };
            return Err(Failure::wrong(format!(
                "no provenance event in this ledger is known by the id {id} (as {of}){then}{spans}"
            )));
        }
        if self.format == Output::Json { print("\n]\n") } else { Ok(()) }
    }
}

/// The steps of a replay, asked of the API.
pub fn steps(
    source: &Source,
    id: &str,
    as_of: Option<&str>,
) -> Result<Vec<datafusion::arrow::record_batch::RecordBatch>, Failure> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let as_of = as_of.map_or_else(String::new, |at| match at.parse::<u64>() {
        Ok(seq) => format!(", {seq}"),
        Err(_) => format!(", {}", quoted(at)),
    });
    let sql = format!("SELECT * FROM replay({}{as_of}) ORDER BY step", quoted(id));
    let (_, batches, _) = source.sql(&serde_json::json!({"sql": sql, "max_rows": 1_000_000}))?;
    Ok(batches)
}
