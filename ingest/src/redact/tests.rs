//! The rules at the door: what they replace, what they leave, and what they say of it.

use std::collections::HashSet;

use custody_proto::json::transcode;
use custody_proto::otlp::collector_logs::ExportLogsServiceRequest;
use custody_proto::otlp::common::any_value::Value as Any;
use custody_proto::otlp::common::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use custody_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use proptest::prelude::*;
use prost::Message as _;

use super::rule::Pattern;
use super::*;
use custody_store::measure::Value;

fn secrets() -> Redactor {
    Redactor::load(&[BUILT_IN.into()]).unwrap()
}

fn own(rules: &str) -> Result<Redactor, String> {
    Redactor::of(vec![files::own("rules.toml", rules)?])
}

fn string(text: &str) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Any::StringValue(text.into())) })
}

fn attribute(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.into(), value, ..Default::default() }
}

fn logs(body: Option<AnyValue>, attributes: Vec<KeyValue>) -> ExportLogsServiceRequest {
    let log_records = vec![LogRecord { body, attributes, ..Default::default() }];
    let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
    ExportLogsServiceRequest { resource_logs: vec![ResourceLogs { scope_logs, ..Default::default() }] }
}

fn redacted(redactor: &Redactor, request: &ExportLogsServiceRequest) -> LogRecord {
    let bytes = request.encode_to_vec();
    let new = redactor.apply(Signal::Logs, &bytes, &Limits::default()).unwrap().unwrap_or(bytes);
    ExportLogsServiceRequest::decode(&new[..])
        .unwrap()
        .resource_logs
        .remove(0)
        .scope_logs
        .remove(0)
        .log_records
        .remove(0)
}

