//! What each kind of event becomes, and what the validator refuses.

use serde_json::{Value as Json, json};

use super::any_tests::read_cef;
use super::*;
use crate::rows::Time;

/// Every kind that a mapping makes, one that none does, and none.
pub(super) fn kinds() -> Vec<&'static str> {
    crate::mapping::KINDS.into_iter().chain(["something_new", ""]).collect()
}

pub(super) fn line(format: Format, row: &EventRow) -> String {
    let mut out = String::new();
    encode(format, row, &Context::of("example.org/log"), &mut out);
    out
}

fn ocsf(row: &EventRow) -> Json {
    serde_json::from_str(&line(Format::Ocsf, row)).unwrap()
}

pub(super) fn faults(event: &Json) -> Vec<String> {
    Schema::get().validate(event).faults.iter().map(ToString::to_string).collect()
}

/// A row with every column filled.
pub(super) fn full(kind: &str) -> EventRow {
    let some = |text: &str| Some(text.to_owned());
    EventRow {
        seq: 7,
        record_hash: "ab".repeat(32),
        event_time: Time(1_795_165_200_123_456_789),
        end_time: Some(Time(1_795_165_201_123_456_789)),
        observed_time: Some(Time(1_795_165_202_000_000_001)),
        ingest_time: Time(1_795_165_203_000_000_001),
        kind: kind.into(),
        trace_id: some("0102030405060708090a0b0c0d0e0f10"),
        span_id: some("0102030405060708"),
        parent_span_id: some("0807060504030201"),
        links: vec!["aa:bb".into()],
        tenant: some("tenant"),
        submitter: "spiffe://example.org/agent".into(),
        service: some("payments"),
        initiator_type: some("user"),
        initiator_id: some("ada@example.org"),
        agent_id: some("agent-1"),
        agent_name: some("payer"),
        agent_version: some("2"),
        actor_chain: vec!["ada".into(), "agent-1".into()],
        grant_id: some("g2"),
        parent_grant_id: some("g1"),
        root_grant_id: some("g0"),
        delegation_depth: Some(2),
        workspace: some("w"),
        task_id: some("t"),
        process_id: some("p"),
        action: some("send"),
        resource: some("mcp:bank"),
        tool: some("send_money"),
        tool_call_id: some("call_1"),
        decision: some("deny"),
        reasons: vec!["too much".into(), "at night".into()],
        policy_id: some("limits"),
        policy_version: some("3"),
        skill_id: some("skill"),
        skill_version: some("4"),
        classification: some("pii"),
        correlation_id: some("c"),
        actor_type: some("agent"),
        workload_id: some("spiffe://example.org/payer"),
        effect: some("other"),
        trust: some("untrusted"),
        evaluation_id: some("e"),
        arguments_digest: some("d1"),
        shown_digest: some("d2"),
        schema_digest: some("d3"),
        parent_hash: some("d4"),
        conversation_id: some("conversation"),
        status: some("error"),
        invalid_reasons: vec!["no policy".into()],
        attributes: json!({
            "gen_ai.tool.name": "send_money", "gen_ai.request.model": "m-1", "gen_ai.provider.name": "acme",
            "gen_ai.usage.input_tokens": 12, "gen_ai.tool.call.arguments": "{\"amount\": 5}",
            "gen_ai.tool.call.result": "sent", "http.response.status_code": 403, "error.type": "Denied",
            "authz.grant.actions": ["send", "read"], "authz.grant.expires_at": 1_795_165_300,
            "authz.grant.issuer": "authority", "security.alert.evidence": [3, 5],
            "security.alert.title": "It was denied and ran", "security_rule.name": "denied_then_executed",
            "security.alert.severity": "high", "security.alert.tags": ["OWASP ASI02", "ATLAS AML.T0053", "AML.T0051.001"],
            "security.note": "looked", "security.investigation.disposition": "true_positive", "own": {"x": [1, null]},
        })
        .to_string(),
        source: "otel_genai".into(),
        mapping_version: 2,
    }
}

/// Whether the line of a row that a mapping made is valid, and the row can be read back from it: asked
/// by the mapping's tests, of all their rows.
pub(crate) fn assert_sound(row: &EventRow) {
    let event = ocsf(row);
    let report = Schema::get().validate(&event);
    assert!(report.faults.is_empty() && report.notes.is_empty(), "{report:?} in {event:#}");
    assert!(event["class_uid"] != 0, "the kind {} has no class in class.rs", row.kind);
    assert!(crate::mapping::KINDS.contains(&row.kind.as_str()), "the kind {} is not in KINDS", row.kind);
    assert_eq!(read_back(&event), EventRow { attributes: String::new(), ..row.clone() });
    serde_json::from_str::<Json>(&line(Format::Ecs, row)).unwrap();
    read_cef(&line(Format::Cef, row));
}

