//! HTTP/2 and gRPC: frames that no client library would send.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;

use crate::harness::frames::{frame, goaway, header, message, opening};
use crate::harness::{HANGS, PROTOBUF, Target, connect, frames, read_to_end, request};
use crate::support::until;

const ENHANCE_YOUR_CALM: u32 = 11;

/// One Export call with these pieces as DATA: the gRPC status, its message and its details.
/// Without `ends` the call's stream stays open.
pub fn call(
    target: &Target,
    change: impl FnOnce(&mut http::HeaderMap),
    pieces: &[&[u8]],
    ends: bool,
) -> (i32, String, String) {
    try_call(target, change, pieces, ends).unwrap()
}

/// What a call is told that is turned away with its connection. Who takes that in has a second for it, and may be too slow.
pub fn turned_away(target: &Target) -> (i32, String, String) {
    let mut told = None;
    until(|| {
        told = try_call(target, |_| {}, &[&[0_u8; 5][..]], true).ok();
        told.is_some()
    });
    told.unwrap()
}

fn try_call(
    target: &Target,
    change: impl FnOnce(&mut http::HeaderMap),
    pieces: &[&[u8]],
    ends: bool,
) -> Result<(i32, String, String), h2::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("http://{}/opentelemetry.proto.collector.trace.v1.TraceService/Export", target.server.grpc);
    let mut request = http::Request::post(url).header("content-type", "application/grpc").body(()).unwrap();
    change(request.headers_mut());
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(&target.server.grpc).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await?;
        let driver = tokio::spawn(connection);
        let (answer, mut body) = client.ready().await?.send_request(request, false)?;
        for (i, piece) in pieces.iter().enumerate() {
            body.send_data(Bytes::copy_from_slice(piece), ends && i + 1 == pieces.len())?;
        }
        if ends && pieces.is_empty() {
            body.send_data(Bytes::new(), true)?;
        }
        let (parts, mut rest) = answer.await?.into_parts();
        while let Some(data) = rest.data().await {
            drop(data?);
        }
        let trailers = rest.trailers().await?.unwrap_or(parts.headers);
        driver.abort();
        let text = |name: &str| trailers.get(name).map_or(String::new(), |v| v.to_str().unwrap().to_owned());
        let details = text("grpc-status-details-bin");
        let details = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details.trim_end_matches('=')).unwrap();
        let told = (
            text("grpc-status").parse::<i32>().unwrap(),
            text("grpc-message"),
            String::from_utf8_lossy(&details).into_owned(),
        );
        Ok::<_, h2::Error>(told)
    })
}

#[test]
fn grpc_frames_with_wrong_lengths_flags_and_counts() {
    let mut target = Target::start(&[]);
    let good = request(target.records, 1);
    let len = good.len() as u32;
    let whole = message(0, len, &good);
    let encoded = |name: &'static str| {
        move |headers: &mut http::HeaderMap| drop(headers.insert("grpc-encoding", name.parse().unwrap()))
    };
    let is_invalid = |frames: &[u8], says: &str| {
        let (status, text, _) = call(&target, |_| {}, &[frames], true);
        assert_eq!(status, 3, "{text}");
        assert!(text.replace("%20", " ").contains(says), "{text}");
    };
    is_invalid(&[], "no message");
    is_invalid(&message(0, len + 1, &good), "one message");
    is_invalid(&message(0, len - 1, &good), "one message");
    is_invalid(&message(0, u32::MAX, &good), "one message");
    is_invalid(&[whole.as_slice(), &whole].concat(), "one message");
    is_invalid(&message(2, len, &good), "neither 0 nor 1");
    is_invalid(&message(1, len, &good), "no grpc-encoding");
    // Cut at every byte, as a client that dies but whose proxy ends the stream.
    for cut in 0..whole.len() {
        is_invalid(&whole[..cut], "");
    }
    let (status, text, _) = call(&target, encoded("gzip"), &[&message(1, len, &good)], true);
    assert_eq!(status, 3, "{text}");
    assert_eq!(call(&target, encoded("br"), &[&whole], true).0, 12, "UNIMPLEMENTED, as gRPC has it for encodings");
    let pieces: Vec<&[u8]> = whole.chunks(1).collect();
    assert_eq!(call(&target, |_| {}, &pieces, true).0, 0, "in pieces of a byte it is the same request");
    target.records += 1;
    target.finish();
}

