//! Requests with spans of a given size, for what the 450-byte spans do not show.

use custody_proto::otlp::collector_trace::ExportTraceServiceRequest;
use custody_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
use prost::Message as _;

/// The sizes that are reported beside the usual one, in bytes of a span.
pub const PAYLOADS: [usize; 4] = [200, 500, 2_048, 65_536];

/// Batches that are reported, in spans of a request.
pub const BATCHES: [u64; 5] = [1, 16, 128, 512, 8_192];

/// The receivers take requests up to this size.
pub const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// The usual spans, cut to this size or filled up to it with text of which a third is random.
pub fn requests(count: u64, batch: u64, payload: usize) -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut resize = |bytes: Vec<u8>| {
        let mut request = ExportTraceServiceRequest::decode(bytes.as_slice()).expect("it was just encoded");
        let scopes = request.resource_spans.iter_mut().flat_map(|r| &mut r.scope_spans);
        for span in scopes.flat_map(|s| &mut s.spans) {
            while span.encoded_len() > payload && span.attributes.pop().is_some() {}
            // Its key and its lengths take about thirty bytes.
            let room = payload.saturating_sub(span.encoded_len());
            if room > 32 {
                let mut text = String::with_capacity(room);
                while text.len() < room {
                    text.push_str(&format!("{:016x} was sent to the account of the customer ", random()));
                }
                text.truncate(room - 32);
                let value = Some(AnyValue { value: Some(Value::StringValue(text)) });
                let key = "gen_ai.output.messages".to_owned();
                span.attributes.push(KeyValue { key, value, ..Default::default() });
            }
        }
        request.encode_to_vec()
    };
    (0..count).flat_map(|number| crate::requests_from(number, 1, batch)).map(&mut resize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_about_as_large_as_asked_for() {
        for payload in PAYLOADS {
            let requests = requests(2, 16, payload);
            let request = ExportTraceServiceRequest::decode(requests[1].as_slice()).unwrap();
            for span in &request.resource_spans[0].scope_spans[0].spans {
                let len = span.encoded_len();
                assert!(len <= payload + 8 && len + 60 >= payload, "{len} bytes for {payload}");
            }
        }
    }
}
