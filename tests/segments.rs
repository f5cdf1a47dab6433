//! Sealed rows as users meet them: other engines read them, a restart and `rebuild` keep
//! them, an erasure takes rows out of them, a backup does without them.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{CUSTODY, Request, Server, recorded_requests, until, verify};

/// Seals a few records at a time, and merges.
const SMALL: [&str; 4] = ["--segment-rows-max", "100", "--segment-merge-rows-max", "900"];

fn start() -> Server {
    Server::start_in(tempfile::tempdir().unwrap(), &SMALL)
}

fn output(dir: &Path, args: &[&str]) -> Output {
    Command::new(CUSTODY).args(args).arg("--data-dir").arg(dir).output().unwrap()
}

fn custody(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Null before anything was sealed.
fn manifest(dir: &Path) -> Value {
    match std::fs::read(dir.join("segments/manifest.json")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Value::Null,
        read => serde_json::from_slice(&read.unwrap()).unwrap(),
    }
}

fn sealed_to(dir: &Path) -> u64 {
    manifest(dir)["segments"].as_array().and_then(|s| s.last()?["to"].as_u64()).unwrap_or(0)
}

fn parquet_files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("segments")).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".parquet")).collect();
    names.sort();
    names
}

/// Every table and view, in full, as text.
fn everything(dir: &Path) -> String {
    let queries = [
        "SELECT * FROM spans ORDER BY seq",
        "SELECT * FROM logs ORDER BY seq",
        "SELECT * FROM metrics ORDER BY seq",
        "SELECT * FROM events ORDER BY seq",
        "SELECT * FROM grants ORDER BY grant_id",
        "SELECT * FROM denials ORDER BY seq",
        "SELECT * FROM tool_calls ORDER BY seq",
        "SELECT * FROM alerts ORDER BY seq",
        "SELECT check_id, seq, detail, alert_id FROM violations ORDER BY 1, 2",
        "SELECT * FROM coverage",
        "SELECT * FROM retrievals ORDER BY seq",
        "SELECT * FROM decisions ORDER BY seq",
        "SELECT * FROM authority_coverage ORDER BY 1, 2",
        "SELECT * FROM events_as_of(100) ORDER BY seq",
    ];
    let ask =
        |sql: &&str| custody(dir, &["sql", sql, "--format", "json", "--max-rows", "100000", "--timeout-ms", "300000"]);
    queries.iter().map(ask).collect()
}

fn python(args: &[&str]) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/segments.py");
    let output = Command::new(support::python()).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// pyarrow, DuckDB, Polars and pandas read the files as they are, and find what SQL finds.
#[test]
fn other_engines_read_the_segments_as_they_are() {
    let mut server = start();
    server.send_grpc(recorded_requests());
    let dir = server.data_dir();
    let trace =
        server.sql("SELECT trace_id FROM spans ORDER BY seq LIMIT 1")[0]["trace_id"].as_str().unwrap().to_owned();
    let names = server.sql(&format!("SELECT name FROM spans WHERE trace_id = '{trace}' ORDER BY 1"));
    let names: Vec<&Value> = names.iter().map(|row| &row["name"]).collect();
    let records = server.stop_and_verify()["records"].as_u64().unwrap();
    let end = sealed_to(&dir);
    assert!(end > records - 100, "a stop seals what is more than a few records: {end} of {records}");
    let count = |table: &str| {
        let ask = format!("SELECT count(*) AS n FROM {table} WHERE seq < {end}");
        serde_json::from_str::<Value>(&custody(&dir, &["sql", &ask, "--format", "json"])).unwrap()["n"].clone()
    };
    let counts = json!({"spans": count("spans"), "logs": count("logs"), "events": count("events")});
    let found = python(&[dir.join("segments").to_str().unwrap(), &trace]);
    for engine in ["pyarrow", "duckdb", "polars", "pandas"] {
        for table in ["spans", "logs", "events"] {
            assert_eq!(found[engine][table], counts[table], "{engine} {table}");
        }
        assert_eq!(found[engine]["names"].as_array().unwrap().iter().collect::<Vec<_>>(), names, "{engine}");
    }
    let origin = std::fs::read_to_string(dir.join("checkpoint")).unwrap().lines().next().unwrap().to_owned();
    for file in found["files"].as_array().unwrap() {
        let number = |key: &str| file[key].as_str().unwrap().parse::<u64>().unwrap();
        assert_eq!(file["custody.origin"], json!(origin));
        assert_eq!(file["custody.table"], json!("spans"));
        // LZ4 until it is merged with others.
        assert!(["ZSTD", "LZ4"].contains(&file["compression"].as_str().unwrap()), "{file}");
        assert!(number("custody.seq_from") <= file["first"].as_u64().unwrap(), "{file}");
        assert!(file["last"].as_u64().unwrap() < number("custody.seq_to"), "{file}");
        assert_eq!((&file["sorted"], &file["page_index"]), (&json!(true), &json!(true)));
        assert_eq!(file["custody.root"].as_str().unwrap().len(), 64);
    }
}