#[test]
fn a_grpc_connection_cut_at_every_byte_leaves_nothing() {
    let mut target = Target::start(&[]);
    let whole = [
        opening(),
        frame(1, 4, 1, &frames::call()),
        frame(0, 1, 1, &message(0, request(77, 1).len() as u32, &request(77, 1))),
    ]
    .concat();
    for cut in 0..whole.len() {
        let mut stream = connect(1, &target.server.grpc);
        stream.write_all(&whole[..cut]).unwrap();
        if cut % 2 == 0 {
            // Half of them wait for what the server makes of it.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            read_to_end(&mut stream);
        }
    }
    target.serves_another();
    let mut stream = connect(1, &target.server.grpc);
    stream.write_all(&whole).unwrap();
    let (mut came, mut piece) = (Vec::new(), [0; 4096]);
    // Headers, and trailers.
    while frames::parse(&came).iter().filter(|(kind, ..)| *kind == 1).count() < 2 {
        let len = stream.read(&mut piece).unwrap();
        assert!(len > 0, "{came:x?}");
        came.extend_from_slice(&piece[..len]);
    }
    target.records += 1;
    target.finish();
}

/// Writes until the server closes: it must, before this many bytes.
fn flood(stream: &mut TcpStream, bytes: &[u8], most: usize) -> Vec<u8> {
    // A flood whose answers nobody reads would end at full buffers: they are read elsewhere.
    let mut other = stream.try_clone().unwrap();
    let reader = crate::harness::spawn(move || {
        let (mut out, mut piece) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(len) = other.read(&mut piece) {
            if len == 0 {
                break;
            }
            // The end is what says why.
            if out.len() > 1 << 20 {
                out.clear();
            }
            out.extend_from_slice(&piece[..len]);
        }
        out
    });
    let mut sent = 0;
    while stream.write_all(bytes).is_ok() {
        sent += bytes.len();
        assert!(sent < most, "the server goes on after {sent} bytes");
    }
    reader.join().unwrap()
}

