//! What is at hand, what goes when there is no room, and what is found again.

use super::late::AGAIN_MAX;
use super::*;
use crate::rows::Time;

fn event(seq: u64, kind: &str, grant: &str) -> EventRow {
    EventRow {
        seq,
        kind: kind.into(),
        grant_id: Some(grant.into()),
        event_time: Time(seq as i64),
        ingest_time: Time(seq as i64),
        attributes: r#"{"authz.grant.expires_at":"1970-01-01T00:00:01Z"}"#.into(),
        ..EventRow::default()
    }
}

#[test]
fn what_lasts_does_not_crowd_out_what_is_new() {
    let mut state = State::new(1000, usize::MAX, Default::default());
    state.room = (10, usize::MAX);
    for seq in 0..20 {
        let endless = EventRow { attributes: "{}".into(), ..event(seq, "grant_issued", &format!("g{seq}")) };
        state.insert(endless);
    }
    for seq in 20..28 {
        state.insert(event(seq, "tool_call", "g0"));
    }
    let gone = state.let_go(0);
    let of = |kind: &str| state.events.values().filter(|e| e.row.kind == kind).map(|e| e.row.seq).collect::<Vec<_>>();
    assert_eq!(of("tool_call"), [23, 24, 25, 26, 27], "the newest");
    assert_eq!(of("grant_issued"), [15, 16, 17, 18, 19]);
    assert_eq!(gone.len(), 18);
}

#[test]
fn a_record_can_be_several_events_and_leaves_nothing_behind() {
    let mut state = State::new(1000, usize::MAX, Default::default());
    let output = EventRow { conversation_id: Some("c".into()), ..event(1, "output", "g") };
    state.insert(event(1, "tool_call", "g"));
    state.insert(output.clone());
    state.insert(output);
    assert_eq!(state.all(1).map(|e| e.kind.as_str()).collect::<Vec<_>>(), ["tool_call", "output"]);
    let found = state.context(&BTreeSet::from([1]), &Snapshot::default()).unwrap();
    assert_eq!(found, BTreeSet::from([1]));
    assert_eq!(state.let_go(2), [1]);
    assert!(state.by_time.is_empty());
    assert!(state.index.is_empty() && state.more.is_empty() && state.tally.is_empty() && state.before.is_empty());
    assert_eq!((state.bytes, state.lasting_bytes), (0, 0));
}

#[test]
fn a_grant_that_went_is_found_again_with_its_uses_and_one_that_is_not_there_is_sought_once() {
    let mut events = vec![event(0, "grant_issued", "g")];
    events.extend((1..6).map(|seq| event(seq, "tool_call", "g")));
    let mut state = State::new(1000, usize::MAX, Default::default());
    events.iter().for_each(|event| state.insert(event.clone()));
    assert_eq!(state.let_go(i64::MAX - 1).len(), 6);
    let again = [event(6, "tool_call", "g"), event(7, "tool_call", "never")];
    events.extend(again.clone());
    again.into_iter().for_each(|event| state.insert(event));
    let snapshot = Snapshot::of_events(vec![EventRow::batch(&events)], 8);
    let judged = BTreeSet::from([6, 7]);
    let found = state.context(&judged, &snapshot).unwrap();
    assert_eq!(found, BTreeSet::from([0, 6, 7]), "its record is there again");
    let uses: Vec<_> = state.uses(&found).into_iter().map(|row| (row.seq, row.nth)).collect();
    assert_eq!(uses, [(6, 6), (7, 1)]);
    assert!(state.unknown.contains("never") && !state.unknown.contains("g"));
    state.insert(event(8, "grant_issued", "never"));
    assert!(state.unknown.is_empty(), "its record came");
}

#[test]
fn what_other_tenants_do_crowds_nothing_out() {
    let mut state = State::new(1000, usize::MAX, Default::default());
    let of = |seq, tenant: Option<&str>| {
        let (tenant, agent) = (tenant.map(str::to_owned), Some("assistant".to_owned()));
        EventRow { tenant, agent_id: agent, grant_id: None, ..event(seq, "tool_call", "g") }
    };
    state.insert(of(0, Some("acme")));
    state.insert(of(1, None));
    (2..=RELATED_MAX as u64 + 1).for_each(|seq| state.insert(of(seq, Some("globex"))));
    state.insert(of(5000, Some("acme")));
    let met = |state: &mut State, seq| state.context(&BTreeSet::from([seq]), &Snapshot::default()).unwrap();
    assert_eq!(met(&mut state, 5000), BTreeSet::from([0, 1, 5000]));
    assert_eq!(met(&mut state, 1).len(), RELATED_MAX + 1, "who names no tenant meets all, the newest of them");
    state.let_go(i64::MAX);
    assert!(state.index.is_empty());
}

