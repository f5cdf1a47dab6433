//! Tenants do not meet: what one of them does neither raises nor silences an alert of another, by any check. What names
//! no tenant meets all.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::examples::{Sent, snapshot_of, stepwise};
use super::run::Entries;
use super::tests::Numbers;
use super::*;
use crate::rows::Time;

/// Checks that count what one actor does for each tenant apart, and apart what names none.
const APART: [&str; 4] = ["missing_hop", "probing", "rubber_stamp", "silent_source"];

/// Whether it is a record of a grant: of those with one id, which is meant goes by whose own there is.
fn is_of_one(record: &Json) -> bool {
    record["log"].as_str().is_some_and(|log| log.starts_with("authz.grant."))
}

/// Examples of each check that are tried.
const EXAMPLES_MAX: usize = 5;

/// A check, ready to be asked about records with the settings of an example.
struct Asked {
    checker: Arc<Checker>,
    grace: i64,
}

impl Asked {
    async fn of(rule: &Rule, case: &Json) -> Self {
        let settings = case["settings"].as_object().cloned().unwrap_or_default();
        let mut own: toml::Table = serde_json::from_value(Json::Object(settings)).unwrap();
        own.insert("enabled".into(), true.into());
        let own = toml::Table::from_iter([(rule.id.clone(), toml::Value::Table(own))]);
        let text = toml::Table::from_iter([("checks".to_owned(), toml::Value::Table(own))]);
        let tuning = Tuning::read(std::slice::from_ref(rule), &text).unwrap();
        let grace = tuning.grace();
        Self { checker: Checker::new(vec![rule.clone()], tuning).await.unwrap(), grace }
    }

    /// The records that are hit, each with what is cited: judged at once, or as they come.
    async fn hits(&self, records: &[Json], at_once: bool) -> BTreeSet<(u64, Vec<u64>)> {
        let records: Vec<Sent> = records.iter().map(|r| serde_json::from_value(r.clone()).unwrap()).collect();
        let (snapshot, ledger, end) = snapshot_of(&records);
        let (entries, now) = (Entries::These(ledger), Time(end + self.grace + 1));
        match at_once {
            true => {
                let hits = self.checker.everything(&Arc::new(snapshot), &entries, now).await.unwrap();
                hits.into_iter().map(|hit| (hit.seq, hit.evidence)).collect()
            }
            false => {
                let hits = stepwise(&self.checker, &snapshot, &entries, 1, now).await.unwrap();
                hits.into_iter().map(|hit| (hit.0, hit.3)).collect()
            }
        }
    }
}

/// Those that are not about tenants themselves.
fn examples(rule: &Rule) -> Vec<Json> {
    let mut cases: Vec<Json> = serde_json::from_str(rule.examples.as_ref().unwrap()).unwrap();
    cases.retain(|case| !case.to_string().contains("\"tenant.id\""));
    cases.truncate(EXAMPLES_MAX);
    cases
}

fn records(case: &Json) -> &[Json] {
    case["records"].as_array().unwrap()
}

/// A record as a tenant would send it.
fn of(tenant: Option<&str>, record: &Json) -> Json {
    let mut record = record.clone();
    if let Some(tenant) = tenant {
        record["attributes"]["tenant.id"] = json!(tenant);
    }
    record
}

/// Nothing that any check knows, at the same time.
fn nothing(record: &Json) -> Json {
    let received = record.get("received").unwrap_or(&record["at"]);
    json!({"log": "", "at": record["at"], "received": received, "trace": "ffff"})
}

