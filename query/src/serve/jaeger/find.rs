//! Which traces match a search, the newest first, and which records are their spans.
//!
//! Nothing sorts the whole table: a search looks at the end of its time first, and goes on to what is older, in steps
//! that grow, only while it has found too few. Files, row groups and pages of other times are left out.

use std::collections::{HashMap, HashSet};

use super::asker::{Asker, column, quoted};
use crate::error::{Error, ErrorKind};
use crate::rows::Time;

/// Traces that one search may ask for.
pub(super) const TRACES_MAX: i64 = 1500;

/// How many it gets if it does not say.
pub(super) const TRACES_DEFAULT: i64 = 100;

/// Traces that are looked up at once: few, since with more than some thousand records together they would be looked for
/// in segments, and no longer by the log's own index.
pub(super) const AT_ONCE: usize = 8;

/// Traces that one request may name.
pub(super) const NAMED_MAX: usize = 32;

/// The first step of a search is this part of its time, and at least a minute; each further one is four times as long.
const FIRST_STEP: i64 = 64;
const MINUTE: i64 = 60_000_000_000;

/// What Jaeger calls the service of a resource that names none.
pub(super) const NO_SERVICE: &str = "OTLPResourceNoServiceName";

/// What one span of a trace must be for the trace to be found.
#[derive(Clone, Debug, Default)]
pub(super) struct Search {
    pub(super) service: Option<String>,
    pub(super) operation: Option<String>,
    pub(super) tags: Vec<(String, String)>,
    /// Start of the span, ns; both included.
    pub(super) from: i64,
    pub(super) to: i64,
    /// How long it took, ns.
    pub(super) shortest: Option<i64>,
    pub(super) longest: Option<i64>,
    pub(super) limit: usize,
}

/// A trace and the seqs of its spans, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) trace_id: String,
    pub(super) seqs: Vec<u64>,
}

impl Search {
    /// What makes no sense.
    pub(super) fn check(&self, [from, to]: [&str; 2], [shortest, longest]: [&str; 2]) -> Result<(), Error> {
        if self.from > self.to {
            return Err(Error::invalid(format!("the parameter {to} must not be before {from}")));
        }
        match (self.shortest, self.longest) {
            (Some(least), Some(most)) if most < least => {
                Err(Error::invalid(format!("the parameter {longest} must not be less than {shortest}")))
            }
            _ => Ok(()),
        }
    }

    /// As a condition on `spans`, but for the time.
    fn condition(&self) -> String {
        let mut all = vec!["true".to_owned()];
        all.extend(self.service.as_deref().map(of_service));
        all.extend(self.operation.as_deref().map(|name| format!("name = {}", quoted(name))));
        all.extend(self.shortest.map(|ns| format!("duration_ns >= {ns}")));
        all.extend(self.longest.map(|ns| format!("duration_ns <= {ns}")));
        all.extend(self.tags.iter().map(|(key, value)| has_tag(key, value)));
        all.join(" AND ")
    }
}

/// Spans of a service.
pub(super) fn of_service(name: &str) -> String {
    match name {
        NO_SERVICE => "service_name IS NULL".to_owned(),
        _ => format!("service_name = {}", quoted(name)),
    }
}

/// Spans that began between two times, both included.
pub(super) fn began(column: &str, from: i64, to: i64) -> String {
    format!("{column} >= to_timestamp_nanos({from}) AND {column} <= to_timestamp_nanos({to})")
}

/// Spans with a tag: of their own, of their resource, of one of their events, or one that stands for a column.
fn has_tag(key: &str, value: &str) -> String {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    // Texts are searched for the name before they are parsed. Of a column itself the planner would parse every row first,
    // also those of other services.
    let (name, text, member) = (quoted(key), quoted(value), quoted(&format!("{}:", json(key))));
    let is =
        |column: &str| format!("contains({column}, {member}) AND json_as_text(substr({column}, 1), {name}) = {text}");
    let mut any = vec![is("attributes"), is("resource")];
    let mut in_events = |member: String| any.push(format!("contains(events, {})", quoted(&member)));
    // A member of a list of objects, as it is written there. In a text its quotes would be escaped, so nothing else
    // looks so, but for the members that each event has beside its attributes.
    if !["name", "time_unix_nano", "attributes"].contains(&key) {
        in_events(format!("{}:{}", json(key), json(value)));
        if matches!(serde_json::from_str(value), Ok(serde_json::Value::Number(_) | serde_json::Value::Bool(_))) {
            in_events(format!("{}:{value},", json(key)));
            in_events(format!("{}:{value}}}", json(key)));
        }
    }
    if key == "event" {
        in_events(format!("{{\"name\":{},\"time_unix_nano\":", json(value)));
    }
    any.extend(of_column(key, value));
    format!("({})", any.join(" OR "))
}