#[test]
fn rapid_reset_is_ended() {
    let target = Target::start(&[]);
    let mut stream = connect(1, &target.server.grpc);
    let mut bytes = opening();
    for stream in (1..20_000).step_by(2) {
        bytes.extend(frame(1, 4, stream, &frames::call()));
        bytes.extend(frame(3, 0, stream, &8u32.to_be_bytes()));
    }
    let _ = stream.write_all(&bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    assert_eq!(goaway(&read_to_end(&mut stream)).0, ENHANCE_YOUR_CALM);
    target.finish();
}

#[test]
fn floods_of_frames_are_ended() {
    let target = Target::start(&["--header-bytes-max", "16384"]);
    let address = target.server.grpc.clone();
    let start = |bytes: &[u8]| {
        let mut stream = connect(1, &address);
        stream.write_all(&[opening().as_slice(), bytes].concat()).unwrap();
        stream
    };
    // CONTINUATION frames without end: each a header more.
    let more = header("x-more", &"a".repeat(100));
    let came = flood(&mut start(&frame(1, 0, 1, &frames::call())), &frame(9, 0, 1, &more), 8 << 20);
    assert!(came.is_empty() || goaway(&came).0 != 0, "{:x?}", &came[..came.len().min(100)]);
    for (kind, flags, payload) in [(6, 0, &[0; 8][..]), (4, 0, &[][..]), (0xbe, 0, &[0; 64])] {
        flood(&mut start(&[]), &frame(kind, flags, 0, payload).repeat(1000), 64 << 20);
    }
    // Empty DATA frames on a call that goes on.
    flood(&mut start(&frame(1, 4, 1, &frames::call())), &frame(0, 0, 1, &[]).repeat(1000), 64 << 20);
    target.finish();
}

#[test]
fn headers_beyond_the_limits_are_refused() {
    let mut target = Target::start(&["--header-bytes-max", "16384", "--headers-max", "50"]);
    let many = |headers: &mut http::HeaderMap| {
        for n in 0..60 {
            headers.insert(http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap(), "1".parse().unwrap());
        }
    };
    let (status, text, _) = call(&target, many, &[&message(0, 0, &[])], true);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("--headers-max"), "{text}");
    let head = |headers: &str| target.post(&format!("{}{headers}", crate::harness::PROTOBUF), b"").status;
    assert_eq!(head(&(0..60).map(|n| format!("X-{n}: 1\r\n")).collect::<String>()), 431);
    assert_eq!(head(&format!("X-Long: {}\r\n", "a".repeat(20_000))), 431);
    assert_eq!(head(&format!("X-Long: {}\r\n", "a".repeat(10_000))), 200);
    target.serves_another();
    target.finish();
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_rest_is_served() {
    let target = Target::start(&["--streams-max", "4"]);
    let mut stream = connect(1, &target.server.grpc);
    let mut bytes = opening();
    for n in (1..40).step_by(2) {
        bytes.extend(frame(1, 4, n, &frames::call()));
    }
    // The first ones are finished then; their answers come.
    for n in (1..9).step_by(2) {
        bytes.extend(frame(0, 1, n, &message(0, 0, &[])));
    }
    bytes.extend(frame(7, 0, 0, &[0; 8]));
    stream.write_all(&bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let came = frames::parse(&read_to_end(&mut stream));
    let of = |kind: u8| came.iter().filter(|f| f.0 == kind).map(|f| f.1).collect::<std::collections::BTreeSet<_>>();
    assert!(of(3).len() >= 16, "streams above the limit are reset: {came:?}");
    assert!(of(3).iter().all(|n| *n > 8), "{came:?}");
    target.finish();
}

/// A connection with this many answers waiting, of which it takes nothing: its window is shut
/// (RFC 9113, 6.9.2), while it reads what TCP brings.
fn with_shut_window(target: &Target, answers: u32) -> TcpStream {
    let mut stream = connect(1, &target.server.otlp_http);
    let get = [("method", "GET"), ("scheme", "http"), ("path", "/nowhere"), ("authority", "x")];
    let get: Vec<u8> = get.iter().flat_map(|(name, value)| header(&format!(":{name}"), value)).collect();
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let mut bytes = [opening(), frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    for n in 0..answers {
        bytes.extend(frame(1, 5, 2 * n + 1, &get));
    }
    stream.write_all(&bytes).unwrap();
    let (mut came, mut piece) = (Vec::new(), [0; 4096]);
    // The headers of the answers come.
    while frames::parse(&came).iter().filter(|(kind, ..)| *kind == 1).count() < answers as usize {
        let len = stream.read(&mut piece).unwrap();
        assert!(len > 0, "{came:x?}");
        came.extend_from_slice(&piece[..len]);
    }
    assert!(frames::parse(&came).iter().all(|(kind, ..)| *kind != 0), "DATA beyond the window: {came:x?}");
    stream
}

#[test]
fn answers_that_a_shut_window_holds_are_given_up() {
    let page = "https://app.example.com";
    let flags = ["--requests-max", "8", "--write-timeout", "12", "--cors-origin", page];
    let mut target = Target::start(&flags);
    let mut shut = with_shut_window(&target, 6);
    // It has all that one client may have. The page that is refused may read why.
    let post = |target: &Target| target.post(&format!("{PROTOBUF}Origin: {page}\r\n"), b"");
    let refused = post(&target);
    refused.is_unavailable("--requests-max");
    assert!(refused.head.contains(&format!("access-control-allow-origin: {page}")), "{refused:?}");
    target.serves_another();
    let came = read_to_end(&mut shut);
    assert!(frames::parse(&came).iter().all(|(kind, ..)| *kind != 0), "{came:x?}");
    until(|| post(&target).status == 200);
    let metrics = target.server.get("/metrics").1;
    let counted = "\ncustody_ingest_refused_requests_total{transport=\"http\",reason=\"unsupported\"} 6\n";
    assert!(metrics.contains(counted), "paths that are not served are counted: {metrics}");
    target.finish();
}

#[test]
fn a_stopping_server_does_not_wait_for_a_shut_window() {
    let mut target = Target::start(&["--write-timeout", "1", "--drain-timeout", "600"]);
    let _shut = with_shut_window(&target, 3);
    let begin = Instant::now();
    assert_eq!(target.server.stop_and_verify()["records"], target.records);
    assert!(begin.elapsed() < HANGS, "{:?}", begin.elapsed());
}
