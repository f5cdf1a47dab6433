//! Delegation chains: a grant and those above it, from the root down.

use std::collections::HashSet;

use super::{ChainRow, GrantRow, Grants};

impl Grants {
    /// The grant at a place and those above it, from it up; ends at a cycle.
    fn ancestry(&self, at: usize) -> Vec<usize> {
        let (mut out, mut seen, mut at) = (Vec::new(), HashSet::new(), Some(at));
        while let Some(i) = at.filter(|&i| seen.insert(i)) {
            out.push(i);
            at = self.parents[i];
        }
        out
    }

    /// The delegation chain of a grant, from the first grant that is known down. Where several tenants have a grant of
    /// this id, the chain of each.
    pub fn chain(&self, id: &str) -> Vec<ChainRow> {
        let mut out = Vec::new();
        for at in self.of_id(id) {
            self.chain_of(*at, &mut out);
        }
        if out.is_empty() {
            out.push(missing(id, "this grant was never received"));
        }
        out
    }

    fn chain_of(&self, at: usize, out: &mut Vec<ChainRow>) {
        let (mut up, start) = (self.ancestry(at), out.len());
        up.reverse();
        let first = up.first().copied().unwrap_or(at);
        if let Some(parent) = &self.rows[first].parent_grant_id {
            let note = match self.parents[first] {
                Some(_) => "cycle: this grant is also further down its own chain",
                None => "the parent grant was never received",
            };
            out.push(ChainRow { tenant: self.rows[first].tenant.clone(), ..missing(parent, note) });
        }
        for i in up {
            let depth = (out.len() - start) as u32;
            out.push(chain_row(&self.rows[i], depth, self.parents[i].is_some()));
        }
    }
}

fn missing(id: &str, note: &str) -> ChainRow {
    ChainRow { grant_id: id.to_owned(), state: "missing".into(), note: Some(note.to_owned()), ..ChainRow::default() }
}

/// What a reader must not miss about a grant.
fn notes(row: &GrantRow) -> Vec<String> {
    let mut notes = Vec::new();
    if row.state == "denied" {
        notes.push(format!("refused: {}", row.reasons.join("; ")));
    }
    if row.state == "invalid" {
        notes.push(format!("invalid: {}", row.reasons.join("; ")));
    }
    match row.lineage.as_str() {
        "refused" => notes.push("a grant above it was refused".into()),
        "invalid" => notes.push("a grant above it is invalid".into()),
        _ => {}
    }
    if !row.widened_by.is_empty() {
        notes.push(format!("exceeds its parent in {}", row.widened_by.join(", ")));
    }
    if let [first, other] = row.conflicting_seqs[..] {
        notes.push(format!("given otherwise by record {first} than by record {other}"));
    }
    notes
}

fn chain_row(row: &GrantRow, depth: u32, has_parent: bool) -> ChainRow {
    let (notes, is_inside) = (notes(row), row.widened_by.is_empty() && row.undecidable.is_empty());
    ChainRow {
        depth,
        grant_id: row.grant_id.clone(),
        parent_grant_id: row.parent_grant_id.clone(),
        issuer: row.issuer.clone(),
        subject: row.subject.clone(),
        actions: row.actions.clone(),
        resources: row.resources.clone(),
        constraints: row.constraints.clone(),
        not_before: row.not_before,
        expires_at: row.expires_at,
        narrowed: has_parent.then_some(is_inside && !row.is_below_nothing()),
        widened_by: row.widened_by.clone(),
        undecidable: row.undecidable.clone(),
        uses: row.uses,
        state: row.state.clone(),
        revoked_seq: row.revoked_seq,
        seq: Some(row.issued_seq),
        record_hash: Some(row.record_hash.clone()),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        tenant: row.tenant.clone(),
    }
}
