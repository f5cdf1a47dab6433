//! Submitting this log's checkpoints to witnesses (C2SP tlog-witness), by a policy.
//!
//! A round submits the newest checkpoint to all witnesses at once, each from the size
//! that it has. When enough have cosigned, the checkpoint is kept with their
//! cosignatures and served. A witness that shows that it cosigned another history of
//! this log raises an alert, which is itself a record of the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use custody_ingest::Sequencer;
use custody_store::note::{Line, Note, VerifierKey};
use custody_store::policy::Policy;
use custody_store::system::{SystemRecord, event};
use custody_store::witness::{Submission, decimal};
use custody_store::{Checkpoint, Error, Reader, Writer};

use crate::Failure;

/// How long a witness may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The rule of the alerts that are raised here.
const RULE: &str = "custody.witness.fork";

/// A witness as it is spoken to: one address, and its keys.
#[derive(Clone, Debug)]
struct Target {
    /// What the policy calls it; names joined if several keys have one address.
    name: String,
    url: String,
    keys: Vec<VerifierKey>,
}

/// What a witness answered.
#[derive(Debug)]
enum Answer {
    /// These lines are by its keys and verify.
    Cosigned(Vec<Line>),
    /// It cosigned a history, of this size, that is not that of this log.
    Fork { held: u64, how: String },
    /// It cannot now, or does not want to.
    Not(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cosigned(lines) => write!(f, "cosigned with {} keys", lines.len()),
            Self::Fork { how, .. } | Self::Not(how) => f.write_str(how),
        }
    }
}

/// Has witnesses cosign the checkpoints of a log.
pub struct Witnesses {
    reader: Reader,
    policy: Policy,
    interval: Duration,
    targets: Vec<Target>,
    agent: ureq::Agent,
    /// The size that each witness has, as far as is known; by address.
    held: HashMap<String, u64>,
    /// Witnesses about which an alert was raised, until they cosign again; by address.
    alarmed: HashSet<String>,
    /// The size of the newest kept checkpoint.
    witnessed: u64,
    /// Whether the witnesses were asked since the start. The first time they are asked
    /// though nothing is new, so that a log put back from a backup is noticed.
    asked: bool,
}

