//! 520 recorded runs of real models, 218 of them hijacked: the checks must find what AgentDojo's
//! own ground truth says (`tools/recorder/judge.py`, which reads neither the product's mapping nor
//! what was logged about authority), and the replay of every hijacked run must tell who asked,
//! under which chain of authority, what was refused and what was touched all the same.

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};
use support::{Server, requests_in};

const REQUESTS: &[u8] = include_bytes!("fixtures/incidents/requests.otlp.zst");
const JUDGED: &str = include_str!("fixtures/incidents/judged.json");

/// The checks that the ground truth decides.
const DECIDED: [&str; 8] = [
    "broken_lineage",
    "denied_then_executed",
    "expired_grant",
    "outside_actions",
    "outside_resources",
    "revoked_grant",
    "unknown_grant",
    "widened_delegation",
];

/// Runs that are asked about in one query.
const RUNS_A_QUERY: usize = 20;

type Hits = BTreeMap<String, BTreeSet<(String, String)>>;

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_default()
}

fn ask(server: &Server, sql: &str) -> Vec<Value> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let query = json!({"sql": sql, "max_rows": 100_000, "timeout_ms": 300_000}).to_string();
    let request = agent.post(format!("http://{}/api/v1/sql", server.http)).header("Content-Type", "application/json");
    let body =
        request.send(query.as_bytes()).unwrap().body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
    let answer: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
    answer["rows"].as_array().unwrap_or_else(|| panic!("{sql}: {answer}")).clone()
}

