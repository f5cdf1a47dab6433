//! OpenFGA: checks of a relation, as its API answers them, as its request log has them (`grpc_req_complete`, with
//! `--log-format json`), and as the spans that it exports.
//!
//! What it cannot tell: why (a relation has no reasons), and whether the request that was asked about was then made.
//! Its `request_id` is the id of the trace where it exports spans, so that requests of one trace share it. Lists (`ListObjects`, `ListUsers`) say what would be permitted, and decide nothing.

use custody_proto::wire::{LogRecord, Span};
use serde_json::{Value as Json, json};

use super::batch::Batch;
use super::document::Document;
use super::{RecordContext, base_span, policy};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// A check with its answer.
pub(super) fn check(row: &mut EventRow, said: &Document) {
    let at = |name: &str| of_request(said, name);
    row.decision = policy::answer(said, "/allowed").and_then(Json::as_bool).and_then(policy::allow_or_deny);
    row.action = at("tuple_key/relation");
    row.resource = at("tuple_key/object");
    row.policy_version = at("authorization_model_id");
    row.policy_id = at("store_id").or_else(|| row.policy_version.clone());
    row.correlation_id = said.text("/request_id").or(row.correlation_id.take());
    if let Some(user) = at("tuple_key/user") {
        asked_by(row, &user);
    }
}

/// What the question says, wherever the record has it.
fn of_request(said: &Document, name: &str) -> Option<String> {
    policy::REQUEST.iter().find_map(|root| said.text(&format!("{root}/{name}")))
}

/// The user of a tuple is `type:id`; an agent acts, anybody else initiates.
fn asked_by(row: &mut EventRow, user: &str) {
    match user.split_once(':') {
        Some((kind, id)) => policy::principal(row, kind, id.to_owned()),
        None => policy::principal(row, "user", user.to_owned()),
    }
}

/// The rows of a `BatchCheck`: its answers stand under the ids that its questions were given. What is answered by an
/// error was not decided.
pub(super) fn batch(context: &RecordContext<'_>, log: &LogRecord<'_>, said: &Document) -> Option<Vec<EventRow>> {
    let asked = policy::REQUEST.iter().find_map(|root| said.at(&format!("{root}/checks"))?.as_array())?;
    let answers = policy::answer(said, "/result")?.as_object()?;
    let shared = ["store_id", "authorization_model_id"].map(|name| (name, of_request(said, name)));
    let batch = Batch {
        context,
        log,
        said,
        source: "openfga",
        asked: asked.len(),
        shared_bytes: shared.iter().filter_map(|(_, value)| value.as_deref()).map(str::len).sum(),
    };
    let decided = asked.iter().enumerate().filter_map(|(i, question)| {
        let answer = answers.get(question.get("correlation_id")?.as_str()?)?;
        let is_decided = answer.get("allowed").is_some_and(Json::is_boolean);
        (is_decided && question.get("tuple_key").is_some_and(Json::is_object)).then_some((i, question, answer))
    });
    batch.rows(decided, |row, question, answer| {
        let mut whole = json!({"tuple_key": question["tuple_key"], "allowed": answer["allowed"]});
        for (name, value) in &shared {
            whole[*name] = json!(value);
        }
        check(row, &Document::body(whole));
        policy::names_its_policy(row);
    })
}

/// The event of a span of its server, if it is one of a check that was decided.
pub(super) fn map_span(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    if context.scope.name != "openfga/pkg/server" || span.name != "Check" {
        return None;
    }
    let attributes = Attributes(&span.attributes);
    let allowed: bool = attributes.text("allowed")?.parse().ok()?;
    let mut row = base_span(context, span, "openfga", "policy_evaluation");
    row.decision = policy::allow_or_deny(allowed);
    row.action = attributes.text("relation");
    row.resource = attributes.text("object");
    row.policy_id = attributes.text("store_id");
    row.policy_version = attributes.text("authorization_model_id");
    asked_by(&mut row, &attributes.text("user")?);
    policy::names_its_policy(&mut row);
    Some(row)
}
