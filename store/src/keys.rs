//! The secrets of a log: the keys that sign and the secret of its submitter ids.
//!
//! A signing key is a line in the note signer form that the transparency-log
//! ecosystem uses (`PRIVATE+KEY+name+id+base64(type ‖ seed)`), in a file or an
//! environment variable; or it is held by another process, which signs over a Unix
//! socket (docs/operations.md, "Signing elsewhere"):
//!
//! ```text
//! > keys                                     < key <vkey>          (for each key)
//!                                            < end
//! > sign <key id, 8 hex> <message, base64>   < signature <base64>
//!                                            < error <reason>      (instead of either)
//! ```

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _, ML_DSA_44_SIGNING, PqdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Error;
use crate::checkpoint::{Checkpoint, replace, sync_dir};
use crate::commit::random;
use crate::note::{Algorithm, Line, Note, VerifierKey};

/// How long another process may take to sign.
const SIGNER_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the signing keys are.
#[derive(Clone, Debug, Default)]
pub enum KeySource {
    /// `keys/log.key` in the data directory; made if it is not there.
    #[default]
    Directory,
    /// A file of the same form elsewhere; never written.
    File(PathBuf),
    /// The same lines, from an environment variable.
    Text(String),
    /// Another process, which signs over this Unix socket.
    Socket(PathBuf),
}

/// A key that signs.
pub struct SigningKey {
    verifier: VerifierKey,
    secret: Secret,
}

enum Secret {
    Ed25519(Ed25519KeyPair),
    MlDsa44(PqdsaKeyPair),
    Elsewhere(PathBuf),
}

impl SigningKey {
    /// The key of a seed of 32 bytes.
    pub fn from_seed(name: &str, algorithm: Algorithm, seed: &[u8]) -> Result<Self, Error> {
        let refused = |e: aws_lc_rs::error::KeyRejected| Error::invalid(format!("the signing key is not usable: {e}"));
        let (public, secret) = match algorithm {
            Algorithm::Ed25519 | Algorithm::Ed25519Cosignature => {
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(refused)?;
                (pair.public_key().as_ref().to_vec(), Secret::Ed25519(pair))
            }
            Algorithm::MlDsa44 => {
                let pair = PqdsaKeyPair::from_seed(&ML_DSA_44_SIGNING, seed).map_err(refused)?;
                (pair.public_key().as_ref().to_vec(), Secret::MlDsa44(pair))
            }
        };
        Ok(Self { verifier: VerifierKey::new(name, algorithm, &public)?, secret })
    }

    /// A new key, and the line that keeps it.
    pub fn generate(name: &str, algorithm: Algorithm) -> Result<(Self, String), Error> {
        let mut seed = [0; 32];
        random(&mut seed);
        let key = Self::from_seed(name, algorithm, &seed)?;
        let secret = STANDARD.encode([&[algorithm as u8][..], &seed].concat());
        let line = format!("PRIVATE+KEY+{name}+{:08x}+{secret}", key.verifier.id());
        Ok((key, line))
    }

    /// Reads a note signer key.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("PRIVATE+KEY+")?;
        let (name, rest) = rest.split_once('+')?;
        let (id, secret) = rest.split_once('+')?;
        let bytes = STANDARD.decode(secret).ok()?;
        let (&algorithm, seed) = bytes.split_first()?;
        let key = Self::from_seed(name, Algorithm::from_byte(algorithm)?, seed).ok()?;
        (u32::from_str_radix(id, 16).ok()? == key.verifier.id()).then_some(key)
    }

    /// The public side.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs a message as it is.
    pub fn sign_raw(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        match &self.secret {
            Secret::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Secret::MlDsa44(pair) => {
                let mut out = vec![0; ML_DSA_44_SIGNING.signature_len()];
                let signed = pair.sign(message, &mut out);
                signed.map(|_| out).map_err(|_| Error::fatal("the ML-DSA-44 key does not sign"))
            }
            Secret::Elsewhere(socket) => sign_elsewhere(socket, &self.verifier, message),
        }
    }

    /// Signs the text of a note, as the key's type demands. `time` is in seconds
    /// since the Unix epoch and goes into cosignatures.
    pub fn sign(&self, text: &str, time: u64) -> Result<Line, Error> {
        let key = &self.verifier;
        let message = key.message(text, time);
        let message = message.ok_or_else(|| Error::invalid(format!("{} signs checkpoints only", key.algorithm())))?;
        let raw = self.sign_raw(&message)?;
        let signature = match key.algorithm() {
            Algorithm::Ed25519 => raw,
            _ => [&time.to_be_bytes()[..], &raw].concat(),
        };
        Ok(Line { name: key.name().to_owned(), id: key.id(), signature })
    }
}