/// A tag that Jaeger makes of a field of the span.
fn of_column(key: &str, value: &str) -> Option<String> {
    let is = |column: &str, value: &str| Some(format!("{column} = {}", quoted(value)));
    match (key, value) {
        ("error", "true") => is("status_code", "error"),
        ("error", "false") => Some("status_code <> 'error'".into()),
        ("span.kind", kind) => is("kind", kind),
        ("otel.status_code", code) => is("status_code", &code.to_lowercase()),
        ("otel.status_description", message) => is("status_message", message),
        ("otel.scope.name" | "otel.library.name", name) => is("scope_name", name),
        ("otel.scope.version" | "otel.library.version", version) => is("scope_version", version),
        ("w3c.tracestate", state) => is("trace_state", state),
        ("custody.seq", seq) => Some(format!("seq = {}", seq.parse::<u64>().ok()?)),
        ("custody.record_hash", hash) => is("record_hash", hash),
        _ => None,
    }
}

impl Search {
    /// Traces of which a span began between two times and is as is asked for, the newest first.
    fn sql(&self, from: i64, to: i64, most: usize) -> String {
        format!(
            "SELECT trace_id, max(start_time) AS newest FROM spans WHERE {} AND {} GROUP BY trace_id \
             ORDER BY newest DESC, trace_id LIMIT {most}",
            began("start_time", from, to),
            self.condition()
        )
    }

    /// All that it asks for, however it is looked for.
    pub(super) fn whole(&self) -> String {
        self.sql(self.from, self.to, self.limit)
    }
}

/// The traces that a search finds, the newest first, and their spans.
pub(super) async fn search(asker: &Asker<'_>, search: &Search) -> Result<Vec<Found>, Error> {
    let work = async {
        let ids = newest(asker, search).await?;
        counted(spans(asker, &ids).await?)
    };
    asker.in_parts("search", &search.whole(), work).await
}

/// The traces of these ids, and their spans.
pub(super) async fn named(asker: &Asker<'_>, ids: &[String]) -> Result<Vec<Found>, Error> {
    let work = async { counted(spans(asker, ids).await?) };
    asker.in_parts("traces", &format!("SELECT trace_id, seq FROM spans WHERE {}", in_traces(ids)), work).await
}

fn counted(found: Vec<Found>) -> Result<(Vec<Found>, u64), Error> {
    let spans = found.iter().map(|found| found.seqs.len() as u64).sum();
    Ok((found, spans))
}

/// The traces that a search finds, the newest first.
pub(super) async fn newest(asker: &Asker<'_>, search: &Search) -> Result<Vec<String>, Error> {
    let (mut found, mut known) = (Vec::new(), HashSet::new());
    let mut step = ((search.to - search.from) / FIRST_STEP).max(MINUTE);
    let mut to = search.to;
    while found.len() < search.limit {
        let from = search.from.max(to.saturating_sub(step));
        // A trace with newer spans, too, was found before: the rest must be enough all the same.
        let most = search.limit + known.len();
        let sql = search.sql(from, to, most);
        let ids: Vec<String> = column(&asker.part("search", &sql, most).await?, 0);
        found.extend(ids.into_iter().filter(|id| known.insert(id.clone())));
        if from == search.from {
            break;
        }
        (to, step) = (from - 1, step.saturating_mul(4));
    }
    found.truncate(search.limit);
    Ok(found)
}

/// The condition that a span is of one of these traces.
pub(super) fn in_traces(ids: &[String]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| quoted(id)).collect();
    format!("trace_id IN ({})", ids.join(", "))
}

