//! Rules that find what they find in one pass over what is at hand, held against the plain definitions in by_pairs/,
//! which compare each record with each; and floods of records that have everything in common.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::examples::{Sent, snapshot_of, stepwise};
use super::run::Entries;
use super::tests::{Numbers, whose};
use super::*;
use crate::rows::Time;

/// The plain definition of each rule, and whether it holds for records that come in any order; the others take the
/// record that came just before for the one that was done just before.
const PLAIN: [(&str, &str, bool); 17] = [
    ("silent_source", include_str!("by_pairs/silent_source.sql"), true),
    ("memory_taint", include_str!("by_pairs/memory_taint.sql"), true),
    ("lethal_trifecta", include_str!("by_pairs/lethal_trifecta.sql"), true),
    ("untrusted_to_write", include_str!("by_pairs/untrusted_to_write.sql"), true),
    ("policy_drift", include_str!("by_pairs/policy_drift.sql"), true),
    ("denied_then_executed", include_str!("by_pairs/denied_then_executed.sql"), true),
    ("late_approval", include_str!("by_pairs/late_approval.sql"), true),
    ("grant_without_evaluation", include_str!("by_pairs/grant_without_evaluation.sql"), true),
    ("self_reported_only", include_str!("by_pairs/self_reported_only.sql"), true),
    ("executor_bypass", include_str!("by_pairs/executor_bypass.sql"), true),
    ("approval_missing", include_str!("by_pairs/approval_missing.sql"), true),
    ("after_session_end", include_str!("by_pairs/after_session_end.sql"), true),
    ("process_violation", include_str!("by_pairs/process_violation.sql"), true),
    ("tool_schema_changed", include_str!("by_pairs/tool_schema_changed.sql"), true),
    ("rubber_stamp", include_str!("by_pairs/rubber_stamp.sql"), false),
    ("identity_flap", include_str!("by_pairs/identity_flap.sql"), false),
    ("shared_identity", include_str!("by_pairs/shared_identity.sql"), false),
];

/// Bounds that a few records reach.
const TUNING: &str = "[checks.silent_source]\nsilence_seconds = 4\nreports_min = 2\n\
    [checks.rubber_stamp]\nseconds_min = 8\nbulk_min = 2\n\
    [checks.identity_flap]\nwindow_seconds = 5\n[checks.shared_identity]\nwindow_seconds = 5\n\
    [checks.process_violation]\nprocesses = [\"p0: act0 > act1 > act2\", \"p1: act0, act1\"]\n";