/// Some of some records: the last one alone, and any.
fn parts(records: usize, numbers: &mut Numbers) -> Vec<Vec<bool>> {
    let last = (1..=records).map(|n| n == records).collect();
    let mut out: Vec<Vec<bool>> = vec![last, (0..records).map(|_| numbers.below(2) == 0).collect()];
    out.retain(|part| part.contains(&true) && part.contains(&false));
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_does_is_nothing_to_another() {
    let (mut numbers, mut fewer, mut more) = (Numbers(1), BTreeSet::new(), BTreeSet::new());
    for rule in built_in() {
        for case in examples(&rule) {
            let (asked, records) = (Asked::of(&rule, &case).await, records(&case));
            let wanted: BTreeSet<u64> = serde_json::from_value(case["hits"].clone()).unwrap();
            for is_own in parts(records.len(), &mut numbers) {
                let whose = |i: usize| if is_own[i] { "acme" } else { "globex" };
                let of = |tenant: &str, record: &Json| {
                    let mut record = of(Some(tenant), record);
                    // Who sends for both may number across them.
                    if rule.id == "sequence_gap" {
                        record["submitter"] = json!(tenant);
                    }
                    record
                };
                let both: Vec<Json> = records.iter().enumerate().map(|(i, record)| of(whose(i), record)).collect();
                let alone = |(i, record): (usize, &Json)| if is_own[i] { of("acme", record) } else { nothing(record) };
                let alone: Vec<Json> = records.iter().enumerate().map(alone).collect();
                // As they come among others, and all at once without those.
                let (among, alone) = (asked.hits(&both, false).await, asked.hits(&alone, true).await);
                let told = |hits: &BTreeSet<(u64, Vec<u64>)>| -> BTreeSet<u64> {
                    hits.iter().map(|hit| hit.0).filter(|seq| is_own[*seq as usize]).collect()
                };
                let name = format!("{}, {}, of {is_own:?}", rule.id, case["name"]);
                assert_eq!(told(&among), told(&alone), "{name}");
                let is_apart = |(seq, cited): &(u64, Vec<u64>)| {
                    cited.iter().all(|cited| is_own[*cited as usize] == is_own[*seq as usize])
                };
                assert!(among.iter().all(is_apart), "{name}: {among:?}");
                if told(&among).iter().any(|seq| !wanted.contains(seq)) {
                    more.insert(rule.id.clone());
                }
                if wanted.iter().any(|seq| is_own[*seq as usize] && !told(&among).contains(seq)) {
                    fewer.insert(rule.id.clone());
                }
            }
        }
    }
    // It is not for want of anything to tell apart.
    assert!(
        fewer.len() >= 25 && more.len() >= 5,
        "raised by {}: {fewer:?}, silenced by {}: {more:?}",
        fewer.len(),
        more.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_no_tenant_meets_all() {
    let mut numbers = Numbers(2);
    // Of a span that ends all is compared that it said before, also whose it is.
    for rule in
        built_in().into_iter().filter(|rule| !APART.contains(&rule.id.as_str()) && rule.id != "conflicting_span")
    {
        for case in examples(&rule) {
            let (asked, records) = (Asked::of(&rule, &case).await, records(&case));
            let wanted: BTreeSet<u64> = serde_json::from_value(case["hits"].clone()).unwrap();
            for names_one in parts(records.len(), &mut numbers) {
                let names_one = |i: usize| names_one[if is_of_one(&records[i]) { 0 } else { i }];
                let whose = |i: usize| names_one(i).then_some("acme");
                let some: Vec<Json> = records.iter().enumerate().map(|(i, record)| of(whose(i), record)).collect();
                let hits: BTreeSet<u64> = asked.hits(&some, false).await.into_iter().map(|(seq, _)| seq).collect();
                assert_eq!(hits, wanted, "{}, {}: {some:?}", rule.id, case["name"]);
            }
        }
    }
}

/// Where all name one tenant, or none, nothing is apart.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_apart_is_counted_for_each_tenant() {
    for rule in built_in().into_iter().filter(|rule| APART.contains(&rule.id.as_str())) {
        for case in examples(&rule) {
            let (asked, wanted) = (Asked::of(&rule, &case).await, case["hits"].clone());
            let wanted: BTreeSet<u64> = serde_json::from_value(wanted).unwrap();
            for tenant in [None, Some("acme")] {
                let records: Vec<Json> = records(&case).iter().map(|record| of(tenant, record)).collect();
                let hits = asked.hits(&records, true).await.into_iter().map(|(seq, _)| seq).collect::<BTreeSet<_>>();
                assert_eq!(hits, wanted, "{}, {}", rule.id, case["name"]);
            }
        }
    }
}

/// What joins records by an id looks for that, and compares tenants only of what it finds.
#[tokio::test(flavor = "multi_thread")]
async fn no_rule_compares_each_record_with_each() {
    let rules = built_in();
    let all_on: String = rules.iter().map(|rule| format!("[checks.{}]\nenabled = true\n", rule.id)).collect();
    let tuning = Tuning::parse(&rules, &all_on).unwrap();
    let checker = Checker::new(rules, tuning).await.unwrap();
    for (id, plan) in checker.plans() {
        let (_, sql, _) = BUILT_IN.iter().find(|(own, ..)| *own == id).unwrap();
        // With a few values that the rule names itself it may.
        assert!(plan.matches("NestedLoopJoin").count() <= sql.matches("(VALUES").count(), "{id}:\n{plan}");
    }
}
