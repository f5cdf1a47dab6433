//! The secrets of a log: its signing key and the secret of its submitter ids.
//!
//! The signing key is a file in the note signer format that the transparency-log
//! ecosystem uses (`PRIVATE+KEY+name+id+base64`), so that its tools read it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::Error;
use crate::checkpoint::{key_id, replace};
use crate::commit::random;

/// The algorithm byte of Ed25519 in keys and key ids (C2SP signed-note).
pub(crate) const ED25519: u8 = 1;

/// The Ed25519 key that signs checkpoints.
pub(crate) struct SigningKey {
    name: String,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Reads the key, or makes one for this origin when there is none and the log is new.
    pub(crate) fn open(path: &Path, origin: &str, new: bool) -> Result<Self, Error> {
        if let Some(key) = Self::read(path)? {
            return Ok(key);
        }
        if !new {
            return Err(missing(path));
        }
        let mut seed = [0; 32];
        random(&mut seed);
        let key = Self::from_seed(origin, &seed)?;
        let secret = STANDARD.encode([&[ED25519][..], &seed].concat());
        let text = format!("PRIVATE+KEY+{origin}+{:08x}+{secret}\n", key.id());
        write_secret(path, text.as_bytes())?;
        Ok(key)
    }

    /// Reads the key, if there is one.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let Some(text) = read_secret(path)? else { return Ok(None) };
        Self::parse(text.trim()).map(Some).ok_or_else(|| {
            Error::invalid(format!("{} is not an Ed25519 note signer key (PRIVATE+KEY+...)", path.display()))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("PRIVATE+KEY+")?;
        let (name, rest) = rest.split_once('+')?;
        let (id, secret) = rest.split_once('+')?;
        let bytes = STANDARD.decode(secret).ok()?;
        let (&algorithm, seed) = bytes.split_first()?;
        let key = Self::from_seed(name, seed).ok()?;
        (algorithm == ED25519 && u32::from_str_radix(id, 16).ok()? == key.id()).then_some(key)
    }

    pub(crate) fn from_seed(name: &str, seed: &[u8]) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|e| Error::invalid(format!("the signing key is not usable: {e}")))?;
        Ok(Self { name: name.to_owned(), pair })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn public(&self) -> Vec<u8> {
        [&[ED25519][..], self.pair.public_key().as_ref()].concat()
    }

    pub(crate) fn id(&self) -> u32 {
        key_id(&self.name, &self.public())
    }

    /// The public key, as verifiers take it: `name+id+base64`.
    pub(crate) fn vkey(&self) -> String {
        format!("{}+{:08x}+{}", self.name, self.id(), STANDARD.encode(self.public()))
    }

    pub(crate) fn sign(&self, text: &[u8]) -> Vec<u8> {
        self.pair.sign(text).as_ref().to_vec()
    }
}

/// The secret that turns identities into submitter ids, so that mirrors of the
/// entries learn nothing about who sent them.
pub(crate) struct SubmitterSecret([u8; 32]);

impl SubmitterSecret {
    /// Reads the secret, or makes one when there is none and the log is new.
    pub(crate) fn open(path: &Path, new: bool) -> Result<Self, Error> {
        let Some(text) = read_secret(path)? else {
            if !new {
                return Err(missing(path));
            }
            let mut secret = [0; 32];
            random(&mut secret);
            write_secret(path, format!("{}\n", const_hex::encode(secret)).as_bytes())?;
            return Ok(Self(secret));
        };
        let mut secret = [0; 32];
        const_hex::decode_to_slice(text.trim(), &mut secret)
            .map_err(|_| Error::invalid(format!("{} does not hold 64 hexadecimal digits", path.display())))?;
        Ok(Self(secret))
    }

    /// The submitter id of an identity: keyed BLAKE3, first 16 bytes.
    pub(crate) fn submitter(&self, identity: &str) -> [u8; 16] {
        let hash = blake3::keyed_hash(&self.0, identity.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        id
    }
}

fn read_secret(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::invalid(format!("{} cannot be read: {e}", path.display()))),
    }
}

/// Another key in its place would be another log.
pub(crate) fn missing(path: &Path) -> Error {
    Error::invalid(format!("{} is missing, but the log has records; restore it from a copy", path.display()))
}

/// Writes a file that only its owner may read, durably and whole or not at all, in
/// a directory that only its owner may enter.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let fail = |e: std::io::Error| Error::invalid(format!("{} cannot be written: {e}", path.display()));
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    }
    replace(path, bytes, 0o600).map_err(fail)
}