/// What a reader of the OCSF event gets of the row: all columns but the attributes.
pub(super) fn read_back(event: &Json) -> EventRow {
    let at = |path: &str| event.pointer(path).cloned();
    let text = |path: &str| at(path).and_then(|v| v.as_str().map(str::to_owned));
    let own = |name: &str| text(&format!("/custody/{name}"));
    let texts = |path: &str| at(path).map_or_else(Vec::new, |list| serde_json::from_value(list).unwrap());
    let time = |name: &str| at(&format!("/custody/{name}")).and_then(|v| v.as_i64()).map(Time);
    let mapping = own("mapping").unwrap();
    let (source, version) = mapping.rsplit_once('/').unwrap();
    EventRow {
        seq: at("/metadata/sequence").unwrap().as_u64().unwrap(),
        record_hash: own("record_hash").unwrap(),
        event_time: time("event_time_ns").unwrap(),
        end_time: time("end_time_ns"),
        observed_time: time("observed_time_ns"),
        ingest_time: time("ingest_time_ns").unwrap(),
        kind: own("provenance_kind").unwrap(),
        trace_id: own("trace_id"),
        span_id: own("span_id"),
        parent_span_id: own("parent_span_id"),
        links: texts("/custody/span_links"),
        tenant: text("/metadata/tenant_uid"),
        submitter: own("submitter").unwrap(),
        service: own("service_name"),
        initiator_type: own("initiator_type"),
        initiator_id: own("initiator_uid"),
        agent_id: own("ai_agent_uid"),
        agent_name: own("ai_agent_name"),
        agent_version: own("ai_agent_version"),
        actor_chain: texts("/custody/delegation_path/actor_chain"),
        grant_id: own("delegation_path/grant_id"),
        parent_grant_id: own("delegation_path/parent_grant_id"),
        root_grant_id: own("delegation_path/root_grant_id"),
        delegation_depth: at("/custody/delegation_path/delegation_depth").map(|d| d.as_u64().unwrap() as u32),
        workspace: own("workspace_uid"),
        task_id: own("task_uid"),
        process_id: own("business_process_uid"),
        action: own("provenance_action"),
        resource: own("provenance_resource"),
        tool: own("tool_name"),
        tool_call_id: own("tool_call_uid"),
        decision: own("decision"),
        reasons: texts("/custody/decision_reasons"),
        policy_id: text("/policy/uid"),
        policy_version: text("/policy/version"),
        skill_id: own("skill_uid"),
        skill_version: own("skill_version"),
        classification: own("classification_label"),
        correlation_id: text("/metadata/correlation_uid"),
        actor_type: own("acting_type"),
        workload_id: own("workload_uid"),
        effect: own("call_effect"),
        trust: own("context_trust"),
        evaluation_id: own("evaluation_uid"),
        arguments_digest: own("arguments_digest"),
        shown_digest: own("shown_digest"),
        schema_digest: own("tool_schema_digest"),
        parent_hash: own("delegation_path/parent_grant_hash"),
        conversation_id: own("conversation_uid"),
        status: own("source_status"),
        invalid_reasons: texts("/custody/invalid_reasons"),
        attributes: String::new(),
        source: source.into(),
        mapping_version: version.parse().unwrap(),
    }
}

#[test]
fn every_kind_has_its_class_and_is_valid_and_complete() {
    let want = |kind: &str| match kind {
        "context_retrieval" => 600_504,
        "system_update" => 600_303,
        "grant_issued" | "grant_derived" | "grant_denied" => 300_301,
        "grant_revoked" => 300_399,
        "authority_change" => 300_403,
        "alert" => 200_401,
        "alert_acknowledged" | "alert_superseded" | "investigation" | "containment_decision" => 200_402,
        "erasure" => 100_802,
        "something_new" | "" => 99,
        _ => 600_399,
    };
    for kind in kinds() {
        let row = full(kind);
        let event = ocsf(&row);
        assert_eq!(faults(&event), [""; 0], "{kind}: {event:#}");
        assert_eq!(Schema::get().validate(&event).notes, [], "{kind}");
        assert_eq!(event["type_uid"], want(kind), "{kind}");
        assert_eq!(read_back(&event), EventRow { attributes: String::new(), ..row }, "{kind}");
        let empty = EventRow { kind: kind.into(), ..EventRow::default() };
        assert_eq!(faults(&ocsf(&empty)), [""; 0], "{kind}, with nothing in it");
    }
}