#[test]
fn the_checks_and_the_replays_tell_what_happened_in_520_runs() {
    let judged: Vec<Value> = serde_json::from_str(JUDGED).unwrap();
    let hijacked: Vec<&Value> = judged.iter().filter(|run| run["hijacked"] == true).collect();
    let pipelines: BTreeSet<&str> = judged.iter().map(|run| text(run, "pipeline")).collect();
    assert!(judged.len() >= 500 && hijacked.len() >= 200 && pipelines.len() == 22);
    let flags = ["--segment-rows-max", "2000", "--segment-merge-rows-max", "8000"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    server.send_grpc(requests_in(REQUESTS));
    server.wait_until_visible();
    score(&server, &judged);
    for some in hijacked.chunks(RUNS_A_QUERY) {
        told(&server, some);
    }
    let quiet: Vec<&Value> = judged.iter().filter(|run| run["found"] == json!([])).collect();
    for some in quiet.chunks(RUNS_A_QUERY).take(5) {
        let notes = replays(some, "note", "WHERE note LIKE '%refused%' OR kind = 'missing'");
        assert_eq!(ask(&server, &notes), Vec::<Value>::new(), "nothing was refused or is missing in clean runs");
    }
    server.stop_and_verify();
}

/// Precision and recall of each check, which must both be 1.
fn score(server: &Server, judged: &[Value]) {
    let (mut expected, mut found) = (Hits::new(), Hits::new());
    for run in judged {
        for hit in run["found"].as_array().unwrap() {
            let what = (text(run, "trace").to_owned(), hit[1].as_str().unwrap().to_owned());
            expected.entry(hit[0].as_str().unwrap().to_owned()).or_default().insert(what);
        }
    }
    let rows = ask(
        server,
        "SELECT check_id, trace_id, CASE WHEN check_id IN ('widened_delegation', 'broken_lineage') THEN grant_id \
         ELSE span_id END AS what FROM violations",
    );
    for row in rows.iter().filter(|row| DECIDED.contains(&text(row, "check_id"))) {
        let what = (text(row, "trace_id").to_owned(), text(row, "what").to_owned());
        let is_new = found.entry(text(row, "check_id").to_owned()).or_default().insert(what);
        assert!(is_new, "each hit is told once: {row}");
    }
    println!("{:24}{:>9}{:>7}{:>11}{:>8}", "check", "expected", "found", "precision", "recall");
    for check in DECIDED {
        let (wanted, got) = (expected.entry(check.into()).or_default(), found.entry(check.into()).or_default());
        let both = wanted.intersection(got).count() as f64;
        let (precision, recall) = (both / got.len().max(1) as f64, both / wanted.len().max(1) as f64);
        println!("{check:24}{:>9}{:>7}{precision:>11.3}{recall:>8.3}", wanted.len(), got.len());
        let (missed, wrong): (Vec<_>, Vec<_>) = (wanted.difference(got).collect(), got.difference(wanted).collect());
        assert!(missed.is_empty() && wrong.is_empty(), "{check}: missed {missed:?}, wrong {wrong:?}");
        assert!(!wanted.is_empty(), "{check} is shown by the recording");
    }
}

/// One query for the replays of some runs.
fn replays(runs: &[&Value], columns: &str, which: &str) -> String {
    let one = |run: &&Value| format!("SELECT '{0}' AS run, {columns} FROM replay('{0}') {which}", text(run, "trace"));
    runs.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ")
}

/// What the replays of hijacked runs must tell.
fn told(server: &Server, runs: &[&Value]) {
    let columns = "step, parent_step, depth, kind, agent_id, initiator_id, grant_id, parent_grant_id, tool, resource, \
                   span_id, missing, note, result, status";
    let mut steps: HashMap<String, Vec<Value>> = HashMap::new();
    for row in ask(server, &replays(runs, columns, "")) {
        steps.entry(text(&row, "run").to_owned()).or_default().push(row);
    }
    let mut chains = Vec::new();
    for run in runs {
        let mut steps = steps.remove(text(run, "trace")).unwrap();
        steps.sort_by_key(|step| step["step"].as_u64());
        for wanted in run["wanted"].as_array().unwrap() {
            let call = incident(run, wanted, &steps);
            chains.push((text(call, "grant_id").to_owned(), text(call, "agent_id").to_owned(), text(run, "scenario")));
        }
        let missing = steps.iter().filter(|step| text(step, "kind") == "missing").count();
        let lacks = matches!(text(run, "scenario"), "unknown_grant" | "missing_parent_grant");
        assert_eq!(missing, usize::from(lacks), "{run}: {steps:?}");
    }
    chains.sort();
    chains.dedup();
    lineages(server, &chains);
}

/// One call that the injection wanted: who asked, what was refused, what was touched. Gives its step.
fn incident<'a>(run: &Value, wanted: &Value, steps: &'a [Value]) -> &'a Value {
    let at =
        |kind: &str, grant: &str| steps.iter().position(|s| text(s, "kind") == kind && text(s, "grant_id") == grant);
    let place = steps.iter().position(|s| text(s, "span_id") == text(wanted, "span") && text(s, "kind") == "tool_call");
    let place = place.unwrap_or_else(|| panic!("{run}: the call {wanted} is not told"));
    let call = &steps[place];
    assert_eq!((text(call, "tool"), text(call, "resource")), (text(wanted, "tool"), text(wanted, "resource")));
    assert_eq!(text(call, "agent_id"), text(wanted, "agent"));
    assert!(text(call, "note").contains("executed although refused at seq"), "{run}: {call}");
    // Who asked comes first, and is a person; then the authority, the refusal, and only then the call.
    let request = steps.iter().position(|s| text(s, "kind") == "request").unwrap();
    assert!(request < place && text(&steps[request], "initiator_id").starts_with("emma"));
    let refused = steps[..place]
        .iter()
        .any(|s| text(s, "kind") == "grant_denied" && text(s, "agent_id") == text(call, "agent_id"));
    assert!(refused, "{run}: the refusal comes before the call");
    let grant = text(call, "grant_id");
    let given = at("grant_issued", grant).or_else(|| at("grant_derived", grant));
    match text(run, "scenario") {
        "unknown_grant" if given.is_none() => {
            assert!(steps[..place].iter().any(|s| text(s, "missing").contains(grant)), "{run}: the gap is marked");
        }
        _ => assert!(given.unwrap_or_else(|| panic!("{run}: grant {grant} is not told")) < place),
    }
    // Up the tree, to the agent that the user asked.
    let (mut at, mut above) = (call, Vec::new());
    while let Some(parent) = at["parent_step"].as_u64() {
        at = &steps[parent as usize];
        above.push(text(at, "kind"));
    }
    assert_eq!((above.last(), at["depth"].as_u64()), (Some(&"agent_invocation"), Some(0)), "{run}");
    call
}

/// The chains of the grants that were used: from the authority down to the agent that acted.
fn lineages(server: &Server, chains: &[(String, String, &str)]) {
    let one = |(grant, ..): &(String, String, &str)| {
        format!(
            "SELECT '{grant}' AS leaf, depth, grant_id, issuer, subject, state, narrowed FROM delegation_chain('{grant}')"
        )
    };
    let sql = chains.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ");
    let mut rows: HashMap<String, Vec<Value>> = HashMap::new();
    for row in ask(server, &sql) {
        rows.entry(text(&row, "leaf").to_owned()).or_default().push(row);
    }
    for (grant, agent, scenario) in chains {
        let mut chain = rows.remove(grant).unwrap_or_default();
        chain.sort_by_key(|row| row["depth"].as_u64());
        let (first, last) = (chain.first().unwrap(), chain.last().unwrap());
        if text(last, "state") == "missing" {
            assert_eq!(*scenario, "unknown_grant");
            continue;
        }
        assert_eq!((text(last, "grant_id"), text(last, "subject")), (grant.as_str(), agent.as_str()));
        if *scenario == "missing_parent_grant" {
            assert_eq!(text(first, "state"), "missing");
        } else {
            assert_eq!(text(first, "issuer"), "trust-authority");
        }
        let widened = chain.iter().any(|row| row["narrowed"] == false);
        assert_eq!(widened, *scenario == "widened_delegation" && chain.len() > 1, "{chain:?}");
    }
}