/// What becomes of a log's body.
fn body(redactor: &Redactor, text: &str) -> String {
    match redacted(redactor, &logs(string(text), vec![])).body.unwrap().value {
        Some(Any::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// What becomes of an attribute.
fn value(redactor: &Redactor, key: &str, value: Any) -> Any {
    let record = redacted(redactor, &logs(None, vec![attribute(key, Some(AnyValue { value: Some(value) }))]));
    record.attributes[0].value.clone().unwrap().value.unwrap()
}

#[test]
fn every_rule_of_gitleaks_compiles_or_is_said_not_to_be_taken() {
    let ids: Vec<_> =
        files::GITLEAKS.lines().filter_map(|line| line.strip_prefix("id = \"")?.strip_suffix('"')).collect();
    let set = files::gitleaks(files::GITLEAKS).unwrap();
    let taken: HashSet<_> = set.rules.iter().map(|rule| rule.name.as_str()).collect();
    let not: HashSet<_> = files::NOT_TAKEN.iter().map(|(name, _)| *name).collect();
    assert!(ids.len() > 200 && taken.is_disjoint(&not));
    for id in &ids {
        assert!(taken.contains(id) || not.contains(id), "{id} is neither taken nor said not to be");
    }
    assert_eq!(ids.len(), taken.len() + not.len(), "a rule not taken is no longer there");
    let wrong = |pattern: &Pattern| pattern.compile().err().map(|e| format!("{}: {e}", pattern.text()));
    let mut errors = vec![];
    for rule in &set.rules {
        let matcher = rule.value.as_ref().unwrap();
        let patterns = matcher.allow.iter().flat_map(|allow| &allow.patterns).chain([&matcher.pattern]);
        errors.extend(patterns.filter_map(wrong).map(|e| format!("{}: {e}", rule.name)));
        let regex = matcher.pattern.compile().unwrap();
        assert!(!regex.is_match(b""), "{} matches everything", rule.name);
        assert!(marker::is_name(&rule.name) && !matcher.keywords.is_empty(), "{}", rule.name);
    }
    assert_eq!(errors, Vec::<String>::new());
}

#[test]
fn secrets_that_are_known_by_their_look_are_replaced() {
    let redactor = secrets();
    // Put together here, so that no scanner of this repository takes them for real.
    let cases = [
        (["ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"].concat(), "github-pat"),
        (["AKIA", "QYLPMN5HFIQR7XYA"].concat(), "aws-access-token"),
        (["sk-ant-api03-", &"aB3dE5gH7jK9".repeat(7), "aB3dE5gH7AA"].concat(), "anthropic-api-key"),
        (["xoxb-", "123456789012-1234567890123-", "AbCdEfGhIjKlMnOpQrStUvWx"].concat(), "slack-bot-token"),
        (["glpat-", "Zx8kQ2vN5mT7wB3rY9pL"].concat(), "gitlab-pat"),
    ];
    for (secret, rule) in cases {
        let text = format!("first {secret} then");
        assert_eq!(body(&redactor, &text), format!("first [redacted: {rule}] then"));
        let Any::ArrayValue(list) = value(
            &redactor,
            "list",
            Any::ArrayValue(ArrayValue { values: vec![string("plain").unwrap(), string(&text).unwrap()] }),
        ) else {
            panic!("no list")
        };
        assert!(!format!("{list:?}").contains(&secret) && format!("{list:?}").contains("plain"));
        let bytes = [b"\xff\xfe ".as_slice(), secret.as_bytes(), b" \xff"].concat();
        let want = [b"\xff\xfe [redacted: ".as_slice(), rule.as_bytes(), b"] \xff"].concat();
        assert_eq!(value(&redactor, "bytes", Any::BytesValue(bytes)), Any::BytesValue(want));
    }
}

#[test]
fn secrets_that_are_known_by_their_place_are_replaced() {
    let redactor = secrets();
    for (text, want) in [
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted: authorization-header]"),
        ("authorization: Basic dTpw, next", "authorization: Basic [redacted: authorization-header]"),
        ("a bearer of bad news, a bearer responsibilities", "a bearer of bad news, a bearer responsibilities"),
        ("used bearer q1w2e3r4t5y6u7i8o9p0aa today", "used bearer [redacted: bearer-token] today"),
        ("postgres://app:hunter2@db:5432/x?y=1", "postgres://app:[redacted: url-password]@db:5432/x?y=1"),
        ("https://h:8080/a@b", "https://h:8080/a@b"),
        ("postgres://app:p@ssw0rd-Rest@db:5432/x@y", "postgres://app:[redacted: url-password]@db:5432/x@y"),
        (
            r"postgres:\/\/u:pw@h and https:\/\/h:80\/a@b",
            r"postgres:\/\/u:[redacted: url-password]@h and https:\/\/h:80\/a@b",
        ),
        (
            r"https://x/y?a=1\u0026access_token=abcd1234",
            r"https://x/y?a=1\u0026access_token=[redacted: url-query-secret]",
        ),
        ("client_secret=abcd1234&grant_type=x", "client_secret=[redacted: form-secret]&grant_type=x"),
        (
            "GET / HTTP/1.1\r\nCookie: a=b; c=d\r\nHost: h",
            "GET / HTTP/1.1\r\nCookie: [redacted: header-line]\r\nHost: h",
        ),
        ("curl -H 'X-Api-Key: abc' https://h", "curl -H 'X-Api-Key: [redacted: header-line]' https://h"),
        ("tell me which cookie: this one", "tell me which cookie: this one"),
        (
            r#"{"Authorization":["Basic dTpw"],"Cookie":["a=b","c=d"],"Host":["h"]}"#,
            r#"{"Authorization":["[redacted: secret-in-json-list]"],"Cookie":["[redacted: secret-in-json-list]"],"Host":["h"]}"#,
        ),
        (
            r#"{"dbPassword":"hunter2","openaiApiKey": "k","keyword":"w","monkey":"m"}"#,
            r#"{"dbPassword":"[redacted: secret-in-json]","openaiApiKey": "[redacted: secret-in-json]","keyword":"w","monkey":"m"}"#,
        ),
        (
            r#"{'password': "it's", 'user': "o'neil"}"#,
            r#"{'password': "[redacted: secret-in-quoted-dict]", 'user': "o'neil"}"#,
        ),
        ("GET /f?id=7&sig=abcd1234&x=1", "GET /f?id=7&sig=[redacted: url-query-secret]&x=1"),
        (
            r#"{"user":"emma","password":"hunt\"er2","n":1}"#,
            r#"{"user":"emma","password":"[redacted: secret-in-json]","n":1}"#,
        ),
        (
            r#"{"a":"{\"db_password\": \"hunter2\", \"b\": \"c\"}"}"#,
            r#"{"a":"{\"db_password\": \"[redacted: secret-in-escaped-json]\", \"b\": \"c\"}"}"#,
        ),
        (
            r#"{"user":"emma","password": 1234,"n":1,"app_secret":-1.5e3}"#,
            r#"{"user":"emma","password": "[redacted: secret-number-in-json]","n":1,"app_secret":"[redacted: secret-number-in-json]"}"#,
        ),
        (
            r#"{"a":"{\"dbPassword\": 1234, \"tokens\": 7}"}"#,
            r#"{"a":"{\"dbPassword\": \"[redacted: secret-number-in-escaped-json]\", \"tokens\": 7}"}"#,
        ),
        ("{'passcode': 1234, 'n': 1}", "{'passcode': '[redacted: secret-number-in-dict]', 'n': 1}"),
        (r#"{"password": true, "secret": null, "token": 17}"#, r#"{"password": true, "secret": null, "token": 17}"#),
        ("{'user': 'emma', 'api_key': 'hunter2'}", "{'user': 'emma', 'api_key': '[redacted: secret-in-dict]'}"),
        ("PATH=/bin\nDB_PASSWORD=hunter2\nHOME=/", "PATH=/bin\nDB_PASSWORD=[redacted: secret-in-env]\nHOME=/"),
        ("TOKEN=$TOKEN", "TOKEN=$TOKEN"),
        ("input_tokens: 12345, the key is under the mat", "input_tokens: 12345, the key is under the mat"),
    ] {
        assert_eq!(body(&redactor, text), want);
    }
    let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n";
    assert_eq!(
        body(&redactor, &format!("a\n{key}-----END RSA PRIVATE KEY-----\nb")),
        "a\n[redacted: private-key-block]\nb"
    );
    assert_eq!(body(&redactor, &format!("a\n{key}")), "a\n[redacted: private-key-block]");
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
    let claims = jwt.rsplit_once('.').unwrap().0;
    assert_eq!(body(&redactor, &format!("saw {jwt}.")), format!("saw {claims}.[redacted: jwt-signature]."));
}

#[test]
fn attributes_that_are_credentials_are_replaced_whatever_their_type() {
    let redactor = secrets();
    let want = Any::StringValue("[redacted: sensitive-attribute]".into());
    let list = || Any::ArrayValue(ArrayValue { values: vec![string("Bearer x").unwrap()] });
    for key in [
        "authorization",
        "Authorization",
        "http.request.header.authorization",
        "http.request.header.set_cookie",
        "rpc.request.metadata.x-api-key",
        "Cookie",
        "PASSWORD",
        "db.password",
        "user_password",
        "client_secret",
        "aws.secret_access_key",
        "dbPassword",
        "openaiApiKey",
        "app.githubAccessToken",
    ] {
        for value_of in [Any::StringValue("x".into()), list(), Any::IntValue(7), Any::BytesValue(vec![1])] {
            assert_eq!(value(&redactor, key, value_of), want, "{key}");
        }
    }
    for key in [
        "gen_ai.usage.input_tokens",
        "author",
        "authorization.ok",
        "cookies_count",
        "http.route",
        "key",
        "keyword",
        "monKey",
    ] {
        assert_eq!(value(&redactor, key, Any::StringValue("x".into())), Any::StringValue("x".into()), "{key}");
    }
    // In a nested list the keys are joined, in a structured body they stand alone.
    let map = KeyValueList { values: vec![attribute("Authorization", string("x")), attribute("host", string("h"))] };
    let Any::KvlistValue(new) = value(&redactor, "headers", Any::KvlistValue(map.clone())) else { panic!("no map") };
    assert_eq!(new.values[0].value.as_ref().unwrap().value, Some(want.clone()));
    assert_eq!(new.values[1], map.values[1]);
    let body = Some(AnyValue { value: Some(Any::KvlistValue(map)) });
    let text = format!("{:?}", redacted(&redactor, &logs(body, vec![])).body);
    assert!(text.contains("[redacted: sensitive-attribute]") && text.contains("\"h\""), "{text}");
}

#[test]
fn own_rules_do_what_they_say() {
    let redactor = own(r#"
        name = "acme"
        [[rule]]
        name = "customer"
        key = '^customer\.id$'
        action = "hash"
        [[rule]]
        name = "iban"
        value = '\b[A-Z]{2}\d{2}(?P<secret>[A-Z0-9]{11,30})\b'
        action = "hash"
        [[rule]]
        name = "diagnosis"
        value = '(?i)diagnosis'
        action = "drop"
        signals = ["logs"]
        [[rule]]
        name = "note-numbers"
        key = '(^|\.)note$'
        value = '\d+'
        "#)
    .unwrap()
    .with_secret([9; 32]);
    let Any::StringValue(one) = value(&redactor, "customer.id", Any::StringValue("emma".into())) else { panic!() };
    assert!(redactor.names.is_marker(one.as_bytes()) && one.starts_with("[hashed: customer: "), "{one}");
    assert_eq!(value(&redactor, "customer.id", Any::StringValue("emma".into())), Any::StringValue(one));
    let iban = body(&redactor, "to DE89370400440532013000 and DE89370400440532013000");
    let hashes: Vec<_> = iban.match_indices("DE89[hashed: iban: ").map(|(at, _)| &iban[at..at + 52]).collect();
    assert!(hashes.len() == 2 && hashes[0] == hashes[1] && !iban.contains("3704"), "{iban}");
    assert_eq!(body(&redactor, "the Diagnosis is: ill"), "[dropped: diagnosis]");
    assert_eq!(
        value(&redactor, "a.note", Any::StringValue("7 of 9".into())),
        Any::StringValue("[redacted: note-numbers] of [redacted: note-numbers]".into())
    );
    assert_eq!(value(&redactor, "other", Any::StringValue("7 of 9".into())), Any::StringValue("7 of 9".into()));
    // A rule for logs leaves traces alone.
    let json = br#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"diagnosis of Emma"}]}]}]}"#;
    let bytes = transcode(Signal::Traces, json).unwrap();
    assert_eq!(redactor.apply(Signal::Traces, &bytes, &Limits::default()), Ok(None));
}

#[test]
fn matches_that_overlap_are_replaced_whole_and_characters_are_not_split() {
    let redactor = own("[[rule]]\nname='a'\nvalue='one two'\n[[rule]]\nname='b'\nvalue='two three'\n").unwrap();
    assert_eq!(body(&redactor, "zero one two three four"), "zero [redacted: a] four");
    let redactor = own("[[rule]]\nname='a'\nvalue='(?-u:\\xa4)'\n").unwrap();
    assert_eq!(body(&redactor, "xäx"), "x[redacted: a]x");
}

/// Each round makes the next one match; it must end, and leave nothing.
#[test]
fn a_rule_that_matches_its_own_outcome_ends() {
    let redactor = own("[[rule]]\nname='a'\nvalue='a(?:$|\\[)'\n").unwrap();
    let once = body(&redactor, &"a".repeat(2000));
    assert_eq!(once, "[redacted: a]");
    let greedy = "[[rule]]\nname='a'\nvalue='secret=(?P<secret>.+)'\n[[rule]]\nname='b'\nkey='b'\n";
    let greedy = own(greedy).unwrap();
    assert_eq!(body(&greedy, "secret=x [redacted: b] y"), "secret=[redacted: a][redacted: b][redacted: a]");
    assert_eq!(body(&greedy, "secret=x [redacted: c] y"), "secret=[redacted: a]");
}

/// What looks like a marker, but names no rule in force, is a place to hide a secret in.
#[test]
fn a_secret_in_the_place_of_a_rules_name_is_replaced() {
    let redactor = secrets();
    let key = ["AKIA", "QYLPMN5HFIQR7XYA"].concat();
    for word in ["redacted", "dropped"] {
        assert_eq!(body(&redactor, &format!("[{word}: {key}]")), format!("[{word}: [redacted: aws-access-token]]"));
    }
    let want = Any::StringValue("[redacted: sensitive-attribute]".into());
    for text in [
        "[redacted: hunter2-MyPassw0rd]",
        "[dropped: hunter2-MyPassw0rd]",
        "[hashed: hunter2: 00112233445566778899aabbccddeeff]",
        // No built-in rule hashes.
        "[hashed: sensitive-attribute: 00112233445566778899aabbccddeeff]",
        "[redacted: sensitive-attribute] hunter2",
    ] {
        assert_eq!(value(&redactor, "password", Any::StringValue(text.into())), want, "{text}");
    }
    // A marker of any rule in force stays.
    let marker = Any::StringValue("[redacted: url-password]".into());
    assert_eq!(value(&redactor, "password", marker.clone()), marker);
}

#[test]
fn errors_name_the_file_the_rule_and_the_mend() {
    for (rules, want) in [
        ("[[rule]]\nname='a'\nvalue='('\n", "rules.toml: rule \"a\": value: regex parse error"),
        ("[[rule]]\nname='a'\nkey='.*'\n", "rule \"a\": key: it matches the empty text"),
        ("[[rule]]\nname='a'\nkey='(?-u:\\xff)'\n", "rule \"a\": key: regex parse error"),
        ("[[rule]]\nname='a'\nkey='['\n", "rules.toml: rule \"a\": key: regex parse error"),
        ("[[rule]]\nname='a'\nvalue='a'\nvalues='a'\n", "unknown field `values`"),
        (
            "[[rule]]\nname='a'\nvalue='a'\naction='burn'\n",
            "unknown variant `burn`, expected one of `redact`, `hash`, `drop`",
        ),
        ("[[rule]]\nname='a'\n", "neither key nor value"),
        ("[[rule]]\nname='a b'\nvalue='a'\n", "rule \"a b\": a name has letters"),
        ("[[rule]]\nname='a'\nvalue='a*'\n", "matches the empty text"),
        ("[[rule]]\nname='a'\nvalue='a'\nsignals=['spans']\n", "\"spans\" is no signal; they are \"traces\""),
        ("[[rule]]\nname='a'\nkey='a'\nentropy=3.0\n", "keywords and entropy are for a value"),
        ("[[rule]]\nname='a'\nvalue='a'\nquote='<'\n", "quote is one of"),
        ("[[rule]]\nname='a'\nkey='a'\nquote='\"'\n", "for a rule that replaces a part of a text"),
        ("[[rule]]\nname='a'\nvalue='a'\nentropy=9.0\n", "entropy 9 is not between"),
        ("[[rule]]\nname='a'\nvalue='\\w{9000}'\n", "rule \"a\": value: Compiled regex exceeds size limit"),
        ("name='x'\n", "rules.toml: it has no rules; write at least one [[rule]]"),
        ("[[rule]]\nname='a'\nvalue='a'\n[[rule]]\nname='a'\nvalue='b'\n", "two rules have the name \"a\"; rename one"),
    ] {
        let error = own(rules).err().unwrap();
        assert!(error.contains(want), "{error}");
    }
    let error = Redactor::load(&["no/such.toml".into()]).unwrap_err();
    assert!(error.contains("no/such.toml") && error.contains("\"secrets\""), "{error}");
}

#[test]
fn what_is_found_is_told_and_counted() {
    let redactor = secrets();
    let json = br#"{"resourceSpans":[{"resource":{"attributes":[{"key":"password","value":{"intValue":7}}]},"scopeSpans":[
        {"spans":[{"name":"a"},{"name":"GET http://u:hunter2@h/","status":{"message":"bearer q1w2e3r4t5y6u7i8o9p0aa"}}]}]}]}"#;
    let bytes = transcode(Signal::Traces, json).unwrap();
    let findings = redactor.findings(Signal::Traces, &bytes, &Limits::default()).unwrap();
    let told: Vec<_> =
        findings.iter().map(|f| (f.record, f.place.as_str(), f.rule.as_str(), f.before.as_str())).collect();
    assert_eq!(told[1], (Some(1), "Span name", "url-password", "hunter2"));
    assert_eq!(told[2], (Some(1), "Status message", "bearer-token", "q1w2e3r4t5y6u7i8o9p0aa"));
    assert_eq!((told[0].0, told[0].1, told[0].2), (None, "Resource attributes password", "sensitive-attribute"));
    let counted = || redactor.families().into_iter().flat_map(|family| family.rows).collect::<Vec<_>>();
    assert_eq!(counted(), [(vec![], Value::Counter(0.0))], "trying is not counted");
    redactor.apply(Signal::Traces, &bytes, &Limits::default()).unwrap().unwrap();
    assert_eq!(counted()[0], (vec![], Value::Counter(1.0)));
    assert!(counted().contains(&(vec![("rule", "url-password".to_owned())], Value::Counter(1.0))), "{:?}", counted());
}

