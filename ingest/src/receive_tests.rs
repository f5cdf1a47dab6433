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
    let rules = Rules { limits: Limits::default(), redactor: redactor.map(Arc::new), gate: Arc::default() };
    let sender = Sender::new(Transport::Http, "peer".into(), &HeaderMap::new());
    rules.read(Signal::Traces, Encoding::Protobuf, body.clone(), &sender, &mut held)?;
    Ok(held.bytes())
}

#[test]
fn what_a_redaction_puts_in_is_counted() {
    let redactor = || Redactor::load(&[crate::redact::BUILT_IN.into()]).ok();
    let request = |name: &str| {
        let span = r#""traceId":"00000000000000000000000000000001","spanId":"0000000000000001""#;
        let json = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{span},"name":"{name}"}}]}}]}}]}}"#);
        Bytes::from(transcode(Signal::Traces, json.as_bytes()).unwrap())
    };
    let short = request(&"http://u:p@h ".repeat(100));
    let redacted = redactor().unwrap().apply(Signal::Traces, &short, &Limits::default()).unwrap().unwrap();
    assert!(redacted.len() > 2 * short.len(), "it grows");
    let before = held(None, 1 << 20, &short).unwrap();
    assert_eq!(held(redactor(), 1 << 20, &short).unwrap(), before + redacted.len() as u64);
    let refused = held(redactor(), before + redacted.len() as u64, &short);
    assert!(refused.is_err(), "with the other's byte there is no room for what it grew to");
    assert!(held(redactor(), before + redacted.len() as u64 + 1, &short).is_ok());
    let plain = request("plain");
    assert_eq!(held(redactor(), 1 << 20, &plain).unwrap(), held(None, 1 << 20, &plain).unwrap());
}
