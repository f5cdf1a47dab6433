//! Who may act, what is refused, and what counts, without a server.

use super::*;
use crate::alerts::{Folded, Standing, alerts, alerts_within, history, measures};
use crate::caller::Roles;
use crate::event::EventRow;
use crate::rows::Time;
use serde_json::{Map, Value as Json};

const SECOND: i64 = 1_000_000_000;

/// A log of events, and what is appended to it.
#[derive(Default)]
struct Case(Vec<EventRow>);

impl Case {
    fn add(&mut self, at: i64, kind: &str, submitter: &str, actor: Option<(&str, &str)>, fields: &[(&str, &str)]) {
        let object: Map<String, Json> = fields.iter().map(|(k, v)| ((*k).to_owned(), Json::from(*v))).collect();
        let text = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
        self.0.push(EventRow {
            seq: self.0.len() as u64,
            kind: kind.into(),
            event_time: Time(at * SECOND),
            ingest_time: Time(at * SECOND),
            submitter: submitter.into(),
            correlation_id: text("security.alert.id"),
            action: text("security_rule.name"),
            decision: text("security.investigation.state").or_else(|| text("security.containment.action")),
            initiator_type: actor.map(|(kind, _)| kind.into()),
            initiator_id: actor.map(|(_, id)| id.into()),
            attributes: Json::Object(object).to_string(),
            ..EventRow::default()
        });
    }

    fn alert(&mut self, at: i64, id: &str) {
        self.add(at, "alert", "system:checks", None, &[("security.alert.id", id), ("security_rule.name", "r")]);
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(Snapshot::of_events(vec![EventRow::batch(&self.0)], self.0.len() as u64))
    }

    /// What a server does with what is planned.
    fn act(&mut self, at: i64, caller: &Caller, ask: &Ask) -> Result<Planned, Refusal> {
        let planned = plan(&self.snapshot(), caller, ask)?;
        let Planned::Append(said) = &planned else { return Ok(planned) };
        for Said { identity, record } in said {
            let text = |key: &str| record.text(key).map(str::to_owned);
            let fields: Map<String, Json> =
                record.attributes.iter().filter_map(|(k, _)| Some((k.clone(), Json::from(record.text(k)?)))).collect();
            let kind = match record.event.as_str() {
                "security.alert.acknowledged" => "alert_acknowledged",
                "security.investigation" => "investigation",
                "security.containment" => "containment_decision",
                _ => "authority_change",
            };
            self.0.push(EventRow {
                seq: self.0.len() as u64,
                kind: kind.into(),
                event_time: Time(at * SECOND),
                ingest_time: Time(at * SECOND),
                submitter: identity.to_string(),
                correlation_id: text("security.alert.id"),
                action: (kind == "authority_change").then(|| record.event.clone()),
                decision: text("security.investigation.state").or_else(|| text("security.containment.action")),
                initiator_type: text("security.actor.type"),
                initiator_id: text("security.actor.id"),
                attributes: Json::Object(fields).to_string(),
                ..EventRow::default()
            });
        }
        Ok(planned)
    }

    fn one(&self) -> AlertRow {
        alerts(&self.snapshot(), AsOf::Now).unwrap().remove(0)
    }
}

fn ada() -> Caller {
    Caller { identity: "jwt:idp#ada".into(), actor: ActorType::Human, ..Caller::local(None) }
}

fn ask(act: Act) -> Ask {
    Ask {
        alert_id: "a1".into(),
        act,
        note: None,
        tenant: None,
        disposition: None,
        decision: None,
        bulk: false,
        key: None,
    }
}

fn status(result: Result<Planned, Refusal>) -> u16 {
    match result {
        Ok(Planned::Append(_)) => 201,
        Ok(Planned::Done(_)) => 200,
        Err(refusal) => refusal.status,
    }
}

