//! Certificates, authorities, keys and policy are read again when a file changes, and on SIGHUP.
//!
//! What cannot be read changes nothing: the server goes on with what it had, and says so in its log
//! lines, in metrics and in the ledger.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use custody_ingest::tls::Tls;
use custody_query::{AuditMode, Engine, Recorder};
use custody_store::measure::{Family, Value};
use custody_store::system::SystemRecord;
use tokio::signal::unix::{SignalKind, signal};

use super::Auth;
use super::audit::{Audit, CONFIG};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What guards the listeners.
#[derive(Clone)]
pub struct Guards {
    /// TLS, if it is on.
    pub tls: Option<Arc<Tls>>,
    /// Who comes in, if a policy says it.
    pub auth: Option<Arc<Auth>>,
    /// The way to the log.
    pub audit: Arc<Audit>,
    /// Reloads that were done, and that failed.
    pub reloads: Arc<[AtomicU64; 2]>,
    /// A file that was changed after this may have been read before.
    pub begun: SystemTime,
    /// Whose doings are recorded.
    pub watched: AuditMode,
    /// The data directory.
    pub dir: PathBuf,
}

/// A file of the data directory that is there while the log's last word is that somebody guards it.
const GUARDED: &str = "guarded";

/// How long the stop waits for the last audit records.
const FLUSH: Duration = Duration::from_secs(5);

/// A file as it was seen: when it was changed, how long it is, which inode.
type Seen = Option<(SystemTime, u64, u64)>;

impl Guards {
    /// Watches the files from now on. (Where there are none, SIGHUP ends the process, as it does
    /// by default.)
    fn watch(self) -> std::io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut seen = self.look();
        let begun = self.begun;
        seen.iter_mut().for_each(|(_, seen)| *seen = seen.filter(|(changed, ..)| *changed < begun));
        tokio::spawn(async move {
            loop {
                let asked = tokio::select! {
                    _ = hangup.recv() => true,
                    () = tokio::time::sleep(LOOK) => false,
                };
                let guards = self.clone();
                let before = std::mem::take(&mut seen);
                let looked = tokio::task::spawn_blocking(move || {
                    let now = guards.look();
                    if asked || now != before {
                        guards.reload(if asked { "SIGHUP" } else { "a file changed" });
                    }
                    guards.auth.iter().for_each(|auth| {
                        auth.refresh();
                        auth.save();
                    });
                    // What the policy names may be other files now.
                    if now == before { now } else { read_as(&now, guards.look()) }
                });
                let Ok(looked) = looked.await else { return };
                seen = looked;
            }
        });
        Ok(())
    }

    /// Whether everybody may do everything who reaches the API, and in the clear.
    pub fn is_open(&self) -> bool {
        self.tls.is_none() && self.auth.is_none()
    }

    /// Tells queries which tenants senders may speak for.
    pub fn bind(&self, engine: Engine) -> Engine {
        match &self.auth {
            Some(auth) => engine.with_bindings(auth.bindings()),
            None => engine,
        }
    }

    /// From now on there is a log to say things in.
    pub async fn begin(&self, recorder: Arc<dyn Recorder>) -> std::io::Result<()> {
        let guarded = self.dir.join(GUARDED);
        if !self.is_open() {
            std::fs::File::create(&guarded)?.sync_all()?;
        } else if !guarded.exists() {
            return Ok(());
        }
        // Waited for: a server that is stopped at once was guarded nonetheless.
        self.audit.begin(recorder);
        let said = self.audit.said(self.in_force("start")).await;
        if let Err(error) = &said {
            tracing::error!(%error, "the log takes no audit record");
        }
        if !self.is_open() {
            return self.clone().watch();
        }
        // Who may do what is in the log; that from here on everybody may do everything is said as well, once.
        if said.is_ok() {
            std::fs::remove_file(&guarded)?;
        }
        Ok(())
    }

    /// Makes durable what is only in memory, while the log still takes records: who asked what how often, who
    /// could not come in, and what senders' tokens said.
    pub async fn end(&self, asked: &custody_query::Audit) {
        let said = async { tokio::join!(asked.flush(), self.audit.flush()) };
        if tokio::time::timeout(FLUSH, said).await.is_err() {
            tracing::error!("the log did not take the last audit records");
        }
        if let Some(auth) = self.auth.clone() {
            let _ = tokio::task::spawn_blocking(move || auth.save()).await;
        }
    }

    fn look(&self) -> Vec<(PathBuf, Seen)> {
        let tls = self.tls.iter().flat_map(|tls| tls.paths());
        let paths = tls.chain(self.auth.iter().flat_map(|auth| auth.paths()));
        paths.map(|path| (path.clone(), look_at(&path))).collect()
    }

    /// Reads all of it again, and says what came of it.
    fn reload(&self, why: &'static str) {
        let tls = self.tls.as_ref().map_or(Ok(()), |tls| tls.reload());
        // Also where only certificates are others: who came in by one is looked at again.
        let auth = self.auth.as_ref().map_or(Ok(()), |auth| auth.reload().inspect_err(|_| auth.changed()));
        let wrong: Vec<String> = [tls, auth].into_iter().filter_map(Result::err).collect();
        self.reloads[usize::from(!wrong.is_empty())].fetch_add(1, Relaxed);
        let mut record = self.in_force("reload").with("custody.audit.why", why);
        if wrong.is_empty() {
            tracing::info!(why, "certificates, keys and policy were read again");
        } else {
            let wrong = wrong.join("; ");
            tracing::error!(
                why,
                error = wrong,
                "certificates, keys or policy cannot be read; the former stay in force"
            );
            record = record.with("custody.audit.error", wrong);
        }
        self.audit.say(record);
    }

    /// The record that says what guards the listeners from here on.
    pub fn in_force(&self, action: &str) -> SystemRecord {
        let state = |on: bool| if on { "on" } else { "off" };
        let record = SystemRecord::new(CONFIG)
            .with("custody.audit.action", action)
            .with("custody.audit.tls", state(self.tls.is_some()))
            .with("custody.audit.client_certificates", state(self.tls.as_ref().is_some_and(|tls| tls.knows_clients())))
            .with("custody.audit.mode", self.watched.name());
        match &self.auth {
            Some(auth) => record.with("custody.audit.policy_blake3", auth.digest()),
            None => record,
        }
    }

    /// What there is to say in metrics.
    pub fn families(&self) -> Vec<Family> {
        let row = |at: usize, outcome: &str| {
            (vec![("outcome", outcome.to_owned())], Value::Counter(self.reloads[at].load(Relaxed) as f64))
        };
        let rows = vec![row(0, "ok"), row(1, "failed")];
        let help = "Times that certificates, keys and policy were read again";
        let mut out = Auth::families(self.auth.as_deref());
        out.push(Family { name: "custody_auth_reloads", help, rows });
        out.extend(self.tls.as_ref().map_or_else(custody_ingest::tls::no_families, |tls| tls.families()));
        out
    }
}

