//! Services, their operations, and who calls whom.
//!
//! A page that lists them must not read the whole log: they are those of the newest records. Of these, rows are read by
//! columns that have few values each, and everything older is left out by its seqs before it is opened.

use super::asker::{Asker, column, quoted};
use super::find::{NO_SERVICE, began, now, of_service};
use super::parameters::{Parameters, wrong};
use crate::error::Error;

/// Services and operations are those of this many records, the newest.
pub(super) const RECENT_RECORDS: u64 = 5_000_000;

/// Calls between services are counted in this many records, the newest.
pub(super) const CALLS_RECORDS: u64 = 1_000_000;

/// Names of one answer, at most.
const NAMES_MAX: usize = 10_000;

/// Kinds of spans.
const KINDS: [&str; 6] = ["internal", "server", "client", "producer", "consumer", "unspecified"];

/// An operation of a service.
pub(super) struct Operation {
    pub(super) name: String,
    pub(super) kind: String,
}

/// Calls of one service by another.
pub(super) struct Calls {
    pub(super) parent: String,
    pub(super) child: String,
    pub(super) count: i64,
}

/// The newest records, or those that came in so many milliseconds (`lookback`).
fn recent(asker: &Asker<'_>, parameters: &Parameters) -> Result<String, Error> {
    Ok(match parameters.whole(&["lookback"], 1..=i64::MAX / 1_000_000)? {
        Some(ms) => format!("ingest_time >= to_timestamp_nanos({})", now().saturating_sub(ms * 1_000_000)),
        None => format!("seq >= {}", asker.size().saturating_sub(RECENT_RECORDS)),
    })
}

/// The services that sent spans of late, by name.
pub(super) async fn services(asker: &Asker<'_>, parameters: &Parameters) -> Result<Vec<String>, Error> {
    let recent = recent(asker, parameters)?;
    let sql = format!("SELECT DISTINCT service_name FROM spans WHERE {recent} ORDER BY service_name");
    let answer = asker.ask("services", &sql, NAMES_MAX).await?;
    let names: Vec<Option<String>> = column(&answer, 0);
    Ok(names.into_iter().map(|name| name.unwrap_or_else(|| NO_SERVICE.to_owned())).collect())
}

/// The operations of a service of late, by name; of one kind, if that is named.
pub(super) async fn operations(
    asker: &Asker<'_>,
    parameters: &Parameters,
    service: &str,
    kind: Option<(&'static str, &str)>,
) -> Result<Vec<Operation>, Error> {
    let mut conditions = vec![recent(asker, parameters)?, of_service(service)];
    if let Some((name, kind)) = kind {
        if !KINDS.contains(&kind) {
            return Err(wrong(name, &format!("must be one of {}", KINDS.join(", "))));
        }
        conditions.push(format!("kind = {}", quoted(kind)));
    }
    let sql = format!("SELECT DISTINCT name, kind FROM spans WHERE {} ORDER BY name, kind", conditions.join(" AND "));
    let answer = asker.ask("operations", &sql, NAMES_MAX).await?;
    let pairs = column(&answer, 0).into_iter().zip(column(&answer, 1));
    Ok(pairs.map(|(name, kind)| Operation { name, kind }).collect())
}

/// How often services called each other in some time: how many spans have a parent of another service.
pub(super) async fn calls(asker: &Asker<'_>, from: i64, to: i64, service: Option<&str>) -> Result<Vec<Calls>, Error> {
    let since = asker.size().saturating_sub(CALLS_RECORDS);
    let name = |side: &str| format!("coalesce({side}.service_name, {})", quoted(NO_SERVICE));
    let (parent, child) = (name("p"), name("c"));
    let of = service.map(quoted).map(|service| format!(" AND ({parent} = {service} OR {child} = {service})"));
    let sql = format!(
        "SELECT {parent} AS parent, {child} AS child, count(*) AS calls FROM spans c \
         JOIN spans p ON p.trace_id = c.trace_id AND p.span_id = c.parent_span_id \
         WHERE c.seq >= {since} AND p.seq >= {since} AND {} AND {parent} <> {child}{} \
         GROUP BY 1, 2 ORDER BY 1, 2",
        began("c.start_time", from, to),
        of.unwrap_or_default()
    );
    let answer = asker.ask("dependencies", &sql, NAMES_MAX).await?;
    let rows = column(&answer, 0).into_iter().zip(column(&answer, 1)).zip(column(&answer, 2));
    Ok(rows.map(|((parent, child), count)| Calls { parent, child, count }).collect())
}