#[test]
fn a_tool_call_is_told_in_ocsfs_own_words() {
    let event = ocsf(&full("tool_call"));
    let at = |path: &str| event.pointer(path).unwrap_or_else(|| panic!("no {path} in {event:#}")).clone();
    for (path, want) in [
        ("/metadata/uid", json!("example.org/log:7:tool_call")),
        ("/metadata/sequence", json!(7)),
        ("/metadata/profiles", json!(["ai_operation", "custody/ledger", "security_control", "trace"])),
        ("/time", json!(1_795_165_200_123_i64)),
        ("/duration", json!(1000)),
        ("/severity_id", json!(4)),
        ("/status_id", json!(2)),
        ("/status_detail", json!("too much; at night")),
        ("/action_id", json!(2)),
        ("/disposition", json!("Blocked")),
        ("/authorizations/0", json!({"decision": "deny", "policy": {"uid": "limits", "version": "3"}})),
        ("/actor/app_uid", json!("agent-1")),
        (
            "/actor/user",
            json!({"uid": "ada@example.org", "email_addr": "ada@example.org", "type_id": 1, "type": "User"}),
        ),
        ("/actor/session/uid", json!("conversation")),
        ("/api/operation", json!("send_money")),
        ("/api/service/name", json!("bank")),
        ("/api/request", json!({"uid": "call_1", "data": {"amount": 5}})),
        ("/api/response", json!({"code": 403, "error": "Denied", "data": "sent"})),
        ("/ai_model", json!({"name": "m-1", "ai_provider": "acme"})),
        ("/message_context/prompt_tokens", json!(12)),
        ("/trace/span/parent_uid", json!("0807060504030201")),
        ("/raw_data_hash/value", json!("ab".repeat(32))),
        ("/unmapped/own", json!({"x": [1, null]})),
    ] {
        assert_eq!(at(path), want, "{path}");
    }
    let unmapped = event["unmapped"].as_object().unwrap();
    for gone in ["gen_ai.tool.name", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"] {
        assert!(!unmapped.contains_key(gone), "{gone} stands where it belongs");
    }
}

#[test]
fn grants_and_findings_are_told_in_ocsfs_own_words() {
    let denied = ocsf(&full("grant_denied"));
    assert_eq!(denied["privileges"], json!(["send", "read"]));
    assert_eq!((&denied["action_id"], &denied["disposition_id"]), (&json!(2), &json!(2)));
    assert_eq!(
        denied["session"],
        json!({"uid": "g2", "issuer": "authority", "expiration_time": 1_795_165_300_000_i64})
    );
    assert_eq!(
        (&denied["user"]["uid"], &denied["actor"]["user"]["uid"]),
        (&json!("agent-1"), &json!("ada@example.org"))
    );

    let alert = ocsf(&full("alert"));
    assert_eq!(
        (&alert["is_alert"], &alert["severity"], &alert["status"]),
        (&json!(true), &json!("High"), &json!("New"))
    );
    let info = &alert["finding_info"];
    assert_eq!((&info["uid"], &info["title"]), (&json!("c"), &json!("It was denied and ran")));
    assert_eq!(info["related_events"], json!([{"uid": "example.org/log:3"}, {"uid": "example.org/log:5"}]));
    let attacks = json!([{"technique": {"uid": "AML.T0053"}},
        {"technique": {"uid": "AML.T0051"}, "sub_technique": {"uid": "AML.T0051.001"}}]);
    assert_eq!(info["attacks"], attacks);
    assert_eq!(alert["evidences"][0]["api"]["operation"], "send_money");

    let mut row = full("investigation");
    row.decision = Some("closed".into());
    let closed = ocsf(&row);
    assert_eq!((&closed["activity_id"], &closed["status"]), (&json!(3), &json!("Resolved")));
    assert_eq!((&closed["verdict"], &closed["comment"]), (&json!("True Positive"), &json!("looked")));
    assert_eq!(closed["finding_info"]["uid"], alert["finding_info"]["uid"], "it is the same finding");
    let superseded = ocsf(&full("alert_superseded"));
    assert_eq!(superseded["finding_info"]["uid"], alert["finding_info"]["uid"], "and so is one that is taken back");
    assert_eq!((&superseded["is_alert"], &superseded["status"]), (&json!(false), &json!("Suppressed")));
}

