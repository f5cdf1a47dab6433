//! C2SP signed notes: keys, signature lines and what each kind of key signs.
//!
//! A log signs its checkpoints with Ed25519 (type 01, which witnesses require) and
//! ML-DSA-44 (type 06) under one name. A witness cosigns with Ed25519 (type 04) or
//! ML-DSA-44 (type 06). Other texts (receipts, bundles) are signed with type 01 only.
//!
//! The crate `signed_note` parses notes; its keys know Ed25519 only, so the keys are here.

use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::checkpoint::Checkpoint;

/// What a key signs, and how: the signature types of C2SP signed-note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// Type 01: Ed25519 over the text of a note.
    Ed25519 = 1,
    /// Type 04: Ed25519 over time and checkpoint (C2SP tlog-cosignature).
    Ed25519Cosignature = 4,
    /// Type 06: ML-DSA-44 over name, time, origin, size and root (C2SP tlog-cosignature).
    MlDsa44 = 6,
}

impl Algorithm {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ed25519, Self::Ed25519Cosignature, Self::MlDsa44].into_iter().find(|a| *a as u8 == byte)
    }

    /// Bytes of a public key.
    pub fn public_bytes(self) -> usize {
        match self {
            Self::Ed25519 | Self::Ed25519Cosignature => 32,
            Self::MlDsa44 => 1312,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ed25519 => "Ed25519",
            Self::Ed25519Cosignature => "Ed25519 cosignature",
            Self::MlDsa44 => "ML-DSA-44",
        })
    }
}

/// A public key under its name: a `vkey`, `name+id+base64(type ‖ key)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    algorithm: Algorithm,
    public: Vec<u8>,
    id: u32,
}

impl VerifierKey {
    /// A key of this name; refused if the name or the length is wrong.
    pub fn new(name: &str, algorithm: Algorithm, public: &[u8]) -> Result<Self, Error> {
        if !signed_note::is_key_name_valid(name) || name.len() > 255 {
            return Err(Error::invalid(format!(
                "{name:?} cannot be the name of a key: it is empty, longer than 255 bytes, or has a space or a +"
            )));
        }
        if public.len() != algorithm.public_bytes() {
            return Err(Error::invalid(format!(
                "the public key of {name} has {} bytes; {algorithm} has {}",
                public.len(),
                algorithm.public_bytes()
            )));
        }
        let id = signed_note::key_id(name, &[&[algorithm as u8][..], public].concat());
        Ok(Self { name: name.to_owned(), algorithm, public: public.to_vec(), id })
    }

