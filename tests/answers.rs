//! Answers over HTTP, on the built binary: long ones come as they are made and short ones whole, what breaks off is
//! never taken for a shorter answer, the guards hold until the last byte, and evidence needs nothing but the API.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{CUSTODY, Server};

/// A million rows, from which `{}` selects.
fn million(select: &str) -> String {
    let thousand = (0..1000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let numbers = format!("(SELECT unnest([{thousand}]) AS n)");
    format!("SELECT {select} FROM {numbers} a CROSS JOIN {numbers} b")
}

/// Divides by zero in its last row.
fn late_error() -> String {
    million("a.n AS n, b.n AS m, 10 / (abs(a.n - 999) + abs(b.n - 999)) AS x")
}

/// Asks over HTTP/1.1, and reads nothing yet.
fn ask(server: &Server, query: &Value, headers: &str) -> TcpStream {
    let body = query.to_string();
    let mut stream = TcpStream::connect(&server.http).unwrap();
    let head = "POST /api/v1/sql HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json";
    let length = body.len();
    stream.write_all(format!("{head}\r\n{headers}Content-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    stream
}

/// An answer, taken apart.
struct Told {
    head: String,
    body: Vec<u8>,
    /// What stands behind the last chunk; `None` if there is no last chunk.
    trailers: Option<String>,
}

impl Told {
    fn of(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        // A connection that is reset gave what it gave.
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let mut rest = &bytes[end + 4..];
        if !head.contains("transfer-encoding: chunked") {
            return Self { head, body: rest.to_vec(), trailers: Some(String::new()) };
        }
        let (mut body, mut trailers) = (Vec::new(), None);
        while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
            rest = &rest[at + 2..];
            if length == 0 {
                trailers = Some(String::from_utf8(rest.to_vec()).unwrap().to_lowercase());
                break;
            }
            body.extend_from_slice(&rest[..length.min(rest.len())]);
            let Some(after) = rest.get(length + 2..) else { break };
            rest = after;
        }
        Self { head, body, trailers }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn running(server: &Server, queries: usize) {
    support::until(|| server.get("/metrics").1.contains(&format!("\ncustody_sql_queries_running {queries}\n")));
}

#[test]
fn a_short_answer_is_whole_and_a_long_one_streams_to_its_end() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--audit", "all"]);
    let short = Told::of(ask(&server, &json!({"sql": "SELECT 1 AS n", "format": "ndjson"}), ""));
    assert!(short.head.starts_with("http/1.1 200") && short.head.contains("content-length: 8"), "{}", short.head);
    assert!(short.head.contains("x-truncated: false") && short.head.contains("x-rows-max: 10000"), "{}", short.head);
    assert_eq!(short.body, b"{\"n\":1}\n");
    let cut = Told::of(ask(&server, &json!({"sql": "SELECT unnest([1,2,3]) AS n", "max_rows": 2}), ""));
    assert!(cut.head.contains("x-truncated: true") && cut.json()["stats"]["truncated"] == true, "{}", cut.head);

    let rows = 300_000;
    let long = |format: &str, headers: &str| {
        let query = json!({"sql": million("a.n AS n, b.n AS m"), "format": format, "max_rows": rows});
        let told = Told::of(ask(&server, &query, headers));
        assert!(told.head.contains("transfer-encoding: chunked"), "{format}: {}", told.head);
        assert!(told.head.contains("x-log-size: ") && !told.head.contains("x-truncated: "), "{format}: {}", told.head);
        assert!(told.trailers.is_some(), "{format} came to its end");
        told
    };
    let json = long("json", "").json();
    assert_eq!((json["rows"].as_array().unwrap().len(), &json["stats"]["truncated"]), (rows, &json!(true)));
    let lines = long("ndjson", "TE: trailers\r\n");
    assert_eq!(lines.body.iter().filter(|byte| **byte == b'\n').count(), rows);
    let trailers = lines.trailers.unwrap();
    assert!(
        trailers.contains("x-truncated: true\r\n") && trailers.contains(&format!("x-rows: {rows}\r\n")),
        "{trailers}"
    );
    let csv = long("csv", "");
    assert_eq!(csv.body.iter().filter(|byte| **byte == b'\n').count(), rows + 1);
    let (schema, batches) = custody_query::format::from_arrow(&long("arrow", "").body).unwrap();
    let got: usize = batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!((schema.fields().len(), got), (2, rows));
    let parquet = server.path().join("answer.parquet");
    std::fs::write(&parquet, long("parquet", "").body).unwrap();
    let script = "import sys, pyarrow.parquet as pq; f = pq.ParquetFile(sys.argv[1])\n\
                  print(f.metadata.num_rows, f.metadata.metadata[b'custody.truncated'].decode())";
    let told = Command::new(support::python()).args(["-c", script]).arg(&parquet).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), format!("{rows} true\n"), "{told:?}");
    // A footer is for those who ask for one, where there is room for it.
    let footed = long("ndjson", "X-Footer: true\r\n");
    let last: Value =
        serde_json::from_slice(footed.body.trim_ascii_end().rsplit(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!((&last["stats"]["rows"], &last["stats"]["truncated"]), (&json!(rows), &json!(true)));

    // HTTP/1.0 could not tell that it broke off.
    let body = json!({"sql": million("a.n AS n, b.n AS m"), "format": "csv", "max_rows": rows}).to_string();
    let mut stream = TcpStream::connect(&server.http).unwrap();
    let head = format!("POST /api/v1/sql HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let old = Told::of(stream);
    assert!(old.head.contains("x-truncated: true") && old.head.contains("content-length: "), "{}", old.head);

    // Each is recorded with its rows, however it was sent.
    let sql = "SELECT outcome, rows FROM audit WHERE action = 'query' AND contains(text, 'CROSS JOIN') \
               AND NOT contains(text, 'audit')";
    support::until(|| {
        let told = server.sql(sql);
        told.len() == 7 && told.iter().all(|row| row["outcome"] == "ok" && row["rows"] == rows)
    });
    server.stop_and_verify();
}

#[test]
fn an_error_amid_the_rows_breaks_the_answer_off() {
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &["--audit", "all"]);
    for format in ["json", "ndjson", "csv", "arrow", "parquet"] {
        let query = json!({"sql": late_error(), "format": format, "max_rows": 1_000_000});
        let told = Told::of(ask(&server, &query, "TE: trailers\r\n"));
        assert!(told.head.starts_with("http/1.1 200"), "{format}: {}", told.head);
        assert!(told.trailers.is_none(), "{format} has no end");
    }
    // Who asks for the whole of it is told of the error in its place, and who asks for a footer, there.
    let query = json!({"sql": late_error(), "format": "csv", "max_rows": 1_000_000, "stream": false});
    let whole = Told::of(ask(&server, &query, ""));
    assert!(whole.head.starts_with("http/1.1 400"), "{}", whole.head);
    assert!(whole.json()["message"].as_str().unwrap().contains("Divide by zero"));
    let query = json!({"sql": late_error(), "format": "ndjson", "max_rows": 1_000_000});
    let footed = Told::of(ask(&server, &query, "X-Footer: true\r\n"));
    let last: Value =
        serde_json::from_slice(footed.body.trim_ascii_end().rsplit(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "invalid_query", "{last}");
    // The command tells it, and gives no table.
    for format in ["table", "json", "csv", "arrow", "parquet"] {
        let sql = server.path().join("late.sql");
        std::fs::write(&sql, late_error()).unwrap();
        let args = ["sql", "-f", sql.to_str().unwrap(), "--max-rows", "1000000", "--format", format];
        let told = server.custody_output(&args);
        assert_eq!(told.status.code(), Some(1), "{format}");
        assert!(String::from_utf8_lossy(&told.stderr).contains("Divide by zero"), "{format}: {:?}", told.stderr);
        assert!(format != "table" || told.stdout.is_empty());
    }
    let sql = "SELECT DISTINCT outcome FROM audit WHERE action = 'query' AND contains(text, 'CROSS JOIN') \
               AND NOT contains(text, 'audit')";
    support::until(|| server.sql(sql) == [json!({"outcome": "invalid_query"})]);
    server.stop_and_verify();
}

#[test]
fn the_guards_hold_until_the_last_byte() {
    let flags = ["--audit", "all", "--queries-max-per-identity", "1"];
    let mut server = Server::start_in(tempfile::tempdir().unwrap(), &flags);
    let wide = million("repeat('x', 200) AS x, a.n AS n, b.n AS m");
    let query =
        |timeout_ms: u64| json!({"sql": wide, "format": "csv", "max_rows": 1_000_000, "timeout_ms": timeout_ms});
    // The first bytes come while the query runs: the rest waits for its reader, and has its place.
    let mut stream = ask(&server, &query(60_000), "");
    let mut first = [0; 64 << 10];
    stream.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"));
    running(&server, 1);
    let refused = Told::of(ask(&server, &json!({"sql": "SELECT 1"}), ""));
    assert!(refused.head.starts_with("http/1.1 429"), "{}", refused.head);
    // It ends when its reader goes.
    drop(stream);
    running(&server, 0);
    // A reader who takes nothing has no longer than everybody, and what he finds then has no end. Its first rows come
    // within that time on a slow machine, too.
    let stream = ask(&server, &query(8_000), "");
    running(&server, 1);
    running(&server, 0);
    let told = Told::of(stream);
    assert!(told.head.starts_with("http/1.1 200") && told.trailers.is_none(), "{}", told.head);
    let sql = "SELECT outcome FROM audit WHERE action = 'query' AND contains(text, 'CROSS JOIN') \
               AND NOT contains(text, 'audit') ORDER BY seq";
    support::until(|| server.sql(sql) == [json!({"outcome": "cancelled"}), json!({"outcome": "timeout"})]);
    server.stop_and_verify();
}

/// Whom the tests that have a policy ask as: rows are visible once one is.
fn visible(server: &Server, rows: usize) {
    let count = || server.custody(&["sql", "SELECT count(*) AS n FROM spans", "--format", "csv"]);
    support::until(|| count() == format!("n\n{rows}\n"));
}

fn check(file: &std::path::Path, vkey: &std::path::Path) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        Command::new(CUSTODY).arg("check").arg(file).arg("--vkey").arg(vkey).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

#[test]
fn evidence_over_http_is_checked_like_the_local_one() {
    let mut server = Server::under("roles = [\"write\", \"read\", \"export\"]\ntenants = [\"*\"]");
    server.send_span_of("acme");
    server.send_span_of("globex");
    visible(&server, 2);
    let (file, vkey) = (server.path().join("answer.custody"), server.data_dir().join("log.vkey"));
    let path = file.to_str().unwrap();
    let ask = ["sql", "SELECT seq, name FROM spans WHERE tenant = $t", "-p", "t=acme", "--evidence", path];
    let told = server.custody(&ask);
    assert!(told.contains("1 records with proofs"), "{told}");
    let (status, told) = check(&file, &vkey);
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("its answer of 1 rows is the one") && told.contains("exported by peer:127.0.0.1"), "{told}");
    let bundle = std::fs::read_to_string(&file).unwrap();
    let manifest: Value = serde_json::from_str(bundle.lines().next().unwrap()).unwrap();
    assert_eq!(
        manifest["attached"]["result"].as_str().unwrap().lines().nth(1).unwrap().split(',').nth(1),
        Some("of acme")
    );
    assert_eq!(manifest["attached"]["params"], json!({"t": "acme"}));
    // The digest of rows, query and parameters is in the log: another answer is found out.
    std::fs::write(&file, bundle.replacen("of acme", "of evil", 1)).unwrap();
    assert_eq!(check(&file, &vkey).0, Some(1));
    // Cut off on the way it is no bundle.
    let cut = &bundle[..bundle.trim_end().rfind('\n').unwrap() + 1];
    std::fs::write(&file, cut).unwrap();
    assert_eq!(check(&file, &vkey).0, Some(1));
    // The same mends as for the local one.
    let refused = server.custody_output(&["sql", "SELECT count(*) AS n FROM spans", "--evidence", path]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("array_agg(seq) AS seqs"), "{refused:?}");
    let refused = server.custody_output(&["sql", "SELECT seq FROM spans", "--max-rows", "1", "--evidence", path]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("whole answers"), "{refused:?}");
    server.stop_and_verify();
}

#[test]
fn evidence_is_for_exporters_and_of_what_they_may_see() {
    let readers = Server::under("roles = [\"write\", \"read\"]\ntenants = [\"*\"]");
    let file = readers.path().join("answer.custody");
    let path = file.to_str().unwrap();
    let refused = readers.custody_output(&["sql", "SELECT seq FROM ledger", "--evidence", path]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the role export"), "{refused:?}");
    assert!(!file.exists());
    drop(readers);

    let mut server = Server::under("roles = [\"write\", \"read\", \"export\"]\ntenants = [\"acme\"]");
    server.send_span_of("globex");
    server.send_span_of("acme");
    visible(&server, 1);
    let file = server.path().join("answer.custody");
    let path = file.to_str().unwrap();
    server.custody(&["sql", "SELECT seq, name FROM spans", "--evidence", path]);
    assert_eq!(check(&file, &server.data_dir().join("log.vkey")).0, Some(0));
    let bundle = std::fs::read_to_string(&file).unwrap();
    assert!(bundle.contains("of acme") && !bundle.contains("globex"));
    // A query can name any number, but not have its record.
    let seq = server.custody(&["sql", "SELECT seq FROM spans", "--format", "csv"]);
    let hidden: u64 = seq.lines().nth(1).unwrap().parse::<u64>().unwrap() - 1;
    std::fs::remove_file(&file).unwrap();
    let guessed = format!("SELECT {hidden} AS seq");
    let refused = server.custody_output(&["sql", &guessed, "--evidence", path]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains(&format!("names record {hidden}, which peer:127.0.0.1 may not see")), "{told}");
    assert!(!file.exists());
    server.stop_and_verify();
}
