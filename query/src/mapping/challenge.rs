//! Refusals of a token by the resource that it was shown to (RFC 6750, section 3; RFC 9470): spans of HTTP whose
//! response header `WWW-Authenticate` was captured (OpenTelemetry's HTTP conventions,
//! `http.response.header.<key>`). MCP's authorization asks so for a step-up of scope.
//!
//! What they cannot tell: whose token it was and which grant, unless the span says; the step-up itself is a
//! new token, and so a new grant from the root.

use custody_proto::wire::Span;

use super::{RecordContext, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The header, as the conventions spell it and as OpenTelemetry's Python instrumentations do.
const HEADERS: [&str; 2] = ["http.response.header.www-authenticate", "http.response.header.www_authenticate"];

/// Challenges of a header that are read, and bytes of each.
const CHALLENGES_MAX: usize = 8;
const CHALLENGE_BYTES_MAX: usize = 4 << 10;

/// The event of a span, if a token was refused there.
pub(super) fn map(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    let attributes = Attributes(&span.attributes);
    let header = HEADERS.iter().find(|name| attributes.has(name))?;
    let told = attributes.list(header);
    let read = |text: &String| (text.len() <= CHALLENGE_BYTES_MAX).then(|| parameters(text));
    let (error, said) =
        told.iter().take(CHALLENGES_MAX).filter_map(read).find_map(|said| Some((refusal(&said)?, said)))?;
    let get = |name: &str| said.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let mut row = base_span(context, span, "oauth", "executor_decision");
    row.decision = Some("deny".into());
    row.reasons = std::iter::once(error).chain(get("error_description")).collect();
    row.reasons.extend(get("scope").map(|scope| format!("scope: {scope}")));
    row.action = row.action.or_else(|| attributes.first(&["http.request.method", "http.method"]));
    row.resource = row.resource.or_else(|| place(attributes));
    row.conversation_id = row.conversation_id.or_else(|| attributes.text("http.request.header.mcp-session-id"));
    Some(row)
}

/// What was refused, without the query, which may hold anything.
fn place(attributes: Attributes<'_>) -> Option<String> {
    let whole = attributes.first(&["url.full", "http.url"]).or_else(|| {
        let host = attributes.first(&["server.address", "http.host"])?;
        Some(format!("{host}{}", attributes.first(&["url.path", "http.target"]).unwrap_or_default()))
    });
    whole.map(|url| url.split(['?', '#']).next().unwrap_or_default().to_owned())
}

/// The error code, if it says that the token is not enough. That there was none, or that a
/// nonce has to be added, is no refusal of authority.
fn refusal(said: &[(String, String)]) -> Option<String> {
    let (_, error) = said.iter().find(|(key, _)| key == "error")?;
    (error == "invalid_token" || error.starts_with("insufficient_")).then(|| error.clone())
}

/// The parameters of challenges (RFC 9110, section 11.2): `Bearer error="insufficient_scope", scope="a b"`.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        // Before the first name of a challenge stands its scheme.
        let name = name.rsplit([' ', ',', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        let mut value = String::new();
        rest = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut letters = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, letter)) = letters.next() {
                    match letter {
                        '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        _ => value.push(letter),
                    }
                }
                &quoted[end..]
            }
            None => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                value.push_str(&after[..end]);
                &after[end..]
            }
        };
        out.push((name, value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn parameters_of_several_challenges() {
        let told = parameters(
            r#"Basic realm="a, b=c", Bearer error="insufficient_scope",scope="files:write a", error_description="say \"yes\"", max_age=5"#,
        );
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let want = [
            pair("realm", "a, b=c"),
            pair("error", "insufficient_scope"),
            pair("scope", "files:write a"),
            pair("error_description", "say \"yes\""),
            pair("max_age", "5"),
        ];
        assert_eq!(told, want);
        for broken in ["", "Bearer", "=", "Bearer error", "Bearer error=\"", "Bearer error=\"a\\", "a=\"é\u{1F600}"] {
            assert!(parameters(broken).len() < 2, "{broken}");
        }
    }
}
