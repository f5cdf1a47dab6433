//! Browser exporters (Fetch standard, "CORS protocol"; OTLP itself is silent on it).

use crate::requests::Signal;
use crate::support::{CUSTODY, Server};
use crate::wire::{Answer, Client, JSON, PROTOBUF};

const APP: &str = "https://app.example.com";

fn start(origins: &[&str]) -> Server {
    let flags: Vec<&str> = origins.iter().flat_map(|origin| ["--cors-origin", *origin]).collect();
    Server::start_in(tempfile::tempdir().unwrap(), &flags)
}

/// What a browser asks before it posts JSON from another origin.
fn preflight(http: &mut Client, path: &str, origin: &str) -> Answer {
    let asked = "content-type,content-encoding,x-tenant";
    let headers =
        [("origin", origin), ("access-control-request-method", "POST"), ("access-control-request-headers", asked)];
    http.send("OPTIONS", path, &headers, "")
}

fn cors_headers(answer: &Answer) -> Vec<&str> {
    let names = answer.headers.keys().map(|name| name.as_str());
    names.filter(|name| name.starts_with("access-control-")).collect()
}

/// CORS is off: no page of any origin may send, whether it asks first, posts at once as a form
/// may ("simple" requests), or is on what the browser takes for our own origin (DNS rebinding).
#[test]
fn without_a_setting_no_page_may_send() {
    let mut server = start(&[]);
    let rebound = format!("http://{}", server.otlp_http);
    let mut http = Client::http1(&server.otlp_http);
    for origin in [APP, "null", "http://localhost:3000", &rebound] {
        let told = preflight(&mut http, "/v1/traces", origin);
        assert_eq!((told.status, cors_headers(&told)), (403, vec![]), "{told:?}");
        for content_type in [JSON, PROTOBUF, "text/plain", "application/x-www-form-urlencoded"] {
            let told = http.post("/v1/traces", content_type, &[("origin", origin)], Signal::Traces.json(1));
            assert_eq!((told.status, cors_headers(&told)), (403, vec![]), "{origin} {content_type}");
            assert!(told.problem().1.contains("--cors-origin"), "{told:?}");
        }
    }
    // The three types that a page may post without asking are no types of OTLP in any case.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        assert_eq!(http.post("/v1/traces", content_type, &[], Signal::Traces.json(1)).status, 415);
    }
    let plain = http.post("/v1/traces", JSON, &[], Signal::Traces.json(1));
    assert_eq!((plain.status, cors_headers(&plain), plain.header("vary")), (200, vec![], ""));
    assert_eq!(server.stop_and_verify()["records"], 2, "what came from no page");
}

/// An origin that is named may ask, post, and read the answers, successes and refusals.
#[test]
fn a_named_origin_may_send_and_no_other() {
    let mut server = start(&["https://App.example.com:443", "http://localhost:3000"]);
    for mut http in [Client::http1(&server.otlp_http), Client::http2(&server.otlp_http)] {
        for path in ["/v1/traces", "/v1/logs", "/v1/metrics"] {
            let told = preflight(&mut http, path, APP);
            assert_eq!((told.status, told.body.len()), (204, 0));
            assert_eq!(told.header("access-control-allow-origin"), APP);
            assert_eq!(told.header("access-control-allow-methods"), "POST");
            assert_eq!(told.header("access-control-allow-headers"), "content-type,content-encoding,x-tenant");
            assert_eq!(told.header("access-control-allow-credentials"), "true");
            assert_eq!(told.header("access-control-max-age"), "7200");
            let vary: Vec<_> = told.headers.get_all("vary").iter().collect();
            assert_eq!(vary, ["Access-Control-Request-Headers", "Origin"]);
        }
        let told = http.post("/v1/traces", JSON, &[("origin", APP)], Signal::Traces.json(1));
        assert_eq!((told.status, told.header("access-control-allow-origin")), (200, APP));
        assert_eq!(told.header("vary"), "Origin");
        assert!(told.header("access-control-expose-headers").contains("retry-after"));
        for (status, content_type) in [(400, JSON), (415, "text/plain")] {
            let told = http.post("/v1/traces", content_type, &[("origin", "http://localhost:3000")], "x");
            let origin = told.header("access-control-allow-origin");
            assert_eq!((told.status, origin), (status, "http://localhost:3000"), "a page can read why");
        }
        let lookalikes =
            ["https://app.example.com.evil.example", "http://app.example.com", "https://app.example.com:8443", "null"];
        for other in lookalikes {
            let told = preflight(&mut http, "/v1/traces", other);
            assert_eq!((told.status, cors_headers(&told)), (403, vec![]), "{other}");
            let told = http.post("/v1/traces", JSON, &[("origin", other)], Signal::Traces.json(2));
            assert_eq!((told.status, cors_headers(&told), told.header("vary")), (403, vec![], "Origin"), "{other}");
        }
        // OPTIONS that is no preflight is a method like others, and an exporter has no origin.
        assert_eq!(http.send("OPTIONS", "/v1/traces", &[("origin", APP)], "").status, 405);
        assert_eq!(http.post("/v1/traces", JSON, &[], Signal::Traces.json(1)).status, 200);
    }
    assert_eq!(server.stop_and_verify()["records"], 2);
}

/// All origins: `*`, and never with credentials. The same setting in the configuration file.
#[test]
fn any_origin_may_send_but_without_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("custody.toml");
    std::fs::write(&config, "cors_origins = [\"*\"]\n").unwrap();
    let mut server = Server::start_in(folder, &["--config", config.to_str().unwrap()]);
    let mut http = Client::http1(&server.otlp_http);
    for origin in [APP, "null", "http://anything.example"] {
        for told in [
            preflight(&mut http, "/v1/logs", origin),
            http.post("/v1/logs", JSON, &[("origin", origin)], Signal::Logs.json(1)),
        ] {
            assert!(told.status < 300, "{told:?}");
            assert_eq!(told.header("access-control-allow-origin"), "*");
            assert_eq!(told.header("access-control-allow-credentials"), "");
        }
    }
    assert_eq!(server.stop_and_verify()["records"], 2);
}

#[test]
fn what_is_no_origin_is_no_setting() {
    for wrong in ["app.example.com", "https://app.example.com/", "https://*.example.com", "null"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(CUSTODY);
        command.args(["serve", "--cors-origin", wrong]).args(crate::support::FREE_PORTS).arg("--data-dir");
        let output = command.arg(folder.path().join("data")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("--cors-origin") && told.contains(wrong), "{told}");
    }
}
