//! COSE receipts (RFC 9942) of inclusion, as SCITT (RFC 9943) transparency services
//! give them: for those whose tools speak COSE and not C2SP notes.
//!
//! The leaf is the entry, the tree is RFC 9162's (which hashes as RFC 6962), and the
//! detached payload is the root. A receipt carries no cosignatures: the native form of
//! a proof is the tlog-proof.

use coset::cbor::value::Value;
use coset::{CborSerializable as _, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
use custody_proto::{ENTRY_BYTES, Hash};

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::note::VerifierKey;
use crate::proof::check_inclusion;
use crate::writer::Writer;

/// Header label of the verifiable data structure (RFC 9942).
const VDS: i64 = 395;
/// Its value for RFC 9162 trees over SHA-256.
const RFC9162_SHA256: i64 = 1;
/// Header label of the proofs.
const VDP: i64 = 396;
/// The label of inclusion proofs among them.
const INCLUSION: i64 = -1;
/// Header label of the CWT claims (RFC 9597).
const CWT_CLAIMS: i64 = 15;

impl Writer {
    /// A COSE receipt that a record is in the tree of the newest checkpoint.
    pub fn cose_receipt(&mut self, seq: u64) -> Result<Vec<u8>, Error> {
        self.checkpoint()?;
        let size = self.head_size();
        let (path, root) = (self.reader().inclusion(seq, size)?, self.reader().root_at(size)?);
        let key = &self.keys.all()[0];
        let integer = |n: u64| Value::Integer(n.into());
        let path = path.into_iter().map(|hash| Value::Bytes(hash.to_vec())).collect();
        let proof = Value::Array(vec![integer(size), integer(seq), Value::Array(path)]).to_vec();
        let proof = proof.map_err(|e| Error::invalid(format!("the receipt cannot be encoded: {e}")))?;
        let claims = [(1, Value::Text(key.verifier().name().to_owned())), (2, Value::Text(format!("record {seq}")))];
        let claims = claims.into_iter().map(|(label, claim)| (Value::Integer(label.into()), claim)).collect();
        let protected = HeaderBuilder::new()
            .algorithm(iana::Algorithm::EdDSA)
            .key_id(key.verifier().id().to_be_bytes().to_vec())
            .value(VDS, Value::Integer(RFC9162_SHA256.into()))
            .value(CWT_CLAIMS, Value::Map(claims))
            .build();
        let proofs = Value::Map(vec![(Value::Integer(INCLUSION.into()), Value::Array(vec![Value::Bytes(proof)]))]);
        let unprotected = HeaderBuilder::new().value(VDP, proofs).build();
        let receipt = CoseSign1Builder::new()
            .protected(protected)
            .unprotected(unprotected)
            .try_create_detached_signature(&root, b"", |message| key.sign_raw(message))?
            .build();
        receipt.to_tagged_vec().map_err(|e| Error::invalid(format!("the receipt cannot be encoded: {e}")))
    }
}

/// Checks a COSE receipt for an entry with the log's Ed25519 key; gives seq and size.
pub fn check_cose(receipt: &[u8], entry: &[u8; ENTRY_BYTES], key: &VerifierKey) -> Result<(u64, u64), Error> {
    let bad = |what: &str| Error::corrupt(format!("the COSE receipt {what}"));
    let receipt = CoseSign1::from_tagged_slice(receipt).map_err(|_| bad("is not a tagged COSE_Sign1"))?;
    if receipt.payload.is_some() {
        return Err(bad("has a payload; a receipt's is detached"));
    }
    let header = |header: &coset::Header, label| {
        let found = header.rest.iter().find(|(l, _)| *l == coset::Label::Int(label));
        found.map(|(_, value)| value.clone())
    };
    if header(&receipt.protected.header, VDS) != Some(Value::Integer(RFC9162_SHA256.into())) {
        return Err(bad("is not over an RFC 9162 tree"));
    }
    let proofs = header(&receipt.unprotected, VDP).and_then(|value| value.into_map().ok());
    let inclusion = proofs.and_then(|map| map.into_iter().find(|(l, _)| *l == Value::Integer(INCLUSION.into())));
    let proof = inclusion.and_then(|(_, list)| list.into_array().ok()?.into_iter().next()?.into_bytes().ok());
    let proof = proof.and_then(|bytes| Value::from_slice(&bytes).ok()?.into_array().ok());
    let (size, seq, path) = proof.and_then(read_proof).ok_or_else(|| bad("has no inclusion proof"))?;
    let root = root_of(entry, seq, size, &path).ok_or_else(|| bad("has a path that leads to no root"))?;
    let checkpoint = Checkpoint { origin: key.name().to_owned(), size, root };
    check_inclusion(&path, &checkpoint, seq, entry)?;
    let signed =
        receipt.verify_detached_signature(
            &root,
            b"",
            |signature, message| {
                if key.verifies(message, signature) { Ok(()) } else { Err(()) }
            },
        );
    signed.map_err(|()| bad("is not signed by the log's key for this entry"))?;
    Ok((seq, size))
}

fn read_proof(proof: Vec<Value>) -> Option<(u64, u64, Vec<Hash>)> {
    let [size, seq, path] = <[Value; 3]>::try_from(proof).ok()?;
    let number = |value: Value| value.into_integer().ok().and_then(|n| u64::try_from(n).ok());
    let path = path.into_array().ok()?;
    let path: Option<Vec<Hash>> = path.into_iter().map(|hash| hash.into_bytes().ok()?.try_into().ok()).collect();
    Some((number(size)?, number(seq)?, path.filter(|path| path.len() <= 63)?))
}

/// The root that a path leads to (RFC 9162, section 2.1.3.2).
fn root_of(entry: &[u8; ENTRY_BYTES], seq: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if seq >= size {
        return None;
    }
    let (mut f, mut s) = (seq, size - 1);
    let mut hash = crate::tree::leaf_hash(entry);
    for sibling in path {
        if s == 0 {
            return None;
        }
        if f & 1 == 1 || f == s {
            hash = crate::tree::node_hash(*sibling, hash);
            while f & 1 == 0 && f != 0 {
                (f, s) = (f >> 1, s >> 1);
            }
        } else {
            hash = crate::tree::node_hash(hash, *sibling);
        }
        (f, s) = (f >> 1, s >> 1);
    }
    (s == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_receipt_checks_for_its_entry_and_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, reader) = crate::open(dir.path(), crate::Options::default()).unwrap();
        for _ in 0..4 {
            writer.append_system(&crate::system::SystemRecord::new("custody.test")).unwrap();
        }
        let receipt = writer.cose_receipt(3).unwrap();
        let entry = |seq| reader.shown(seq, false).unwrap().entry;
        let key = &reader.keys()[0];
        assert_eq!(check_cose(&receipt, &entry(3), key).unwrap(), (3, 5));
        assert!(check_cose(&receipt, &entry(2), key).is_err());
        let other = crate::keys::SigningKey::from_seed(key.name(), crate::note::Algorithm::Ed25519, &[7; 32]).unwrap();
        assert!(check_cose(&receipt, &entry(3), other.verifier()).is_err());
        for at in 0..receipt.len() {
            let mut changed = receipt.clone();
            changed[at] ^= 1;
            let _ = check_cose(&changed, &entry(3), key);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let key = crate::keys::SigningKey::from_seed("a", crate::note::Algorithm::Ed25519, &[7; 32]).unwrap();
            prop_assert!(check_cose(&bytes, &[0; ENTRY_BYTES], key.verifier()).is_err());
        }
    }
}