    /// Reads a vkey.
    pub fn parse(vkey: &str) -> Result<Self, Error> {
        let wrong = |what: &str| Error::invalid(format!("not a verifier key (name+id+base64): {what}"));
        let mut parts = vkey.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it has fewer than two +"));
        };
        let bytes = STANDARD.decode(key).map_err(|_| wrong("its key is not base64"))?;
        let (&algorithm, public) = bytes.split_first().ok_or_else(|| wrong("its key is empty"))?;
        let algorithm = Algorithm::from_byte(algorithm)
            .ok_or_else(|| wrong("its type is none of 01 (Ed25519), 04 (Ed25519 cosignature), 06 (ML-DSA-44)"))?;
        let read = Self::new(name, algorithm, public)?;
        if id.len() != 8 || u32::from_str_radix(id, 16) != Ok(read.id) {
            return Err(wrong("its id is not that of its key"));
        }
        Ok(read)
    }

    /// The name: of a log, its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it signs.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw public key.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Whether this raw signature over a message is by this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::Ed25519 | Algorithm::Ed25519Cosignature => {
                UnparsedPublicKey::new(&signature::ED25519, &self.public).verify(message, signature).is_ok()
            }
            Algorithm::MlDsa44 => {
                UnparsedPublicKey::new(&signature::ML_DSA_44, &self.public).verify(message, signature).is_ok()
            }
        }
    }

    /// What a key of this name and algorithm signs of a note's text.
    /// ML-DSA-44 signs checkpoints and nothing else: `None` for other texts.
    pub(crate) fn message(&self, text: &str, time: u64) -> Option<Vec<u8>> {
        Some(match self.algorithm {
            Algorithm::Ed25519 => text.as_bytes().to_vec(),
            Algorithm::Ed25519Cosignature => {
                Checkpoint::parse_text(text).ok()?;
                format!("cosignature/v1\ntime {time}\n{text}").into_bytes()
            }
            Algorithm::MlDsa44 => cosigned_message(&self.name, time, &Checkpoint::parse_text(text).ok()?)?,
        })
    }

    /// Looks for this key's signature on a note. `Ok(None)` if it has none; an
    /// error if it has one that does not verify.
    pub fn find(&self, note: &Note) -> Result<Option<Signed>, Error> {
        let mut found = None;
        for line in note.lines.iter().filter(|line| line.name == self.name && line.id == self.id) {
            let signed = self.check(&note.text, line);
            let bad = || Error::corrupt(format!("a signature by {} ({}) does not verify", self.name, self.algorithm));
            found = Some(signed.ok_or_else(bad)?);
        }
        Ok(found)
    }

    /// Whether this line is its signature of this text, and when it says it signed.
    fn check(&self, text: &str, line: &Line) -> Option<Signed> {
        let (time, signature) = match self.algorithm {
            Algorithm::Ed25519 => (None, &line.signature[..]),
            _ => {
                let (time, signature) = line.signature.split_first_chunk::<8>()?;
                (Some(u64::from_be_bytes(*time)), signature)
            }
        };
        let message = self.message(text, time.unwrap_or(0))?;
        self.verifies(&message, signature).then_some(Signed { time })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[self.algorithm as u8][..], &self.public].concat());
        write!(f, "{}+{:08x}+{key}", self.name, self.id)
    }
}

/// That a key signed, and when it says it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Seconds since the Unix epoch; `None` for signatures without a time (type 01).
    pub time: Option<u64>,
}

/// The ML-DSA-44 message (C2SP tlog-cosignature): `cosigned_message` of a whole tree.
fn cosigned_message(name: &str, time: u64, checkpoint: &Checkpoint) -> Option<Vec<u8>> {
    let mut out = b"subtree/v1\n\0".to_vec();
    out.push(u8::try_from(name.len()).ok()?);
    out.extend(name.as_bytes());
    out.extend(time.to_be_bytes());
    out.push(u8::try_from(checkpoint.origin.len()).ok()?);
    out.extend(checkpoint.origin.as_bytes());
    out.extend(0u64.to_be_bytes());
    out.extend(checkpoint.size.to_be_bytes());
    out.extend(checkpoint.root);
    Some(out)
}

/// A signature line: who, with which key, and the signature's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The key's name.
    pub name: String,
    /// The key's id.
    pub id: u32,
    /// The signature; behind a u64 time for cosignatures.
    pub signature: Vec<u8>,
}

impl Line {
    /// Reads a line, with or without its newline.
    pub fn parse(line: &str) -> Result<Self, Error> {
        let read = signed_note::Signature::from_bytes(line.trim_end_matches('\n').as_bytes());
        let read = read.map_err(|_| Error::corrupt("a signature line is not `— name base64`"))?;
        Ok(Self { name: read.name().to_owned(), id: read.id(), signature: read.signature().to_vec() })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blob = STANDARD.encode([&self.id.to_be_bytes()[..], &self.signature].concat());
        write!(f, "\u{2014} {} {blob}", self.name)
    }
}

/// A text and the signatures under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The text, with its last newline.
    pub text: String,
    /// The signatures, in order.
    pub lines: Vec<Line>,
}

