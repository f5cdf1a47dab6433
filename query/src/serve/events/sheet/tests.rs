//! What sheets hold, form by form: the bytes of every event, ids, cuts and tags.

use std::io::Read as _;

use prost::Message as _;

use super::super::Filter;
use super::super::generated::StreamEventsResponse;
use super::*;

/// A page of these events, from seq 1 on and of nothing behind them but two records.
fn page(events: &[(u64, &str)]) -> Page {
    let mut page = Page::new(1, 1_000, usize::MAX);
    for (seq, text) in events {
        page.take(Arc::new(Line { seq: *seq, kind: "alert".into(), text: (*text).to_owned(), ..Line::default() }));
    }
    let next = events.last().map_or(1, |(seq, _)| *seq + 1) + 2;
    page.ended(next)
}

fn sheet(events: &[(u64, &str)], form: Form) -> Sheet {
    Sheet::written("log", &page(events), form, |seq| Ok(seq.to_be_bytes())).unwrap()
}

fn text(sheet: &Sheet) -> String {
    sheet.parts.iter().map(|part| String::from_utf8_lossy(part)).collect()
}

#[test]
fn every_form_has_every_event() {
    let events = [(1, "{\"a\":1}"), (3, "{\"b\":2}"), (3, "{\"c\":3}")];
    let lines = sheet(&events, Form::Lines);
    assert_eq!(text(&lines), "{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n");
    assert_eq!((lines.from, lines.next, lines.matched, lines.skipped), (1, 6, 3, 3));
    assert_eq!(lines.mark, 6u64.to_be_bytes());
    assert_eq!(text(&sheet(&events, Form::Array { quoted: false })), "{\"a\":1},{\"b\":2},{\"c\":3}");
    assert_eq!(text(&sheet(&[(1, "CEF:\"x\""), (2, "y")], Form::Array { quoted: true })), "\"CEF:\\\"x\\\"\",\"y\"");
    let message = StreamEventsResponse::decode(&text(&sheet(&events, Form::Message)).into_bytes()[..]).unwrap();
    let got: Vec<(u64, &str, &str)> =
        message.events.iter().map(|event| (event.seq, event.uid.as_str(), event.body.as_str())).collect();
    assert_eq!(got[..2], [(1, "log:1:alert", "{\"a\":1}"), (3, "log:3:alert", "{\"b\":2}")]);
    assert_eq!(got.len(), 3);
}

#[test]
fn a_stream_has_the_cursor_behind_each_record_and_behind_the_last_that_was_looked_at() {
    let cursors = Cursors::of("log", &Filter::default());
    let form = Form::Stream { cursors, known: 7 };
    let id = |seq: u64| cursors.encode(Position { seq, known: 7 }, seq.to_be_bytes());
    let got = text(&sheet(&[(1, "a"), (3, "b\r\nc"), (3, "d")], form));
    let want =
        format!("data: a\nid: {}\n\ndata: b\ndata: \ndata: c\n\ndata: d\nid: {}\n\nid: {}\n\n", id(2), id(4), id(6));
    assert_eq!(got, want);
    assert_eq!(text(&sheet(&[], form)), format!("id: {}\n\n", id(3)), "who looked in vain goes on from there");
    let nothing = Sheet::written("log", &Page::new(9, 1, 1).ended(9), form, |_| Ok(Mark::default())).unwrap();
    assert!(nothing.parts.is_empty());
}

#[test]
fn a_large_sheet_is_parts_that_end_between_events() {
    let long = "x".repeat(100_000);
    let events: Vec<(u64, &str)> = (1..=20).map(|seq| (seq, long.as_str())).collect();
    for form in [Form::Lines, Form::Array { quoted: false }, Form::Message] {
        let sheet = sheet(&events, form);
        assert!(sheet.parts.len() > 5 && sheet.bytes == sheet.parts.iter().map(Bytes::len).sum::<usize>());
        assert!(sheet.parts.iter().all(|part| part.len() < PART_BYTES + 101_000));
        let whole = text(&sheet);
        assert_eq!(whole.matches(&long).count(), 20);
        let cut = sheet.parts.iter().filter(|part| part.len() % 100_000 > 1_000).count();
        assert_eq!(cut, 0, "{form:?}");
    }
}

#[test]
fn the_tag_of_a_page_is_that_of_its_bytes() {
    let full = |texts: &[(u64, &str)]| {
        let mut page = page(texts);
        let mut limited = Page::new(1, texts.len(), usize::MAX);
        page.lines.drain(..).for_each(|line| assert!(limited.take(line)));
        Sheet::written("log", &limited.ended(99), Form::Lines, |_| Ok(Mark::default())).unwrap().tag
    };
    assert!(full(&[(1, "a"), (2, "b")]).is_some());
    assert_eq!(full(&[(1, "a"), (2, "b")]), full(&[(1, "a"), (2, "b")]));
    assert_ne!(full(&[(1, "a"), (2, "b")]), full(&[(1, "ab")]));
    assert_eq!(sheet(&[(1, "a")], Form::Lines).tag, None, "it has fewer events than it may");
}

/// What a body has, as it was before it was compressed.
fn unpacked(body: Body, coding: Coding) -> String {
    let told = body.size_hint().exact();
    let sent = futures::executor::block_on(axum::body::to_bytes(body, usize::MAX)).unwrap();
    assert_eq!(told, Some(sent.len() as u64));
    let mut out = String::new();
    match coding {
        Coding::Identity => out.push_str(std::str::from_utf8(&sent).unwrap()),
        Coding::Gzip => drop(flate2::bufread::GzDecoder::new(&sent[..]).read_to_string(&mut out).unwrap()),
        Coding::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(&sent[..]).unwrap();
            decoder.single_frame().read_to_string(&mut out).unwrap();
        }
    }
    out
}

#[test]
fn a_sheet_between_two_texts_is_the_same_however_it_is_coded() {
    let long = format!("{{\"a\":\"{}\"}}", "long ".repeat(5_000));
    let many: Vec<(u64, &str)> = (1..=40).map(|seq| (seq, long.as_str())).collect();
    for events in [&many[..], &many[..1], &[(1, "{}")], &[]] {
        let form = Form::Array { quoted: false };
        let want = format!("[{}]}}", text(&sheet(events, form)));
        for coding in [Coding::Identity, Coding::Gzip, Coding::Zstd] {
            let plain = sheet(events, form);
            let (bytes, tag) = (plain.bytes, plain.tag.clone());
            let packed = Arc::new(plain.packed(coding).unwrap());
            let is_packed = coding != Coding::Identity && bytes >= packed::BYTES_MIN;
            assert_eq!((packed.coding() == coding, packed.tag.clone()), (is_packed || coding == Coding::Identity, tag));
            // It holds what it sends, and nothing else.
            assert_eq!(packed.parts.is_empty(), is_packed || bytes == 0);
            assert!(!is_packed || packed.bytes * 10 < bytes, "{} of {bytes}", packed.bytes);
            let body = Parts::body("[", Arc::clone(&packed), "]}".into());
            assert_eq!(unpacked(body, packed.coding()), want, "{coding:?}");
            if !is_packed && coding != Coding::Identity {
                let body = Parts::compressed(coding, "[", packed, "]}").unwrap();
                assert_eq!(unpacked(body, coding), want, "{coding:?}");
            }
        }
    }
}
