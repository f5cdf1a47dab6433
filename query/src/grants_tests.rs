//! Chains, orphans, cycles, revocations; by folding everything and by looking up one.

use super::*;

fn event(kind: &str, id: &str, parent: Option<&str>) -> EventRow {
    EventRow {
        kind: kind.into(),
        grant_id: Some(id.into()),
        parent_grant_id: parent.map(str::to_owned),
        agent_id: Some("agent".into()),
        attributes: r#"{"authz.grant.actions":["read"]}"#.into(),
        ..EventRow::default()
    }
}

fn grants(events: &[EventRow]) -> Grants {
    let rows: Vec<EventRow> =
        events.iter().cloned().enumerate().map(|(i, e)| EventRow { seq: i as u64, ..e }).collect();
    let snapshot = Snapshot::of_events(vec![EventRow::batch(&rows)], rows.len() as u64);
    Grants::of(&snapshot, AsOf::Now, Time(0)).unwrap()
}

#[test]
fn a_chain_runs_from_the_root_down() {
    let grants = grants(&[
        event("grant_issued", "root", None),
        event("grant_derived", "mid", Some("root")),
        event("grant_derived", "leaf", Some("mid")),
        event("grant_revoked", "root", None),
    ]);
    let chain = grants.chain("leaf");
    assert_eq!(chain.iter().map(|r| r.grant_id.as_str()).collect::<Vec<_>>(), ["root", "mid", "leaf"]);
    assert_eq!(chain.iter().map(|r| r.narrowed).collect::<Vec<_>>(), [None, Some(true), Some(true)]);
    assert!(chain.iter().all(|r| r.state == "revoked" && r.revoked_seq == Some(3)), "revocation cascades");
    assert_eq!(grants.get("leaf").map(|g| (g.depth, g.root_grant_id.as_deref())), Some((2, Some("root"))));
}

#[test]
fn orphans_and_cycles_give_an_answer() {
    let orphan = grants(&[event("grant_derived", "leaf", Some("gone"))]);
    let chain = orphan.chain("leaf");
    assert_eq!((chain[0].grant_id.as_str(), chain[0].state.as_str()), ("gone", "missing"));
    assert_eq!(orphan.get("leaf").map(|g| g.lineage.as_str()), Some("missing"));
    let cycle = grants(&[
        event("grant_derived", "a", Some("c")),
        event("grant_derived", "b", Some("a")),
        event("grant_derived", "c", Some("b")),
        event("grant_derived", "d", Some("c")),
    ]);
    assert!(["a", "b", "c", "d"].iter().all(|id| cycle.get(id).is_some_and(|g| g.lineage == "cycle")));
    assert!(cycle.chain("d")[0].note.as_deref().is_some_and(|n| n.starts_with("cycle")));
    assert_eq!(grants(&[]).chain("x")[0].state, "missing");
}

#[test]
fn ten_thousand_derivations_are_no_trouble() {
    let ids: Vec<String> = (0..10_000).map(|i| format!("g{i}")).collect();
    let mut events = vec![event("grant_issued", &ids[0], None)];
    events.extend(ids.windows(2).map(|w| event("grant_derived", &w[1], Some(&w[0]))));
    events.reverse();
    let grants = grants(&events);
    assert_eq!(grants.chain("g9999").len(), 10_000);
    assert_eq!(grants.get("g9999").map(|g| g.depth), Some(9_999));
}

#[test]
fn a_revocation_reaches_all_of_a_loop_and_below_in_whatever_order_they_came() {
    let events = [
        event("grant_derived", "a", Some("c")),
        event("grant_derived", "b", Some("a")),
        event("grant_derived", "c", Some("b")),
        event("grant_derived", "d", Some("c")),
        event("grant_derived", "e", Some("d")),
    ];
    for turn in 0..events.len() {
        let mut events = events.to_vec();
        events.rotate_left(turn);
        events.push(event("grant_revoked", "b", None));
        let grants = grants(&events);
        let told = |id: &str| grants.get(id).map(|g| (g.lineage.clone(), g.state.clone(), g.depth)).unwrap();
        for (id, depth) in [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("e", 2)] {
            assert_eq!(told(id), ("cycle".into(), "revoked".into(), depth), "{id}, turned by {turn}");
        }
        assert!(grants.chain("e").iter().skip(1).all(|row| row.narrowed.is_some()), "all have a parent that is known");
    }
}

#[test]
fn what_a_chain_waits_for_and_how_deep_it_may_go_is_passed_down() {
    let says = |event: EventRow, attributes: &str| EventRow { attributes: attributes.into(), ..event };
    let pending = r#"{"authz.grant.approval.state":"PENDING","authz.grant.max_depth":2}"#;
    let grants = grants(&[
        says(event("grant_issued", "root", None), pending),
        says(event("grant_derived", "mid", Some("root")), r#"{"authz.grant.max_depth":7}"#),
        says(event("grant_derived", "leaf", Some("mid")), r#"{"authz.grant.approval.state":false}"#),
        says(event("grant_denied", "no", Some("leaf")), r#"{"authz.grant.approval.state":"pending"}"#),
    ]);
    let of = |id: &str| grants.get(id).map(|g| (g.awaits.clone(), g.deepest, g.deepest_by.clone()));
    let [root, leaf] = ["root", "leaf"].map(str::to_owned);
    assert_eq!(of("root"), Some((vec![root.clone()], None, None)));
    assert_eq!(of("mid"), Some((vec![root.clone()], Some(2), Some(root.clone()))));
    assert_eq!(of("leaf"), Some((vec![root.clone(), leaf.clone()], Some(2), Some(root.clone()))));
    assert_eq!(of("no"), Some((vec![root.clone(), leaf], Some(2), Some(root))));
}

#[test]
fn a_chain_that_waits_everywhere_costs_no_more() {
    let ids: Vec<String> = (0..100).map(|i| format!("g{i:02}")).collect();
    let waits = |i: usize| EventRow {
        attributes: r#"{"authz.grant.approval.state":"pending"}"#.into(),
        ..event("grant_derived", &ids[i], i.checked_sub(1).map(|above| ids[above].as_str()))
    };
    let grants = grants(&(0..100).map(waits).collect::<Vec<_>>());
    let last = grants.get("g99").map(|g| g.awaits.clone()).unwrap();
    assert_eq!((last.len(), last[0].as_str(), last[14].as_str(), last[15].as_str()), (16, "g00", "g14", "g99"));
}