/// Only what was detected is a finding: a SIEM that makes an incident of each would drown in decisions.
#[test]
fn decisions_are_activity_and_changes_of_authority_are_management() {
    for kind in ["policy_evaluation", "approval", "executor_decision", "guardrail"] {
        let event = ocsf(&full(kind));
        assert_eq!((&event["class_uid"], &event["activity_id"]), (&json!(6003), &json!(99)), "{kind}");
        assert_eq!((&event["action_id"], &event["disposition"]), (&json!(2), &json!("Blocked")), "{kind}");
        assert_eq!(event["authorizations"][0]["policy"]["uid"], "limits", "{kind}");
        assert_eq!(event["api"]["request"]["uid"], "call_1", "{kind}: of the same call");
        assert!(event.get("finding_info").is_none() && event.get("is_alert").is_none(), "{kind}");
    }
    let row = EventRow {
        decision: Some("bypassPermissions".into()),
        action: Some("mode".into()),
        ..full("authority_change")
    };
    let change = ocsf(&row);
    assert_eq!((&change["class_uid"], &change["activity_name"]), (&json!(3004), &json!("Update")));
    let of = json!({"name": "mcp:bank", "type_id": 99, "type": "mode"});
    assert_eq!(change["entity"], of);
    assert_eq!(
        change["entity_result"],
        json!({"name": "mcp:bank", "type_id": 99, "type": "mode", "data": "bypassPermissions"})
    );
    assert_eq!(change["actor"]["user"]["uid"], "ada@example.org");
}

/// All attributes of the row are somewhere in the event, word for word.
#[test]
fn what_has_no_field_is_unmapped() {
    for kind in kinds() {
        let row = full(kind);
        let event = ocsf(&row);
        let attributes: serde_json::Map<String, Json> = serde_json::from_str(&row.attributes).unwrap();
        for (name, value) in attributes {
            let moved = match name.as_str() {
                "gen_ai.tool.name" => event.pointer("/custody/tool_name").cloned(),
                "gen_ai.tool.call.arguments" => event.pointer("/api/request/data").map(|_| json!("{\"amount\": 5}")),
                "gen_ai.tool.call.result" => event.pointer("/api/response/data").cloned(),
                _ => None,
            };
            let found = event["unmapped"].get(&name).cloned().or(moved);
            assert_eq!(found, Some(value), "{kind} {name}");
        }
    }
}

#[test]
fn the_ledgers_hashes_are_told_where_they_are_known() {
    let hashes = |seq| (seq == 7).then_some(EntryHashes { chain: [1; 32], leaf: [2; 32] });
    let context = Context { origin: "o", hashes: Some(&hashes), checkpoint: Some((9, [3; 32])), nth: 0 };
    let mut out = String::new();
    encode(Format::Ocsf, &full("tool_call"), &context, &mut out);
    let event: Json = serde_json::from_str(&out).unwrap();
    assert_eq!(faults(&event), [""; 0]);
    let custody = &event["custody"];
    assert_eq!((&custody["chain_hash"], &custody["leaf_hash"]), (&json!("01".repeat(32)), &json!("02".repeat(32))));
    assert_eq!((&custody["tree_size"], &custody["tree_root"]), (&json!(9), &json!("03".repeat(32))));
}