/// The files after they were read, each as it was seen before that: what changed meanwhile is read again, and so is
/// what the policy names only since.
fn read_as(before: &[(PathBuf, Seen)], after: Vec<(PathBuf, Seen)>) -> Vec<(PathBuf, Seen)> {
    let before: HashMap<&Path, Seen> = before.iter().map(|(path, seen)| (path.as_path(), *seen)).collect();
    let of = |path: &Path| before.get(path).copied().flatten();
    after.into_iter().map(|(path, _)| (path.clone(), of(&path))).collect()
}

fn look_at(path: &Path) -> Seen {
    use std::os::unix::fs::MetadataExt as _;
    let data = std::fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), data.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_while_it_is_read_is_read_again() {
        let at = |second: u64| Some((SystemTime::UNIX_EPOCH + Duration::from_secs(second), 1, 1));
        let (policy, keys, new) = (PathBuf::from("policy"), PathBuf::from("keys"), PathBuf::from("new"));
        let before = [(policy.clone(), at(1)), (keys.clone(), at(1))];
        // The keys change behind the reader, and the policy names one file more and one of them twice.
        let after = vec![(policy.clone(), at(1)), (keys.clone(), at(2)), (new.clone(), at(1)), (keys.clone(), at(2))];
        let known = read_as(&before, after);
        assert_eq!(known, [(policy, at(1)), (keys.clone(), at(1)), (new, None), (keys, at(1))]);
        assert_eq!(read_as(&before, before.to_vec()), before);
    }
}
