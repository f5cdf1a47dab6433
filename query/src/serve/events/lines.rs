//! Events as lines: what a reader stores, and what filters look at.

use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::arrow::record_batch::RecordBatch;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::error::Error;
use crate::event::EventRow;
use crate::lookup::Log;
use crate::ocsf::{self, EntryHashes, uid_of};

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// The row of the table `events`, as JSON.
    #[default]
    Raw,
    /// OCSF, JSON.
    Ocsf,
    /// Elastic Common Schema, JSON.
    Ecs,
    /// Common Event Format, text.
    Cef,
}

impl Format {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Raw, Self::Ocsf, Self::Ecs, Self::Cef];

    /// Its name in requests.
    pub fn name(self) -> &'static str {
        self.mapped().map_or("raw", ocsf::Format::name)
    }

    fn mapped(self) -> Option<ocsf::Format> {
        match self {
            Self::Raw => None,
            Self::Ocsf => Some(ocsf::Format::Ocsf),
            Self::Ecs => Some(ocsf::Format::Ecs),
            Self::Cef => Some(ocsf::Format::Cef),
        }
    }

    /// The format of a name; none is the default.
    pub fn parse(name: Option<&str>) -> Result<Self, String> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Self::default()) };
        let found = Self::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| format!("format must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }

    /// Whether a line is a JSON object.
    pub(crate) fn is_json(self) -> bool {
        self.mapped().is_none_or(ocsf::Format::is_json)
    }
}

/// One event, encoded once for all who read it.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub(crate) seq: u64,
    pub(crate) kind: String,
    /// How many events of this kind its record gave before this one.
    pub(crate) nth: u32,
    pub(crate) severity: &'static str,
    pub(crate) agent_id: Option<String>,
    pub(crate) agent_name: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) workspace: Option<String>,
    pub(crate) tenant: Option<String>,
    /// Without the line's end.
    pub(crate) text: String,
}

impl Line {
    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + 256
    }

    /// The stable id, by which a reader drops doubles.
    pub(crate) fn uid(&self, origin: &str) -> String {
        uid_of(origin, self.seq, &self.kind, self.nth)
    }
}

/// Counts the events of each kind that one record gives, along rows in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    seq: u64,
    kinds: Vec<(String, u32)>,
}

impl Counted {
    /// How many of this kind the record gave before.
    fn next(&mut self, row: &EventRow) -> u32 {
        if self.seq != row.seq {
            self.seq = row.seq;
            self.kinds.clear();
        }
        match self.kinds.iter_mut().find(|(kind, _)| *kind == row.kind) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                self.kinds.push((row.kind.clone(), 0));
                0
            }
        }
    }
}

/// The names of severities, least first.
pub(crate) const SEVERITIES: [&str; 7] = ["unknown", "informational", "low", "medium", "high", "critical", "fatal"];

/// How severe an event is, by the same rules in every format.
fn severity(row: &EventRow) -> &'static str {
    SEVERITIES.get(ocsf::severity(row) as usize).copied().unwrap_or("unknown")
}

/// Encodes the rows of a batch of the table `events`, with the hashes of their entries in the log.
/// A record's events may be in more than one batch: `counted` goes along.
pub(crate) fn encode(
    format: Format,
    (origin, log): (&str, &Log),
    batch: &RecordBatch,
    counted: &mut Counted,
    out: &mut Vec<Line>,
) -> Result<(), Error> {
    let rows = EventRow::read(batch);
    let nths: Vec<u32> = rows.iter().map(|row| counted.next(row)).collect();
    let texts = match format.mapped() {
        None => raw(batch)?,
        Some(mapped) => {
            let reader = log.0.as_ref().filter(|_| mapped.has_hashes());
            let read = |reader| EntryHashes::read(reader, rows.iter().map(|row| row.seq)).map_err(Error::store);
            let hashes = reader.map(read).transpose()?;
            let of = |seq| hashes.as_ref()?.get(&seq).copied();
            let context = ocsf::Context { hashes: Some(&of), ..ocsf::Context::of(origin) };
            let one = |(row, nth): (&EventRow, &u32)| one(mapped, &ocsf::Context { nth: *nth, ..context }, row);
            rows.iter().zip(&nths).map(one).collect()
        }
    };
    if texts.len() != rows.len() {
        return Err(Error::internal("an event takes more than a line"));
    }
    for ((row, nth), text) in rows.into_iter().zip(nths).zip(texts) {
        let severity = severity(&row);
        let text = match format {
            Format::Raw => with_metadata(&uid_of(origin, row.seq, &row.kind, nth), severity, &row, &text),
            _ => text,
        };
        out.push(Line {
            seq: row.seq,
            severity,
            agent_id: row.agent_id,
            agent_name: row.agent_name,
            service: row.service,
            workspace: row.workspace,
            tenant: row.tenant,
            kind: row.kind,
            nth,
            text,
        });
    }
    Ok(())
}