#[test]
fn only_a_person_with_the_role_may() {
    let mut case = Case::default();
    case.alert(0, "a1");
    for actor in [ActorType::Agent, ActorType::Workload, ActorType::Automation, ActorType::Unknown] {
        let caller = Caller { actor, ..ada() };
        for act in Act::ALL {
            let refusal = plan(&case.snapshot(), &caller, &ask(act)).unwrap_err();
            assert_eq!(refusal.status, 403, "{actor:?} {act:?}");
            assert!(refusal.message.contains("person"), "{}", refusal.message);
        }
    }
    let reader = Caller { roles: [Role::Read].into_iter().collect::<Roles>(), ..ada() };
    let refusal = plan(&case.snapshot(), &reader, &ask(Act::Acknowledge)).unwrap_err();
    assert!(refusal.status == 403 && refusal.message.contains("investigate"), "{refusal:?}");
    assert_eq!(status(plan(&case.snapshot(), &ada(), &ask(Act::Acknowledge))), 201);
}

#[test]
fn an_alert_goes_from_raised_to_closed_and_again() {
    let mut case = Case::default();
    case.alert(0, "a1");
    let ada = ada();
    let close = Ask { disposition: Some("true_positive".into()), ..ask(Act::Close) };
    let benign = Ask { disposition: Some("benign".into()), ..ask(Act::Close) };
    assert_eq!(status(case.act(5, &ada, &close)), 409, "nobody has looked into it");
    assert_eq!(status(case.act(10, &ada, &ask(Act::Acknowledge))), 201);
    assert_eq!(status(case.act(11, &ada, &ask(Act::Acknowledge))), 200, "once is enough");
    assert_eq!((case.one().state.as_str(), case.one().acknowledged_time), ("acknowledged", Some(Time(10 * SECOND))));
    assert_eq!(status(case.act(20, &ada, &ask(Act::Investigate))), 201);
    let note = Ask { note: Some("looks bad".into()), ..ask(Act::Note) };
    assert_eq!([status(case.act(21, &ada, &note)), status(case.act(22, &ada, &note))], [201, 201]);
    assert_eq!(status(case.act(30, &ada, &close)), 201);
    let row = case.one();
    assert_eq!((row.state.as_str(), row.disposition.as_deref(), row.notes), ("closed", Some("true_positive"), 2));
    assert_eq!((row.closed_how.as_deref(), row.closed_by.as_deref()), (Some("single"), Some("jwt:idp#ada")));
    assert_eq!([status(case.act(31, &ada, &close)), status(case.act(31, &ada, &benign))], [200, 409]);
    assert_eq!(status(case.act(40, &ada, &ask(Act::Investigate))), 201, "opened again");
    assert_eq!((case.one().state.as_str(), case.one().reopened, case.one().disposition), ("investigating", 1, None));
    assert_eq!(status(case.act(50, &ada, &benign)), 201);
    let contain = Ask { decision: Some("revoke_grant".into()), ..ask(Act::Contain) };
    assert_eq!([status(case.act(60, &ada, &contain)), status(case.act(61, &ada, &contain))], [201, 200]);
    let row = case.one();
    assert_eq!((row.containment.as_deref(), row.disposition.as_deref()), (Some("revoke_grant"), Some("benign")));
    let missing = Ask { alert_id: "a2".into(), ..ask(Act::Acknowledge) };
    assert_eq!(status(case.act(70, &ada, &missing)), 404);
    let steps = history(&case.snapshot(), "a1", AsOf::Now).unwrap();
    assert_eq!(steps.iter().filter(|s| s.act == "acknowledged").count(), 1);
    assert!(steps[1..].iter().all(|s| s.counts), "{steps:?}");
}

#[test]
fn a_key_makes_a_repeated_request_one_act() {
    let mut case = Case::default();
    case.alert(0, "a1");
    let note = |text: &str| Ask { note: Some(text.into()), key: Some("k1".into()), ..ask(Act::Note) };
    assert_eq!([status(case.act(1, &ada(), &note("x"))), status(case.act(2, &ada(), &note("x")))], [201, 200]);
    let other = Ask { key: Some("k1".into()), ..ask(Act::Acknowledge) };
    assert_eq!(status(case.act(3, &ada(), &other)), 409);
    let bob = Caller { identity: "jwt:idp#bob".into(), ..ada() };
    assert_eq!(status(case.act(4, &bob, &note("y"))), 201, "keys are each person's own");
}

