//! Biscuit tokens (biscuitsec.org, schema.proto of version 3): the chain of their blocks, and the
//! end that their checks put to them.
//!
//! A block is named by its revocation id, which is its signature: each is a grant derived from the
//! one before. Datalog is not evaluated: what a check demands beyond a time is not read, so what
//! is allowed stays unknown.

use super::Capability;

/// How many blocks are read.
const BLOCKS_MAX: usize = 256;

/// A field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// All fields of a message; none if it is none.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Field::Bytes(taken)
            }
            _ => return None,
        };
        out.push((key >> 3, field));
    }
    Some(out)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in 0..10 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 127).checked_shl(7 * shift)?;
        if first & 128 == 0 {
            return Some(value);
        }
    }
    None
}

fn messages<'a>(of: &[(u64, Field<'a>)], number: u64) -> impl Iterator<Item = &'a [u8]> {
    of.iter().filter_map(move |(n, field)| match field {
        Field::Bytes(bytes) if *n == number => Some(*bytes),
        _ => None,
    })
}

/// A token's chain; `None` if these bytes are no Biscuit.
pub(super) fn read(bytes: &[u8]) -> Option<Capability> {
    // Biscuit: rootKeyId 1, authority 2, blocks 3, proof 4.
    let token = fields(bytes)?;
    if token.iter().any(|(number, _)| !(1..=4).contains(number)) || messages(&token, 4).count() != 1 {
        return None;
    }
    let blocks: Vec<_> = messages(&token, 2).take(1).chain(messages(&token, 3).take(BLOCKS_MAX)).collect();
    messages(&token, 2).next()?;
    let (mut ids, mut end) = (Vec::new(), None::<i64>);
    for block in blocks {
        // SignedBlock: block 1, nextKey 2, signature 3.
        let signed = fields(block)?;
        messages(&signed, 2).next()?;
        ids.push(const_hex::encode(messages(&signed, 3).next()?));
        let own = expiry(messages(&signed, 1).next()?);
        end = end.into_iter().chain(own).min();
    }
    let id = ids.pop()?;
    Some(Capability {
        format: "biscuit",
        depth: u32::try_from(ids.len()).ok(),
        parent: ids.last().cloned(),
        root: ids.first().cloned(),
        id: Some(id),
        expires_at: end,
        ..Capability::default()
    })
}

/// The earliest time that a check of a block compares the present with.
fn expiry(block: &[u8]) -> Option<i64> {
    // Block: checks 6.
    messages(&fields(block)?, 6).filter_map(check).min()
}

/// The end that a check sets: the one query of a `check if` or `check all` must hold in each of
/// its expressions, so one that compares a variable with a date limits the whole.
fn check(check: &[u8]) -> Option<i64> {
    // Check: queries 1, kind 2 (one, all, reject).
    let check = fields(check)?;
    let is_reject = check.iter().any(|(number, field)| matches!((number, field), (2, Field::Number(2..))));
    let mut queries = messages(&check, 1);
    let (Some(query), None, false) = (queries.next(), queries.next(), is_reject) else { return None };
    // Rule: expressions 3.
    messages(&fields(query)?, 3).filter_map(before).min()
}

/// `$variable < date` and `$variable <= date`.
fn before(expression: &[u8]) -> Option<i64> {
    // Expression: ops 1. Op: value 1, unary 2, binary 3.
    let ops: Vec<_> = messages(&fields(expression)?, 1).collect();
    let [left, right, operator] = ops.as_slice() else { return None };
    let term = |op: &[u8], wanted: u64| {
        // Term: variable 1, date 4.
        let term = fields(messages(&fields(op)?, 1).next()?)?;
        match term.as_slice() {
            [(number, Field::Number(value))] if *number == wanted => Some(*value),
            _ => None,
        }
    };
    term(left, 1)?;
    let date = term(right, 4)?;
    // OpBinary.kind: less than 0, less or equal 2.
    let kind = fields(messages(&fields(operator)?, 3).next()?)?;
    let is_before = matches!(kind.as_slice(), [] | [(1, Field::Number(0 | 2))]);
    is_before.then(|| i64::try_from(date).ok())?
}
