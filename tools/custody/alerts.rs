//! `custody alerts`: what is open, and what a person does about it.
//!
//! Over HTTP it is the server that knows who asks. Beside a data directory it is the kernel: the control
//! socket is its owner's alone, and its owner is taken for a person, `os:<name>`, unless the log says
//! otherwise (`custody alerts speakers --withdraw`). docs/alerts.md has the rules.

use std::path::Path;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use custody_query::alerts::acts::{Act, Ask, Planned, Refusal, plan};
use custody_query::alerts::speakers::{Speakers, name};
use custody_query::alerts::{AlertRow, alert};
use custody_query::serve::Served;
use custody_query::serve::alerts::{Done, act as act_served};
use custody_query::{ActorType, AsOf, Caller, Projection, Said, format};
use custody_store::{Error, Reader, Writer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::{Control, Request};
use crate::keep::said;
use crate::source::From;
use crate::{Failure, print, tell};

/// Alerts: what is open, and what a person does about it.
///
/// Acting needs a person's identity: of a token or a certificate with --url, or that of the user who owns the
/// data directory. Everything said goes into the log under that identity.
#[derive(Args)]
pub struct Alerts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Show(Show),
    /// Say that you have noticed it.
    #[command(name = "ack", visible_alias = "acknowledge")]
    Acknowledge(Doing),
    /// Open an investigation of it, or open it again.
    Investigate(Doing),
    /// Say something about it: --note TEXT.
    Note(Doing),
    /// Close it with a disposition; several at once are closed in bulk, which is no coverage.
    Close(Closing),
    /// Record your decision about containment; nothing is contained by this.
    Contain(Containing),
    Speakers(SpeakersCommand),
}

/// The states that an alert can be in.
const STATES: [&str; 7] = ["open", "acknowledged", "investigating", "closed", "suppressed", "merged", "superseded"];

/// List alerts, the newest first.
#[derive(Args)]
struct List {
    /// Only these states, with commas between: open, acknowledged, investigating, closed, suppressed, merged,
    /// superseded.
    #[arg(long, value_name = "STATES", value_delimiter = ',', hide_possible_values = true, value_parser = STATES)]
    state: Vec<String>,
    /// Only of this rule or check.
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    format: Output,
    #[command(flatten)]
    from: From,
}

/// Show one alert, every record about it, and what it cites.
#[derive(Args)]
struct Show {
    /// The alert.
    id: String,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    format: Output,
    #[command(flatten)]
    from: From,
}

#[derive(Args)]
struct Doing {
    /// The alerts.
    #[arg(required = true)]
    ids: Vec<String>,
    /// What you have to say about it; goes into the log.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Makes a repeated command one act.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Whose alert, where several tenants have one of this id.
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    format: Output,
    #[command(flatten)]
    from: From,
}

#[derive(Args)]
struct Closing {
    /// true_positive, false_positive, benign or undetermined.
    #[arg(long, value_name = "DISPOSITION")]
    disposition: String,
    /// Say that it was closed without being looked at by itself.
    #[arg(long)]
    bulk: bool,
    #[command(flatten)]
    doing: Doing,
}

#[derive(Args)]
struct Containing {
    /// What you decided, such as revoke_grant, stop_agent or none.
    #[arg(long, value_name = "TEXT")]
    decision: String,
    #[command(flatten)]
    doing: Doing,
}

