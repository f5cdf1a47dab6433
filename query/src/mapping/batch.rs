//! Several decisions in one record: AuthZEN's Access Evaluations (Authorization API 1.0, "Access Evaluations API") and
//! OpenFGA's `BatchCheck`. Each is a decision of its own, and a row of its own.
//!
//! What the request says of all of them, an item of AuthZEN's replaces as a whole. Its answers come in the order of
//! the questions, those of OpenFGA under ids. Who stops at the first refusal answers fewer, and what was not
//! answered, or by an error, was not decided.

use custody_proto::wire::LogRecord;
use serde_json::{Map, Value as Json, json};

use super::document::{Document, LIST_MAX};
use super::{RecordContext, openfga, policy};
use crate::attributes::attributes_json;
use crate::event::EventRow;

/// Bytes that rows of one batch may repeat, at most: what each of them has, times how many they are.
const REPEATED_BYTES_MAX: usize = 1 << 20;

/// What every decision of a batch shares.
pub(super) struct Batch<'a> {
    pub(super) context: &'a RecordContext<'a>,
    pub(super) log: &'a LogRecord<'a>,
    pub(super) said: &'a Document,
    /// Who answers so.
    pub(super) source: &'static str,
    /// How many questions were asked.
    pub(super) asked: usize,
    /// Bytes of the request that stand in each row.
    pub(super) shared_bytes: usize,
}

/// A question that was decided: its place among those that were asked, and its answer.
pub(super) type Decided<'a> = (usize, &'a Json, &'a Json);

/// The rows of a record that is such an exchange; none if it is no batch. A batch that would repeat too much gives no
/// rows: it stays a row of `logs`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<Vec<EventRow>> {
    authzen(context, log, said).or_else(|| openfga::batch(context, log, said))
}

fn authzen(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<Vec<EventRow>> {
    let list = |root: &str| {
        let items = said.at(&format!("{root}/evaluations")).and_then(Json::as_array);
        items.filter(|items| !items.is_empty())
    };
    let (root, asked) = policy::REQUEST.iter().rev().find_map(|root| Some((root, list(root)?)))?;
    // Where question and answer were joined, they stand in one list.
    let answers = policy::RESPONSE.iter().skip(1).find_map(|root| list(root)).unwrap_or(asked);
    let of_request = |name: &str| said.at(&format!("{root}/{name}")).filter(|value| !value.is_null());
    let shared = ["subject", "action", "resource"].map(|name| (name, of_request(name)));
    let shared_bytes: usize = shared.iter().filter_map(|(_, value)| *value).map(|value| value.to_string().len()).sum();
    let decided_by = ["/store_id", "/authorization_model_id"].map(|at| said.text(at).as_deref().map_or(0, str::len));
    let batch = Batch {
        context,
        log,
        said,
        source: "authzen",
        asked: asked.len().max(answers.len()),
        shared_bytes: shared_bytes + decided_by.iter().sum::<usize>(),
    };
    let decided = asked.iter().zip(answers).enumerate().map(|(i, (question, answer))| (i, question, answer));
    let decided = decided.filter(|(_, question, answer)| {
        let is_whole = shared.iter().all(|(name, value)| value.is_some() || own(question, name).is_some());
        is_whole && answer.get("decision").is_some_and(Json::is_boolean)
    });
    batch.rows(decided, |row, question, answer| {
        let member =
            |(name, value): &(&str, Option<&Json>)| Some(((*name).to_owned(), own(question, name).or(*value)?.clone()));
        let mut whole: Map<String, Json> = shared.iter().filter_map(member).collect();
        whole.insert("response".into(), answer.clone());
        policy::authzen(row, &Document::body(Json::Object(whole)));
        policy::decided_by(row, said);
    })
}

/// What an item says for itself. Protobuf's JSON says null of what it leaves to the request.
fn own<'a>(question: &'a Json, name: &str) -> Option<&'a Json> {
    question.get(name).filter(|value| !value.is_null())
}

impl Batch<'_> {
    /// A row for each decision, filled from its question and its answer.
    pub(super) fn rows<'a>(
        &self,
        decided: impl Iterator<Item = Decided<'a>>,
        fill: impl Fn(&mut EventRow, &Json, &Json),
    ) -> Option<Vec<EventRow>> {
        let (log, request_id) = (self.log, self.said.text("/request_id"));
        let repeated = self.shared_bytes + request_id.as_ref().map_or(0, String::len);
        let repeated = repeated + attributes_json(&log.attributes).len();
        if repeated.saturating_mul(self.asked.min(LIST_MAX)) > REPEATED_BYTES_MAX {
            return Some(Vec::new());
        }
        let bare = LogRecord::default();
        let mut rows = Vec::new();
        for (index, question, answer) in decided.take(LIST_MAX) {
            let mut row = policy::row(self.context, log, self.said, self.source);
            fill(&mut row, question, answer);
            row.correlation_id = row.correlation_id.or_else(|| request_id.clone());
            let names = vec![("authz.evaluation.index", json!(index)), ("authz.evaluation.count", json!(self.asked))];
            // What was said of this one alone; the record's own attributes stand with the first.
            let own = if rows.is_empty() { log } else { &bare };
            Document::body(json!({"request": question, "response": answer})).keep(&mut row, own, names);
            rows.push(row);
        }
        (!rows.is_empty()).then_some(rows)
    }
}
