//! What the tokens of senders said of them, for later: which tenants a sender may speak for is asked
//! when somebody looks at his records, and then his token is not there.
//!
//! Kept are the claims that rules of the policy speak of, as they were when he came in last, and of
//! nobody who may not send. They are in `senders.json` of the data directory, so a restart forgets
//! nobody; it is written at most once a second, so a crash may forget who came in the last one, until he
//! comes again. It is no evidence: the record of what he sent says who he is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Senders that are remembered; of more, those who did not come in for the longest time are forgotten.
const SENDERS_MAX: usize = 50_000;

/// Bytes of the claims of one; a rule cannot be asked about a sender who has more.
const CLAIMS_BYTES_MAX: usize = 2048;

/// What a sender's token said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Said {
    /// When he came in with other claims than before, in seconds since the Unix epoch.
    time: u64,
    claims: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    senders: HashMap<String, Said>,
}

/// The senders of one log.
pub struct Senders {
    path: PathBuf,
    said: Mutex<HashMap<String, Said>>,
    changed: AtomicBool,
}

impl Senders {
    /// Those of a data directory.
    ///
    /// # Errors
    ///
    /// If the file is there and cannot be read: it would be written over.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join("senders.json");
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}; mend it or take it away", path.display());
        let said = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(e) => return Err(wrong(&e)),
            Ok(bytes) => match serde_json::from_slice::<File>(&bytes) {
                Ok(file) if file.version == 1 => file.senders,
                Ok(file) => return Err(wrong(&format!("it is of version {}", file.version))),
                Err(e) => return Err(wrong(&e)),
            },
        };
        Ok(Self { path, said: Mutex::new(said), changed: AtomicBool::new(false) })
    }

    /// A sender came in with a token; `spoken_of` are the claims that rules look at.
    pub fn came<'a>(&self, identity: &str, claims: &Value, spoken_of: impl Iterator<Item = &'a str>, now: u64) {
        let kept = spoken_of.filter_map(|name| Some((name.to_owned(), claims.get(name)?.clone())));
        let claims: Map<String, Value> = kept.collect();
        let too_long = serde_json::to_string(&claims).map_or(usize::MAX, |text| text.len()) > CLAIMS_BYTES_MAX;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match too_long {
            true => said.remove(identity).is_some(),
            false if said.get(identity).is_some_and(|said| said.claims == claims) => false,
            false => {
                said.insert(identity.to_owned(), Said { time: now, claims });
                true
            }
        };
        if said.len() > SENDERS_MAX {
            let mut times: Vec<u64> = said.values().map(|said| said.time).collect();
            let (_, oldest, _) = times.select_nth_unstable(SENDERS_MAX / 8);
            let oldest = *oldest;
            said.retain(|who, said| said.time > oldest || who == identity);
        }
        drop(said);
        if changed {
            self.changed.store(true, Release);
        }
    }

    /// What the token of a sender said when he came in last.
    pub fn claims(&self, identity: &str) -> Option<Value> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(identity).map(|said| Value::Object(said.claims.clone()))
    }

    /// Writes the file, if anything changed. A crash within leaves the old one or the new one.
    pub fn save(&self) {
        if !self.changed.swap(false, AcqRel) {
            return;
        }
        let senders = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = serde_json::to_vec(&File { version: 1, senders }).unwrap_or_default();
        let new = self.path.with_extension("new");
        let write = || {
            use std::io::Write as _;
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut options = std::fs::OpenOptions::new();
            // What tokens say of people is the owner's alone.
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, path = %self.path.display(), "what senders' tokens said cannot be kept");
            self.changed.store(true, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_rules_speak_of_is_kept_over_a_restart_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let senders = Senders::open(dir.path()).unwrap();
        let token = json!({"groups": ["a"], "email": "ann@example.com", "exp": 9});
        senders.came("jwt:idp#ann", &token, ["groups", "team"].into_iter(), 7);
        senders.came("jwt:idp#long", &json!({"groups": "x".repeat(CLAIMS_BYTES_MAX)}), ["groups"].into_iter(), 7);
        senders.save();
        let text = std::fs::read_to_string(dir.path().join("senders.json")).unwrap();
        assert!(!text.contains("example.com") && !text.contains("exp"), "{text}");
        let again = Senders::open(dir.path()).unwrap();
        assert_eq!(again.claims("jwt:idp#ann"), Some(json!({"groups": ["a"]})));
        assert_eq!((again.claims("jwt:idp#long"), again.claims("jwt:idp#bob")), (None, None));
        std::fs::write(dir.path().join("senders.json"), "torn").unwrap();
        assert!(Senders::open(dir.path()).is_err());
    }

    #[test]
    fn there_are_never_more_than_fit() {
        let dir = tempfile::tempdir().unwrap();
        let senders = Senders::open(dir.path()).unwrap();
        for n in 0..SENDERS_MAX as u64 + 10 {
            senders.came(&format!("jwt:idp#{n}"), &json!({"g": "a"}), ["g"].into_iter(), n);
        }
        assert_eq!(senders.claims("jwt:idp#0"), None, "who came first is forgotten first");
        assert!(senders.claims(&format!("jwt:idp#{}", SENDERS_MAX + 9)).is_some());
        assert!(senders.said.lock().unwrap().len() <= SENDERS_MAX);
    }
}