/// Say whose word counts for people when records come by OTLP.
///
/// Without identities everybody's does (open). Named: only that of persons who were authenticated here, and
/// of the identities that are allowed, such as a SOC tool's. Without flags it tells what is in force.
#[derive(Args)]
struct SpeakersCommand {
    /// open or named.
    #[arg(long, value_name = "MODE", value_parser = ["open", "named"])]
    mode: Option<String>,
    /// Take this submitter at its word about people; may be repeated.
    #[arg(long, value_name = "IDENTITY", value_parser = said)]
    allow: Vec<String>,
    /// Do not any more; an identity of a person can then not act here either. May be repeated.
    #[arg(long, value_name = "IDENTITY", value_parser = said)]
    withdraw: Vec<String>,
    /// The data directory; if a server runs on it, the server does the work.
    #[arg(long, default_value = "custody-data", value_name = "DIR")]
    data_dir: std::path::PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Alerts {
    /// Runs it.
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::List(list) => list.run(),
            Command::Show(show) => show.run(),
            Command::Acknowledge(doing) => doing.run(Act::Acknowledge, None, None, false),
            Command::Investigate(doing) => doing.run(Act::Investigate, None, None, false),
            Command::Note(doing) => doing.run(Act::Note, None, None, false),
            Command::Close(closing) => {
                // Who closes several in one breath has not looked at each.
                let bulk = closing.bulk || closing.doing.ids.len() > 1;
                closing.doing.run(Act::Close, Some(closing.disposition), None, bulk)
            }
            Command::Contain(containing) => containing.doing.run(Act::Contain, None, Some(containing.decision), false),
            Command::Speakers(command) => command.run(),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl List {
    fn run(self) -> Result<(), Failure> {
        let source = self.from.open()?;
        let mut tests = vec!["true".to_owned()];
        if !self.state.is_empty() {
            let states: Vec<String> = self.state.iter().map(|state| quoted(state)).collect();
            tests.push(format!("state IN ({})", states.join(", ")));
        }
        tests.extend(self.rule.as_deref().map(|rule| format!("rule = {}", quoted(rule))));
        let columns = match self.format {
            Output::Table => {
                "alert_id, state, severity, rule, agent_id, raised_time, acknowledged_by, closed_by, disposition, title"
            }
            Output::Json => "*",
        };
        let sql = format!(
            "SELECT {columns} FROM alerts WHERE {} ORDER BY raised_time DESC, seq DESC LIMIT {}",
            tests.join(" AND "),
            self.limit.saturating_add(1)
        );
        // One more than is shown tells whether there are more.
        let (schema, batches, _) = source.sql(&json!({"sql": sql, "max_rows": self.limit.saturating_add(1)}))?;
        let mut left = self.limit;
        let mut shown = Vec::new();
        for batch in &batches {
            shown.push(batch.slice(0, batch.num_rows().min(left)));
            left -= batch.num_rows().min(left);
        }
        match self.format {
            Output::Table => print(&format!("{}\n", format::table(&schema, &shown).map_err(Failure::unable)?))?,
            Output::Json => {
                let rows = format::rows(&shown).map_err(Failure::unable)?;
                rows.into_iter().try_for_each(|row| print(&format!("{}\n", Value::Object(row))))?;
            }
        }
        if batches.iter().map(|batch| batch.num_rows()).sum::<usize>() > self.limit {
            tell(&format!("custody alerts: there are more than these {}; --limit shows more", self.limit));
        }
        Ok(())
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let source = self.from.open()?;
        if self.format == Output::Json {
            let got = source.get(&format!("/api/v1/alerts/{}", escaped(&self.id)))?;
            let shown: Value = serde_json::from_slice(&got.body).map_err(Failure::unable)?;
            return print(&format!("{}\n", serde_json::to_string_pretty(&shown).map_err(Failure::unable)?));
        }
        let id = quoted(&self.id);
        let ask = |sql: String| source.sql(&json!({"sql": sql}));
        let (_, batches, _) = ask(format!("SELECT * FROM alerts WHERE alert_id = {id}"))?;
        let rows = format::rows(&batches).map_err(Failure::unable)?;
        let Some(row) = rows.into_iter().next() else {
            return Err(Failure::wrong(format!("there is no alert {}", self.id)));
        };
        for (name, value) in row.iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            print(&format!("{name:<28}{}\n", format::plain(&value)))?;
        }
        let seqs: Vec<String> = row["evidence"].as_array().into_iter().flatten().map(Value::to_string).collect();
        let cited = if seqs.is_empty() { "NULL".to_owned() } else { seqs.join(", ") };
        let sections = [
            (
                "What was said about it",
                format!(
                    "SELECT seq, event_time, act, actor, submitter, counts, why_not, disposition, decision, note \
                     FROM alert_history({id}) ORDER BY seq"
                ),
            ),
            (
                "What it cites",
                format!(
                    "SELECT seq, event_time, kind, service, agent_id, grant_id, action, resource, tool, decision \
                     FROM events WHERE seq IN ({cited}) ORDER BY seq"
                ),
            ),
        ];
        for (title, sql) in sections {
            let (schema, batches, _) = ask(sql)?;
            print(&format!("\n{title}\n{}\n", format::table(&schema, &batches).map_err(Failure::unable)?))?;
        }
        Ok(())
    }
}

/// An id as it stands in a path.
fn escaped(id: &str) -> String {
    let byte = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    id.bytes().map(byte).collect()
}

impl Doing {
    fn run(self, act: Act, disposition: Option<String>, decision: Option<String>, bulk: bool) -> Result<(), Failure> {
        for id in &self.ids {
            let wanted = Wanted {
                act: act.name().to_owned(),
                id: id.clone(),
                note: self.note.clone(),
                disposition: disposition.clone(),
                decision: decision.clone(),
                bulk,
                key: self.idempotency_key.clone(),
                tenant: self.tenant.clone(),
            };
            let done = self.send(wanted)?;
            match self.format {
                Output::Json => print(&format!("{done}\n"))?,
                Output::Table => print(&told(id, &done))?,
            }
        }
        Ok(())
    }