/// Rules of every kind, some of which match what others leave.
fn mixed() -> Redactor {
    let rules = r#"
        [[rule]]
        name = "key"
        key = '^k'
        action = "hash"
        [[rule]]
        name = "word"
        value = '(?i)b[a-z ]{2,}'
        [[rule]]
        name = "hashed"
        value = 'secret=(?P<secret>\S+)'
        action = "hash"
        [[rule]]
        name = "edge"
        value = 'a\b'
        [[rule]]
        name = "redacted"
        value = '(?:re)?dacted|[0-9a-f]{3}'
        [[rule]]
        name = "gone"
        value = 'xyz|\]\['
        action = "drop"
    "#;
    let sets = vec![files::own("mixed", rules).unwrap()];
    Redactor::of([sets, files::built_in().unwrap()].into_iter().flatten().collect()).unwrap()
}

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("secret=".to_owned()),
        Just("Authorization: Bearer ".to_owned()),
        Just("password".to_owned()),
        Just("\":\"".to_owned()),
        Just("[redacted: word]".to_owned()),
        Just("[redacted: ".to_owned()),
        Just("[hashed: hashed: ".to_owned()),
        Just("[redacted: hunter2]".to_owned()),
        Just("[hashed: word: 00112233445566778899aabbccddeeff]".to_owned()),
        Just("[hashed: hashed: 00112233445566778899aabbccddeeff]".to_owned()),
        Just("://u:p@h".to_owned()),
        Just("xyz".to_owned()),
        Just("ghp_16C7e42F292c6912E7710c838347Ae178B4a".to_owned()),
        "[ab \\[\\]ä\"]{0,4}",
        "[a-zA-Z0-9]{0,30}",
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn mixed_logs() -> impl Strategy<Value = ExportLogsServiceRequest> {
    let pair = ("[kl]{1,2}|password", texts()).prop_map(|(key, text)| attribute(&key, string(&text)));
    (texts(), proptest::collection::vec(pair, 0..3)).prop_map(|(body, attributes)| {
        let map = AnyValue { value: Some(Any::KvlistValue(KeyValueList { values: attributes.clone() })) };
        logs(string(&body), [attributes, vec![attribute("map", Some(map))]].concat())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn redacting_again_changes_nothing(request in mixed_logs()) {
        thread_local!(static REDACTOR: Redactor = mixed().with_secret([3; 32]));
        REDACTOR.with(|redactor| {
            let bytes = request.encode_to_vec();
            let once = redactor.apply(Signal::Logs, &bytes, &Limits::default()).unwrap();
            let once = once.unwrap_or_else(|| bytes.clone());
            prop_assert_eq!(redactor.apply(Signal::Logs, &once, &Limits::default()), Ok(None));
            // And what is redacted a second time becomes the same: a retry is known.
            prop_assert_eq!(redactor.apply(Signal::Logs, &bytes, &Limits::default()).unwrap().unwrap_or(bytes), once.clone());
            custody_proto::scan(Signal::Logs, &once, &Limits::default()).unwrap();
            Ok(())
        })?;
    }

    /// Also what no scanner saw before: bytes in a text that are not UTF-8, lengths that lie.
    #[test]
    fn hostile_bytes_do_no_harm(request in mixed_logs(), at: prop::sample::Index, byte in 0x80u8.., insert: bool) {
        thread_local!(static REDACTOR: Redactor = {
            let any = files::own("any", "[[rule]]\nname='any'\nvalue='(?-u:[\\x80-\\xff])'\n").unwrap();
            Redactor::of([vec![any], files::built_in().unwrap()].into_iter().flatten().collect()).unwrap()
        });
        let mut bytes = request.encode_to_vec();
        let at = at.index(bytes.len());
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        REDACTOR.with(|redactor| {
            let new = redactor.apply(Signal::Logs, &bytes, &Limits::default());
            if custody_proto::scan(Signal::Logs, &bytes, &Limits::default()).is_ok() {
                let new = new.unwrap().unwrap_or(bytes);
                prop_assert!(custody_proto::scan(Signal::Logs, &new, &Limits::default()).is_ok());
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_has_no_secret_is_not_touched(words in "[a-d ]{0,40}") {
        thread_local!(static REDACTOR: Redactor = secrets());
        let request = logs(string(&words), vec![attribute("gen_ai.prompt", string(&words))]).encode_to_vec();
        REDACTOR.with(|redactor| {
            prop_assert_eq!(redactor.apply(Signal::Logs, &request, &Limits::default()), Ok(None));
            Ok(())
        })?;
    }
}
