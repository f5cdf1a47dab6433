//! What is one use and what are several; chains, late records, and what goes when time is over.

use super::super::uses::count_old;
use super::*;
use crate::projection::Snapshot;
use crate::rows::Time;

fn grant(seq: u64, id: &str, parent: Option<&str>, max_uses: u32) -> EventRow {
    EventRow {
        seq,
        kind: "grant_issued".into(),
        grant_id: Some(id.into()),
        parent_grant_id: parent.map(str::to_owned),
        attributes: format!(r#"{{"authz.grant.max_uses":{max_uses}}}"#),
        ..EventRow::default()
    }
}

fn call(seq: u64, grant: &str, span: &str) -> EventRow {
    EventRow {
        seq,
        kind: "tool_call".into(),
        grant_id: Some(grant.into()),
        trace_id: Some("1".into()),
        span_id: Some(span.into()),
        tool: Some("pay".into()),
        ingest_time: Time(seq as i64),
        ..EventRow::default()
    }
}

fn take(tally: &mut Tally, event: &EventRow) -> (u64, Option<(String, u64)>) {
    tally.take(Call::of(event).unwrap());
    let row = tally.rows([&event.seq]).remove(0);
    (row.nth, row.over_grant_id.zip(row.over_nth))
}

#[test]
fn versions_of_a_span_are_one_use_and_only_by_who_sent_it() {
    let mut tally = Tally::default();
    tally.give(&grant(0, "g", None, 1));
    assert_eq!(take(&mut tally, &call(1, "g", "a")), (1, None));
    let ended = EventRow { resource: Some("r".into()), ..call(2, "g", "a") };
    assert_eq!(take(&mut tally, &ended), (1, None), "what was not said before is added");
    let over = |n| Some(("g".to_owned(), n));
    assert_eq!(take(&mut tally, &EventRow { resource: Some("s".into()), ..call(3, "g", "a") }), (2, over(2)));
    assert_eq!(take(&mut tally, &EventRow { submitter: "another".into(), ..ended.clone() }), (3, over(3)));
    assert_eq!(take(&mut tally, &EventRow { event_time: Time(9), ..ended }), (4, over(4)), "another start");
}

#[test]
fn spans_are_remembered_for_as_long_as_events_are() {
    let mut tally = Tally::default();
    let called = |seq, span: &str, parent: &str| EventRow {
        parent_span_id: Some(parent.into()),
        tool_call_id: Some("c".into()),
        ..call(seq, "g", span)
    };
    assert_eq!(take(&mut tally, &called(1, "a", "0")).0, 1);
    assert_eq!(take(&mut tally, &called(2, "b", "a")).0, 1);
    tally.let_go(3);
    assert_eq!(take(&mut tally, &called(4, "b", "a")).0, 2);
    tally.let_go(5);
    assert!(tally.spans.is_empty() && tally.below.is_empty() && tally.tellers.is_empty() && tally.order.is_empty());
}

#[test]
fn uses_wait_for_the_records_of_their_chain_and_a_loop_ends() {
    let mut tally = Tally::default();
    tally.give(&grant(0, "root", None, 1));
    assert_eq!(take(&mut tally, &call(1, "leaf", "a")).1, None);
    assert_eq!(take(&mut tally, &call(2, "leaf", "b")).1, None);
    tally.give(&grant(3, "leaf", Some("mid"), 9));
    assert!(tally.rows([&2]).iter().all(|row| row.over_nth.is_none()));
    tally.give(&grant(4, "mid", Some("root"), 9));
    let over: Vec<_> = tally.rows([&1, &2]).into_iter().map(|row| row.over_grant_id.zip(row.over_nth)).collect();
    assert_eq!(over, [None, Some(("root".into(), 2))]);
    tally.give(&grant(5, "x", Some("y"), 1));
    tally.give(&grant(6, "y", Some("x"), 1));
    assert_eq!(take(&mut tally, &call(7, "x", "c")).1, None, "once each");
    assert_eq!(take(&mut tally, &call(8, "y", "d")).1, Some(("y".into(), 2)));
}

#[test]
fn a_start_counts_what_came_before_as_it_was_counted() {
    let grants = [grant(0, "root", None, 2), grant(1, "leaf", Some("root"), 9)];
    let calls = [call(2, "leaf", "a"), call(3, "leaf", "a"), call(4, "root", "b"), call(5, "leaf", "c")];
    let events: Vec<EventRow> = grants.iter().chain(&calls).cloned().collect();
    let snapshot = Snapshot::of_events(vec![EventRow::batch(&events)], 6);
    let mut tally = Tally::default();
    grants.iter().for_each(|grant| tally.give(grant));
    count_old(&snapshot, &mut tally, 6, &[5].into(), 1000).unwrap();
    assert_eq!(take(&mut tally, &calls[3]), (2, Some(("root".into(), 3))));
}

/// As a tenant would have it.
fn of(tenant: &str, event: EventRow) -> EventRow {
    EventRow { tenant: Some(tenant.into()), ..event }
}

#[test]
fn what_another_tenant_does_uses_nothing_up() {
    let mut tally = Tally::default();
    tally.give(&of("acme", grant(0, "g", None, 2)));
    assert_eq!(take(&mut tally, &of("acme", call(1, "g", "a"))), (1, None));
    for seq in 2..9 {
        assert_eq!(take(&mut tally, &of("globex", call(seq, "g", &format!("b{seq}")))), (seq - 1, None), "it has none");
    }
    assert_eq!(take(&mut tally, &of("acme", call(9, "g", "c"))), (2, None));
    assert_eq!(take(&mut tally, &call(10, "g", "d")).1, Some(("g".into(), 3)), "who names none means the only one");
    assert_eq!(take(&mut tally, &of("acme", call(11, "g", "e"))).1, Some(("g".into(), 4)));
    // The other's own, late: what waited for it is counted then, and the id is not one grant any more.
    tally.give(&of("globex", grant(12, "g", None, 6)));
    let rows = tally.rows([&7, &8, &11]);
    let over: Vec<_> = rows.iter().map(|row| (row.over_tenant.as_deref(), row.over_nth)).collect();
    assert_eq!(over, [(None, None), (Some("globex"), Some(7)), (Some("acme"), Some(4))]);
    assert_eq!(take(&mut tally, &call(13, "g", "f")).1, None, "whose it is cannot be told");
    // Nobody's, at last.
    tally.give(&grant(14, "g", None, 1));
    assert_eq!(take(&mut tally, &call(15, "g", "h")).1, Some(("g".into(), 2)));
}

#[test]
fn what_nobodys_grant_is_good_for_it_is_for_each_tenant() {
    let mut tally = Tally::default();
    tally.give(&grant(0, "root", None, 2));
    tally.give(&of("acme", grant(1, "leaf", Some("root"), 9)));
    let over = |n| Some(("root".to_owned(), n));
    assert_eq!(take(&mut tally, &of("acme", call(2, "leaf", "a"))).1, None);
    assert_eq!(take(&mut tally, &of("globex", call(3, "root", "b"))).1, None);
    assert_eq!(take(&mut tally, &of("globex", call(4, "root", "c"))).1, None);
    assert_eq!(take(&mut tally, &of("acme", call(5, "leaf", "d"))).1, None, "the other's two are none of its own");
    assert_eq!(take(&mut tally, &call(6, "root", "e")).1, over(5), "who names no tenant meets all");
    assert_eq!(take(&mut tally, &of("acme", call(7, "root", "f"))).1, over(4));
    assert_eq!(take(&mut tally, &of("globex", call(8, "root", "g"))).1, over(4));
}

#[test]
fn two_tenants_do_not_tell_of_one_use() {
    let mut tally = Tally::default();
    tally.give(&grant(0, "g", None, 9));
    let ended = |event: EventRow| EventRow { resource: Some("r".into()), ..event };
    // One was first with the id of the span that the other sends: it takes nothing from him, and gives nothing.
    assert_eq!(take(&mut tally, &of("globex", call(1, "g", "a"))).0, 1);
    assert_eq!(take(&mut tally, &of("acme", call(2, "g", "a"))).0, 1);
    assert_eq!(take(&mut tally, &of("acme", ended(call(3, "g", "a")))).0, 1);
    assert_eq!(take(&mut tally, &of("globex", ended(call(4, "g", "a")))).0, 1);
    assert_eq!(take(&mut tally, &of("globex", call(5, "g", "b"))).0, 2);
    // A server that names no tenant tells of the call that it was sent.
    let called = |seq, span: &str, parent: &str| EventRow {
        parent_span_id: Some(parent.into()),
        tool_call_id: Some("c".into()),
        ..call(seq, "g", span)
    };
    assert_eq!(take(&mut tally, &of("acme", called(6, "x", "0"))).0, 2);
    assert_eq!(take(&mut tally, &called(7, "y", "x")).0, 2);
    assert_eq!(take(&mut tally, &of("globex", called(8, "z", "x"))).0, 3);
    tally.let_go(9);
    assert!(tally.spans.is_empty() && tally.below.is_empty() && tally.tellers.is_empty() && tally.order.is_empty());
}

#[test]
fn a_grant_of_ones_own_takes_no_bound_off_nobodys() {
    let denied = |seq, id: &str| EventRow { kind: "grant_denied".into(), ..of("acme", grant(seq, id, None, 9)) };
    let endless = |seq, id: &str| EventRow { attributes: "{}".into(), ..of("acme", grant(seq, id, None, 9)) };
    for shadow in [denied(1, "g"), endless(1, "g")] {
        // The first and the second call, under the grant itself and under one below.
        for named in ["g", "leaf"] {
            let mut tally = Tally::default();
            tally.give(&grant(0, "g", None, 1));
            tally.give(&shadow);
            tally.give(&of("acme", grant(2, "leaf", Some("g"), 9)));
            assert!(tally.is_limited(Some("acme"), named));
            assert_eq!(take(&mut tally, &of("acme", call(3, named, "a"))).1, None);
            assert_eq!(take(&mut tally, &of("acme", call(4, named, "b"))).1, Some(("g".into(), 2)), "{named}");
        }
    }
}

#[test]
fn what_waits_for_two_counts_once_for_what_is_above_both() {
    let mut tally = Tally::default();
    tally.give(&grant(0, "leaf", Some("mid"), 9));
    tally.give(&of("acme", grant(1, "leaf", Some("mid"), 9)));
    assert_eq!(take(&mut tally, &of("acme", call(2, "leaf", "a"))).1, None);
    tally.give(&grant(3, "mid", Some("root"), 9));
    tally.give(&of("acme", grant(4, "mid", Some("root"), 9)));
    tally.give(&grant(5, "root", None, 1));
    let over = |tally: &Tally, seq| tally.rows([&seq]).remove(0).over_nth;
    assert_eq!(over(&tally, 2), None);
    assert_eq!(take(&mut tally, &of("acme", call(6, "leaf", "b"))).1, Some(("root".into(), 2)));
    for tenant in [None, Some("acme".to_owned())] {
        tally.forget_grant("leaf", &tenant);
        tally.forget_uses("leaf", &tenant);
    }
    assert!(tally.named.is_empty() && !tally.grants.contains_key("leaf"));
}
