//! Every value survives the round trip, and no bytes make reading panic.

use super::*;
use proptest::prelude::*;

fn commitments() -> impl Strategy<Value = Commitments> {
    let each = proptest::collection::vec((any::<u16>(), any::<[u8; 32]>()), 1..20);
    (0u64..1 << 60, any::<u64>(), any::<[u8; 16]>(), 0u64..1 << 60, any::<[u8; 32]>(), each).prop_map(
        |(first_seq, ingest_time, submitter, counter, previous, each)| {
            let (flags, commitments) = each.into_iter().unzip();
            let signal = Signal::Logs;
            Commitments { first_seq, signal, ingest_time, submitter, counter, previous, flags, commitments }
        },
    )
}

proptest! {
    #[test]
    fn commitments_survive_the_round_trip(commitments in commitments()) {
        let bytes = commitments.encode();
        prop_assert_eq!(Commitments::decode(&bytes), Some(commitments));
        prop_assert_eq!(Commitments::decode(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Commitments::decode(&bytes);
        let _ = Layout::decode(&bytes);
        let _ = Head::decode(&bytes);
    }

    #[test]
    fn layouts_survive_the_round_trip(
        salt: [u8; 32], identity in "[a-z:.0-9]{0,40}", annex in proptest::collection::vec(any::<u8>(), 0..20),
        len in 10u32..100, partly: bool,
    ) {
        let layout = Layout {
            signal: Signal::Traces, encoding: Encoding::Json, payload_len: len, identity,
            salts: if partly { Salts::Partly { rest: salt, parts: vec![Some(salt); 4] } } else { Salts::Whole(salt) },
            groups: vec![Group { resource: Range { at: 0, len: 3 }, scope: Range { at: len, len: annex.len() as u32 } }],
            annex,
            records: vec![Placed { group: 0, range: Range { at: 4, len: 6 } }],
            copies: vec![Copied { range: Range { at: 3, len: 1 }, seq: 7 }],
        };
        prop_assert_eq!(Layout::decode(&layout.encode()), Some(layout));
    }
}

#[test]
fn a_range_beyond_the_payload_is_not_read() {
    let layout = Layout {
        signal: Signal::Traces,
        encoding: Encoding::Protobuf,
        payload_len: 10,
        salts: Salts::Whole([1; 32]),
        copies: vec![],
        identity: "peer:127.0.0.1".into(),
        annex: vec![],
        groups: vec![Group::default()],
        records: vec![Placed { group: 0, range: Range { at: 5, len: 6 } }],
    };
    assert_eq!(Layout::decode(&layout.encode()), None);
}
