//! Which records a command speaks of: named by seq, or found by a query.

use clap::Args;
use custody_store::system::SeqSet;
use serde_json::json;

use crate::Failure;
use crate::source::Source;

/// Which records.
#[derive(Args, Clone)]
#[group(multiple = false)]
pub struct Select {
    /// Records by number: 7 or 7,9-12.
    #[arg(long, value_name = "SEQS")]
    pub seq: Option<String>,
    /// Every span and log record of a trace.
    #[arg(long, value_name = "ID")]
    pub trace: Option<String>,
    /// What a replay of this grant shows: its chain, its uses, their traces' steps.
    #[arg(long, value_name = "ID")]
    pub grant: Option<String>,
    /// What a replay of this agent shows.
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
    /// A query with a column `seq`, such as "SELECT seq FROM logs WHERE ...".
    #[arg(long, value_name = "QUERY")]
    pub sql: Option<String>,
    /// A condition on the table `events`, such as "agent_id = 'support-agent'".
    #[arg(long, value_name = "CONDITION")]
    pub r#where: Option<String>,
}

impl Select {
    /// How the records were chosen, in words.
    pub fn words(&self) -> String {
        let named = [
            ("seq", &self.seq),
            ("trace", &self.trace),
            ("grant", &self.grant),
            ("agent", &self.agent),
            ("sql", &self.sql),
            ("where", &self.r#where),
        ];
        let chosen = named.into_iter().find_map(|(name, value)| value.as_ref().map(|value| format!("{name} {value}")));
        chosen.unwrap_or_default()
    }

    /// The query that finds them; `None` if they are named.
    pub fn query(&self) -> Option<String> {
        let quoted = |text: &String| format!("'{}'", text.replace('\'', "''"));
        if let Some(trace) = &self.trace {
            let id = quoted(&trace.to_lowercase());
            return Some(format!(
                "SELECT seq FROM spans WHERE trace_id = {id} UNION ALL SELECT seq FROM logs WHERE trace_id = {id}"
            ));
        }
        let named = [("grant", &self.grant), ("agent", &self.agent)];
        if let Some((of, id)) = named.into_iter().find_map(|(of, id)| Some((of, id.as_ref()?))) {
            return Some(format!("SELECT seq FROM replay({}, NULL, '{of}') WHERE seq IS NOT NULL", quoted(id)));
        }
        if let Some(condition) = &self.r#where {
            return Some(format!("SELECT seq FROM events WHERE {condition}"));
        }
        self.sql.clone()
    }

    /// The records. `source` answers the query.
    pub fn resolve(&self, source: impl FnOnce() -> Result<Source, Failure>) -> Result<SeqSet, Failure> {
        // Not clap's `required`: it would also be asked for beside `export --all`.
        if self.words().is_empty() {
            return Err(Failure::wrong("say which records: --seq, --trace, --grant, --agent, --sql or --where"));
        }
        if let Some(seq) = &self.seq {
            return SeqSet::parse_loosely(seq)
                .ok_or_else(|| Failure::wrong(format!("--seq {seq} is not a list of seqs such as 7,9-12")));
        }
        let query = self.query().unwrap_or_default();
        let (schema, batches, truncated) =
            source()?.sql(&json!({"sql": query, "max_rows": 1_000_000, "timeout_ms": 600_000}))?;
        let column = schema.index_of("seq").map_err(|_| Failure::wrong("the query has no column seq"))?;
        if truncated {
            return Err(Failure::wrong("the query finds more than 1,000,000 records; choose fewer at a time"));
        }
        let mut seqs = Vec::new();
        for batch in &batches {
            let numbers =
                datafusion::arrow::compute::cast(batch.column(column), &datafusion::arrow::datatypes::DataType::UInt64);
            let numbers = numbers.map_err(|_| Failure::wrong("the column seq does not hold numbers"))?;
            let numbers = numbers.as_any().downcast_ref::<datafusion::arrow::array::UInt64Array>().cloned();
            seqs.extend(numbers.iter().flat_map(|n| n.iter().flatten().collect::<Vec<_>>()));
        }
        if seqs.is_empty() {
            return Err(Failure::wrong(format!("no record is found by {}", self.words())));
        }
        Ok(SeqSet::of_seqs(seqs))
    }
}
