//! Requests that a browser sends for a page of another site (cross-site request forgery).
//!
//! Such a page can have them sent without being able to read the answer, with the right of whoever sits at the browser:
//! on loopback everybody's, elsewhere that of a client certificate. Judged as Go's `http.CrossOriginProtection` does: by
//! `Sec-Fetch-Site` (W3C Fetch Metadata), which pages cannot set, or else by `Origin` (RFC 6454).

use axum::extract::Request;
use axum::http::{Method, Uri, header};

/// Whether a page of another site has this sent, and it is no request that only reads.
pub(super) fn is_foreign(request: &Request) -> bool {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    let headers = request.headers();
    if let Some(site) = headers.get("sec-fetch-site") {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has the host in the request's own line.
    let here = request.uri().authority().map(|authority| authority.as_str()).or(host);
    match (origin.as_ref().and_then(Uri::authority), here) {
        (Some(origin), Some(here)) => !origin.as_str().eq_ignore_ascii_case(here),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(method: &str, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        is_foreign(&request.body(axum::body::Body::empty()).unwrap())
    }

    #[test]
    fn pages_of_others_change_nothing() {
        let host = ("host", "localhost:4680");
        for headers in [
            &[host, ("origin", "https://evil.example.com")][..],
            &[host, ("origin", "http://localhost:4681")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[("origin", "http://localhost:4680")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site"), ("origin", "http://localhost:4680")],
        ] {
            for method in ["POST", "PUT", "DELETE", "PATCH", "ODD"] {
                assert!(foreign(method, "/api/v1/consumers/siem/next", headers), "{method} {headers:?}");
            }
            assert!(!foreign("GET", "/api/v1/events", headers) && !foreign("HEAD", "/", headers));
        }
    }

    #[test]
    fn own_pages_and_clients_that_are_no_browsers_may() {
        for (uri, headers) in [
            ("/x", &[("host", "localhost:4680")][..]),
            ("/x", &[]),
            ("/x", &[("host", "LocalHost:4680"), ("origin", "http://localhost:4680")]),
            ("https://ledger.example.com/x", &[("origin", "https://ledger.example.com")]),
            // Behind a proxy that asks under another name.
            (
                "/x",
                &[("host", "10.0.0.7"), ("origin", "https://ledger.example.com"), ("sec-fetch-site", "same-origin")],
            ),
            ("/x", &[("host", "localhost"), ("sec-fetch-site", "none")]),
        ] {
            assert!(!foreign("POST", uri, headers), "{uri} {headers:?}");
        }
    }
}
