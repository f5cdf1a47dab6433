//! What goes with a message of the planner so that a person can mend the query: the planner knows what is wrong, and not
//! what there is instead.

use crate::catalog::TABLES;

/// What a person may call a function, and what does it here.
const INSTEAD: [(&[&str], &str); 12] = [
    (&["replay"], "it is a table: SELECT * FROM replay('<id>')"),
    (&["delegation_chain"], "it is a table: SELECT * FROM delegation_chain('<grant id>')"),
    (&["string_agg", "listagg", "group_concat"], "use array_to_string(array_agg(x), ', ')"),
    (
        &["json_extract", "json_extract_string", "json_value", "json_query"],
        "use json_get_str(attributes, 'name') or attributes ->> 'name'",
    ),
    (&["strftime", "date_format", "format_datetime"], "use to_char(start_time, '%H:%M')"),
    (&["quantile", "quantile_cont", "percentile", "percentile_disc"], "use approx_percentile_cont(x, 0.99)"),
    (&["count_if", "countif"], "use count(*) FILTER (WHERE ...)"),
    (&["if", "iff"], "use CASE WHEN ... THEN ... ELSE ... END"),
    (&["len"], "use length(x)"),
    (&["date_diff", "datediff", "timestampdiff"], "take one time from the other, or use duration_ns"),
    (&["date_add", "dateadd", "date_sub"], "use time + INTERVAL '1 hour'"),
    (&["md5", "sha256", "digest", "hash"], "record_hash is the digest of a record, proof(seq) proves it"),
];

/// The message, as it is of use.
pub(crate) fn with_hint(text: &str, message: String) -> String {
    let message = match message.find("Column names are case sensitive.") {
        // What follows tells of settings that nobody may change.
        Some(start) => {
            let rest = message.get(start..).and_then(|rest| rest.split_once('\n')).map_or("", |(_, rest)| rest);
            format!("{}Names in double quotes are looked for as they are written.\n{rest}", &message[..start])
        }
        None => message,
    };
    match hint(text, &message) {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    }
}

fn hint(text: &str, message: &str) -> Option<String> {
    let quoted = |from: &str| message.split_once(from)?.1.split('\'').next();
    if let Some(name) = quoted("Invalid function '") {
        let instead = INSTEAD.iter().find(|(names, _)| names.contains(&name.to_lowercase().as_str()));
        return instead.map(|(_, instead)| (*instead).to_owned());
    }
    if message.starts_with("table function '") {
        return Some(match quoted("table function '")? {
            name @ ("payload" | "proof") => format!("it gives one value: SELECT {name}(77)"),
            _ => "SELECT usage FROM custody_tables WHERE kind = 'function' tells which there are".into(),
        });
    }
    if message.starts_with("table '") && message.ends_with("not found") {
        return Some(format!("tables have no other schema than public: {}", TABLES.join(", ")));
    }
    if message.contains("Error parsing timestamp from") {
        return Some("write times as '2026-11-20', '2026-11-20 09:00:00' or '2026-11-20T09:00:00Z', in UTC".into());
    }
    if message.contains("comparison operation") && message.contains("Timestamp") && message.contains("Int") {
        return Some("a number is made a time by to_timestamp_seconds(n), to_timestamp_millis(n) and the like".into());
    }
    if message.contains("comparison operation") && message.contains("Interval") {
        return Some("durations are numbers of ns: 1000000000 is a second".into());
    }
    let asks_as_of =
        || text.to_lowercase().split_whitespace().collect::<Vec<_>>().windows(2).any(|w| w == ["as", "of"]);
    if message.starts_with("Expected: ") && asks_as_of() {
        let functions =
            "spans_as_of(120), events_as_of('2026-11-20'), delegation_chain('<id>', 120), replay('<id>', 120)";
        return Some(format!("what was known then is asked for by functions: {functions}"));
    }
    None
}
