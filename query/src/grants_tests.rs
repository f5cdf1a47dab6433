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
    assert_eq!(grants.get(None, "leaf").map(|g| (g.depth, g.root_grant_id.as_deref())), Some((2, Some("root"))));
}

#[test]
fn orphans_and_cycles_give_an_answer() {
    let orphan = grants(&[event("grant_derived", "leaf", Some("gone"))]);
    let chain = orphan.chain("leaf");
    assert_eq!((chain[0].grant_id.as_str(), chain[0].state.as_str()), ("gone", "missing"));
    assert_eq!(orphan.get(None, "leaf").map(|g| g.lineage.as_str()), Some("missing"));
    let cycle = grants(&[
        event("grant_derived", "a", Some("c")),
        event("grant_derived", "b", Some("a")),
        event("grant_derived", "c", Some("b")),
        event("grant_derived", "d", Some("c")),
    ]);
    assert!(["a", "b", "c", "d"].iter().all(|id| cycle.get(None, id).is_some_and(|g| g.lineage == "cycle")));
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
    assert_eq!(grants.get(None, "g9999").map(|g| g.depth), Some(9_999));
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
        let told = |id: &str| grants.get(None, id).map(|g| (g.lineage.clone(), g.state.clone(), g.depth)).unwrap();
        for (id, depth) in [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("e", 2)] {
            assert_eq!(told(id), ("cycle".into(), "revoked".into(), depth), "{id}, turned by {turn}");
        }
        assert!(grants.chain("e").iter().skip(1).all(|row| row.narrowed.is_some()), "all have a parent that is known");
    }
}

fn given(kind: &str, id: &str, parent: Option<&str>, attributes: &str) -> EventRow {
    EventRow { attributes: attributes.into(), ..event(kind, id, parent) }
}

#[test]
fn nothing_comes_from_what_was_refused_or_breaks_the_rules_in_whatever_order_they_came() {
    let broken = EventRow { invalid_reasons: vec!["broken".into()], ..event("grant_issued", "broken", None) };
    let events = [
        event("grant_denied", "refused", None),
        event("grant_derived", "child", Some("refused")),
        event("grant_derived", "grandchild", Some("child")),
        broken,
        event("grant_derived", "heir", Some("broken")),
        event("grant_issued", "root", None),
        event("grant_derived", "leaf", Some("root")),
    ];
    for turn in 0..events.len() {
        let mut events = events.to_vec();
        events.rotate_left(turn);
        let grants = grants(&events);
        let told = |id: &str| grants.get(None, id).map(|g| (g.lineage.as_str(), g.is_given())).unwrap();
        for (id, lineage) in [("child", "refused"), ("grandchild", "refused"), ("heir", "invalid")] {
            assert_eq!(told(id), (lineage, false), "{id}, turned by {turn}");
            let chain = grants.chain(id);
            let last = &chain[chain.len() - 1];
            assert_eq!(last.narrowed, Some(false), "{id} lies inside nothing");
            assert!(last.note.as_deref().is_some_and(|note| note.starts_with("a grant above it")), "{last:?}");
        }
        assert_eq!((told("leaf"), grants.chain("leaf")[1].narrowed), (("ok", true), Some(true)));
    }
    let mut later = events.to_vec();
    later.push(event("grant_issued", "refused", None));
    let later = grants(&later);
    assert_eq!(later.get(None, "grandchild").map(|g| g.lineage.as_str()), Some("ok"), "it was given after all");
}

#[test]
fn tenants_do_not_meet_in_a_grant() {
    let of = |tenant: Option<&str>, event: EventRow| EventRow { tenant: tenant.map(str::to_owned), ..event };
    let wide = r#"{"authz.grant.actions":["*"]}"#;
    let grants = grants(&[
        of(Some("globex"), given("grant_issued", "g", None, wide)),
        of(Some("acme"), event("grant_issued", "g", None)),
        of(Some("acme"), event("grant_derived", "leaf", Some("g"))),
        of(Some("globex"), event("grant_revoked", "g", None)),
        of(Some("globex"), event("grant_derived", "theirs", Some("leaf"))),
        of(None, event("grant_derived", "nobodys", Some("g"))),
    ]);
    let told = |tenant, id: &str| {
        let grant = grants.get(tenant, id)?;
        Some((grant.actions.join(","), grant.state.as_str(), grant.lineage.as_str()))
    };
    assert_eq!(told(Some("acme"), "g"), Some(("read".into(), "active", "ok")));
    assert_eq!(told(Some("globex"), "g"), Some(("*".into(), "revoked", "ok")));
    assert_eq!(told(Some("acme"), "leaf"), Some(("read".into(), "active", "ok")));
    assert_eq!(told(Some("globex"), "theirs").map(|(.., lineage)| lineage), Some("missing"));
    assert_eq!(told(None, "nobodys").map(|(.., lineage)| lineage), Some("missing"));
    assert_eq!((told(None, "g"), told(Some("globex"), "leaf")), (None, None));
    assert!(grants.rows().iter().all(|grant| grant.conflicting_seqs.is_empty()));
    let chains = grants.chain("g");
    let chains: Vec<_> = chains.iter().map(|row| (row.depth, row.tenant.as_deref(), row.state.as_str())).collect();
    assert_eq!(chains, [(0, Some("globex"), "revoked"), (0, Some("acme"), "active")]);
}