impl Witnesses {
    /// Reads the policy, and what is witnessed already.
    pub fn new(reader: Reader, policy: &Path, interval: Duration) -> Result<Self, Failure> {
        let wrong = |e: &dyn fmt::Display| Failure::unable(format!("--witness-policy {}: {e}", policy.display()));
        let text = std::fs::read_to_string(policy).map_err(|e| wrong(&e))?;
        let policy = Policy::parse(&text).map_err(|e| wrong(&e))?;
        let targets = targets(&policy).map_err(|e| wrong(&e))?;
        if !policy.logs().is_empty() && !policy.logs().iter().any(|log| log.key.name() == reader.origin()) {
            return Err(wrong(&format!("it names logs, but not this one ({}); add its log line", reader.origin())));
        }
        let witnessed = reader.newest_witnessed().map_err(Failure::unable)?.map_or(0, |kept| kept.size);
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT));
        // Only what the policy names is spoken to: no redirection, and no proxy of the environment.
        let agent = config.max_redirects(0).max_redirects_will_error(false).proxy(None).build();
        let (held, alarmed) = (HashMap::new(), HashSet::new());
        let agent = agent.new_agent();
        Ok(Self { reader, policy, interval, targets, agent, held, alarmed, witnessed, asked: false })
    }

    /// Submits, again and again; never ends. Alerts are appended through the sequencer.
    pub async fn run(mut self, sequencer: Sequencer) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.round(&sequencer).await {
                tracing::warn!(%error, "no checkpoint could be submitted to witnesses; tried again at the next interval");
            }
        }
    }

    async fn round(&mut self, sequencer: &Sequencer) -> Result<(), Error> {
        let Some(note) = self.reader.checkpoint()? else { return Ok(()) };
        let mut note = Note::parse(&note)?;
        let checkpoint = Checkpoint::parse_text(&note.text)?;
        if checkpoint.size <= self.witnessed && self.asked {
            return Ok(());
        }
        let answers = self.ask_all(&note, &checkpoint).await;
        self.asked = true;
        let kept = self.reader.newest_witnessed()?.map(|kept| Note::parse(&kept.note)).transpose()?;
        if let Some(kept) = kept.filter(|kept| kept.text == note.text) {
            note.merge(kept.lines);
        }
        for (target, answer) in &answers {
            match answer {
                Answer::Cosigned(lines) => {
                    self.held.insert(target.url.clone(), checkpoint.size);
                    self.alarmed.remove(&target.url);
                    note.merge(lines.iter().cloned());
                }
                Answer::Fork { held, how } => self.raise(sequencer, target, *held, checkpoint.size, how).await,
                Answer::Not(_) => {}
            }
        }
        if !self.policy.is_met(&note) {
            let all: Vec<String> = answers.iter().map(|(target, a)| format!("{}: {a}", target.name)).collect();
            tracing::warn!(
                size = checkpoint.size,
                "too few witnesses cosigned, so the checkpoint is not published as witnessed: {}; tried again at the \
                 next interval",
                all.join("; ")
            );
            return Ok(());
        }
        let reader = self.reader.clone();
        let kept = tokio::task::spawn_blocking(move || reader.keep_witnessed(&note)).await;
        if let Ok(kept) = kept {
            kept?;
            self.witnessed = checkpoint.size;
            tracing::debug!(size = checkpoint.size, "witnessed");
        }
        Ok(())
    }

    /// Asks all witnesses at once; as slow as the slowest, or the timeout.
    async fn ask_all(&self, note: &Note, checkpoint: &Checkpoint) -> Vec<(Target, Answer)> {
        let ask_one = |target: &Target| {
            let (agent, reader) = (self.agent.clone(), self.reader.clone());
            let (target, note, checkpoint) = (target.clone(), note.clone(), checkpoint.clone());
            // Without a memory of it, from the newest size that it may well have.
            let old = self.held.get(&target.url).copied().unwrap_or(self.witnessed);
            tokio::task::spawn_blocking(move || {
                let answer = ask(&agent, &reader, &target, old, &note, &checkpoint);
                (target, answer)
            })
        };
        let asked: Vec<_> = self.targets.iter().map(ask_one).collect();
        let mut answers = Vec::new();
        for answer in asked {
            answers.extend(answer.await);
        }
        answers
    }

    /// Raises an alert: once while a witness refuses, and never twice for one size.
    async fn raise(&mut self, sequencer: &Sequencer, target: &Target, held: u64, size: u64, how: &str) {
        tracing::error!(witness = target.name, held, size, "this log was forked or rolled back: {how}");
        if self.alarmed.contains(&target.url) {
            return;
        }
        let witness = target.keys.first().map_or(target.name.as_str(), VerifierKey::name);
        let id = format!("{RULE}/{witness}/{held}");
        let record = SystemRecord::new(event::ALERT)
            .with("security.alert.id", id.as_str())
            .with("security_rule.name", RULE)
            .with("security.alert.title", format!("the witness {witness} cosigned another history of this log: {how}"))
            .with("security.alert.severity", "critical")
            .with("custody.witness.name", witness)
            .with("custody.witness.url", target.url.as_str())
            .with("custody.witness.size", held)
            .with("custody.log.size", size);
        match sequencer.command(move |writer| append_once(writer, &id, &record)).await {
            Ok(Ok(())) => drop(self.alarmed.insert(target.url.clone())),
            Ok(Err(error)) => tracing::error!(%error, "the alert about a fork could not be appended"),
            Err(error) => tracing::error!(?error, "the alert about a fork could not be appended"),
        }
    }
}