#[test]
fn what_is_not_well_asked_says_why() {
    let mut case = Case::default();
    case.alert(0, "a1");
    let asks = [
        (ask(Act::Note), "needs its text"),
        (ask(Act::Close), "needs a disposition"),
        (Ask { disposition: Some("fine".into()), ..ask(Act::Close) }, "true_positive"),
        (Ask { disposition: Some("benign".into()), ..ask(Act::Note) }, "note"),
        (ask(Act::Contain), "needs a decision"),
        (Ask { bulk: true, ..ask(Act::Acknowledge) }, "one by one"),
        (Ask { note: Some("x".repeat(5000)), ..ask(Act::Note) }, "4096"),
        (Ask { note: Some("\u{1b}[2J".into()), ..ask(Act::Note) }, "control characters"),
        (Ask { note: Some(" ".into()), ..ask(Act::Note) }, "1 to"),
    ];
    for (ask, why) in asks {
        let refusal = case.act(1, &ada(), &ask).unwrap_err();
        assert!(refusal.status == 400 && refusal.message.contains(why), "{refusal:?}");
    }
}

#[test]
fn claims_count_only_from_those_whose_word_does() {
    let claim = |case: &mut Case, at, submitter: &str| {
        case.add(at, "alert_acknowledged", submitter, Some(("human", "bob")), &[("security.alert.id", "a1")]);
    };
    let mut open = Case::default();
    open.alert(0, "a1");
    claim(&mut open, 5, "peer:127.0.0.1");
    assert_eq!(open.one().acknowledged_by.as_deref(), Some("bob"), "without identities everybody is believed");

    let mut case = Case::default();
    case.alert(0, "a1");
    for said in Speakers::default().changes(true, &["cert:soc".into()]) {
        let fields: Vec<(&str, &str)> =
            said.record.attributes.iter().filter_map(|(k, _)| Some((k.as_str(), said.record.text(k)?))).collect();
        case.add(1, "authority_change", &said.identity, None, &fields);
        case.0.last_mut().unwrap().action = Some(said.record.event.clone());
    }
    claim(&mut case, 5, "cert:agent");
    let row = case.one();
    assert_eq!((row.state.as_str(), row.claimed_by.as_deref(), row.acknowledged_time), ("open", Some("bob"), None));
    let dwell = measures::dwell_time(&[row], Time(100 * SECOND));
    let open = dwell.iter().find(|r| r.rule.is_none() && r.measure == "acknowledge").unwrap();
    assert_eq!((open.still_open, open.ended), (1, 0), "a claim stops no clock");
    let told = history(&case.snapshot(), "a1", AsOf::Now).unwrap().pop().unwrap();
    assert!(!told.counts && told.why_not.unwrap().contains("cert:agent"));
    // An agent cannot make its alert go away either.
    let closed = [("security.alert.id", "a1"), ("security.investigation.state", "closed")];
    case.add(6, "investigation", "cert:agent", Some(("automation", "bot")), &closed);
    assert_eq!(case.one().state, "open");
    claim(&mut case, 9, "cert:soc");
    assert_eq!((case.one().state.as_str(), case.one().acknowledged_time), ("acknowledged", Some(Time(9 * SECOND))));
    // Who was authenticated as a person counts from then on, without being configured.
    assert_eq!(status(case.act(20, &ada(), &ask(Act::Investigate))), 201);
    assert_eq!(case.one().investigation_opened_by.as_deref(), Some("jwt:idp#ada"));
    // And what was judged before stays judged by what was known before.
    assert_eq!(alerts(&case.snapshot(), AsOf::Seq(3)).unwrap()[0].state, "open");
}