impl Note {
    /// Reads a note. No signature is looked at.
    pub fn parse(note: &str) -> Result<Self, Error> {
        // signed_note checks size, control characters and every line.
        signed_note::Note::from_bytes(note.as_bytes())
            .map_err(|_| Error::corrupt("it is not a signed note (text, blank line, `— name signature` lines)"))?;
        let (text, lines) = note.rsplit_once("\n\n").ok_or_else(|| Error::corrupt("it is not a signed note"))?;
        let lines = lines.lines().map(Line::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: format!("{text}\n"), lines })
    }

    /// The lines that are signatures by these keys and verify, one for each key at
    /// most. Others (of unknown keys, or false ones) are left out.
    pub fn signed_by(&self, keys: &[VerifierKey]) -> Vec<Line> {
        let of = |key: &VerifierKey| {
            let mut lines = self.lines.iter().filter(|line| line.name == key.name && line.id == key.id);
            lines.find(|line| key.check(&self.text, line).is_some()).cloned()
        };
        keys.iter().filter_map(of).collect()
    }

    /// Adds the signatures of `other` that this note has not.
    pub fn merge(&mut self, other: impl IntoIterator<Item = Line>) {
        for line in other {
            if !self.lines.iter().any(|l| l.name == line.name && l.id == line.id) {
                self.lines.push(line);
            }
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// SHA-256 in lowercase hexadecimal: how texts that are signed name other bytes.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    const_hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;
    use proptest::prelude::*;

    fn key(algorithm: Algorithm) -> SigningKey {
        SigningKey::from_seed("example.com/log", algorithm, &[7; 32]).unwrap()
    }

    fn note() -> Note {
        let text = Checkpoint { origin: "example.com/log".into(), size: 9, root: [3; 32] }.body();
        Note { text, lines: vec![] }
    }

    #[test]
    fn every_kind_of_key_signs_a_checkpoint_and_no_changed_byte_passes() {
        for algorithm in [Algorithm::Ed25519, Algorithm::Ed25519Cosignature, Algorithm::MlDsa44] {
            let key = key(algorithm);
            let mut note = note();
            note.lines.push(key.sign(&note.text, 1_700_000_000).unwrap());
            let read = Note::parse(&note.to_string()).unwrap();
            assert_eq!(read, note);
            let signed = key.verifier().find(&read).unwrap().unwrap();
            assert_eq!(signed.time, (algorithm != Algorithm::Ed25519).then_some(1_700_000_000));
            for at in 0..read.lines[0].signature.len() {
                let mut changed = read.clone();
                changed.lines[0].signature[at] ^= 1;
                assert!(key.verifier().find(&changed).is_err(), "{algorithm}, byte {at}");
            }
            let mut changed = read.clone();
            changed.text = changed.text.replace('9', "8");
            assert!(key.verifier().find(&changed).is_err());
        }
    }

    #[test]
    fn ml_dsa_signs_checkpoints_only() {
        assert!(key(Algorithm::MlDsa44).sign("another text\n", 0).is_err());
    }

    #[test]
    fn an_outside_implementation_accepts_the_ed25519_signature_and_key() {
        let key = key(Algorithm::Ed25519);
        let mut note = note();
        note.lines.push(key.sign(&note.text, 0).unwrap());
        let verifier = signed_note::StandardVerifier::new(&key.verifier().to_string()).unwrap();
        let parsed = signed_note::Note::from_bytes(note.to_string().as_bytes()).unwrap();
        let (good, _) = parsed.verify(&signed_note::VerifierList::new(vec![Box::new(verifier)])).unwrap();
        assert_eq!(good.len(), 1);
    }

    proptest! {
        #[test]
        fn keys_survive_the_round_trip(name in "[a-z./]{1,30}", seed: [u8; 32], kind in 0usize..3) {
            let algorithm = [Algorithm::Ed25519, Algorithm::Ed25519Cosignature, Algorithm::MlDsa44][kind];
            let key = SigningKey::from_seed(&name, algorithm, &seed).unwrap();
            prop_assert_eq!(&VerifierKey::parse(&key.verifier().to_string()).unwrap(), key.verifier());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,200}", lines in "(\u{2014} [a-z]{1,5} [A-Za-z0-9+/=]{0,20}\n){0,3}") {
            let _ = VerifierKey::parse(&text);
            let _ = Line::parse(&text);
            let _ = Note::parse(&format!("{text}\n\n{lines}"));
        }
    }
}
