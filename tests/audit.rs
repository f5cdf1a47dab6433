//! The watchers are watched, on the built binary: who asked what is in the log itself, and query
//! threads give way.

mod support;

use std::process::Command;

use support::Server;

fn start(flags: &[&str]) -> Server {
    Server::start_in(tempfile::tempdir().unwrap(), flags)
}

#[test]
fn every_question_is_in_the_log_that_was_asked() {
    let mut server = start(&["--audit", "all"]);
    server.send_grpc(support::recorded_requests().into_iter().take(3).collect());
    server.custody(&["sql", "SELECT count(*) FROM spans", "--format", "json"]);
    let failed = server.custody_output(&["sql", "SELECT nothing FROM spans WHERE name = $1", "--param", "emma"]);
    assert!(!failed.status.success());
    let rows = server.sql(
        "SELECT identity, actor_type, action, text, params, outcome, rows, elapsed_ns > 0 AS took FROM audit \
         WHERE action = 'query' AND text LIKE 'SELECT count%' OR text LIKE 'SELECT nothing%' ORDER BY seq",
    );
    let told: Vec<String> = rows.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    for (row, text, outcome, n) in [
        (&rows[0], "SELECT count(*) FROM spans", "ok", 1),
        (&rows[1], "SELECT nothing FROM spans WHERE name = $1", "invalid_query", 0),
    ] {
        assert_eq!((row["text"].as_str(), row["outcome"].as_str()), (Some(text), Some(outcome)), "{row}");
        assert!(row["identity"].as_str().unwrap().starts_with("peer:"), "{row}");
        assert_eq!(
            (row["rows"].as_u64(), row["took"].as_bool(), row["actor_type"].as_str()),
            (Some(n), Some(true), Some("unknown")),
            "{row}"
        );
    }
    assert_eq!(rows[1]["params"], "emma");
    // They are records like all others: proved, and of an identity that nobody can send as.
    let first = "SELECT proof(CAST(seq AS BIGINT)) IS NOT NULL AS proved FROM audit ORDER BY seq LIMIT 1";
    // A checkpoint covers them within a second.
    support::until(|| server.sql(first)[0]["proved"] == true);
    server.stop_and_verify();
}

#[test]
fn without_identities_nothing_is_recorded_unless_it_is_asked_for() {
    let mut server = start(&[]);
    server.sql("SELECT 1 AS one");
    assert!(server.sql("SELECT * FROM audit").is_empty());
    server.stop_and_verify();
}

/// What the log itself says was done with its content and keys is told beside what callers asked, whoever is recorded.
#[test]
fn exports_erasures_holds_and_changes_of_keys_are_among_the_acts() {
    let mut server = start(&["--audit", "off"]);
    server.send_grpc(support::recorded_requests().into_iter().take(1).collect());
    let said = |words: &[&str]| {
        let told =
            Command::new(support::CUSTODY).args(words).arg("--data-dir").arg(server.data_dir()).output().unwrap();
        assert!(told.status.success(), "{told:?}");
    };
    let bundle = server.data_dir().with_extension("bundle");
    let by = ["--reason", "article 17", "--actor", "privacy@example.com"];
    said(&["export", "--seq", "1-2", "-o", bundle.to_str().unwrap(), "--reason", "incident 12"]);
    said(&[&["hold", "place", "--id", "suit", "--seq", "1"][..], &by].concat());
    said(&[&["erase", "--seq", "2-3"][..], &by].concat());
    said(&["keys", "rotate", "--reason", "yearly", "--actor", "ops@example.com"]);
    let rows = server.sql("SELECT action, identity, text, params, rows, outcome FROM audit ORDER BY seq");
    let told: Vec<_> = rows.iter().map(|row| (row["action"].as_str().unwrap(), &row["params"], &row["rows"])).collect();
    let (seqs, none) = (|seqs: &str| serde_json::json!(seqs), serde_json::Value::Null);
    let (two, one_two, one, two_three) = (serde_json::json!(2), seqs("1-2"), seqs("1"), seqs("2-3"));
    assert_eq!(
        told,
        [("export", &one_two, &two), ("hold", &one, &none), ("erasure", &two_three, &two), ("keys", &none, &none)]
    );
    assert!(rows.iter().all(|row| row["identity"].is_string() && row["outcome"] == "ok"), "{rows:?}");
    assert_eq!((&rows[2]["text"], &rows[3]["text"]), (&seqs("article 17"), &seqs("yearly")));
    server.stop_and_verify();
}

#[test]
fn query_threads_give_way_to_others() {
    let mut server = start(&["--query-timeout", "60", "--query-rows-max", "7"]);
    assert_eq!(server.sql("SELECT unnest([1,2,3,4,5,6,7,8,9]) AS n").len(), 7, "--query-rows-max");
    // A thread has its name a moment before it gives way.
    support::until(|| {
        let mut nice = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
            let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
            let (name, rest) = stat.rsplit_once(") ").unwrap();
            // The 19th field is the niceness.
            let niceness: i64 = rest.split_whitespace().nth(16).unwrap().parse().unwrap();
            nice.push((name.rsplit_once('(').unwrap().1.to_owned(), niceness));
        }
        nice.iter().any(|(name, n)| name == "query" && *n == 12)
            && nice.iter().all(|(name, n)| (name == "query") == (*n == 12))
    });
    server.stop_and_verify();
}

#[test]
fn a_policy_limits_rows_and_roles_and_has_all_questions_recorded() {
    let mut server = Server::under("roles = [\"write\", \"read\"]\ntenants = [\"acme\"]");
    server.send_span_of("globex");
    server.send_span_of("acme");
    let ask = |sql: &str| server.custody(&["sql", sql, "--format", "json"]);
    support::until(|| ask("SELECT count(*) AS n FROM spans") == "{\"n\":1}\n");
    assert_eq!(ask("SELECT name, tenant FROM spans"), "{\"name\":\"of acme\",\"tenant\":\"acme\"}\n");
    assert_eq!(ask("SELECT DISTINCT kind FROM ledger"), "{\"kind\":\"span\"}\n");
    assert!(!ask("SELECT * FROM replay('5b8efff798038103d269b633813fc60c')").contains("globex"));
    // What was asked is of no tenant, so who is limited to one does not read it.
    assert_eq!(ask("SELECT * FROM audit"), "");
    for (path, role) in
        [("/api/v1/events", "the role stream"), ("/metrics", "may see only some"), ("/api/v1/x", "the role admin")]
    {
        let (status, told) = server.get(path);
        assert!(status == 403 && told.contains(role), "{path}: {status} {told}");
    }
    assert_eq!(server.get("/checkpoint").0, 200);
    server.stop();
    let told = Command::new(support::CUSTODY)
        .args(["sql", "SELECT text, identity FROM audit WHERE action = 'query'", "--format", "json", "--data-dir"])
        .arg(server.data_dir())
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("SELECT DISTINCT kind FROM ledger") && told.contains("peer:127.0.0.1"), "{told}");
}