#[test]
fn bulk_and_automatic_closings_are_no_coverage_and_compete() {
    let mut case = Case::default();
    let human = Some(("human", "bob"));
    let fields = |id: &'static str, mode: &'static str| {
        [
            ("security.alert.id", id),
            ("security.investigation.state", "closed"),
            ("security.investigation.disposition", "benign"),
            ("security.investigation.mode", mode),
        ]
    };
    for id in ["said", "auto", "fast1", "fast2", "fast3", "fast4", "fast5", "slow", "merged", "open"] {
        case.alert(0, id);
    }
    case.add(10, "investigation", "p", human, &fields("said", "bulk"));
    case.add(20, "investigation", "p", Some(("automation", "soar")), &fields("auto", "single"));
    for (i, id) in ["fast1", "fast2", "fast3", "fast4", "fast5"].into_iter().enumerate() {
        case.add(100 + i as i64, "investigation", "p", human, &fields(id, "single"));
    }
    case.add(500, "investigation", "p", human, &fields("slow", "single"));
    let merged = [
        ("security.alert.id", "merged"),
        ("security.investigation.state", "merged"),
        ("security.alert.merged_into", "slow"),
    ];
    case.add(30, "investigation", "p", Some(("automation", "soar")), &merged);
    let folded = Folded::of(&case.snapshot()).get().unwrap();
    let state = |id: &str| folded.iter().find(|a| a.alert_id == id).unwrap().state.clone();
    assert_eq!(
        ["said", "auto", "fast3", "slow", "merged", "open"].map(state),
        ["closed", "suppressed", "closed", "closed", "merged", "open"]
    );
    let all = |rows: Vec<measures::CoverageRow>| rows.into_iter().find(|r| r.rule.is_none()).unwrap();
    let row = all(measures::coverage(&folded));
    assert_eq!((row.raised, row.closed, row.bulk_closed, row.auto_closed, row.coverage), (10, 1, 6, 2, Some(0.1)));
    let now = Time(1000 * SECOND);
    let dwell = measures::dwell_time(&folded, now);
    let row = dwell.iter().find(|r| r.rule.is_none() && r.measure == "acknowledge").unwrap();
    assert_eq!((row.ended, row.ended_otherwise, row.still_open, row.share_open), (1, 8, 1, Some(0.1)));
    assert_eq!(row.p50_seconds, None, "nobody will ever have noticed half of them");
    let day = 86_400 * SECOND;
    let at = |follow_up, now| {
        let within = alerts_within(&case.snapshot(), follow_up).unwrap();
        measures::coverage_by(&within, measures::By::All, Some(follow_up), None, now)
    };
    assert!(at(day, now).is_empty(), "nothing was followed for a day yet");
    let early = &at(200 * SECOND, now)[0];
    assert_eq!((early.raised, early.closed), (10, 0), "the closing at 500 s is beyond 200 s");
    assert_eq!(at(600 * SECOND, now)[0].closed, 1);
    let windows = measures::coverage_by(&folded, measures::By::Rule, None, Some(day), now);
    assert_eq!((windows[0].value.as_deref(), windows[0].window_start), (Some("r"), Some(Time(0))));
    assert_eq!(Standing::of(&case.0[11], &Speakers::default()), Standing::Automation);
}

#[test]
fn the_id_of_a_checks_alert_cannot_be_taken_before_it() {
    let mut case = Case::default();
    let fields = [("security.alert.id", "a1"), ("security_rule.name", "nothing to see")];
    case.add(0, "alert", "cert:agent", None, &fields);
    case.alert(1, "a1");
    case.add(2, "alert", "cert:agent", None, &fields);
    let row = case.one();
    assert_eq!((row.seq, row.rule.as_deref(), row.raised_by.as_str()), (1, Some("r"), "system:checks"));
}

