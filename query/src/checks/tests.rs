//! Every check against its examples; and judging one by one against judging all at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::examples::{Sent, snapshot_of, stepwise};
use super::run::Entries;
use super::*;
use crate::rows::Time;

#[test]
fn every_check_has_a_head_and_a_tag_of_owasp() {
    let rules = built_in();
    assert_eq!(rules.len(), BUILT_IN.len(), "each head can be read");
    for rule in &rules {
        assert!(rule.tags.iter().any(|tag| tag.starts_with("OWASP ASI")), "{}", rule.id);
        assert!(rule.about.len() > 20, "{}", rule.id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_check_finds_its_hits_and_passes_its_near_misses() {
    let tried = try_rules(&built_in()).await;
    let wrong: Vec<_> = tried.iter().filter(|tried| tried.problem.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tried.len() >= 2 * BUILT_IN.len());
}

#[test]
fn the_page_of_checks_lists_all_of_them() {
    let page = include_str!("../../../docs/checks.md");
    for rule in built_in() {
        let (on, told) = (if rule.enabled { "on" } else { "off" }, if rule.waits { "after grace" } else { "at once" });
        let tags = rule.tags.join(", ");
        let row = format!("| `{}` | {} | {on} | {told} | {tags} | {} |", rule.id, rule.severity, rule.about);
        assert!(page.lines().any(|line| line == row), "docs/checks.md should have\n{row}");
        for (name, setting) in &rule.settings {
            let row = format!("| `{}` | `{name}` | `", rule.id);
            assert!(
                page.lines().any(|line| line.starts_with(&row) && line.ends_with(&format!("| {} |", setting.about))),
                "{row}"
            );
        }
    }
}

/// Some records name one of two tenants.
pub(super) fn whose(numbers: &mut Numbers, record: &mut Json) {
    match numbers.below(6) {
        0 => record["attributes"]["tenant.id"] = json!("globex"),
        1 | 2 => record["attributes"]["tenant.id"] = json!("acme"),
        _ => {}
    }
}

/// A small generator: the same numbers for the same seed, on every machine.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Records about a handful of grants, agents and traces, so that they meet in many ways.
fn record(numbers: &mut Numbers, i: u64) -> Json {
    let mut one = |prefix: &str, n| format!("{prefix}{}", numbers.below(n));
    let (grant, parent, agent, call) = (one("g", 5), one("g", 5), one("a", 3), one("c", 6));
    let (action, resource, credential) = (one("act", 3), one("r", 3), one("k", 2));
    let (at, trace) = (numbers.below(50), numbers.below(2) + 1);
    let attributes = match numbers.below(8) {
        0 => (
            "authz.grant.issued",
            json!({"authz.grant.id": grant, "authz.grant.subject": agent,
            "authz.grant.actions": ["act0", "act1"], "authz.grant.resources": ["r0", "r1"], "authz.grant.max_uses": 2,
            "authz.grant.max_depth": 1, "authz.grant.initiator.id": "emma"}),
        ),
        1 => (
            "authz.grant.derived",
            json!({"authz.grant.id": grant, "authz.grant.parent_id": parent,
            "authz.grant.subject": agent, "authz.grant.actions": [action], "authz.grant.initiator.id": "emma"}),
        ),
        2 => (
            "authz.grant.denied",
            json!({"authz.grant.subject": agent, "authz.grant.actions": [action],
            "authz.grant.resources": [resource], "authz.grant.id": if i.is_multiple_of(2) { &grant } else { "" }}),
        ),
        3 => ("authz.grant.revoked", json!({"authz.grant.id": grant, "authz.revoked_by": "x"})),
        4 => (
            "authz.approval",
            json!({"authz.grant.id": grant, "authz.approval.by": agent,
            "authz.approval.state": "approved", "gen_ai.tool.call.id": call}),
        ),
        5 => (
            "authz.executor.decision",
            json!({"authz.grant.id": grant, "gen_ai.agent.id": agent, "authz.resource": resource,
            "authz.decision": if i.is_multiple_of(2) { "deny" } else { "allow" }, "gen_ai.tool.call.id": call}),
        ),
        _ => (
            "",
            json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t", "authz.grant.id": grant,
            "gen_ai.agent.id": agent, "authz.action": action, "authz.resource": resource, "gen_ai.tool.call.id": call,
            "authz.credential.id": credential}),
        ),
    };
    // All of it comes within two seconds, in whatever order.
    let received = 60.0 + i as f64 * 0.02;
    let mut out = json!({"at": at, "received": received, "trace": trace.to_string(), "attributes": attributes.1});
    whose(numbers, &mut out);
    match attributes.0 {
        "" => out["span"] = json!(format!("{:x}", i + 1)),
        name => out["log"] = json!(name),
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn judged_one_by_one_is_judged_all_at_once() {
    let rules = built_in();
    let tuning = Tuning::of(&rules);
    let grace = tuning.grace();
    let checker = Checker::new(rules, tuning).await.unwrap();
    let mut hits = BTreeSet::new();
    for seed in 1..=6 {
        let mut numbers = Numbers(seed);
        let records: Vec<Sent> = (0..60).map(|i| serde_json::from_value(record(&mut numbers, i)).unwrap()).collect();
        let (snapshot, ledger, end) = snapshot_of(&records);
        let (entries, now) = (Entries::These(ledger), Time(end + grace + 1));
        let at_once = checker.everything(&Arc::new(snapshot.clone()), &entries, now).await.unwrap();
        let at_once: BTreeSet<_> =
            at_once.into_iter().map(|hit| (hit.seq, hit.check_id, hit.verdict, hit.evidence)).collect();
        let step = 5 + numbers.below(20);
        let stepped = stepwise(&checker, &snapshot, &entries, step, now).await.unwrap();
        let keys = |hits: &BTreeSet<(u64, String, String, Vec<u64>)>| -> BTreeSet<(u64, String, String)> {
            hits.iter().map(|(seq, check, verdict, _)| (*seq, check.clone(), verdict.clone())).collect()
        };
        assert_eq!(keys(&stepped), keys(&at_once), "seed {seed}, steps of {step}");
        hits.extend(at_once.into_iter().map(|(_, check, ..)| check));
    }
    assert!(hits.len() >= 12, "the records meet in few ways: {hits:?}");
}

/// The ledger's alert names the span that it is about, and is written when it was found out: it is no cause of anything.
#[tokio::test(flavor = "multi_thread")]
async fn the_ledgers_own_alerts_are_no_evidence_of_anything() {
    let rules = built_in();
    let tuning = Tuning::of(&rules);
    let checker = Checker::new(rules, tuning).await.unwrap();
    let records = json!([
        {"span": "a", "at": 0, "service": "agent", "attributes": {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.id": "x"}},
        {"span": "b", "parent": "a", "at": 1, "service": "tools",
         "attributes": {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t", "gen_ai.agent.id": "x", "authz.grant.id": "never"}},
        {"log": "security.alert", "parent": "a", "at": 200, "received": 200, "service": "custody", "submitter": "system:checks",
         "attributes": {"security.alert.id": "1", "security_rule.name": "probing"}},
    ]);
    let records: Vec<Sent> = serde_json::from_value(records).unwrap();
    let (snapshot, ledger, end) = snapshot_of(&records);
    let now = Time(end + 1_000_000_000_000);
    let found = checker.everything(&Arc::new(snapshot), &Entries::These(ledger), now).await.unwrap();
    let found: Vec<_> = found.iter().map(|hit| (hit.seq, hit.check_id.as_str())).collect();
    assert_eq!(found, [(1, "unknown_grant")]);
}

/// The window is shorter than the grace time: the record goes first, and what was found about it must not go with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hit_whose_record_goes_before_its_time_is_told_then() {
    let rules = built_in();
    let tuning = Tuning::parse(&rules, "window_seconds = 1\ngrace_seconds = 60").unwrap();
    let checker = Checker::new(rules, tuning).await.unwrap();
    let call = |at: u64, grant: Option<&str>| {
        let mut attributes =
            json!({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "t", "gen_ai.agent.id": "a"});
        if let Some(grant) = grant {
            attributes["authz.grant.id"] = grant.into();
        }
        json!({"span": format!("{}", at + 1), "at": at, "trace": format!("{}", at + 1), "attributes": attributes})
    };
    let records = [call(0, Some("never")), call(5, None), call(10, None)];
    let records: Vec<Sent> = records.into_iter().map(|record| serde_json::from_value(record).unwrap()).collect();
    let (snapshot, ledger, end) = snapshot_of(&records);
    let told = stepwise(&checker, &snapshot, &Entries::These(ledger), 1, Time(end + 1)).await.unwrap();
    let told: Vec<_> = told.into_iter().map(|(seq, check, verdict, _)| (seq, check, verdict)).collect();
    assert_eq!(told, [(0, "unknown_grant".to_owned(), "probable".to_owned())]);
}

/// Somebody claims an amount that is no number: the rule that reads amounts knows nothing of that call, and of all others
/// what it knew before; other rules judge that one too.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_rule_fails_on_hides_itself_alone() {
    let sql = "-- A call that pays more than a hundred.\n-- severity: low\n-- tags: OWASP ASI02\n-- on: tool_call\n-- fires: at once\n\
               SELECT 'proven' AS verdict, seq, trace_id, span_id, grant_id, agent_id, 'dear' AS detail, make_array(seq) AS evidence \
               FROM events WHERE kind = 'tool_call' AND CAST(json_get_str(attributes, 'amount') AS BIGINT) > 100";
    let mut rules = built_in();
    rules.push(Rule::parse("dear", sql).unwrap());
    let tuning = Tuning::of(&rules);
    let checker = Checker::new(rules, tuning).await.unwrap();
    let hostile = [17, 30];
    let call = |i: u64| {
        let amount = if hostile.contains(&i) { "a lot" } else { "500" };
        json!({"span": format!("{:x}", i + 1), "at": i, "attributes": {
            "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "pay", "amount": amount, "authz.grant.id": "never",
            "gen_ai.agent.id": "x",
        }})
    };
    let records: Vec<Sent> = (0..40).map(|i| serde_json::from_value(call(i)).unwrap()).collect();
    let (snapshot, ledger, end) = snapshot_of(&records);
    let now = Time(end + 1_000_000_000_000);
    for step in [1, 7, 40] {
        let before = checker.unjudged.load(std::sync::atomic::Ordering::Relaxed);
        let found = stepwise(&checker, &snapshot, &Entries::These(ledger.clone()), step, now).await.unwrap();
        let of = |check: &str| -> Vec<u64> { found.iter().filter(|hit| hit.1 == check).map(|hit| hit.0).collect() };
        assert_eq!(of("dear"), (0..40).filter(|seq| !hostile.contains(seq)).collect::<Vec<_>>(), "steps of {step}");
        assert_eq!(of("unknown_grant"), (0..40).collect::<Vec<_>>(), "steps of {step}");
        assert!(checker.unjudged.load(std::sync::atomic::Ordering::Relaxed) - before >= 2, "it is counted");
    }
    // Who asks for all of it is told which rule it is.
    let all = checker.everything(&Arc::new(snapshot), &Entries::These(ledger), now).await;
    assert!(all.is_err_and(|error| error.message.contains("rule dear: ")));
}

/// What a rule fails on is a grant, and no event: the rules beside it go on.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_rule_fails_on_elsewhere_stops_no_other_rule() {
    let sql = "-- Reads subjects of grants as numbers.\n-- severity: low\n-- tags: OWASP ASI02\n-- on: tool_call\n-- fires: at once\n\
               SELECT 'proven' AS verdict, e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, 'odd' AS detail, make_array(e.seq) AS evidence \
               FROM events e JOIN grants g ON g.grant_id = e.grant_id WHERE e.kind = 'tool_call' AND CAST(g.subject AS BIGINT) > 0";
    let mut rules = built_in();
    rules.push(Rule::parse("odd", sql).unwrap());
    let tuning = Tuning::of(&rules);
    let checker = Checker::new(rules, tuning).await.unwrap();
    let call = |i: u64| {
        let grant = if i == 3 { "given" } else { "never" };
        json!({"span": format!("{:x}", i + 1), "at": i + 1, "attributes": {
            "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "pay", "authz.grant.id": grant, "gen_ai.agent.id": "x",
        }})
    };
    let grant = json!({"log": "authz.grant.issued", "at": 0, "attributes": {"authz.grant.id": "given", "authz.grant.subject": "x"}});
    let records = std::iter::once(grant).chain((0..20).map(call));
    let records: Vec<Sent> = records.map(|record| serde_json::from_value(record).unwrap()).collect();
    let (snapshot, ledger, end) = snapshot_of(&records);
    let now = Time(end + 1_000_000_000_000);
    let found = stepwise(&checker, &snapshot, &Entries::These(ledger), 5, now).await.unwrap();
    let unknown = found.iter().filter(|hit| hit.1 == "unknown_grant").map(|hit| hit.0);
    assert_eq!(unknown.collect::<Vec<_>>(), (1..21).filter(|seq| *seq != 4).collect::<Vec<_>>());
    assert!(checker.unjudged.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

/// What `missing_hop` counts by running sums, as it would be by comparing each call with all of its agent's.
const BY_PAIRS: &str = "-- A call that reached a service without the decision that its calls usually have.
-- severity: high
-- tags: OWASP ASI03
-- on: tool_call
-- fires: after grace
-- setting calls_min: 2 | calls
-- setting share_min: 0.4 | share
-- setting window_seconds: 9 | window
WITH decisions AS (
    SELECT * FROM events p
    WHERE p.kind IN ('policy_evaluation', 'executor_decision') AND p.decision = 'allow'
      AND coalesce(cardinality(p.invalid_reasons), 0) = 0
), undecided AS (
    SELECT c.* FROM tool_calls c
    LEFT ANTI JOIN decisions p ON p.trace_id = c.trace_id AND same_tenant(p.tenant, c.tenant) AND p.service <> c.service AND p.event_time <= c.event_time
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(count(DISTINCT b.seq), ' ', count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END)) AS detail,
       make_array(c.seq) AS evidence
FROM undecided c
JOIN tool_calls b ON b.agent_id = c.agent_id AND b.service = c.service AND b.trace_id <> c.trace_id AND b.event_time < c.event_time AND same_tenant(b.tenant, c.tenant)
                 AND seconds_between(b.event_time, c.event_time) <= setting('window_seconds', c.workspace)
LEFT JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND same_tenant(p.tenant, b.tenant)
                 AND same_tenant(p.tenant, c.tenant) AND p.service <> b.service AND p.event_time <= b.event_time
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.service, c.workspace
HAVING count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END) >= setting('calls_min', c.workspace)
   AND count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END) >= setting('share_min', c.workspace) * count(DISTINCT b.seq)";

/// A call, or a decision about one, of a few agents, services, traces and moments.
fn hop(numbers: &mut Numbers, i: u64) -> Json {
    let (agent, service) = (format!("a{}", numbers.below(2)), format!("s{}", numbers.below(2)));
    let (trace, at, workspace) = (numbers.below(12) + 1, numbers.below(25), format!("w{}", numbers.below(2)));
    let own = json!({"gen_ai.agent.id": agent, "authz.workspace": workspace});
    let mut out = json!({"at": at, "received": 100.0 + i as f64 * 0.01, "trace": format!("{trace:x}"), "service": service, "attributes": own});
    if numbers.below(3) == 0 {
        out["log"] = json!("authz.policy.evaluation");
        out["attributes"]["authz.decision"] = json!(if numbers.below(5) == 0 { "deny" } else { "allow" });
        out["attributes"]["authz.policy.id"] = json!("p");
        out["service"] = json!(if numbers.below(4) == 0 { "s0" } else { "proxy" });
    } else {
        out["span"] = json!(format!("{:x}", i + 1));
        out["attributes"]["gen_ai.operation.name"] = json!("execute_tool");
        out["attributes"]["gen_ai.tool.name"] = json!("t");
    }
    whose(numbers, &mut out);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_hop_counts_what_comparing_every_pair_would() {
    let tuning = "[checks.missing_hop]\ncalls_min = 2\nshare_min = 0.4\nwindow_seconds = 9\n\
                  [workspace.w1.missing_hop]\nwindow_seconds = 4\ncalls_min = 1";
    let own: Vec<Rule> = built_in().into_iter().filter(|rule| rule.id == "missing_hop").collect();
    let mut checkers = Vec::new();
    for rules in [own, vec![Rule::parse("missing_hop", BY_PAIRS).unwrap()]] {
        let tuning = Tuning::parse(&rules, tuning).unwrap();
        checkers.push(Checker::new(rules, tuning).await.unwrap());
    }
    let mut hits = 0;
    for seed in 1..=12 {
        let mut numbers = Numbers(seed);
        let records: Vec<Sent> = (0..120).map(|i| serde_json::from_value(hop(&mut numbers, i)).unwrap()).collect();
        let (snapshot, ledger, end) = snapshot_of(&records);
        let (snapshot, now) = (Arc::new(snapshot), Time(end + 1_000_000_000_000));
        let mut told = Vec::new();
        for checker in &checkers {
            let found = checker.everything(&snapshot, &Entries::These(ledger.clone()), now).await.unwrap();
            // The two numbers of the sentence, where it is one.
            let numbers = |detail: &str| -> Vec<String> {
                detail.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).map(str::to_owned).collect()
            };
            told.push(found.into_iter().map(|hit| (hit.seq, hit.verdict, numbers(&hit.detail))).collect::<Vec<_>>());
        }
        assert_eq!(told[0], told[1], "seed {seed}");
        hits += told[0].len();
    }
    assert!(hits > 40, "they are told of {hits}");
}