/// Grants, their calls and what is decided of them, whoever else uses their ids.
#[test]
fn no_records_about_a_grant_crowd_it_out() {
    let of = |seq, kind: &str, tenant: Option<&str>| EventRow {
        tenant: tenant.map(str::to_owned),
        parent_grant_id: (kind == "grant_derived").then(|| "root".to_owned()),
        ..event(seq, kind, "g")
    };
    for other in [Some("globex"), Some("acme")] {
        let mut state = State::new(1000, usize::MAX, Default::default());
        state.insert(EventRow { tenant: Some("acme".into()), ..event(0, "grant_issued", "root") });
        state.insert(of(1, "grant_derived", Some("acme")));
        state.insert(of(2, "tool_call", Some("acme")));
        for seq in (10..).take(RELATED_MAX + 10) {
            state.insert(of(seq, "approval", other));
        }
        state.insert(of(5000, "tool_call", Some("acme")));
        let found = state.context(&BTreeSet::from([5000]), &Snapshot::default()).unwrap();
        assert!(found.is_superset(&BTreeSet::from([0, 1])), "the grant, and that above it");
    }
    let mut state = State::new(1000, usize::MAX, Default::default());
    state.insert(of(0, "grant_issued", Some("acme")));
    state.insert(of(1, "tool_call", Some("acme")));
    for seq in (10..).take(AGAIN_MAX + 10) {
        state.insert(of(seq, "tool_call", Some("globex")));
    }
    state.insert(of(5000, "grant_revoked", Some("acme")));
    assert_eq!(state.touched_by(5000, u64::MAX), BTreeSet::from([0, 1, 5000]));
}

#[test]
fn a_grant_that_went_is_found_again_whoever_else_has_its_id() {
    let of = |seq, kind: &str, tenant: &str| EventRow { tenant: Some(tenant.into()), ..event(seq, kind, "g") };
    let later = |seq, kind: &str, tenant: &str| EventRow {
        attributes: r#"{"authz.grant.expires_at":"1970-01-01T01:00:00Z"}"#.into(),
        ..of(seq, kind, tenant)
    };
    for there in
        [later(1, "grant_issued", "globex"), later(1, "executor_decision", "acme"), later(1, "grant_revoked", "acme")]
    {
        let mut state = State::new(1000, usize::MAX, Default::default());
        let mut events = vec![of(0, "grant_issued", "acme"), there.clone()];
        events.iter().for_each(|event| state.insert(event.clone()));
        // It ends after a second.
        let gone = state.let_go(2_000_000_000);
        assert!(gone.contains(&0), "{gone:?}");
        if gone.contains(&1) {
            state.insert(there.clone());
        }
        let call = EventRow { ingest_time: Time(3_000_000_000), ..of(2, "tool_call", "acme") };
        events.push(call.clone());
        state.insert(call);
        let snapshot = Snapshot::of_events(vec![EventRow::batch(&events)], 3);
        let found = state.context(&BTreeSet::from([2]), &snapshot).unwrap();
        assert!(found.contains(&0), "{}: {found:?}", there.kind);
        assert!(state.partly.is_empty() && !state.back.contains(&1));
    }
}

/// Tenants that come and go leave nothing behind, though others keep the id in use.
#[test]
fn what_tenants_leave_goes_with_them() {
    let mut state = State::new(1000, usize::MAX, Default::default());
    let of = |seq, kind: &str, tenant: &str| EventRow { tenant: Some(tenant.into()), ..event(seq, kind, "g") };
    let endless = EventRow { attributes: "{}".into(), ..of(0, "grant_issued", "acme") };
    state.insert(endless);
    for seq in (1..200).step_by(2) {
        state.insert(of(seq, "grant_issued", &format!("t{seq}")));
        state.insert(of(seq + 1, "tool_call", &format!("t{seq}")));
    }
    assert!(state.tally().sizes() > (100, 100));
    state.let_go(2_000_000_000);
    assert_eq!((state.len(), state.tally().sizes()), (1, (1, 0)));
}

