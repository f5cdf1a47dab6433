//! The columns of every event, found in one pass, against a search for each name.

use custody_proto::wire::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, Resource, Value};
use proptest::prelude::*;

use super::super::tests::context;
use super::*;

/// Keys that are no names, though each is nearly one.
const NEAR: [&str; 6] = ["", "authz.grant.ie", "AUTHZ.ACTION", "authz.actio", "tenant.id ", "gen_ai.agent.id\0"];

/// Some of them are what the columns are particular about.
const TEXTS: [&str; 8] = ["", "a", "spiffe://example.org/a", "read", "write", "destructive", "external_send", "{}"];

fn any(value: Value<'_>) -> Option<AnyValue<'_>> {
    Some(AnyValue { value: Some(value) })
}

/// An attribute of this name, with a value of this kind.
fn attribute(name: usize, kind: usize) -> KeyValue<'static> {
    let names = Found::default().each();
    let key = names.get(name).map_or_else(|| NEAR[(name - names.len()) % NEAR.len()], |(name, _)| *name);
    let value = match kind {
        0 => None,
        1 => Some(AnyValue::default()),
        2 => any(Value::IntValue(-7)),
        3 => any(Value::BoolValue(true)),
        4 => any(Value::DoubleValue(0.5)),
        5 => any(Value::BytesValue(b"text")),
        6 => {
            let values = ["one", "two"].map(|text| AnyValue { value: Some(Value::StringValue(text)) });
            any(Value::ArrayValue(ArrayValue { values: values.into() }))
        }
        7 => any(Value::StringValue(r#"{"act": {"sub": "agent", "act": {"sub": "person"}}}"#)),
        kind => any(Value::StringValue(TEXTS[kind % TEXTS.len()])),
    };
    KeyValue { key, value }
}

/// The columns as each was searched for once: the names in the order of preference.
fn by_search(said: Attributes<'_>) -> EventRow {
    let chain = said.list("authz.actor_chain");
    let claims = || said.text("oauth.token.claims").and_then(|text| document::Document::parse(&text));
    let actors = || claims().map_or_else(Vec::new, |claims| token::actors(claims.at("/act")));
    let workload = said.first(&["spiffe.id", "workload.spiffe_id", "service.spiffe_id"]);
    let effect = said.text("authz.effect").filter(|e| ["read", "write", "external_send"].contains(&e.as_str()));
    let tier = match said.text("gen_ai.agent.tool.tier").as_deref() {
        Some("read") => Some("read".to_owned()),
        Some("write" | "destructive" | "provision" | "decommission") => Some("write".to_owned()),
        _ => None,
    };
    EventRow {
        tenant: said.first(&["tenant.id", "custody.tenant"]),
        agent_id: said.text("gen_ai.agent.id"),
        agent_name: said.text("gen_ai.agent.name"),
        agent_version: said.text("gen_ai.agent.version"),
        actor_chain: if chain.is_empty() { actors() } else { chain },
        actor_type: said.first(&["authz.actor.type", "authz.approval.by_type", "security.actor.type"]),
        workload_id: workload.filter(|id| id.starts_with("spiffe://")),
        effect: effect.or(tier),
        trust: said.text("authz.context.trust"),
        evaluation_id: said.text("authz.evaluation.id"),
        arguments_digest: said.text("authz.arguments.digest"),
        shown_digest: said.text("authz.approval.shown_digest"),
        schema_digest: said.text("authz.tool.schema_digest"),
        parent_hash: said.text("authz.grant.parent_hash"),
        conversation_id: said.first(&["gen_ai.conversation.id", "session.id", "mcp.session.id"]),
        grant_id: said.text("authz.grant.id"),
        action: said.text("authz.action"),
        resource: said.text("authz.resource"),
        tool: said.text("gen_ai.tool.name"),
        tool_call_id: said.text("gen_ai.tool.call.id"),
        decision: said.text("authz.decision"),
        reasons: said.list("authz.reasons"),
        policy_id: said.text("authz.policy.id"),
        policy_version: said.text("authz.policy.version"),
        skill_id: said.text("skill.id"),
        skill_version: said.text("skill.version"),
        classification: said.text("data.classification"),
        workspace: said.first(&["authz.grant.workspace", "authz.workspace"]),
        task_id: said.first(&["authz.grant.task.id", "authz.task.id"]),
        process_id: said.first(&["authz.grant.process.id", "authz.process.id"]),
        correlation_id: said.first(&["authz.grant.correlation_id", "authz.correlation_id"]),
        ..EventRow::default()
    }
}

#[test]
fn each_name_has_a_place_of_its_own() {
    for (name, _) in Found::default().each() {
        let one = [KeyValue { key: name, value: None }];
        let found: Vec<_> = Found::of(&one).each().into_iter().filter(|(_, found)| found.is_some()).collect();
        assert_eq!(found, [(name, Some(&one[0]))]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_pass_finds_what_a_search_for_each_name_finds(
        some in proptest::collection::vec((0usize..60, 0usize..40), 0..40),
    ) {
        let attributes: Vec<_> = some.into_iter().map(|(name, kind)| attribute(name, kind)).collect();
        let found = Found::of(&attributes);
        for (name, found) in found.each() {
            let searched = attributes.iter().find(|attribute| attribute.key == name);
            prop_assert!(match (found, searched) {
                (Some(found), Some(searched)) => std::ptr::eq(found, searched),
                (found, searched) => found.is_none() && searched.is_none(),
            }, "{}", name);
        }
        let said = Attributes(&attributes);
        let (resource, scope) = (Resource::default(), InstrumentationScope::default());
        let context = context(&resource, &scope);
        let bare = base(&context, &Found::default(), "test");
        let row = base(&context, &found, "test");
        let want = EventRow {
            seq: bare.seq,
            ingest_time: bare.ingest_time,
            submitter: bare.submitter,
            source: bare.source,
            mapping_version: bare.mapping_version,
            ..by_search(said)
        };
        prop_assert_eq!(row, want);
        let span = Span { attributes: attributes.clone(), ..Span::default() };
        let row = base_span(&context, &span, "test", "tool_call");
        let who = said.first(&["authz.initiator.id", "enduser.id", "user.id"]);
        let kind = said.text("authz.initiator.type").or_else(|| Some("user".into()));
        prop_assert_eq!((row.initiator_type, row.initiator_id), (kind.filter(|_| who.is_some()), who));
    }
}