#[test]
fn a_superseded_alert_says_by_what_and_dwells_no_more() {
    let mut case = Case::default();
    let replacing = [
        ("security.alert.id", "b.2"),
        ("security_rule.name", "r"),
        ("security.alert.supersedes", "b"),
        ("security.alert.title", "now proven"),
    ];
    for id in ["a", "b", "seen", "mine", "closed"] {
        case.alert(0, id);
    }
    case.act(5, &ada(), &Ask { alert_id: "seen".into(), ..ask(Act::Acknowledge) }).unwrap();
    let bulk = Ask { disposition: Some("benign".into()), bulk: true, ..ask(Act::Close) };
    case.act(6, &ada(), &Ask { alert_id: "closed".into(), ..bulk }).unwrap();
    for id in ["a", "seen", "closed"] {
        case.add(10, "alert_superseded", "system:checks", None, &[("security.alert.id", id)]);
    }
    case.add(20, "alert", "system:checks", None, &replacing);
    // Whoever did not raise an alert cannot supersede it, by neither way.
    case.add(30, "alert_superseded", "cert:agent", None, &[("security.alert.id", "mine")]);
    let theirs = [("security.alert.id", "x"), ("security_rule.name", "r"), ("security.alert.supersedes", "mine")];
    case.add(31, "alert", "cert:agent", None, &theirs);

    let snapshot = case.snapshot();
    let folded = Folded::of(&snapshot).get().unwrap();
    let of = |id: &str| folded.iter().find(|a| a.alert_id == id).unwrap().clone();
    let state = |id| of(id).state;
    assert_eq!(
        ["a", "b", "b.2", "seen", "mine", "closed"].map(state),
        ["superseded", "superseded", "open", "superseded", "open", "closed"]
    );
    assert_eq!((of("a").superseded_time, of("a").superseded_by), (Some(Time(10 * SECOND)), None));
    assert_eq!((of("b").superseded_time, of("b").superseded_by.as_deref()), (Some(Time(20 * SECOND)), Some("b.2")));
    // One alert alone tells the same as all of them.
    for alert in folded.iter() {
        let (one, _) = super::alert(&snapshot, (&alert.alert_id, None), AsOf::Now).unwrap().remove(0);
        assert_eq!((&one.state, &one.superseded_by), (&alert.state, &alert.superseded_by), "{}", alert.alert_id);
    }
    let steps = history(&snapshot, "b", AsOf::Now).unwrap();
    let told: Vec<_> = steps.iter().map(|step| (step.act.as_str(), step.note.as_deref(), step.counts)).collect();
    assert_eq!(told, [("raised", None, false), ("superseded", Some("alert b.2 takes its place"), false)]);
    let before = alerts(&snapshot, AsOf::Seq(4)).unwrap();
    assert!(before.iter().all(|alert| alert.state == "open"), "as it was known then");

    let now = Time(1000 * SECOND);
    let dwell = measures::dwell_time(&folded, now);
    let row = dwell.iter().find(|r| r.rule.is_none() && r.measure == "acknowledge").unwrap();
    // Noticed: seen. No more to be noticed: a, b, and closed in bulk. Open: b.2, mine, and theirs.
    assert_eq!((row.ended, row.ended_otherwise, row.still_open), (1, 3, 3));
    let row = measures::coverage(&folded).into_iter().find(|r| r.rule.is_none()).unwrap();
    assert_eq!((row.raised, row.superseded, row.auto_closed, row.bulk_closed), (7, 2, 0, 1));
    let outcomes = measures::outcomes(&folded, now);
    let row = outcomes.iter().find(|r| r.rule.is_none() && r.outcome == "superseded").unwrap();
    assert_eq!((row.alerts, row.ended), (7, 2));
}

/// An alert of a SIEM, as one submitter of a tenant raises it.
fn siem(case: &mut Case, submitter: &str, tenant: Option<&str>, (severity, title): (&str, &str)) {
    let fields = [("security.alert.id", "S-1"), ("security.alert.severity", severity), ("security.alert.title", title)];
    let at = case.0.len() as i64;
    case.add(at, "alert", submitter, None, &fields);
    case.0.last_mut().unwrap().tenant = tenant.map(Into::into);
}