/// Each change to a valid event, and the path at which the validator names it.
#[test]
fn the_validator_refuses_what_is_amiss_and_says_where() {
    let whole = ocsf(&full("tool_call"));
    let refused = |what: &str, path: &str, change: &dyn Fn(&mut Json)| {
        let mut event = whole.clone();
        change(&mut event);
        let found = Schema::get().validate(&event).faults;
        assert!(found.iter().any(|f| f.path == path), "{what}: {path} is not among {found:?}");
    };
    fn object(json: &mut Json) -> &mut serde_json::Map<String, Json> {
        json.as_object_mut().unwrap()
    }
    for name in
        ["activity_id", "category_uid", "type_uid", "severity_id", "time", "metadata", "actor", "api", "custody"]
    {
        refused("removed", name, &|e| drop(object(e).remove(name)));
    }
    refused("removed", "class_uid", &|e| drop(object(e).remove("class_uid")));
    refused("removed", "metadata.product", &|e| drop(object(&mut e["metadata"]).remove("product")));
    refused("removed", "raw_data_hash.algorithm_id", &|e| drop(object(&mut e["raw_data_hash"]).remove("algorithm_id")));
    refused("removed", "trace.span.end_time", &|e| drop(object(&mut e["trace"]["span"]).remove("end_time")));
    refused("no such value", "severity_id", &|e| e["severity_id"] = json!(7));
    refused("no such value", "actor.user.type_id", &|e| e["actor"]["user"]["type_id"] = json!(12));
    refused("other words", "action_id", &|e| e["action"] = json!("Allowed"));
    refused("other words", "type_uid", &|e| e["type_name"] = json!("API Activity: Read"));
    refused("a type of another class", "type_uid", &|e| e["type_uid"] = json!(300_301));
    refused("text for a number", "time", &|e| e["time"] = json!("1795165200123"));
    refused("a fraction for a count", "metadata.sequence", &|e| e["metadata"]["sequence"] = json!(1.5));
    refused("a number for text", "api.operation", &|e| e["api"]["operation"] = json!(5));
    refused("null", "message", &|e| e["message"] = Json::Null);
    refused("one for a list", "metadata.profiles", &|e| e["metadata"]["profiles"] = json!("trace"));
    refused("an item of another type", "metadata.profiles[0]", &|e| e["metadata"]["profiles"][0] = json!(1));
    refused("text for an object", "api", &|e| e["api"] = json!("send_money"));
    refused("no address", "actor.user.email_addr", &|e| e["actor"]["user"]["email_addr"] = json!("ada"));
    refused("no ip", "src_endpoint.ip", &|e| e["src_endpoint"]["ip"] = json!("1.2.3"));
    refused("unknown", "mood", &|e| e["mood"] = json!("good"));
    refused("unknown", "actor.user.mood", &|e| e["actor"]["user"]["mood"] = json!("good"));
    refused("unknown", "resources[0].mood", &|e| e["resources"][0]["mood"] = json!("good"));
    refused("of a profile that is not named", "trace", &|e| e["metadata"]["profiles"] = json!(["custody/ledger"]));
    refused("a profile of others", "metadata.profiles", &|e| e["metadata"]["profiles"][0] = json!("load_balancer"));
    refused("none of those", "actor", &|e| e["actor"] = json!({}));
    refused("another version", "metadata.version", &|e| e["metadata"]["version"] = json!("1.7.0"));
    refused("no class", "class_uid", &|e| e["class_uid"] = json!(6999));
    let both = |event: &mut Json| event["group"] = json!({"name": "g"});
    let mut grant = ocsf(&full("grant_issued"));
    both(&mut grant);
    assert_eq!(faults(&grant), [": it needs just one of privileges, group"]);
    let mut noted = whole.clone();
    noted["actor"]["invoked_by"] = json!("x");
    let report = Schema::get().validate(&noted);
    assert_eq!((report.faults.len(), report.notes[0].path.as_str()), (0, "actor.invoked_by"));
}

#[test]
fn ecs_says_the_same_in_its_own_words() {
    let event: Json = serde_json::from_str(&line(Format::Ecs, &full("executor_decision"))).unwrap();
    for (path, want) in [
        ("/@timestamp", json!("2026-11-20T09:00:00.123Z")),
        ("/event/kind", json!("event")),
        ("/event/category", json!(["api"])),
        ("/event/type", json!(["info", "denied"])),
        ("/event/outcome", json!("failure")),
        ("/event/duration", json!(1_000_000_000)),
        ("/event/reason", json!("too much; at night")),
        ("/user/id", json!("ada@example.org")),
        ("/trace/id", json!("0102030405060708090a0b0c0d0e0f10")),
        ("/custody/delegation_path/grant_id", json!("g2")),
        ("/organization/id", json!("tenant")),
    ] {
        assert_eq!(event.pointer(path), Some(&want), "{path}");
    }
    for (nanos, want) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000Z"),
        (i64::MIN, "1677-09-21T00:12:43.145Z"),
        (i64::MAX, "2262-04-11T23:47:16.854Z"),
    ] {
        assert_eq!(ecs::rfc3339(Time(nanos)), want);
    }
}

/// What the thread has had of a processor, in ns: other load on the machine does not count.
fn processor_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("Linux tells what a thread has run")
}

/// Not a test: what it prints goes into docs/ocsf.md when it is run in release.
#[test]
#[ignore = "a measurement; run it in release with --ignored --nocapture"]
fn how_fast() {
    let rows: Vec<EventRow> = kinds().into_iter().map(full).collect();
    for format in Format::ALL {
        let (mut out, mut events, mut bytes) = (String::new(), 0u64, 0u64);
        let start = processor_ns();
        let passed = |start| (processor_ns() - start) as f64 / 1e9;
        while passed(start) < 0.5 {
            for row in rows.iter().cycle().take(2_500) {
                out.clear();
                encode(format, row, &Context::of("example.org/log"), &mut out);
                (events, bytes) = (events + 1, bytes + out.len() as u64);
            }
        }
        println!("{}: {:.0} events/s, {} bytes each", format.name(), events as f64 / passed(start), bytes / events);
    }
}