/// Appends an alert unless the log has it from an earlier run.
fn append_once(writer: &mut Writer, id: &str, record: &SystemRecord) -> Result<(), Error> {
    let known = writer.reader().system_records(&[event::ALERT])?;
    if known.iter().any(|(_, record)| record.text("security.alert.id") == Some(id)) {
        return Ok(());
    }
    writer.append_system(record).map(drop)
}

/// The witnesses of a policy that have an address, one for each address.
fn targets(policy: &Policy) -> Result<Vec<Target>, String> {
    let mut by_url: BTreeMap<String, Target> = BTreeMap::new();
    for witness in policy.witnesses() {
        let Some(url) = &witness.url else { continue };
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") {
            return Err(format!(
                "the witness {} is at {url}; this version speaks http:// only: name a proxy on this machine that \
                 speaks TLS to it",
                witness.name
            ));
        }
        let new = || Target { name: witness.name.clone(), url: url.clone(), keys: vec![] };
        let target = by_url.entry(url.clone()).or_insert_with(new);
        if !target.keys.is_empty() {
            target.name = format!("{}, {}", target.name, witness.name);
        }
        target.keys.push(witness.key.clone());
    }
    if by_url.is_empty() {
        return Err("none of its witnesses has a URL to submit to; add it: witness NAME VKEY URL".into());
    }
    Ok(by_url.into_values().collect())
}

/// Submits a checkpoint to one witness, with the proof from the size that it has.
fn ask(
    agent: &ureq::Agent,
    reader: &Reader,
    target: &Target,
    old: u64,
    note: &Note,
    checkpoint: &Checkpoint,
) -> Answer {
    let size = checkpoint.size;
    let mut old = old.min(size);
    // The first answer may name the size to prove from.
    for _ in 0..2 {
        let proof = match reader.consistency(old, size) {
            Ok(proof) => proof,
            Err(error) => return Answer::Not(format!("no proof for it: {error}")),
        };
        let submission = Submission { old, proof, note: note.clone(), checkpoint: checkpoint.clone() };
        let (status, text) = match post(agent, &target.url, &submission) {
            Ok(answer) => answer,
            Err(error) => return Answer::Not(format!("does not answer: {error}")),
        };
        match (status, decimal(text.trim_end_matches('\n'))) {
            (200, _) => return cosigned(target, note, &text),
            (409, Some(held)) if held > size => {
                let how = format!("it cosigned {held} records of this log, which has {size} now");
                return Answer::Fork { held, how };
            }
            (409, Some(held)) if held == size && held == old => {
                return Answer::Fork { held, how: format!("it cosigned another tree of {held} records") };
            }
            (409, Some(held)) if held != old => old = held,
            (422, _) => {
                let how = format!("the tree of {old} records that it cosigned does not lead to this log's of {size}");
                return Answer::Fork { held: old, how };
            }
            _ => {
                let said: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
                return Answer::Not(format!("HTTP status {status}: {said}"));
            }
        }
    }
    Answer::Not(format!("names another size each time, now {old}"))
}

/// The status and the text of an answer.
fn post(agent: &ureq::Agent, url: &str, submission: &Submission) -> Result<(u16, String), ureq::Error> {
    let request = agent.post(format!("{url}/add-checkpoint")).header("Content-Type", "text/plain; charset=utf-8");
    let answer = request.send(submission.to_string().as_bytes())?;
    let status = answer.status().as_u16();
    let body = answer.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The lines of an answer that are the witness's, by the keys that the policy gives it.
fn cosigned(target: &Target, note: &Note, text: &str) -> Answer {
    let lines = text.lines().filter_map(|line| Line::parse(line).ok()).collect();
    let lines = Note { text: note.text.clone(), lines }.signed_by(&target.keys);
    if lines.is_empty() {
        return Answer::Not("answered without a cosignature by a key that the policy gives it".into());
    }
    Answer::Cosigned(lines)
}