/// An authority that serves all tenants names none, and its word holds for each; so does a revocation of that kind.
#[test]
fn who_names_no_tenant_meets_all() {
    let of = |tenant: Option<&str>, event: EventRow| EventRow { tenant: tenant.map(str::to_owned), ..event };
    let grants = grants(&[
        of(None, event("grant_issued", "all", None)),
        of(Some("acme"), event("grant_derived", "acmes", Some("all"))),
        of(Some("globex"), event("grant_derived", "globexs", Some("all"))),
        of(None, event("grant_derived", "below", Some("acmes"))),
        of(None, event("grant_revoked", "globexs", None)),
        of(Some("acme"), event("grant_issued", "own", None)),
        of(None, given("grant_issued", "own", None, r#"{"authz.grant.actions":["*"]}"#)),
        of(Some("globex"), event("grant_revoked", "own", None)),
    ]);
    let told = |tenant, id: &str| grants.get(tenant, id).map(|g| (g.state.as_str(), g.lineage.as_str()));
    assert_eq!(told(Some("acme"), "all"), Some(("active", "ok")));
    assert_eq!((told(Some("acme"), "acmes"), told(None, "below")), (Some(("active", "ok")), Some(("active", "ok"))));
    assert_eq!(told(Some("globex"), "globexs"), Some(("revoked", "ok")));
    assert_eq!(told(Some("acme"), "own"), Some(("active", "ok")), "another's revocation is none of its");
    assert_eq!(told(Some("globex"), "own"), Some(("revoked", "ok")), "the one that is nobody's, for who took it back");
    assert_eq!(grants.get(Some("acme"), "own").map(|g| g.actions.len()), Some(1));
}

#[test]
fn of_two_records_for_one_id_the_narrower_counts_and_the_difference_is_told() {
    let wide = given("grant_issued", "g", None, r#"{"authz.grant.actions":["*"],"authz.grant.issuer":"x"}"#);
    let narrow = given("grant_issued", "g", None, r#"{"authz.grant.actions":["read"],"authz.grant.issuer":"ta"}"#);
    let other = given("grant_issued", "g", None, r#"{"authz.grant.actions":["pay"],"authz.grant.issuer":"x"}"#);
    let elsewhere = EventRow { agent_id: Some("another".into()), ..narrow.clone() };
    let told = |events: &[EventRow]| {
        let grants = grants(events);
        let grant = grants.get(None, "g").cloned().unwrap();
        let note = grants.chain("g")[0].note.clone();
        assert_eq!(note.is_some(), !grant.conflicting_seqs.is_empty(), "{note:?}");
        (grant.actions.join(","), grant.issued_seq, grant.conflicting_seqs)
    };
    let (none, both) = (vec![], vec![0, 1]);
    assert_eq!(told(&[wide.clone(), wide.clone()]), ("*".into(), 0, none), "sent again");
    assert_eq!(told(&[wide.clone(), narrow.clone()]), ("read".into(), 1, both.clone()));
    assert_eq!(told(&[narrow.clone(), wide.clone()]), ("read".into(), 0, both.clone()));
    assert_eq!(told(&[wide.clone(), narrow.clone(), wide.clone(), narrow.clone()]), ("read".into(), 1, both.clone()));
    assert_eq!(told(&[narrow.clone(), other.clone()]), ("read".into(), 0, both.clone()), "neither lies in the other");
    assert_eq!(told(&[wide.clone(), elsewhere]), ("*".into(), 0, both.clone()), "for another agent");
    let renamed = EventRow { attributes: narrow.attributes.replace("ta", "x"), ..narrow.clone() };
    assert_eq!(told(&[narrow.clone(), renamed]), ("read".into(), 0, both), "another issuer");
    let refused = event("grant_denied", "g", None);
    assert_eq!(told(&[refused, narrow]), ("read".into(), 1, vec![]), "given after it had been refused");
}

#[test]
fn constraints_that_cannot_be_read_are_not_none() {
    let of = |constraints: &str| {
        let attributes = format!(r#"{{"authz.grant.actions":["read"],"authz.grant.constraints":{constraints}}}"#);
        let grants = grants(&[given("grant_issued", "g", None, &attributes)]);
        grants.get(None, "g").map(|g| (g.state.clone(), g.reasons.len())).unwrap()
    };
    for unread in [r#""not json""#, r#""7""#, "true", "7"] {
        assert_eq!(of(unread), ("invalid".into(), 1), "{unread}");
    }
    for read in [r#""{}""#, r#""[1]""#, "[1]", r#"{"n":1}"#, r#""""#, "null", r#"{"n":{"maximum":1}}"#] {
        assert_eq!(of(read), ("active".into(), 0), "{read}");
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
    let of = |id: &str| grants.get(None, id).map(|g| (g.awaits.clone(), g.deepest, g.deepest_by.clone()));
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
    let last = grants.get(None, "g99").map(|g| g.awaits.clone()).unwrap();
    assert_eq!((last.len(), last[0].as_str(), last[14].as_str(), last[15].as_str()), (16, "g00", "g14", "g99"));
}