/// All keys of a log. The first is Ed25519 and signs every text.
pub struct SigningKeys(Vec<SigningKey>);

impl SigningKeys {
    /// New keys of both kinds for this origin, and the file that keeps them.
    pub fn generate(origin: &str) -> Result<(Self, String), Error> {
        let (first, a) = SigningKey::generate(origin, Algorithm::Ed25519)?;
        let (second, b) = SigningKey::generate(origin, Algorithm::MlDsa44)?;
        Ok((Self(vec![first, second]), format!("{a}\n{b}\n")))
    }

    /// Reads note signer keys, a line each.
    pub fn parse(text: &str, whence: &str) -> Result<Self, Error> {
        let wrong = |n| {
            Error::invalid(format!(
                "{whence}, line {n}, is not a note signer key (PRIVATE+KEY+name+id+base64, Ed25519 or ML-DSA-44)"
            ))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let keys = lines.map(|(n, line)| SigningKey::parse(line).ok_or_else(|| wrong(n + 1)));
        Self::checked(keys.collect::<Result<_, _>>()?, whence)
    }

    fn checked(mut keys: Vec<SigningKey>, whence: &str) -> Result<Self, Error> {
        keys.sort_by_key(|key| key.verifier.algorithm() as u8);
        let algorithms: Vec<_> = keys.iter().map(|key| key.verifier.algorithm()).collect();
        if !matches!(algorithms[..], [Algorithm::Ed25519] | [Algorithm::Ed25519, Algorithm::MlDsa44]) {
            return Err(Error::invalid(format!(
                "{whence} must hold one Ed25519 key (type 01) and, beside it, at most one ML-DSA-44 key (type 06)"
            )));
        }
        if keys.iter().any(|key| key.verifier.name() != keys[0].verifier.name()) {
            return Err(Error::invalid(format!("the keys in {whence} have different names")));
        }
        Ok(Self(keys))
    }

    /// Opens the keys of a log. A file in the data directory that is not there is made.
    pub(crate) fn open(source: &KeySource, dir: &Path, origin: &str, fresh: bool) -> Result<Self, Error> {
        match source {
            KeySource::Directory => {
                let path = in_directory(dir);
                if !path.exists() {
                    if !fresh {
                        return Err(missing(&path));
                    }
                    write_secret(&path, Self::generate(origin)?.1.as_bytes())?;
                }
                Self::read(&path)
            }
            KeySource::File(path) => Self::read(path),
            KeySource::Text(text) => Self::parse(text, "the environment's signing key"),
            KeySource::Socket(path) => Self::elsewhere(path),
        }
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn elsewhere(socket: &Path) -> Result<Self, Error> {
        let whence = format!("the signer at {}", socket.display());
        let keys = ask(socket, "keys")?.into_iter().map(|line| {
            let vkey = line.strip_prefix("key ").ok_or_else(|| Error::unavailable(format!("{whence}: {line}")))?;
            Ok(SigningKey { verifier: VerifierKey::parse(vkey)?, secret: Secret::Elsewhere(socket.to_owned()) })
        });
        Self::checked(keys.collect::<Result<_, Error>>()?, &whence)
    }

    /// The name that they sign for.
    pub fn name(&self) -> &str {
        self.0[0].verifier.name()
    }

    /// The keys, Ed25519 first.
    pub fn all(&self) -> &[SigningKey] {
        &self.0
    }

    /// The public keys, Ed25519 first.
    pub fn verifiers(&self) -> Vec<VerifierKey> {
        self.0.iter().map(|key| key.verifier.clone()).collect()
    }

    /// Signs a checkpoint with every key.
    pub(crate) fn sign_checkpoint(&self, checkpoint: &Checkpoint, time: u64) -> Result<Note, Error> {
        let text = checkpoint.body();
        let lines = self.0.iter().map(|key| key.sign(&text, time)).collect::<Result<_, _>>()?;
        Ok(Note { text, lines })
    }

    /// Signs another text, with Ed25519.
    pub(crate) fn sign_text(&self, text: String) -> Result<Note, Error> {
        let line = self.0[0].sign(&text, 0)?;
        Ok(Note { text, lines: vec![line] })
    }
}

/// Asks a signer; gives its lines, without `end`.
fn ask(socket: &Path, question: &str) -> Result<Vec<String>, Error> {
    let fail = |e: std::io::Error| {
        Error::unavailable(format!("the signer at {} does not answer: {e}; is it running?", socket.display()))
    };
    let mut stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(SIGNER_TIMEOUT)).map_err(fail)?;
    stream.set_write_timeout(Some(SIGNER_TIMEOUT)).map_err(fail)?;
    stream.write_all(format!("{question}\n").as_bytes()).map_err(fail)?;
    let mut out = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(fail)?;
        if let Some(reason) = line.strip_prefix("error ") {
            return Err(Error::unavailable(format!("the signer at {} refuses: {reason}", socket.display())));
        }
        if line == "end" || out.len() > 16 {
            break;
        }
        let last = line.starts_with("signature ");
        out.push(line);
        if last {
            break;
        }
    }
    Ok(out)
}

