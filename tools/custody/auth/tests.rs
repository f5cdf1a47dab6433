//! Policies and tokens, without a server.

use std::path::Path;

use custody_query::{ActorType, Role};
use serde_json::json;

use super::policy::{Policy, Subject};

fn policy(text: &str) -> Result<Policy, String> {
    Policy::parse(text, Path::new("/etc/custody/policy.toml"))
}

const WORKED: &str = r#"
[[issuer]]
issuer = "https://idp.example.com"
audience = ["custody"]
jwks_file = "jwks.json"
algorithms = ["ES256", "RS256"]

[[allow]]
identity = "spiffe://example.com/agents/revoked"
roles = []

[[allow]]
identity = "spiffe://example.com/agents/*"
actor = "agent"
roles = ["write"]

[[allow]]
issuer = "https://idp.example.com"
claims = { groups = ["security", "sre-*"], email_verified = "true" }
actor = "human"
roles = ["read", "investigate"]
tenants = ["acme"]
workspaces = ["*"]

[[allow]]
identity = "peer:127.0.0.1"
roles = ["read"]
tenants = ["*"]
"#;

fn asked(identity: &str) -> Subject<'_> {
    Subject { identity, token: None }
}

#[test]
fn the_first_rule_that_speaks_of_somebody_decides() {
    let policy = policy(WORKED).unwrap();
    let agent = policy.decide(asked("spiffe://example.com/agents/support/7")).unwrap();
    assert!(agent.roles.has(Role::Write) && !agent.roles.has(Role::Read));
    assert_eq!((agent.actor, agent.line), (ActorType::Agent, 12));
    let revoked = policy.decide(asked("spiffe://example.com/agents/revoked")).unwrap();
    assert!(Role::ALL.into_iter().all(|role| !revoked.roles.has(role)));
    for stranger in ["spiffe://example.com/agent/x", "spiffe://example.com.evil/agents/x", "peer:127.0.0.2", "jwt:x#y"]
    {
        assert!(policy.decide(asked(stranger)).is_none(), "{stranger}");
    }
}

#[test]
fn claims_count_only_from_their_issuer_and_all_of_them() {
    let policy = policy(WORKED).unwrap();
    let decide = |issuer: &str, claims: serde_json::Value| {
        let identity = format!("jwt:{issuer}#ann");
        policy.decide(Subject { identity: &identity, token: Some((issuer, &claims)) }).is_some()
    };
    let (idp, good) = ("https://idp.example.com", json!({"groups": ["x", "sre-eu"], "email_verified": true}));
    assert!(decide(idp, good.clone()));
    assert!(decide(idp, json!({"groups": "security", "email_verified": "true"})));
    assert!(!decide("https://other.example.com", good));
    assert!(!decide(idp, json!({"groups": ["sre-eu"]})));
    assert!(!decide(idp, json!({"groups": {"security": 1}, "email_verified": true})));
    assert!(!decide(idp, json!({"groups": [["security"]], "email_verified": true})));
}

#[test]
fn the_star_of_a_subject_stays_within_its_value() {
    let policy =
        policy("[[allow]]\nidentity = \"cert:CN=*,O=Acme\"\nactor = \"workload\"\nroles = [\"write\"]\n").unwrap();
    assert!(policy.decide(asked("cert:CN=proxy 1,O=Acme")).is_some());
    for forged in ["cert:CN=x\\,O=Acme", "cert:CN=x\\,O=Acme,O=Evil", "cert:CN=x,OU=y,O=Acme", "cert:CN=x,O=Acme,C=DE"]
    {
        assert!(policy.decide(asked(forged)).is_none(), "{forged}");
    }
}

const ISSUER: &str = "[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\njwks_file = \"x\"\n";

#[test]
fn an_issuer_may_be_known_by_two_ways() {
    let both = format!("{ISSUER}{ISSUER}proxies = [\"spiffe://a/b\"]\n");
    let read = policy(&both).unwrap();
    assert_eq!((read.issuers.len(), read.issuer_lines), (2, vec![1, 5]));
    let error = policy(&format!("{both}{ISSUER}proxies = [\"spiffe://a/c\"]\n")).unwrap_err();
    assert!(error.contains(":11: issuer: there is an [[issuer]] \"a\" with proxies already"), "{error}");
}

