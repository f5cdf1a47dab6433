//! What a request holds in the account while it is read.

use custody_proto::json::transcode;

use super::*;

/// What one request holds in the server's account after it was read, or why it was refused.
fn held(redactor: Option<Redactor>, bytes_max: u64, body: &Bytes) -> Result<u64, Refusal> {
    let limits = InFlight { bytes_max, client_share: 100, ..InFlight::default() };
    let client = Admission::new(limits, Arc::default()).client("peer".into());
    // A request alone is always let through; this is another one.
    let mut other = client.hold();
    other.add(1)?;
    let mut held = client.hold();
    held.add(body.len() as u64)?;
    let rules = Rules { limits: Limits::default(), redactor: redactor.map(Arc::new), gate: Arc::default() };
    let sender = Sender::new(Transport::Http, "peer".into(), &HeaderMap::new());
    let encoding = if body.starts_with(b"{") { Encoding::Json } else { Encoding::Protobuf };
    rules.read(Signal::Traces, encoding, body.clone(), &sender, &mut held)?;
    Ok(held.bytes())
}

fn span_json(name: &str) -> Bytes {
    let span = r#""traceId":"00000000000000000000000000000001","spanId":"0000000000000001""#;
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{span},"name":"{name}"}}]}}]}}]}}"#).into()
}

/// What is gone counts no more: a request in JSON is held as protobuf until it is durable.
#[test]
fn a_text_that_was_read_is_given_back() {
    let json = span_json(&"long ".repeat(10_000));
    let protobuf = Bytes::from(transcode(Signal::Traces, &json).unwrap());
    assert_eq!(held(None, 1 << 20, &json).unwrap(), held(None, 1 << 20, &protobuf).unwrap());
    let peak = 2 * json.len() as u64 + protobuf.len() as u64;
    assert!(held(None, peak, &json).is_err(), "while it is read all of it counts");
}

#[test]
fn what_a_redaction_puts_in_is_counted() {
    let redactor = || Redactor::load(&[crate::redact::BUILT_IN.into()]).ok();
    let request = |name: &str| Bytes::from(transcode(Signal::Traces, &span_json(name)).unwrap());
    let short = request(&"http://u:p@h ".repeat(100));
    let redacted = redactor().unwrap().apply(Signal::Traces, &short, &Limits::default()).unwrap().unwrap();
    assert!(redacted.len() > 2 * short.len(), "it grows");
    let before = held(None, 1 << 20, &short).unwrap();
    let (came, grew) = (short.len() as u64, redacted.len() as u64);
    assert_eq!(held(redactor(), 1 << 20, &short).unwrap(), before - came + grew);
    let refused = held(redactor(), came + grew, &short);
    assert!(refused.is_err(), "with the other's byte there is no room for what it grew to");
    assert!(held(redactor(), came + grew + 1, &short).is_ok());
    let plain = request("plain");
    assert_eq!(held(redactor(), 1 << 20, &plain).unwrap(), held(None, 1 << 20, &plain).unwrap());
}