    /// By the server that was named, or by whoever owns the directory.
    fn send(&self, wanted: Wanted) -> Result<Value, Failure> {
        let dir = self.from.data_dir().unwrap_or(Path::new("custody-data"));
        if self.from.url().is_none() && dir.join("FORMAT").exists() {
            return Control::of(dir)?.ask(&Request::Alert(wanted), &mut std::io::sink());
        }
        let source = self.from.open()?;
        let path = format!("/api/v1/alerts/{}/{}", escaped(&wanted.id), wanted.act);
        let mut body = json!({"bulk": wanted.bulk});
        let texts = [
            ("note", &wanted.note),
            ("disposition", &wanted.disposition),
            ("decision", &wanted.decision),
            ("tenant", &wanted.tenant),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                body[name] = text.as_str().into();
            }
        }
        let got = source.post(&path, &body, wanted.key.as_deref())?;
        serde_json::from_slice(&got.body).map_err(Failure::unable)
    }
}

fn told(id: &str, done: &Value) -> String {
    let how = if done["appended"] == true { "" } else { " (it was said before)" };
    let text = |name: &str| done["alert"][name].as_str().unwrap_or("?");
    let line = format!("{id}: {}, by record {}{how}", text("state"), done["seq"]);
    format!("{}\n", format::plain(&line))
}

impl SpeakersCommand {
    fn run(self) -> Result<(), Failure> {
        let speaking = Speaking { mode: self.mode, allow: self.allow, withdraw: self.withdraw };
        let told = Control::of(&self.data_dir)?.ask(&Request::Speakers(speaking), &mut std::io::sink())?;
        let named: Vec<&str> = told["named"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mode = told["mode"].as_str().unwrap_or_default();
        let named = if named.is_empty() { "nobody".to_owned() } else { named.join(", ") };
        print(&format!("mode {mode}; named: {}\n", format::plain(&named)))
    }
}

/// What the control socket is asked to do about an alert.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    act: String,
    id: String,
    note: Option<String>,
    disposition: Option<String>,
    decision: Option<String>,
    bulk: bool,
    key: Option<String>,
    tenant: Option<String>,
}

impl Wanted {
    fn ask(&self) -> Result<Ask, Error> {
        let act = Act::of_name(&self.act).ok_or_else(|| Error::invalid("there is no such act"))?;
        let (note, disposition, decision) = (self.note.clone(), self.disposition.clone(), self.decision.clone());
        let (alert_id, tenant, key) = (self.id.clone(), self.tenant.clone(), self.key.clone());
        Ok(Ask { alert_id, tenant, act, note, disposition, decision, bulk: self.bulk, key })
    }
}

/// What the control socket is asked to say about speakers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Speaking {
    mode: Option<String>,
    allow: Vec<String>,
    withdraw: Vec<String>,
}