/// What an agent, its proxy and its people do; few of each, so that they meet in many ways.
fn act(numbers: &mut Numbers, i: u64, in_order: bool) -> Json {
    let mut one = |prefix: &str, n| format!("{prefix}{}", numbers.below(n));
    let (agent, grant, call, trace) = (one("a", 2), one("g", 3), one("c", 5), one("", 3));
    let (action, resource, service, person) = (one("act", 3), one("r", 2), one("s", 3), one("p", 2));
    let (memory, session, digest, process) = (one("m", 2), one("session", 2), one("d", 2), one("p", 3));
    let parent = one("g", 4);
    let attributes = match numbers.below(16) {
        0 => json!({"log": "authz.policy.evaluation", "authz.decision": "allow", "authz.policy.id": "p"}),
        1 => json!({"log": "authz.policy.evaluation", "authz.decision": "deny", "authz.policy.id": "p"}),
        2 => json!({"log": "authz.executor.decision", "authz.decision": "allow"}),
        3 => json!({"log": "authz.executor.decision", "authz.decision": "deny"}),
        4 => json!({"log": "authz.approval", "authz.approval.state": "approved", "authz.approval.by": person,
                    "authz.approval.by_type": if i.is_multiple_of(3) { "automation" } else { "human" }}),
        5 => {
            json!({"log": "authz.approval", "authz.approval.state": if i.is_multiple_of(2) { "pending" } else { "rejected" },
                    "authz.approval.by": person})
        }
        6 => json!({"log": "authz.grant.issued", "authz.grant.subject": agent, "authz.grant.actions": [action],
                    "authz.grant.approval.state": "required"}),
        7 => json!({"log": "authz.grant.denied", "authz.grant.subject": agent, "authz.grant.actions": [action],
                    "authz.grant.resources": [resource]}),
        8 => json!({"log": "authz.context.retrieval", "authz.context.trust": "untrusted"}),
        9 => json!({"log": "authz.context.retrieval", "data.classification": "secret"}),
        10 => json!({"log": "authz.system_update", "authz.system.name": "bank"}),
        11 => json!({"log": "authz.authority_change", "authz.change.what": "key", "authz.change.new": "k"}),
        12 => json!({"memory.operation": if i.is_multiple_of(2) { "read" } else { "write" }, "memory.id": memory}),
        13 => json!({"authz.effect": "external_send", "authz.context.trust": "untrusted"}),
        14 => json!({"authz.effect": "write", "session.state": if i.is_multiple_of(9) { "ended" } else { "active" }}),
        _ => json!({"authz.effect": "write", "authz.context.trust": "untrusted", "authz.tool.schema_digest": digest}),
    };
    let mut own = attributes.as_object().cloned().unwrap_or_default();
    let log = own.remove("log");
    if own.contains_key("authz.grant.approval.state") && i.is_multiple_of(2) {
        own.insert("authz.grant.parent_id".to_owned(), json!(parent));
    }
    let some = |numbers: &mut Numbers| !numbers.below(5).is_multiple_of(4);
    for (name, value) in [
        ("gen_ai.agent.id", &agent),
        ("authz.grant.id", &grant),
        ("gen_ai.tool.call.id", &call),
        ("authz.action", &action),
        ("authz.resource", &resource),
        ("gen_ai.conversation.id", &session),
        ("authz.process.id", &process),
        ("authz.credential.id", &digest),
    ] {
        if some(numbers) {
            own.insert(name.to_owned(), json!(value));
        }
    }
    // One trace is told of by one service alone.
    let (trace, service) = if i.is_multiple_of(20) { ("9".to_owned(), "s0".to_owned()) } else { (trace, service) };
    let at = if in_order { i / 2 } else { numbers.below(40) };
    let mut out =
        json!({"at": at, "received": 100.0 + i as f64 * 0.01, "trace": format!("{trace}1"), "service": service});
    match log {
        Some(name) => out["log"] = name,
        None => {
            own.insert("gen_ai.operation.name".to_owned(), json!("execute_tool"));
            own.insert("gen_ai.tool.name".to_owned(), json!("t"));
            out["span"] = json!(format!("{:x}", i + 1));
        }
    }
    out["attributes"] = Json::Object(own);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_find_what_comparing_every_pair_would() {
    let own: Vec<Rule> = built_in().into_iter().filter(|rule| PLAIN.iter().any(|(id, ..)| *id == rule.id)).collect();
    let plain: Vec<Rule> = PLAIN.iter().map(|(id, sql, _)| Rule::parse(id, sql).unwrap()).collect();
    let all_on: String = PLAIN.iter().fold(TUNING.to_owned(), |tuning, (id, ..)| {
        let head = format!("[checks.{id}]\n");
        match tuning.contains(&head) {
            true => tuning.replace(&head, &format!("{head}enabled = true\n")),
            false => format!("{tuning}{head}enabled = true\n"),
        }
    });
    let mut checkers = Vec::new();
    for rules in [own, plain] {
        let tuning = Tuning::parse(&rules, &all_on).unwrap();
        checkers.push(Checker::new(rules, tuning).await.unwrap());
    }
    let mut hits = BTreeMap::<String, usize>::new();
    for seed in 1..=14 {
        let in_order = seed % 2 == 0;
        let mut numbers = Numbers(seed);
        let one = |i| {
            let mut record = act(&mut numbers, i, in_order);
            if seed > 8 {
                whose(&mut numbers, &mut record);
            }
            serde_json::from_value(record).unwrap()
        };
        let records: Vec<Sent> = (0..120).map(one).collect();
        let (snapshot, ledger, end) = snapshot_of(&records);
        let (snapshot, now) = (Arc::new(snapshot), Time(end + 1_000_000_000_000));
        let mut told = Vec::new();
        for checker in &checkers {
            let found = checker.everything(&snapshot, &Entries::These(ledger.clone()), now).await.unwrap();
            let is_meant = |id: &str| in_order || PLAIN.iter().any(|(own, _, any)| *own == id && *any);
            let found = found.into_iter().filter(|hit| is_meant(&hit.check_id));
            told.push(found.map(|hit| (hit.check_id, hit.seq, hit.verdict)).collect::<BTreeSet<_>>());
        }
        let more: Vec<_> = told[0].difference(&told[1]).collect();
        let fewer: Vec<_> = told[1].difference(&told[0]).collect();
        assert!(more.is_empty() && fewer.is_empty(), "seed {seed}: too many {more:?}, too few {fewer:?}");
        told[0].iter().for_each(|(check, ..)| *hits.entry(check.clone()).or_default() += 1);
    }
    assert_eq!(hits.len(), PLAIN.len(), "each has hits: {hits:?}");
}

/// One agent in one conversation and trace, under one grant, that does all of it again and again: nothing fails for want
/// of memory, and the alerts cite what can be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn who_floods_the_log_blinds_no_rule() {
    let rules = built_in();
    let all_on: String = rules.iter().map(|rule| format!("[checks.{}]\nenabled = true\n", rule.id)).collect();
    let tuning = Tuning::parse(&rules, &all_on).unwrap();
    let checker = Checker::new(rules, tuning).await.unwrap();
    let record = |i: u64| {
        let mut own = json!({"gen_ai.agent.id": "a", "gen_ai.conversation.id": "c", "authz.action": "act", "memory.id": "m",
                             "authz.resource": format!("r{}", i / 6), "authz.approval.by": "p"});
        let (log, more) = match i % 6 {
            0 => (
                Some("authz.grant.denied"),
                json!({"authz.grant.subject": "a", "authz.grant.actions": ["act"],
                   "authz.grant.resources": [format!("r{}", i / 6)], "authz.grant.id": format!("d{i}")}),
            ),
            1 => (
                Some("authz.policy.evaluation"),
                json!({"authz.decision": "deny", "authz.policy.id": "p", "authz.grant.id": "g"}),
            ),
            2 => (Some("authz.approval"), json!({"authz.approval.state": "approved", "authz.grant.id": "g"})),
            3 => (
                None,
                json!({"memory.operation": if i % 4 == 1 { "write" } else { "read" }, "authz.context.trust": "untrusted",
                               "authz.grant.id": "g"}),
            ),
            _ => (
                None,
                json!({"authz.effect": "write", "authz.context.trust": "untrusted", "authz.grant.id": "g",
                               "data.classification": "secret", "authz.credential.id": format!("k{i}")}),
            ),
        };
        own.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        if log.is_none() {
            own["gen_ai.operation.name"] = json!("execute_tool");
            own["gen_ai.tool.name"] = json!("t");
        }
        let mut out = json!({"at": i as f64 * 0.001, "received": 100.0 + i as f64 * 0.001, "attributes": own});
        match log {
            Some(log) => out["log"] = json!(log),
            None => out["span"] = json!(format!("{:x}", i + 1)),
        }
        serde_json::from_value::<Sent>(out).unwrap()
    };
    let grant = json!({"log": "authz.grant.issued", "at": 0, "received": 99,
                       "attributes": {"authz.grant.id": "g", "authz.grant.subject": "a", "authz.grant.actions": ["act"]}});
    let grant = serde_json::from_value::<Sent>(grant).unwrap();
    let records: Vec<Sent> = std::iter::once(grant).chain((1..5000).map(record)).collect();
    let (snapshot, ledger, end) = snapshot_of(&records);
    let now = Time(end + 1_000_000_000_000);
    let told = stepwise(&checker, &snapshot, &Entries::These(ledger), 4096, now).await.unwrap();
    assert_eq!(checker.unjudged.load(std::sync::atomic::Ordering::Relaxed), 0);
    let of = |check: &str| told.iter().filter(|hit| hit.1 == check).count();
    assert!(of("probing") >= 5 && of("probing") < 50, "{}", of("probing"));
    for check in ["policy_drift", "rubber_stamp", "memory_taint", "untrusted_to_write", "identity_flap"] {
        assert!(of(check) > 100, "{check}: {}", of(check));
    }
    assert!(told.iter().all(|hit| hit.3.len() <= 1000));
}
