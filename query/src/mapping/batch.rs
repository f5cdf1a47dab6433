//! AuthZEN's Access Evaluations (Authorization API 1.0, "Access Evaluations API"): several questions in one
//! request, and an answer to each. Each is a decision of its own, and a row of its own.
//!
//! What the request says of all of them (`subject`, `action`, `resource`) an item replaces as a whole. Answers come
//! in the order of the questions; who stops at the first refusal answers fewer, and what was not answered was not
//! decided.

use custody_proto::wire::LogRecord;
use serde_json::{Map, Value as Json, json};

use super::document::{Document, LIST_MAX};
use super::{RecordContext, policy};
use crate::attributes::attributes_json;
use crate::event::EventRow;

/// Bytes that rows of one batch may repeat, at most: what each of them has, times how many they are.
const REPEATED_BYTES_MAX: usize = 1 << 20;

/// The rows of a record that is such an exchange; none if it is no batch. A batch that would repeat too much gives no
/// rows: it stays a row of `logs`.
pub(super) fn map(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<Vec<EventRow>> {
    let list = |at: &str| said.at(at).and_then(Json::as_array).filter(|items| !items.is_empty());
    let (root, asked) = list("/request/evaluations")
        .map(|items| ("/request", items))
        .or_else(|| list("/evaluations").map(|items| ("", items)))?;
    // Where question and answer were joined, they stand in one list.
    let answers = list("/response/evaluations").unwrap_or(asked);
    let shared = ["subject", "action", "resource"].map(|name| (name, said.at(&format!("{root}/{name}"))));
    let pairs: Vec<_> = asked.iter().zip(answers).take(LIST_MAX).collect();
    let all = shared.iter().filter_map(|(_, value)| *value).chain(said.at("/request_id"));
    let repeated: usize = all.map(|value| value.to_string().len()).sum();
    if (repeated + attributes_json(&log.attributes).len()).saturating_mul(pairs.len()) > REPEATED_BYTES_MAX {
        return Some(Vec::new());
    }
    let bare = LogRecord::default();
    let mut rows = Vec::new();
    for (index, (question, answer)) in pairs.into_iter().enumerate() {
        let mut whole: Map<String, Json> =
            shared.iter().filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.clone()))).collect();
        for (name, _) in shared {
            whole.extend(question.get(name).map(|value| (name.to_owned(), value.clone())));
        }
        if whole.len() < shared.len() || !answer.get("decision").is_some_and(Json::is_boolean) {
            continue;
        }
        whole.insert("response".into(), answer.clone());
        let mut row = policy::row(context, log, said, "authzen");
        policy::authzen(&mut row, &Document::body(Json::Object(whole)));
        row.correlation_id = row.correlation_id.or_else(|| said.text("/request_id"));
        let names = vec![
            ("authz.evaluation.index", json!(index)),
            ("authz.evaluation.count", json!(asked.len().max(answers.len()))),
        ];
        // What was said of this one alone; the record's own attributes stand with the first.
        let own = if rows.is_empty() { log } else { &bare };
        Document::body(json!({"request": question, "response": answer})).keep(&mut row, own, names);
        rows.push(row);
    }
    (!rows.is_empty()).then_some(rows)
}