#[test]
fn whoever_is_quicker_with_an_id_makes_no_alert_harmless_or_go_away() {
    let mut case = Case::default();
    siem(&mut case, "agent", Some("acme"), ("informational", "harmless"));
    siem(&mut case, "siem", Some("acme"), ("critical", "Exfiltration!"));
    siem(&mut case, "agent", Some("acme"), ("low", "really"));
    let row = case.one();
    let told = (row.severity.as_deref(), row.title.as_deref(), row.raised_by.as_str());
    assert_eq!(told, (Some("critical"), Some("Exfiltration!"), "siem"));
    assert_eq!((row.also_raised_by, row.seq, row.raised_time), (vec!["agent".to_owned()], 1, Time(0)));
    let mut take_back = |who: &str| {
        case.add(9, "alert_superseded", who, None, &[("security.alert.id", "S-1")]);
        case.0.last_mut().unwrap().tenant = Some("acme".into());
        case.one().state
    };
    let states = ["agent", "another", "siem"].map(&mut take_back);
    assert_eq!(states, ["open", "open", "superseded"], "all who raised it must say so");
}

#[test]
fn the_same_id_in_two_tenants_is_two_alerts() {
    let mut case = Case::default();
    siem(&mut case, "agent", Some("globex"), ("critical", "noise"));
    siem(&mut case, "siem", Some("acme"), ("high", "real"));
    let ask = |act, tenant: Option<&str>| Ask { alert_id: "S-1".into(), tenant: tenant.map(Into::into), ..ask(act) };
    let refused = plan(&case.snapshot(), &ada(), &ask(Act::Acknowledge, None)).unwrap_err();
    assert!(refused.status == 409 && refused.message.contains("globex, acme"), "{refused:?}");
    assert_eq!(plan(&case.snapshot(), &ada(), &ask(Act::Acknowledge, Some("initech"))).unwrap_err().status, 404);
    let planned = plan(&case.snapshot(), &ada(), &ask(Act::Acknowledge, Some("acme"))).unwrap();
    let Planned::Append(said) = planned else { panic!("{planned:?}") };
    assert_eq!(said.last().unwrap().record.text("tenant.id"), Some("acme"));
    let person = Some(("human", "jwt:idp#ada"));
    case.add(5, "alert_acknowledged", "soc", person, &[("security.alert.id", "S-1")]);
    let noticed = |case: &Case| {
        let alerts = alerts(&case.snapshot(), AsOf::Now).unwrap();
        alerts.iter().map(|a| (a.tenant.clone().unwrap(), a.acknowledged_time.is_some())).collect::<Vec<_>>()
    };
    let want = |acme| vec![("globex".to_owned(), false), ("acme".to_owned(), acme)];
    assert_eq!(noticed(&case), want(false), "what names no tenant is about neither of two");
    case.0.last_mut().unwrap().tenant = Some("acme".into());
    assert_eq!(noticed(&case), want(true));
    let found = alert(&case.snapshot(), ("S-1", Some("acme")), AsOf::Now).unwrap();
    assert_eq!(found[0].1.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2], "no record of the other tenant");
}

#[test]
fn what_is_done_after_the_follow_up_time_changes_nothing_within_it() {
    let mut case = Case::default();
    case.alert(0, "a1");
    let close = Ask { disposition: Some("benign".into()), ..ask(Act::Close) };
    case.act(10, &ada(), &ask(Act::Investigate)).unwrap();
    case.act(20, &ada(), &close).unwrap();
    let closed = |case: &Case, follow_up: i64| {
        let within = alerts_within(&case.snapshot(), follow_up * SECOND).unwrap();
        let now = Time(1_000_000 * SECOND);
        measures::coverage_by(&within, measures::By::All, Some(follow_up * SECOND), None, now)[0].closed
    };
    assert_eq!([15, 3_600, 200_000].map(|s| closed(&case, s)), [0, 1, 1]);
    case.act(100_000, &ada(), &ask(Act::Investigate)).unwrap();
    assert_eq!([15, 3_600, 200_000].map(|s| closed(&case, s)), [0, 1, 0], "it was closed in time, then");
    case.act(150_000, &ada(), &close).unwrap();
    assert_eq!([15, 3_600, 200_000].map(|s| closed(&case, s)), [0, 1, 1]);
}