#[test]
fn a_mistake_is_named_by_line_and_key_with_its_mend() {
    let rule = |more: &str| format!("\n[[allow]]\n{more}\n");
    let cases = [
        (
            rule("identity = \"spiffe://a/b\"\nactor = \"agent\"\nroles = [\"reader\"]"),
            ":5: roles: \"reader\" is none; there are write",
        ),
        (
            rule("identity = \"spiffe://a/b\"\nactor = \"robot\"\nroles = [\"write\"]"),
            ":4: actor: \"robot\" is none; there are human",
        ),
        (rule("identity = \"spiffe://a/b\"\nactor = \"agent\"\nroles = [\"read\"]"), ":2: tenants: name those"),
        (rule("identity = \"spiffe://*/b\"\nactor = \"agent\"\nroles = []"), ":3: identity: name the trust domain"),
        (rule("identity = \"*\"\nactor = \"agent\"\nroles = []"), ":3: identity: identities are"),
        (rule("identity = \"jwt:*#x\"\nactor = \"agent\"\nroles = []"), ":3: identity: name issuer and subject"),
        (rule("identity = \"peer:10.0.0.1\"\nroles = []"), ":3: identity: peer: takes 127.0.0.1"),
        (rule("identity = \"peer:127.0.0.1\"\nactor = \"human\"\nroles = []"), ":4: actor: nobody knows"),
        (rule("issuer = \"https://x\"\nactor = \"human\"\nroles = []"), ":3: issuer: there is no [[issuer]]"),
        (rule("identity = \"spiffe://a/b\"\nroles = [\"write\"]"), ":2: actor: say what it is"),
        (rule("identity = \"spiffe://a/b\"\nrole = []"), ":4: unknown field `role`"),
        (
            rule("identity = \"spiffe://a/b\"\nactor = \"agent\"\nroles = [\"read\"]\ntenants = [\"a*\"]"),
            ":6: tenants: [\"*\"] alone",
        ),
        (
            "[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\njwks_url = \"http://idp/x\"\n".into(),
            ":4: jwks_url: https:// is needed",
        ),
        ("[[issuer]]\nissuer = \"a\"\naudience = []\njwks_file = \"x\"\n".into(), ":3: audience: name"),
        ("[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\n".into(), ":1: an issuer has either"),
        (
            "[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\njwks_file = \"x\"\nalgorithms = [\"HS256\"]\n".into(),
            ":5: algorithms: \"HS256\" is not taken",
        ),
        (
            "[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\njwks_file = \"x\"\nalgorithms = []\n".into(),
            ":5: algorithms: name one",
        ),
        (
            "[[issuer]]\nissuer = \"a\"\naudience = [\"c\"]\njwks_file = \"x\"\nproxies = []\n".into(),
            ":5: proxies: name one",
        ),
        ("[[issuer]]\nissuer = \"a\u{200b}\"\naudience = [\"c\"]\njwks_file = \"x\"\n".into(), ":2: issuer: give"),
        (ISSUER.repeat(2), ":6: issuer: there is an [[issuer]] \"a\" without proxies already"),
        (
            format!("{ISSUER}{}", rule("issuer = \"a\"\nclaims = { groups = [] }\nactor = \"human\"\nroles = []")),
            ":8: claims: groups: name a value",
        ),
        (rule("identity = \"spiffe://a/b\u{ad}\"\nactor = \"agent\"\nroles = []"), ":3: identity: it has a character"),
        ("\n\n[[allow\n".into(), ":3: "),
    ];
    for (text, expected) in cases {
        let error = policy(&text).unwrap_err();
        assert!(error.starts_with("/etc/custody/policy.toml:") && error.contains(expected), "{error}\n{expected}");
        assert!(!error.contains('\n'), "{error}");
    }
}

/// What a pattern means, tried in every way.
fn naive(pattern: &str, text: &str, is_subject: bool) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    let fits = |run: &str| !is_subject || !run.contains([',', '\\', '+', '=']);
    ends.filter(|end| fits(&rest[..*end])).any(|end| naive(after, &rest[end..], is_subject))
}

/// All texts of up to so many of these characters.
fn texts(characters: &str, most: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = 0;
    for _ in 0..most {
        let longer: Vec<String> =
            all[last..].iter().flat_map(|text| characters.chars().map(move |c| format!("{text}{c}"))).collect();
        last = all.len();
        all.extend(longer);
    }
    all
}

/// One pass finds what trying everything finds, where a star stays within one value and where not.
#[test]
fn patterns_mean_the_same_in_one_pass() {
    for (kind, is_subject) in [("", false), ("cert:", true)] {
        for pattern in texts("ab,*", 5).into_iter().map(|pattern| format!("{kind}{pattern}")) {
            let read = super::policy::Pattern::of(&pattern);
            for text in texts("ab,", 5).into_iter().map(|text| format!("{kind}{text}")) {
                assert_eq!(read.matches(&text), naive(&pattern, &text, is_subject), "{pattern} {text}");
            }
        }
    }
}
