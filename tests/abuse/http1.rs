//! HTTP/1.1: lengths that lie, chunks that do not end, requests within requests.

use std::io::Write as _;

use crate::harness::{Answer, PROTOBUF, Target, connect, head, read_to_end, request};

/// A POST with these headers instead of a Content-Length.
fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /v1/traces HTTP/1.1\r\nHost: x\r\n{PROTOBUF}{headers}\r\n");
    [head.as_bytes(), body].concat()
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[test]
fn lengths_that_lie_are_refused_and_smuggle_nothing() {
    let target = Target::start(&[]);
    let refused = |request: Vec<u8>| {
        let came = target.raw(&request);
        let answers = came.windows(9).filter(|w| w == b"HTTP/1.1 ").count();
        assert!(answers <= 1, "{}", String::from_utf8_lossy(&came));
        (answers == 1).then(|| Answer::parse(&came).status)
    };
    let smuggled = post("Content-Length: 0\r\n", b"");
    // Two lengths: nobody knows which.
    let two = [post("Content-Length: 3\r\nContent-Length: 0\r\n", b"abc"), smuggled.clone()].concat();
    assert_eq!(refused(two), Some(400));
    assert_eq!(refused(post("Content-Length: 3, 4\r\n", b"abc")), Some(400));
    for length in ["-1", "+3", "0x10", "99999999999999999999999", "3 3", ""] {
        assert_eq!(refused(post(&format!("Content-Length: {length}\r\n"), b"abc")), Some(400), "{length:?}");
    }
    for coding in ["gzip", "chunked, gzip", "chunked, identity", "xchunked"] {
        assert_eq!(refused(post(&format!("Transfer-Encoding: {coding}\r\n"), b"0\r\n\r\n")), Some(400), "{coding}");
    }
    // Larger than any limit: refused before a byte of it is read or room made for it.
    assert_eq!(refused(post("Content-Length: 9223372036854775807\r\n", b"abc")), Some(413));
    assert_eq!(refused(post("Content-Length: 67108865\r\n", b"abc")), Some(413));
    assert_eq!(refused(b"POST /v1/traces HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()), Some(400));
    assert_eq!(refused(b"POST /v1/traces\0 HTTP/1.1\r\n\r\n".to_vec()), Some(400));
    assert_eq!(refused(post("X : y\r\n", b"")), Some(400));
    assert_eq!(refused(post(" folded: y\r\nContent-Length: 0\r\n", b"")), Some(400));
    target.finish();
}

/// Content-Length and Transfer-Encoding together: the chunks count (RFC 9112, 6.1), and the
/// connection is closed after the answer, so that nothing behind them is taken for a request.
#[test]
fn a_length_beside_chunks_counts_for_nothing() {
    let mut target = Target::start(&[]);
    let body = request(target.records, 1);
    let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let smuggled = post(&format!("Content-Length: {}\r\n", body.len()), &request(500, 1));
    for both in [format!("Content-Length: 4\r\n{CHUNKED}"), format!("{CHUNKED}Content-Length: 4\r\n")] {
        let came = target.raw(&[post(&both, &chunks), smuggled.clone()].concat());
        assert_eq!(Answer::parse(&came).status, 200);
        assert_eq!(came.windows(9).filter(|w| w == b"HTTP/1.1 ").count(), 1, "{}", String::from_utf8_lossy(&came));
    }
    target.records += 1;
    target.finish();
}

#[test]
fn chunks_are_bounded_and_checked() {
    let mut target = Target::start(&["--request-bytes-max", "100000", "--body-timeout", "3"]);
    let broken = |chunks: &[u8]| {
        let came = target.raw(&post(CHUNKED, chunks));
        // A body that breaks off is to be sent again: what came is no request.
        assert!(
            came.is_empty() || [400, 503].contains(&Answer::parse(&came).status),
            "{}",
            String::from_utf8_lossy(&came)
        );
    };
    broken(b"zz\r\nabc");
    broken(b"ffffffffffffffffff\r\nabc");
    broken(b"ffffffffffffffff\r\nabc");
    broken(b"-1\r\nabc");
    broken(b"3\r\nabcX\r\n0\r\n\r\n");
    broken(b"3\nabc\n0\n\n");
    broken(&[b"1;".as_slice(), &[b'x'; 200_000], b"\r\na\r\n0\r\n\r\n"].concat());
    let trailers: String = (0..5000).map(|n| format!("X-{n}: y\r\n")).collect();
    broken(format!("0\r\n{trailers}\r\n").as_bytes());
    let endless = b"1000\r\n".iter().copied().chain(std::iter::repeat_n(0, 4096)).chain(*b"\r\n").collect::<Vec<_>>();
    assert_eq!(Answer::parse(&target.raw(&post(CHUNKED, &endless.repeat(100)))).status, 413);
    // Chunks of one byte are slow to read, and right.
    let body = request(target.records, 200);
    let bytes: Vec<u8> = body.iter().flat_map(|byte| [b"1\r\n".as_slice(), &[*byte], b"\r\n"].concat()).collect();
    let came = target.raw(&post(&format!("{CHUNKED}Connection: close\r\n"), &[&bytes[..], b"0\r\n\r\n"].concat()));
    assert_eq!(Answer::parse(&came).status, 200);
    target.records += 200;
    target.finish();
}

#[test]
fn a_request_cut_at_every_byte_leaves_nothing() {
    let mut target = Target::start(&[]);
    let body = request(target.records, 2);
    let whole = [head(PROTOBUF, body.len()).as_bytes(), &body].concat();
    for cut in 0..whole.len() {
        let mut stream = connect(1, &target.server.otlp_http);
        stream.write_all(&whole[..cut]).unwrap();
        if cut % 2 == 0 {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let came = read_to_end(&mut stream);
            assert!(came.is_empty() || [400, 503].contains(&Answer::parse(&came).status), "cut at {cut}");
        }
    }
    let came = target.raw(&whole);
    assert_eq!(Answer::parse(&came).status, 200);
    target.records += 2;
    target.finish();
}

/// RFC 9112, section 3.2: of two hosts one reader takes the first and another the last, and none is no request of HTTP/1.1.
#[test]
fn a_request_names_its_host_once() {
    let mut target = Target::start(&[]);
    let body = request(target.records, 1);
    let ask = |address: &str, line: &str, hosts: &str, body: &[u8]| {
        let mut stream = connect(1, address);
        let head = format!("{line}\r\n{hosts}{PROTOBUF}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        Answer::parse(&read_to_end(&mut stream))
    };
    let (otlp, api) = (target.server.otlp_http.clone(), target.server.http.clone());
    let two = "Host: localhost\r\nHost: evil.example.com\r\n";
    for hosts in ["", two, "Host: localhost\r\nHost: localhost\r\n"] {
        ask(&otlp, "POST /v1/traces HTTP/1.1", hosts, &body).is_invalid("headers Host");
        for path in ["/", "/healthz", "/checkpoint"] {
            ask(&api, &format!("GET {path} HTTP/1.1"), hosts, b"").is_invalid("headers Host");
        }
    }
    ask(&api, "GET /healthz HTTP/1.0", two, b"").is_invalid("headers Host");
    assert_eq!(ask(&api, "GET /healthz HTTP/1.0", "", b"").status, 200, "HTTP/1.0 knows no Host");
    assert_eq!(ask(&otlp, "POST /v1/traces HTTP/1.1", "Host: x\r\n", &body).status, 200);
    target.records += 1;
    target.finish();
}
