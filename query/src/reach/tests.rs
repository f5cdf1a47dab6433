//! Blast radius and authority coverage over a few steps that can be counted by hand.

use super::*;
use crate::event::EventRow;

fn at(seconds: i64) -> Time {
    Time(seconds * 1_000_000_000)
}

/// A step of the agent `a` for the user `u`.
fn step(time: i64, kind: &str) -> EventRow {
    EventRow {
        kind: kind.into(),
        event_time: at(time),
        agent_id: Some("a".into()),
        initiator_id: Some("u".into()),
        service: Some("s".into()),
        attributes: "{}".into(),
        ..EventRow::default()
    }
}

fn call(time: i64, resource: &str, grant: Option<&str>) -> EventRow {
    EventRow {
        resource: Some(resource.into()),
        tool: Some("read".into()),
        action: Some("read".into()),
        grant_id: grant.map(str::to_owned),
        ..step(time, "tool_call")
    }
}

fn allow(time: i64) -> EventRow {
    EventRow { decision: Some("allow".into()), ..step(time, "policy_evaluation") }
}

fn grant(time: i64, id: &str, resources: &str, expires: &str) -> EventRow {
    EventRow {
        grant_id: Some(id.into()),
        attributes: format!(
            r#"{{"authz.grant.actions":["read"],"authz.grant.resources":["{resources}"],"authz.grant.expires_at":"{expires}"}}"#
        ),
        ..step(time, "grant_issued")
    }
}

fn snapshot(events: Vec<EventRow>) -> Snapshot {
    let rows: Vec<EventRow> = events.into_iter().enumerate().map(|(i, e)| EventRow { seq: i as u64, ..e }).collect();
    Snapshot::of_events(vec![EventRow::batch(&rows)], rows.len() as u64)
}

#[test]
fn the_radius_is_counted_from_one_verification_to_the_next() {
    let refused = EventRow { tool_call_id: Some("c9".into()), ..call(22, "file:refused", None) };
    let refusal =
        EventRow { tool_call_id: Some("c9".into()), decision: Some("deny".into()), ..step(22, "executor_decision") };
    let failed = EventRow { status: Some("error".into()), ..call(23, "file:failed", None) };
    let secret = EventRow { classification: Some("secret".into()), ..call(21, "file:b", None) };
    let rows = blast_radius(
        &snapshot(vec![
            call(5, "file:early", None),
            allow(10),
            call(20, "file:a", None),
            secret,
            call(24, "file:a", None),
            refused,
            refusal,
            failed,
            // Late: it belongs to its own time.
            allow(30),
            call(15, "db:x", None),
            grant(40, "g", "file:*", "1970-01-01T00:01:40Z"),
            call(50, "file:c", Some("g")),
            EventRow { decision: Some("deny".into()), ..step(60, "policy_evaluation") },
            call(61, "file:d", Some("g")),
        ]),
        at(1000),
    )
    .unwrap();
    let agent: Vec<&BlastRow> = rows.iter().filter(|r| r.subject_type == "agent").collect();
    let windows: Vec<_> = agent.iter().map(|r| (r.window_start, r.window_end, r.requests, r.resources)).collect();
    let want = [(None, Some(at(10)), 1, 1), (Some(at(10)), Some(at(30)), 4, 3), (Some(at(40)), None, 2, 2)];
    assert_eq!(windows, want, "a refusal verifies nothing, and what was refused or failed reached nothing");
    assert_eq!((agent[1].classifications, agent[1].reached_classifications.clone()), (1, vec!["secret".to_owned()]));
    assert_eq!((agent[1].live_grants, agent[1].potential_known_resources), (0, 0));
    let last = agent[2];
    assert_eq!((last.verified_by.as_deref(), last.verified_seq, last.live_grants), (Some("grant_issued"), Some(10), 1));
    assert_eq!((&last.potential_resources[..], last.potential_unlimited), (&["file:*".to_owned()][..], false));
    assert_eq!(last.potential_known_resources, 5, "early, a, b, c, d, and not db:x");
    assert_eq!(rows.iter().filter(|r| r.subject_type == "identity" && r.subject == "u").count(), 3);
}

#[test]
fn a_call_is_covered_by_a_grant_that_was_valid_for_it() {
    let other = EventRow { agent_id: Some("b".into()), ..call(20, "file:a", Some("g")) };
    let rows = authority_coverage(
        &snapshot(vec![
            grant(10, "g", "file:*", "1970-01-01T00:00:30Z"),
            call(20, "file:a", Some("g")),
            call(40, "file:a", Some("g")),
            call(20, "db:x", Some("g")),
            call(20, "file:a", Some("unknown")),
            call(20, "file:a", None),
            other,
        ]),
        at(1000),
    )
    .unwrap();
    let all = &rows[rows.iter().position(|r| r.by == "all").unwrap()];
    assert_eq!((all.tool_calls, all.with_grant, all.known, all.valid, all.verified), (6, 5, 4, 1, 0));
    assert_eq!((all.coverage, all.coverage_unverified), (Some(0.0), Some(1.0 / 6.0)));
    let b = rows.iter().find(|r| r.by == "agent" && r.value.as_deref() == Some("b")).unwrap();
    assert_eq!((b.tool_calls, b.valid), (1, 0), "another agent's grant covers nothing");
    let none = authority_coverage(&snapshot(vec![]), at(0)).unwrap();
    assert_eq!((none.len(), none[0].coverage), (1, None));
}

#[test]
fn what_was_refused_or_is_anothers_covers_nothing() {
    let until = "1970-01-01T01:00:00Z";
    let derived = |id: &str, parent: &str| EventRow {
        kind: "grant_derived".into(),
        parent_grant_id: Some(parent.into()),
        ..grant(10, id, "file:*", until)
    };
    let of = |tenant: &str, event: EventRow| EventRow { tenant: Some(tenant.into()), ..event };
    let refused = EventRow { kind: "grant_denied".into(), ..grant(5, "refused", "file:*", until) };
    let events = vec![
        refused,
        derived("child", "refused"),
        call(20, "file:a", Some("child")),
        of("acme", grant(10, "g", "file:*", until)),
        of("acme", call(20, "file:a", Some("g"))),
        of("globex", call(20, "file:a", Some("g"))),
        call(20, "file:a", Some("g")),
    ];
    let rows = authority_coverage(&snapshot(events.clone()), at(1000)).unwrap();
    let all = rows.iter().find(|r| r.by == "all").unwrap();
    // Who names no tenant may mean acme's; globex, which names itself, does not.
    assert_eq!((all.tool_calls, all.with_grant, all.known, all.valid), (4, 4, 3, 2));
    let reached = blast_radius(&snapshot(events), at(1000)).unwrap();
    let last = reached.iter().rfind(|r| r.subject_type == "agent" && r.subject == "a").unwrap();
    assert_eq!(last.live_grants, 1, "what was derived from a refusal is held by nobody");
}