fn sign_elsewhere(socket: &Path, key: &VerifierKey, message: &[u8]) -> Result<Vec<u8>, Error> {
    let answer = ask(socket, &format!("sign {:08x} {}", key.id(), STANDARD.encode(message)))?;
    let signature = answer.first().and_then(|line| line.strip_prefix("signature "));
    let signature = signature.and_then(|text| STANDARD.decode(text).ok());
    // What another process signed is checked before anybody sees it.
    match signature {
        Some(signature) if key.verifies(message, &signature) => Ok(signature),
        _ => Err(Error::unavailable(format!("the signer at {} gave no valid signature", socket.display()))),
    }
}

/// Answers one line of the signer protocol: what `custody signer` does.
pub fn answer_signer(keys: &SigningKeys, question: &str) -> String {
    let answer = || {
        if question == "keys" {
            let keys: String = keys.0.iter().map(|key| format!("key {}\n", key.verifier)).collect();
            return Ok(format!("{keys}end\n"));
        }
        let rest = question.strip_prefix("sign ").ok_or("it knows `keys` and `sign <id> <base64>`")?;
        let (id, message) = rest.split_once(' ').ok_or("sign takes an id and a message")?;
        let id = u32::from_str_radix(id, 16).map_err(|_| "the id is not hexadecimal")?;
        let message = STANDARD.decode(message).map_err(|_| "the message is not base64")?;
        let key = keys.0.iter().find(|key| key.verifier.id() == id).ok_or("it has no key of this id")?;
        let signature = key.sign_raw(&message).map_err(|_| "the key does not sign")?;
        Ok::<_, &str>(format!("signature {}\n", STANDARD.encode(signature)))
    };
    answer().unwrap_or_else(|reason| format!("error {reason}\n"))
}

/// The secret that turns identities into submitter ids, so that mirrors of the
/// entries learn nothing about who sent them.
pub(crate) struct SubmitterSecret([u8; 32]);