/// Each decision is evidence: it touches what it can judge otherwise, and not all that its agent did.
#[test]
fn decisions_touch_what_did_not_begin_before_them() {
    let mut state = State::new(i64::MAX, usize::MAX, Default::default());
    let of = |seq, kind: &str, time: i64, trace: &str| EventRow {
        agent_id: Some("a".into()),
        trace_id: Some(trace.into()),
        event_time: Time(time),
        ..event(seq, kind, "g")
    };
    state.insert(of(0, "grant_issued", 0, "t0"));
    state.insert(of(1, "tool_call", 10, "t1"));
    state.insert(of(2, "tool_call", 20, "t2"));
    state.insert(of(3, "tool_call", 30, "t3"));
    state.insert(of(4, "executor_decision", 20, "t1"));
    // Its own trace, those that began with it and later, and what gives its grant.
    assert_eq!(state.touched_by(4, u64::MAX), BTreeSet::from([0, 1, 2, 3, 4]));
    state.insert(of(5, "executor_decision", 25, "t4"));
    assert_eq!(state.touched_by(5, u64::MAX), BTreeSet::from([0, 3, 4, 5]));
    // A grant touches all that was done under it.
    state.insert(of(6, "grant_issued", 40, "t5"));
    assert!(state.touched_by(6, u64::MAX).is_superset(&BTreeSet::from([1, 2, 3])));
    state.let_go(i64::MAX);
    assert!(state.index.is_empty() && state.by_time.is_empty());
}

#[test]
fn a_tenants_uses_of_nobodys_grant_are_counted_on_when_they_went() {
    let mut state = State::new(1000, usize::MAX, Default::default());
    let of = |seq| EventRow { tenant: Some("acme".into()), ..event(seq, "tool_call", "g") };
    state.insert(EventRow { attributes: "{}".into(), ..event(0, "grant_issued", "g") });
    state.insert(of(1));
    assert_eq!(state.let_go(2), [1]);
    state.insert(of(3));
    assert_eq!(state.uses(&BTreeSet::from([3]))[0].nth, 2);
    // The grant goes, and the call after it: nothing is left.
    assert_eq!(state.let_go(4), [3]);
    state.room.0 = 0;
    assert_eq!(state.let_go(4), [0]);
    assert_eq!(state.tally().sizes(), (0, 0));
}

/// Whoever is watched decides how much he does, and how it is dated.
#[test]
fn neither_many_derived_grants_nor_dates_to_come_hide_what_is_judged_again() {
    let mut state = State::new(i64::MAX, usize::MAX, Default::default());
    state.insert(event(0, "grant_issued", "root"));
    for seq in (1..).take(AGAIN_MAX + 10) {
        let parent_grant_id = Some("root".to_owned());
        state.insert(EventRow { parent_grant_id, ..event(seq, "grant_derived", &format!("g{seq}")) });
    }
    let newest = AGAIN_MAX as u64 + 10;
    state.insert(event(3000, "tool_call", &format!("g{newest}")));
    state.insert(event(3001, "grant_revoked", "root"));
    assert!(state.touched_by(3001, 3001).contains(&3000), "a call under what was derived");

    let of = |seq, kind: &str, time: i64| EventRow {
        agent_id: Some("a".into()),
        event_time: Time(time),
        ..event(seq, kind, &format!("own{seq}"))
    };
    for seq in (4000..).take(AGAIN_MAX + 10) {
        state.insert(of(seq, "tool_call", i64::MAX));
    }
    state.insert(of(6000, "tool_call", 30));
    state.insert(of(6001, "executor_decision", 20));
    assert!(state.touched_by(6001, 6001).contains(&6000), "it began after what was decided");
    assert!(!state.touched_by(6001, 6000).contains(&6000), "what is not settled is judged in any case");
}

#[test]
fn each_event_of_a_record_is_evidence() {
    let mut state = State::new(i64::MAX, usize::MAX, Default::default());
    let of = |seq, kind: &str, call: &str| EventRow {
        tool_call_id: Some(call.into()),
        ..event(seq, kind, &format!("own{seq}"))
    };
    for (seq, call) in [(1, "c1"), (2, "c2"), (3, "c3"), (4, "c4")] {
        state.insert(of(seq, "output", call));
    }
    state.insert(of(5, "tool_call", "c1"));
    state.insert(of(5, "context_retrieval", "c2"));
    state.insert(of(5, "output", "c3"));
    assert_eq!(state.touched_by(5, 5), BTreeSet::from([1, 2]), "an output is none");
}