impl Speaking {
    fn changes(&self, speakers: &Speakers) -> Vec<Said> {
        let named_only = self.mode.as_ref().map_or(speakers.are_named(), |mode| mode == "named");
        let mut said = speakers.changes(named_only, &self.allow);
        let gone = self.withdraw.iter().filter(|identity| !speakers.withdrew(identity));
        said.extend(gone.map(|identity| name(identity, false, None)));
        said
    }
}

/// Who the kernel says asks, as a person: `uid:1000` is `os:ada`.
fn caller(identity: &str) -> Caller {
    let uid = identity.strip_prefix("uid:").unwrap_or(identity);
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        (fields.nth(1)? == uid).then(|| user.to_owned())
    });
    let identity = format!("os:{}", found.unwrap_or_else(|| uid.to_owned()));
    Caller { identity: identity.into(), actor: ActorType::Human, ..Caller::local(None) }
}

fn failed(refusal: Refusal) -> Error {
    if refusal.status >= 500 { Error::unavailable(refusal.message) } else { Error::invalid(refusal.message) }
}

fn unreadable(error: custody_query::Error) -> Error {
    Error::unavailable(error.to_string())
}

/// Does it in the running server.
pub async fn act(served: &Served, wanted: &Wanted, identity: &str) -> Result<Value, Error> {
    act_served(served, &caller(identity), wanted.ask()?).await.map(|done| done.json()).map_err(failed)
}

/// Does it in a log that no server has open.
pub fn act_directly(writer: &mut Writer, reader: &Reader, wanted: &Wanted, identity: &str) -> Result<Value, Error> {
    let ask = wanted.ask()?;
    let snapshot = Projection::of(reader.clone()).map_err(unreadable)?.snapshot();
    let (seq, appended) = match plan(&snapshot, &caller(identity), &ask).map_err(failed)? {
        Planned::Done(seq) => (seq, false),
        Planned::Append(said) => (append(writer, said)?, true),
    };
    let snapshot = Projection::of(reader.clone()).map_err(unreadable)?.snapshot();
    let found = alert(&snapshot, (&ask.alert_id, ask.tenant.as_deref()), AsOf::Now).map_err(unreadable)?;
    let alert: AlertRow = found.into_iter().next().map(|(alert, _)| alert).unwrap_or_default();
    Ok(Done { act: ask.act, seq, appended, alert }.json())
}

/// Appends them, and signs; gives the seq of the last one.
fn append(writer: &mut Writer, said: Vec<Said>) -> Result<u64, Error> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_nanos() as u64);
    let prepared =
        said.iter().map(|said| said.record.prepare_as(&said.identity, now)).collect::<Result<Vec<_>, _>>()?;
    let receipts = writer.append(prepared)?;
    writer.checkpoint()?;
    Ok(receipts.last().map_or(0, |receipt| receipt.first_seq))
}

/// Says whose word counts, in the running server.
pub async fn speak(served: &Served, speaking: &Speaking) -> Result<Value, Error> {
    let recorder = served.recorder().ok_or_else(|| Error::unavailable("this server can only be read"))?;
    let speakers = custody_query::serve::alerts::speakers(served).await.map_err(unreadable)?;
    let said = speaking.changes(&speakers);
    if !said.is_empty() {
        let seqs = recorder.append(said).await.map_err(unreadable)?;
        custody_query::serve::alerts::wait_for(served, seqs.last().copied().unwrap_or_default()).await;
    }
    let speakers = custody_query::serve::alerts::speakers(served).await.map_err(unreadable)?;
    Ok(in_force(&speakers))
}

/// The same in a log that no server has open.
pub fn speak_directly(writer: &mut Writer, reader: &Reader, speaking: &Speaking) -> Result<Value, Error> {
    let speakers = || {
        let projection: Arc<Projection> = Projection::of(reader.clone()).map_err(unreadable)?;
        Speakers::of(&projection.snapshot(), AsOf::Now).map_err(unreadable)
    };
    let said = speaking.changes(&speakers()?);
    if !said.is_empty() {
        append(writer, said)?;
    }
    Ok(in_force(&speakers()?))
}

fn in_force(speakers: &Speakers) -> Value {
    json!({"mode": if speakers.are_named() { "named" } else { "open" }, "named": speakers.all_named()})
}