fn one(format: ocsf::Format, context: &ocsf::Context<'_>, row: &EventRow) -> String {
    let mut out = String::new();
    ocsf::encode(format, row, context, &mut out);
    out
}

/// The columns but `attributes`, a JSON object a row.
fn raw(batch: &RecordBatch) -> Result<Vec<String>, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::internal(format!("events cannot be written: {e}"));
    let schema = batch.schema();
    let plain: Vec<usize> = (0..schema.fields().len()).filter(|i| schema.field(*i).name() != "attributes").collect();
    let batch = batch.project(&plain).map_err(|e| failed(&e))?;
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(&batch).and_then(|()| writer.finish()).map_err(|e| failed(&e))?;
    let text = String::from_utf8(writer.into_inner()).map_err(|e| failed(&e))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// In front what every reader needs, at the end the attributes, as an object and not as text in text.
fn with_metadata(uid: &str, severity: &str, row: &EventRow, text: &str) -> String {
    let metadata = json!({"uid": uid, "sequence": row.seq});
    let is_object = row.attributes.starts_with('{') && serde_json::from_str::<IgnoredAny>(&row.attributes).is_ok();
    let attributes = match is_object && !row.attributes.contains('\n') {
        true => row.attributes.clone(),
        false => serde_json::Value::String(row.attributes.clone()).to_string(),
    };
    let rest = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
    format!("{{\"metadata\":{metadata},\"severity\":\"{severity}\",{rest},\"attributes\":{attributes}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_row_with_its_id_and_attributes_as_an_object() {
        let row = |attributes: &str, kind: &str| EventRow {
            seq: 7,
            kind: kind.into(),
            reasons: vec!["line\nfeed".into()],
            attributes: attributes.into(),
            ..EventRow::default()
        };
        let rows = [
            row("{\"a\":{\"b\":1}}", "tool_call"),
            row("no object", "grant_denied"),
            row("{\"security.alert.severity\":\"HIGH\"}", "alert"),
        ];
        let mut lines = Vec::new();
        encode(Format::Raw, ("log", &Log::default()), &EventRow::batch(&rows), &mut Counted::default(), &mut lines)
            .unwrap();
        let read: Vec<serde_json::Value> = lines.iter().map(|l| serde_json::from_str(&l.text).unwrap()).collect();
        assert_eq!(read[0]["metadata"], json!({"uid": "log:7:tool_call", "sequence": 7}));
        assert_eq!((&read[0]["attributes"]["b"], &read[0]["attributes"]["a"]["b"]), (&json!(null), &json!(1)));
        assert_eq!((&read[0]["seq"], &read[0]["reasons"][0]), (&json!(7), &json!("line\nfeed")));
        assert_eq!(read[1]["attributes"], "no object");
        let severities: Vec<&str> = lines.iter().map(|line| line.severity).collect();
        assert_eq!(severities, ["informational", "medium", "high"]);
        assert!(lines.iter().all(|line| !line.text.contains('\n')));
    }

    #[test]
    fn two_events_of_a_kind_from_one_record_have_two_ids_however_they_are_read() {
        let row =
            |seq: u64, kind: &str| EventRow { seq, kind: kind.into(), attributes: "{}".into(), ..EventRow::default() };
        let rows =
            [row(6, "tool_call"), row(7, "tool_call"), row(7, "alert"), row(7, "tool_call"), row(8, "tool_call")];
        let want = ["log:6:tool_call", "log:7:tool_call", "log:7:alert", "log:7:tool_call:2", "log:8:tool_call"];
        for format in Format::ALL {
            for size in 1..=rows.len() {
                let (mut counted, mut lines) = (Counted::default(), Vec::new());
                for rows in rows.chunks(size) {
                    encode(format, ("log", &Log::default()), &EventRow::batch(rows), &mut counted, &mut lines).unwrap();
                }
                let uids: Vec<String> = lines.iter().map(|line| line.uid("log")).collect();
                assert_eq!(uids, want);
                assert!(lines.iter().zip(want).all(|(line, uid)| line.text.contains(uid)), "{}", lines[3].text);
            }
        }
    }
}