impl SubmitterSecret {
    /// Reads the secret; a fresh log makes one. A log that has records must not get
    /// another: its submitters' counters would begin again.
    pub(crate) fn open(path: &Path, fresh: bool) -> Result<Self, Error> {
        if !path.exists() && !fresh {
            return Err(missing(path));
        }
        if !path.exists() {
            let mut secret = [0; 32];
            random(&mut secret);
            write_secret(path, format!("{}\n", const_hex::encode(secret)).as_bytes())?;
        }
        let text = fs::read_to_string(path).map_err(|e| Error::invalid(format!("{}: {e}", path.display())))?;
        let mut secret = [0; 32];
        const_hex::decode_to_slice(text.trim(), &mut secret)
            .map_err(|_| Error::invalid(format!("{} does not hold 64 hexadecimal digits", path.display())))?;
        Ok(Self(secret))
    }

    /// The seed of the keys under which requests are recognised.
    pub(crate) fn request_seed(&self) -> u64 {
        let hash = blake3::keyed_hash(&self.0, b"custody requests v1");
        u64::from_be_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
    }

    /// Another secret, from which this one cannot be told.
    pub(crate) fn derive(&self, context: &'static str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    /// The submitter id of an identity: keyed BLAKE3, first 16 bytes.
    pub(crate) fn submitter(&self, identity: &str) -> [u8; 16] {
        let hash = blake3::keyed_hash(&self.0, identity.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        id
    }
}

/// Writes a file that only its owner may read, durably and whole or not at all, in a
/// directory that only its owner may enter.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let fail = |e: std::io::Error| Error::invalid(format!("{} cannot be written: {e}", path.display()));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    if let Some(dir) = dir {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
        // Else a power cut could take the directory, and the file with it.
        sync_dir(dir.parent().unwrap_or(Path::new(""))).map_err(fail)?;
    }
    replace(path, bytes, 0o600).map_err(fail)
}

/// Where a data directory keeps its log's keys.
pub(crate) fn in_directory(dir: &Path) -> PathBuf {
    dir.join("keys/log.key")
}

/// Another key in its place would be another log.
pub(crate) fn missing(path: &Path) -> Error {
    Error::invalid(format!("{} is missing, but the log has records; restore it from a copy", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_a_file_sign_and_a_changed_line_is_refused_by_its_number() {
        let (keys, text) = SigningKeys::generate("example.com/log").unwrap();
        let read = SigningKeys::parse(&text, "the file").unwrap();
        assert_eq!(read.verifiers(), keys.verifiers());
        let changed = text.replacen("+example.com/log+", "+example.com/other+", 2).replacen("other", "log", 1);
        let Err(error) = SigningKeys::parse(&changed, "the file") else { panic!("it was read") };
        assert!(error.to_string().starts_with("the file, line 2,"), "{error}");
        let Err(error) = SigningKeys::parse(text.lines().nth(1).unwrap(), "the file") else { panic!("it was read") };
        assert!(error.to_string().contains("one Ed25519 key"), "{error}");
    }

    #[test]
    fn a_signer_elsewhere_signs_the_same_and_a_false_signature_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("signer.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (keys, text) = SigningKeys::generate("example.com/log").unwrap();
        let held = SigningKeys::parse(&text, "the file").unwrap();
        let serve = std::thread::Builder::new().spawn(move || {
            // keys, two signatures, then one that is false
            for round in 0..4 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let mut answer = answer_signer(&held, line.trim_end());
                if round == 3 {
                    answer = format!("signature {}\n", STANDARD.encode([1; 64]));
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let serve = serve.unwrap();
        let far = SigningKeys::open(&KeySource::Socket(socket), dir.path(), "example.com/log", true).unwrap();
        assert_eq!(far.verifiers(), keys.verifiers());
        let checkpoint = Checkpoint { origin: "example.com/log".into(), size: 9, root: [3; 32] };
        let note = far.sign_checkpoint(&checkpoint, 7).unwrap();
        for key in keys.verifiers() {
            assert!(key.find(&note).unwrap().is_some());
        }
        let Err(error) = far.sign_text("a text\n".into()) else { panic!("a false signature was taken") };
        assert!(error.to_string().contains("no valid signature"), "{error}");
        serve.join().unwrap();
    }
}