/// A directory read without its segments, with them, after a restart, after a rebuild, and
/// from a backup: always the same rows.
#[test]
fn rows_are_the_same_however_they_are_kept() {
    let mut server = start();
    server.send_grpc(recorded_requests());
    server.wait_until_visible();
    let dir = server.data_dir();
    let told = custody(&dir, &["rebuild"]);
    assert!(told.starts_with("looked at ") && !told.contains("made 0 again"), "{told}");
    // While the server runs, with its segments; a visitor changes nothing there.
    let live = everything(&dir);
    assert!(live.lines().count() > 5000);
    server.stop();
    assert!(parquet_files(&dir).len() >= 3 && sealed_to(&dir) > 2000);
    let copy = server.path().join("copy");
    assert!(Command::new("cp").arg("-a").arg(&dir).arg(&copy).status().unwrap().success());
    std::fs::remove_dir_all(copy.join("segments")).unwrap();
    assert_eq!(everything(&copy), live, "without segments, in memory");
    assert!(!copy.join("segments").exists(), "a visitor writes nothing");

    let mut server = server.restart();
    assert_eq!(everything(&dir), live, "after a restart");
    let backup = server.path().join("backup");
    custody(&dir, &["backup", "--to", backup.to_str().unwrap()]);
    server.stop();
    let told = custody(&dir, &["rebuild", "--check"]);
    assert!(told.contains("made 0 again"), "{told}");
    let path = dir.join("segments").join(&parquet_files(&dir)[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let told = custody(&dir, &["rebuild", "--check"]);
    assert!(told.contains("made 1 again"), "{told}");
    assert_eq!(everything(&dir), live);
    verify(&dir);

    let restored = server.path().join("restored");
    custody(&restored, &["restore", "--from", backup.to_str().unwrap()]);
    assert!(!restored.join("segments").exists());
    assert_eq!(everything(&restored), live, "from a backup");
}

/// Erased content is in no file of the directory, neither in rows nor in statistics, nor
/// does any engine find it; the rest of its segment stays.
#[test]
fn an_erasure_takes_the_rows_out_of_the_segments() {
    // Without merging, so that files go away only by the erasure, and other engines can look on.
    let flags = ["--segment-rows-max", "100", "--segment-merge-rows-max", "0"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    server.send_grpc(recorded_requests());
    let dir = server.data_dir();
    let ask =
        "SELECT trace_id, min(seq) AS seq FROM spans WHERE name LIKE 'execute_tool%' GROUP BY 1 ORDER BY 2 LIMIT 1";
    let row = &server.sql(ask)[0];
    let (trace, seq) = (row["trace_id"].as_str().unwrap().to_owned(), row["seq"].as_u64().unwrap());
    until(|| sealed_to(&dir) > seq);
    let before = server.sql("SELECT count(*) AS n FROM spans")[0]["n"].as_u64().unwrap();
    let of_trace = server.sql(&format!("SELECT count(*) AS n FROM spans WHERE trace_id = '{trace}'"))[0]["n"].clone();
    let why = ["--reason", "test", "--actor", "test"];
    let told = custody(&dir, &[&["erase", "--trace", &trace], &why[..]].concat());
    assert!(told.starts_with("erased "), "{told}");
    let find = format!("SELECT seq FROM spans WHERE trace_id = '{trace}'");
    assert_eq!(server.sql(&find), [] as [Value; 0]);
    let count = |server: &Server| server.sql("SELECT count(*) AS n FROM spans")[0]["n"].as_u64().unwrap();
    assert_eq!(count(&server), before - of_trace.as_u64().unwrap());
    let segments = dir.join("segments");
    let found = |trace: &str| python(&[segments.to_str().unwrap(), trace]);
    assert_eq!(found(&trace)["polars"]["names"], json!([]));
    assert!(!holds(&segments, &trace), "nor in statistics");
    server.stop_and_verify();

    // The same without a server.
    let other = custody(&dir, &["sql", "SELECT trace_id FROM spans ORDER BY seq LIMIT 1", "--format", "json"]);
    let other = serde_json::from_str::<Value>(&other).unwrap()["trace_id"].as_str().unwrap().to_owned();
    assert_ne!(found(&other)["duckdb"]["names"], json!([]));
    custody(&dir, &[&["erase", "--trace", &other], &why[..]].concat());
    assert_eq!(found(&other)["duckdb"]["names"], json!([]));
    assert!(!holds(&segments, &other));
    let mut server = server.restart();
    assert!(count(&server) > 0);
    server.stop_and_verify();
}

fn holds(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|file| {
        // A running server replaces files.
        let bytes = match std::fs::read(file.unwrap().path()) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return false,
            read => read.unwrap(),
        };
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    })
}

/// kill -9 while rows are sealed and merged all the time: the next start has every row once.
#[test]
fn killed_while_sealing_nothing_is_doubled_or_lost() {
    let mut folder = tempfile::tempdir().unwrap();
    let requests = || recorded_requests().into_iter();
    let mut expected = 0;
    for round in 0..4 {
        let mut server = Server::start_in(folder, &["--segment-rows-max", "8", "--segment-merge-rows-max", "64"]);
        let part: Vec<Request> = requests().skip(round * 60).take(60).collect();
        server.send_grpc(part);
        // No waiting for visibility: the kill meets the projection wherever it is.
        folder = server.kill();
        let dir = folder.path().join("data");
        let ask = "SELECT count(*) AS n, count(DISTINCT seq) AS seqs FROM \
                   (SELECT seq FROM spans UNION ALL SELECT seq FROM logs UNION ALL SELECT seq FROM metrics)";
        let got: Value = serde_json::from_str(&custody(&dir, &["sql", ask, "--format", "json"])).unwrap();
        let records = verify(&dir)["records"].as_u64().unwrap();
        assert_eq!((&got["n"], &got["seqs"]), (&json!(records), &json!(records)), "round {round}");
        assert!(records > expected);
        expected = records;
    }
    let mut server = Server::start_in(folder, &SMALL);
    assert_eq!(server.sql("SELECT count(*) AS n FROM ledger")[0]["n"], json!(expected));
    let same = "SELECT (SELECT count(*) FROM spans) + (SELECT count(*) FROM logs) AS n";
    assert_eq!(server.sql(same)[0]["n"], json!(expected));
    server.stop_and_verify();
}

/// The cursor gives the same events over sealed rows, merged ones and those in memory.
#[test]
fn events_are_pulled_over_segments_without_gap() {
    let mut server = start();
    server.send_grpc(recorded_requests());
    let all: Vec<Value> = server.sql("SELECT seq, kind FROM events ORDER BY seq");
    let mut got = Vec::new();
    let mut path = "/api/v1/events?limit=97".to_owned();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    loop {
        let url = format!("http://{}{path}", server.http);
        let mut answer = agent.get(url).header("Accept", "application/json").call().unwrap();
        let page: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        let events = page["data"].as_array().unwrap();
        got.extend(events.iter().map(|e| json!({"seq": e["seq"], "kind": e["kind"]})));
        if page["has_more"] == json!(false) {
            break;
        }
        path = format!("/api/v1/events?limit=97&after={}", page["next_cursor"].as_str().unwrap());
    }
    assert_eq!(got, all);
    server.stop_and_verify();
}

#[test]
fn the_flags_are_in_the_configuration_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("custody.toml");
    std::fs::write(&file, "segment_rows_max = 50\nsegment_merge_rows_max = 0\nsegment_seconds_max = 3600\n").unwrap();
    let config = file.to_str().unwrap().to_owned();
    let mut server = Server::start_in(folder, &["--config", &config]);
    server.send_grpc(recorded_requests().into_iter().take(40).collect());
    let dir = server.data_dir();
    until(|| sealed_to(&dir) >= 50);
    server.stop_and_verify();
    let refused = Command::new(CUSTODY).args(["serve", "--segment-rows-max", "0"]).output().unwrap();
    assert!(!refused.status.success());
}