/// The spans of some traces, in the order of these.
async fn spans(asker: &Asker<'_>, ids: &[String]) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    let mut room = asker.spans_max;
    for ids in ids.chunks(AT_ONCE) {
        let sql = format!("SELECT trace_id, seq FROM spans WHERE {}", in_traces(ids));
        let answer = asker.part("spans of the traces found", &sql, room).await?;
        if answer.truncated {
            let message = format!(
                "the traces that were found have more than {} spans; ask for fewer traces, or for one by its id",
                asker.spans_max
            );
            return Err(Error::new(ErrorKind::Resources, message));
        }
        room -= answer.rows;
        let mut of: HashMap<String, Vec<u64>> = HashMap::new();
        for (id, seq) in column::<String>(&answer, 0).into_iter().zip(column(&answer, 1)) {
            of.entry(id).or_default().push(seq);
        }
        found.extend(ids.iter().filter_map(|id| {
            let mut seqs = of.remove(id)?;
            seqs.sort_unstable();
            Some(Found { trace_id: id.clone(), seqs })
        }));
    }
    Ok(found)
}

/// The spans of one trace, of some time if any; `None` if there is none.
pub(super) async fn trace(
    asker: &Asker<'_>,
    id: &str,
    from: Option<i64>,
    to: Option<i64>,
) -> Result<Option<Found>, Error> {
    let mut sql = format!("SELECT seq FROM spans WHERE trace_id = {}", quoted(id));
    if from.is_some() || to.is_some() {
        sql.push_str(&format!(" AND {}", began("start_time", from.unwrap_or(0), to.unwrap_or(i64::MAX))));
    }
    let answer = asker.ask("a trace", &sql, asker.spans_max).await?;
    if answer.truncated {
        let most = asker.spans_max;
        let message = format!("the trace {id} has more than {most} spans; ask for a part of it, with start and end");
        return Err(Error::new(ErrorKind::Resources, message));
    }
    let mut seqs: Vec<u64> = column(&answer, 0);
    seqs.sort_unstable();
    Ok((!seqs.is_empty()).then(|| Found { trace_id: id.to_owned(), seqs }))
}

/// Now, in ns since 1970.
pub(super) fn now() -> i64 {
    let Time(now) = crate::engine::now();
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_nothing_but_texts() {
        let search = Search {
            service: Some("o'brien".into()),
            operation: Some("x' OR '1'='1".into()),
            tags: vec![("k'".into(), "v\"'".into())],
            shortest: Some(5),
            ..Search::default()
        };
        let text = search.condition();
        assert!(text.contains("service_name = 'o''brien'") && text.contains("name = 'x'' OR ''1''=''1'"), "{text}");
        assert!(text.contains("json_as_text(substr(attributes, 1), 'k''') = 'v\"'''"), "{text}");
        assert!(text.contains(r#"contains(events, '"k''":"v\"''"')"#), "{text}");
        assert!(text.contains("duration_ns >= 5"), "{text}");
        let text = Search { service: Some(NO_SERVICE.into()), ..Search::default() }.condition();
        assert_eq!(text, "true AND service_name IS NULL");
    }

    #[test]
    fn tags_of_jaeger_are_columns_here() {
        for (key, value, want) in [
            ("error", "true", "status_code = 'error'"),
            ("error", "false", "status_code <> 'error'"),
            ("span.kind", "client", "kind = 'client'"),
            ("otel.status_code", "ERROR", "status_code = 'error'"),
            ("otel.scope.name", "s", "scope_name = 's'"),
            ("custody.seq", "12", "seq = 12"),
            ("event", "exception", r#"contains(events, '{"name":"exception","time_unix_nano":')"#),
            ("attempt", "2", r#"contains(events, '"attempt":2}')"#),
        ] {
            let text = has_tag(key, value);
            assert!(text.ends_with(&format!("{want})")), "{key}: {text}");
        }
        assert!(!has_tag("custody.seq", "12; DROP").contains(" seq = "));
        assert!(!has_tag("name", "x").contains("contains(events"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let check = |search: Search| search.check(["start", "end"], ["minDuration", "maxDuration"]);
        assert!(check(Search { from: 5, to: 5, ..Search::default() }).is_ok());
        let told = check(Search { from: 6, to: 5, ..Search::default() }).unwrap_err().message;
        assert_eq!(told, "the parameter end must not be before start");
        let told = check(Search { shortest: Some(2), longest: Some(1), ..Search::default() }).unwrap_err().message;
        assert_eq!(told, "the parameter maxDuration must not be less than minDuration");
    }
}
