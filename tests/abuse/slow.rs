//! Clients that are silent, slow, or gone without a word.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Answer, PROTOBUF, Target, connect, frames, head, read_to_end, request};

/// Short enough for a test, long enough for a slow machine to answer between them.
const SHORT: [&str; 8] =
    ["--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2", "--write-timeout", "2"];

/// Sends a byte every 20 ms until the server closes or answers; gives how many, and the answer. If it closes only after
/// the last of them, the answer is waited for: its clock may have begun later than ours.
fn trickle(stream: &mut TcpStream, bytes: impl Iterator<Item = u8>) -> (usize, Vec<u8>) {
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (mut sent, mut answer) = (0, vec![0; 4096]);
    for byte in bytes {
        if stream.write_all(&[byte]).is_err() {
            return (sent, Vec::new());
        }
        sent += 1;
        match stream.read(&mut answer) {
            Ok(len) => {
                answer.truncate(len);
                stream.set_read_timeout(Some(crate::harness::HANGS)).unwrap();
                answer.extend(read_to_end(stream));
                return (sent, answer);
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return (sent, Vec::new()),
        }
    }
    stream.set_read_timeout(Some(crate::harness::HANGS)).unwrap();
    answer.clear();
    answer.extend(read_to_end(stream));
    (sent, answer)
}

#[test]
fn the_silent_and_the_slow_are_closed_on_every_listener() {
    let target = Target::start(&SHORT);
    let server = &target.server;
    for address in [&server.otlp_http, &server.grpc, &server.http, &server.flight_sql] {
        assert_eq!(read_to_end(&mut connect(1, address)), b"", "{address}: silence is closed without a word");
        let endless = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nX-Long: ".iter().copied().chain(std::iter::repeat(b'a'));
        let (sent, answer) = trickle(&mut connect(1, address), endless.take(2000));
        assert!(sent < 1000 && answer.is_empty(), "{address}: {sent} bytes of headers");
        let (_, answer) = trickle(&mut connect(1, address), frames::opening().into_iter().cycle().take(23));
        assert_eq!(answer, b"", "{address}: a preface that does not come");
    }
    target.finish();
}

#[test]
fn a_body_that_trickles_or_stops_is_refused_for_now() {
    let target = Target::start(&SHORT);
    let mut stream = connect(1, &target.server.otlp_http);
    stream.write_all(head(PROTOBUF, 5000).as_bytes()).unwrap();
    Answer::parse(&trickle(&mut stream, std::iter::repeat_n(0, 4000)).1).is_unavailable("--body-rate-min");
    let mut stream = connect(1, &target.server.otlp_http);
    stream.write_all(head(PROTOBUF, 5000).as_bytes()).unwrap();
    stream.write_all(&[0; 1000]).unwrap();
    Answer::parse(&read_to_end(&mut stream)).is_unavailable("--body-timeout");
    // The same over gRPC: the status is UNAVAILABLE, and says when to come again.
    let (status, message, details) = crate::http2::call(&target, |_| {}, &[&request(5, 1)[..10]], false);
    assert_eq!(status, 14, "{message}");
    assert!(message.contains("--body-timeout") && details.contains("google.rpc.RetryInfo"), "{message} {details}");
    target.finish();
}

#[test]
fn idle_connections_are_told_to_go() {
    let mut target = Target::start(&SHORT);
    let mut stream = connect(1, &target.server.otlp_http);
    let body = request(1000, 1);
    let head = head(PROTOBUF, body.len()).replace("Connection: close\r\n", "");
    for _ in 0..2 {
        stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        let mut answer = [0; 4096];
        let len = stream.read(&mut answer).unwrap();
        assert_eq!(Answer::parse(&answer[..len]).status, 200, "the second time it is known already");
    }
    target.records += 1;
    assert_eq!(read_to_end(&mut stream), b"", "an idle HTTP/1.1 connection is closed");
    for address in [&target.server.grpc, &target.server.flight_sql] {
        let mut stream = connect(1, address);
        stream.write_all(&frames::opening()).unwrap();
        assert_eq!(frames::goaway(&read_to_end(&mut stream)).0, 0, "an idle HTTP/2 connection gets a GOAWAY");
    }
    target.finish();
}

#[test]
fn half_open_connections_are_found_by_ping() {
    let target = Target::start(&["--keep-alive-interval", "0.2", "--keep-alive-timeout", "0.2"]);
    let mut stream = connect(1, &target.server.grpc);
    stream.write_all(&frames::opening()).unwrap();
    // It has a call under way, and answers nothing any more.
    stream.write_all(&frames::frame(1, 4, 1, &frames::call())).unwrap();
    let came = frames::parse(&read_to_end(&mut stream));
    assert!(came.iter().any(|(kind, ..)| *kind == 6), "a PING was sent: {came:?}");
    target.finish();
}

#[test]
fn who_takes_no_answers_is_closed() {
    let target = Target::start(&SHORT);
    let mut stream = connect(1, &target.server.http);
    // Small buffers on this side; the answers of a hundred requests do not fit into them.
    socket2::SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    let get = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut sent = 0;
    while stream.write_all(get).is_ok() {
        sent += 1;
        assert!(sent < 10_000_000, "the server goes on taking requests");
    }
    target.finish();
}
