//! Whatever a row holds, its line is valid, loses nothing, and is the same again.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::tests::{faults, kinds, line, read_back};
use super::*;
use crate::rows::Time;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<String>(),
        2 => "[a-z]{0,5}",
        1 => Just("\0\u{1}\u{7f}\u{9b}31m\u{2028}\r\n|=\\\"".to_owned()),
        1 => Just("x".repeat(70_000)),
        1 => prop_oneof![Just("allow"), Just("deny"), Just("rejected"), Just("closed"), Just("mcp:"), Just("a@b.c")].prop_map(str::to_owned),
    ]
}

fn attributes() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        any::<String>(),
        Just("gen_ai.tool.call.arguments".to_owned()),
        Just("gen_ai.request.model".to_owned()),
        Just("gen_ai.usage.input_tokens".to_owned()),
        Just("authz.grant.actions".to_owned()),
        Just("authz.grant.expires_at".to_owned()),
        Just("security.alert.evidence".to_owned()),
        Just("security.alert.severity".to_owned()),
        Just("security.alert.tags".to_owned()),
        Just("security.investigation.disposition".to_owned()),
        Just("http.response.status_code".to_owned()),
    ];
    let value = prop_oneof![
        text().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        proptest::collection::vec(text(), 0..3).prop_map(Json::from),
        Just(json!({"a": [null, {"b": "}\n"}]})),
        Just(json!("{\"a\":1}")),
        Just(json!("{\"a\":\n1}")),
        Just(Json::Null),
    ];
    let object =
        proptest::collection::vec((name, value), 0..6).prop_map(|members| Json::Object(members.into_iter().collect()));
    prop_oneof![
        6 => object.clone().prop_map(|o| o.to_string()),
        1 => object.prop_map(|o| format!("{o:#}")),
        1 => text(),
        1 => Just("{\"a\":\"\\ud800\"}".to_owned()),
        1 => Just("[1]".to_owned()),
        1 => Just("{\"a\":1e999}".to_owned()),
    ]
}

prop_compose! {
    fn any_row()(
        kind in prop_oneof![9 => proptest::sample::select(kinds()).prop_map(str::to_owned), 1 => text()],
        source in prop_oneof![proptest::sample::select(&["otel_genai", "codex", "openinference"][..]).prop_map(str::to_owned), text()],
        texts in proptest::collection::vec(proptest::option::of(text()), 37),
        lists in proptest::collection::vec(proptest::collection::vec(text(), 0..3), 4),
        times in proptest::collection::vec(any::<i64>(), 4),
        given in any::<[bool; 3]>(), numbers: (u64, u32, u32), attributes in attributes(), hash in prop_oneof![Just("0f".repeat(32)), text()],
    ) -> EventRow {
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap();
        EventRow {
            seq: numbers.0, record_hash: hash, kind, source, attributes, mapping_version: numbers.1,
            event_time: Time(times[0]), ingest_time: Time(times[1]),
            end_time: given[0].then_some(Time(times[2])), observed_time: given[1].then_some(Time(times[3])),
            trace_id: next(), span_id: next(), parent_span_id: next(), tenant: next(),
            submitter: next().unwrap_or_default(), service: next(), initiator_type: next(), initiator_id: next(),
            agent_id: next(), agent_name: next(), agent_version: next(), grant_id: next(), parent_grant_id: next(),
            root_grant_id: next(), delegation_depth: given[2].then_some(numbers.2), workspace: next(), task_id: next(),
            process_id: next(), action: next(), resource: next(), tool: next(), tool_call_id: next(), decision: next(),
            policy_id: next(), policy_version: next(), skill_id: next(), skill_version: next(), classification: next(),
            correlation_id: next(), actor_type: next(), workload_id: next(), trust: next(), evaluation_id: next(),
            arguments_digest: next(), shown_digest: next(), schema_digest: next(), parent_hash: next(),
            effect: next(), conversation_id: Some("c".into()), status: Some("ok".into()),
            links: lists[0].clone(), actor_chain: lists[1].clone(), reasons: lists[2].clone(), invalid_reasons: lists[3].clone(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_row_is_valid_complete_and_on_one_line(row in any_row()) {
        let text = line(Format::Ocsf, &row);
        prop_assert!(!text.chars().any(char::is_control));
        prop_assert_eq!(&text, &line(Format::Ocsf, &row));
        let event: Json = serde_json::from_str(&text.replace("1e999", "1")).unwrap();
        prop_assert_eq!(faults(&event), Vec::<String>::new());
        prop_assert_eq!(read_back(&event), EventRow { attributes: String::new(), ..row.clone() });
        let text = line(Format::Ecs, &row);
        prop_assert!(!text.chars().any(char::is_control));
        let event: Json = serde_json::from_str(&text.replace("1e999", "1")).unwrap();
        prop_assert_eq!(&event["event"]["sequence"], &json!(row.seq));
    }

    /// A CEF line is one line, with seven headers, and its values are read back as they were but for
    /// other control characters.
    #[test]
    fn any_row_is_a_cef_line(row in any_row()) {
        let text = line(Format::Cef, &row);
        prop_assert!(!text.chars().any(|c| c.is_control() || c == '\u{2028}'), "{text:?}");
        let (headers, extension) = read_cef(&text);
        prop_assert_eq!(headers.len(), 7);
        prop_assert_eq!(&headers[4], &shown(&row.kind));
        let value = |key: &str| extension.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        for (key, column) in [("suid", &row.initiator_id), ("act", &row.decision), ("request", &row.resource), ("cs1", &row.grant_id)] {
            prop_assert_eq!(value(key), column.as_deref().map(shown), "{}", key);
        }
        prop_assert_eq!(value("cn1"), Some(row.seq.to_string()));
        prop_assert_eq!(value("externalId"), Some(shown(&format!("example.org/log:{}:{}", row.seq, row.kind))));
    }
}

/// What CEF can carry of a text.
fn shown(text: &str) -> String {
    let odd = |c: char| (c.is_control() && c != '\n' && c != '\r') || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().map(|c| if odd(c) { ' ' } else { c }).collect()
}

/// A reader of CEF: seven headers between unescaped bars, then keys before unescaped equals signs.
pub(super) fn read_cef(line: &str) -> (Vec<String>, Vec<(String, String)>) {
    let mut headers = vec![String::new()];
    let mut chars = line.chars();
    while headers.len() < 8 {
        match chars.next().expect("seven headers") {
            '\\' => headers.last_mut().unwrap().extend(unescaped(chars.next().unwrap())),
            '|' => headers.push(String::new()),
            c => headers.last_mut().unwrap().push(c),
        }
    }
    headers.pop();
    // Values end where a blank, a word and an equals sign follow.
    let mut parts: Vec<(String, String)> = Vec::new();
    let mut key = String::new();
    let mut raw = chars.peekable();
    let mut value = String::new();
    while let Some(c) = raw.next() {
        match c {
            '=' => {
                let at = value.rfind(' ').map_or(0, |at| at + 1);
                let next = value.split_off(at);
                if !key.is_empty() {
                    value.pop();
                    parts.push((std::mem::take(&mut key), std::mem::take(&mut value)));
                }
                (key, value) = (next, String::new());
            }
            '\\' => value.extend(unescaped(raw.next().unwrap())),
            c => value.push(c),
        }
    }
    parts.push((key, value));
    (headers, parts)
}

fn unescaped(c: char) -> Option<char> {
    Some(match c {
        'n' => '\n',
        'r' => '\r',
        c => c,
    })
}
