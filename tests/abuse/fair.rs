//! One noisy client does not starve another.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::harness::{Answer, PROTOBUF, Target, connect, head, post_from, read_to_end, request};

/// Connections of the noisy client.
const NOISY: usize = 64;

#[test]
fn a_flood_of_one_client_refuses_nothing_of_another() {
    let mut target = Target::start(&["--in-flight-bytes-max", "8388608", "--requests-max", "64"]);
    let address = target.server.otlp_http.clone();
    let (enough, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // A megabyte that is no request, so that the log is not what is filled.
    let noise = Arc::new(vec![0xff; 1 << 20]);
    let noisy: Vec<_> = (0..NOISY)
        .map(|_| {
            let (address, enough, refused) = (address.clone(), Arc::clone(&enough), Arc::clone(&refused));
            let noise = Arc::clone(&noise);
            crate::harness::spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let mut stream = connect(1, &address);
                    let _ = stream
                        .write_all(head(PROTOBUF, noise.len()).as_bytes())
                        .and_then(|()| stream.write_all(&noise));
                    let came = read_to_end(&mut stream);
                    // It closes with the body unread, which may cost the answer.
                    if came.starts_with(b"HTTP/1.1 503") {
                        Answer::parse(&came).is_unavailable("--client-share 75");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    // 64 bodies that never end hold all that one client may hold.
    let held: Vec<TcpStream> = (0..NOISY)
        .map(|_| {
            let mut stream = connect(1, &address);
            stream.write_all(head(PROTOBUF, 1 << 20).as_bytes()).unwrap();
            let _ = stream.write_all(&noise[..200 << 10]);
            stream
        })
        .collect();
    crate::support::until(|| refused.load(Ordering::Relaxed) > 0);
    for n in 0..100 {
        let answer = post_from(2, &address, PROTOBUF, &request(10_000 + n * 3, 3));
        assert_eq!((answer.status, answer.body.len()), (200, 0), "request {n} of the quiet client: {answer:?}");
    }
    target.records += 300;
    enough.store(true, Ordering::Relaxed);
    drop(held);
    noisy.into_iter().for_each(|thread| thread.join().unwrap());
    target.finish();
}

#[test]
fn thousands_of_connections_are_turned_away_and_another_client_comes_in() {
    // Those that are silent are there until the end, however long that takes.
    let flags = ["--connections-max", "100", "--connections-per-peer-max", "60", "--header-timeout", "600"];
    let target = Target::start(&flags);
    for address in [&target.server.otlp_http, &target.server.http] {
        let silent: Vec<_> = (0..60).map(|_| connect(1, address)).collect();
        let (mut told, mut closed) = (0, 0);
        for _ in 0..1500 {
            let came = read_to_end(&mut connect(1, address));
            if came.is_empty() {
                closed += 1;
            } else {
                Answer::parse(&came)
                    .is_unavailable("too many connections from 127.0.0.1 (--connections-per-peer-max 60)");
                told += 1;
            }
        }
        assert!(told > 100, "{told} were told why, {closed} only closed");
        let others: Vec<_> = (0..40).map(|_| connect(3, address)).collect();
        // Connections are accepted in their order, so this one finds the place taken; but not all are told why.
        crate::support::until(|| {
            let came = read_to_end(&mut connect(4, address));
            String::from_utf8_lossy(&came).contains("--connections-max 100")
        });
        drop((silent, others));
    }
    target.finish();
}

#[test]
fn limits_come_from_the_file_too_and_nonsense_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("custody.toml");
    std::fs::write(&file, "[limits]\nrecord_bytes_max = 30\nheaders_max = 90\n").unwrap();
    let flags = ["--config", file.to_str().unwrap(), "--headers-max", "3"];
    let target = Target::start(&flags);
    assert_eq!(target.post(PROTOBUF, &request(1, 1)).status, 431, "the flag wins over the file");
    drop(target);
    let target = Target::start(&flags[..2]);
    target.post(PROTOBUF, &request(1, 1)).is_rejected("a span has 36 bytes, more than the limit of 30");
    drop(target);
    let refused = |flags: &[&str], says: &str| {
        let output = std::process::Command::new(crate::support::CUSTODY).arg("serve").args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says) && text.lines().count() == 1, "{text}");
    };
    refused(&["--client-share", "101"], "more than 100 percent");
    refused(&["--requests-max", "0"], "would let nothing in");
    refused(&["--idle-timeout=-1"], "not between");
    std::fs::write(&file, "[limits]\nrequests_maximum = 1\n").unwrap();
    refused(&flags[..2], "requests_maximum");
}

#[test]
fn grpc_connections_are_turned_away_with_unavailable() {
    let target = Target::start(&["--connections-per-peer-max", "1"]);
    let first = connect(1, &target.server.grpc);
    let (status, why, details) = crate::http2::turned_away(&target);
    assert_eq!(status, 14, "{why}");
    assert!(why.contains("--connections-per-peer-max"), "{why}");
    assert!(details.contains("google.rpc.RetryInfo"), "{details}");
    drop(first);
    target.finish();
}
