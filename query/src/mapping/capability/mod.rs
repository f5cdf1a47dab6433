//! Tokens that their holder can narrow: Tenuo's warrants, attenuating authorization tokens
//! (draft-niyikiza-oauth-attenuating-agent-tokens), UCANs, Biscuits and Macaroons. What of them
//! can be read without their libraries, as the grant that they are.
//!
//! No signature of theirs is checked here, so a grant of such a token is `unverified`, whatever
//! it says. What is not read (Datalog, policies, caveats, constraints of several tools) stands
//! where the model has a place for what cannot be decided, and never as if it were not limited.

mod biscuit;
mod cbor;
mod macaroon;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbor::Item;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::event::EventRow;

/// Base64 as tokens come: of either alphabet, with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Characters of a token that is read, at most.
const TOKEN_MAX: usize = 64 << 10;

/// How many actions of a token are read.
const ACTIONS_MAX: usize = 256;

/// The attribute with the format that a token was read as.
const FORMAT: &str = "authz.grant.token.format";

/// What a token says of the grant that it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Capability {
    /// tenuo, aat, ucan, biscuit or macaroon.
    pub format: &'static str,
    pub id: Option<String>,
    pub parent: Option<String>,
    pub root: Option<String>,
    pub depth: Option<u32>,
    pub issuer: Option<String>,
    /// Who may use it: a name, or the key that he has to show.
    pub subject: Option<String>,
    pub initiator: Option<String>,
    pub actions: Vec<String>,
    /// JSON; see [`constraints`].
    pub constraints: Option<String>,
    /// Seconds since the epoch.
    pub not_before: Option<i64>,
    pub expires_at: Option<i64>,
    pub max_depth: Option<i64>,
    /// The digest by which a child names it, and that by which it names its parent.
    pub hash: Option<String>,
    pub parent_hash: Option<String>,
    pub caveats: Vec<String>,
    /// The keys of those who have to approve of a call, and how many of them; what data it may touch.
    pub approvers: Vec<String>,
    pub min_approvals: Option<i64>,
    pub clearance: Option<i64>,
}

/// What a token says; `None` if it is of no such format.
pub(crate) fn read(token: &str) -> Option<Capability> {
    let token = token.trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    if token.len() > TOKEN_MAX {
        return None;
    }
    if let Some((signed, payload)) = jws(token) {
        let claims: Json = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let mut read = claims_of(&claims)?;
        read.hash = (read.format == "aat").then(|| URL_SAFE_NO_PAD.encode(Sha256::digest(signed)));
        if read.format == "ucan" {
            read.id = Some(cid(0x55, token.as_bytes()));
        }
        return Some(read);
    }
    let bytes = LENIENT.decode(token.replace('+', "-").replace('/', "_")).ok()?;
    match bytes.first()? {
        0x83 => tenuo(&bytes),
        0x82 => ucan(&bytes),
        0x02 | b'0' => macaroon::read(&bytes),
        _ => biscuit::read(&bytes),
    }
}

/// Signing input and payload of a JWS in compact form.
fn jws(token: &str) -> Option<(&str, &str)> {
    let (signed, _) = token.strip_prefix("eyJ").and_then(|_| token.rsplit_once('.'))?;
    Some((signed, signed.split_once('.')?.1))
}

/// A CID (multiformats, version 1, SHA-256) of some bytes in base32.
fn cid(codec: u8, bytes: &[u8]) -> String {
    let mut whole = vec![1, codec, 0x12, 32];
    whole.extend(Sha256::digest(bytes));
    let mut out = String::from("b");
    let (mut bits, mut held) = (0u32, 0u32);
    for byte in whole {
        (bits, held) = (((bits << 8) | u32::from(byte)) & 0xfff, held + 8);
        while held >= 5 {
            held -= 5;
            out.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[((bits >> held) & 31) as usize]));
        }
    }
    if held > 0 {
        out.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[((bits << (5 - held)) & 31) as usize]));
    }
    out
}

/// A warrant of Tenuo: `[1, payload, signature]`, whose payload is a map of numbers.
fn tenuo(bytes: &[u8]) -> Option<Capability> {
    let Item::List(envelope) = cbor::read(bytes)? else { return None };
    let [Item::Int(1), Item::Bytes(payload), Item::List(_)] = envelope.as_slice() else { return None };
    let said = cbor::read(payload)?;
    let at = |key: i64| said.get(&Item::Int(key));
    let approvers = match at(15) {
        Some(Item::List(keys)) => keys.iter().take(ACTIONS_MAX).filter_map(public_key).collect(),
        _ => Vec::new(),
    };
    let Item::Map(tools) = at(3)? else { return None };
    let mut bounds = Map::new();
    for (name, tool) in tools.iter().take(ACTIONS_MAX) {
        let of = tool.at("constraints").map_or(Json::Null, Item::json);
        bounds.insert(name.text()?.to_owned(), of);
    }
    Some(Capability {
        format: "tenuo",
        id: Some(format!("tnu_wrt_{}", const_hex::encode(at(1)?.bytes()?))),
        depth: at(18).and_then(Item::int).and_then(|depth| u32::try_from(depth).ok()),
        issuer: at(5).and_then(public_key),
        subject: at(4).and_then(public_key),
        constraints: Some(constraints(&bounds, tenuo_bound)),
        actions: bounds.into_iter().map(|(name, _)| name).collect(),
        not_before: at(6).and_then(Item::int),
        expires_at: at(7).and_then(Item::int),
        max_depth: at(8).and_then(Item::int),
        hash: Some(const_hex::encode(Sha256::digest(payload))),
        parent_hash: at(9).and_then(Item::bytes).map(const_hex::encode),
        approvers,
        min_approvals: at(16).and_then(Item::int),
        clearance: at(17).and_then(Item::int),
        ..Capability::default()
    })
}

/// A key of Tenuo's: its algorithm, of which there is one, and its bytes.
fn public_key(item: &Item) -> Option<String> {
    let Item::List(parts) = item else { return None };
    match parts.as_slice() {
        [Item::Int(1), Item::Bytes(key)] => Some(format!("ed25519:{}", const_hex::encode(key))),
        _ => None,
    }
}

/// A constraint of Tenuo, a kind and its members: exact 1, range 3, one of 4.
fn tenuo_bound(bound: &Json) -> Option<Json> {
    let (kind, members) = (bound.get(0)?.as_i64()?, bound.get(1)?);
    match kind {
        1 => Some(json!([members.get("value")?])),
        3 => {
            let is_whole = ["min_inclusive", "max_inclusive"].iter().all(|name| members[*name] == Json::Bool(true));
            range(members).filter(|_| is_whole)
        }
        4 => members.get("values").filter(|values| values.is_array()).cloned(),
        _ => None,
    }
}

/// A constraint of the draft (section "Constraint Types"): an object that names its type.
fn draft_bound(bound: &Json) -> Option<Json> {
    match bound.get("type")?.as_str()? {
        "exact" => Some(json!([bound.get("value")?])),
        "one_of" => bound.get("values").filter(|values| values.is_array()).cloned(),
        "range" => range(bound),
        _ => None,
    }
}

fn range(members: &Json) -> Option<Json> {
    let bound = |name: &str| members.get(name).filter(|bound| bound.is_number()).map(|b| (name.to_owned(), b.clone()));
    let bounds: Map<String, Json> = ["min", "max"].into_iter().filter_map(bound).collect();
    (!bounds.is_empty()).then_some(Json::Object(bounds))
}

/// The constraints of a grant as `authz.grant.constraints` has them: of one tool, each parameter
/// by itself, and one that cannot be read as its text. Those of several tools are a list, which no comparison
/// decides: the model's hold for all that a grant allows.
fn constraints(tools: &Map<String, Json>, read: fn(&Json) -> Option<Json>) -> String {
    let mut all = tools.values();
    let (Some(only), None) = (all.next(), all.next()) else {
        let list: Vec<Json> = tools.iter().map(|(name, bounds)| json!({name: bounds})).collect();
        return Json::Array(list).to_string();
    };
    let bounds = only.as_object().into_iter().flatten();
    let each = bounds.map(|(name, bound)| {
        let unread = || json!({"unread": bound.to_string()});
        (name.clone(), read(bound).unwrap_or_else(unread))
    });
    Json::Object(each.collect()).to_string()
}

/// A UCAN of version 1: an envelope of signature and payload, whose name tells what it is.
fn ucan(bytes: &[u8]) -> Option<Capability> {
    let Item::List(envelope) = cbor::read(bytes)? else { return None };
    let [Item::Bytes(_), Item::Map(signed)] = envelope.as_slice() else { return None };
    let said = signed.iter().find(|(name, _)| name.text().is_some_and(|name| name.starts_with("ucan/dlg@")))?;
    let mut read = delegation(&said.1.json())?;
    read.id = Some(cid(0x71, bytes));
    Some(read)
}

/// What the claims of such a token say: of an attenuating token, or of a UCAN.
pub(super) fn claims_of(claims: &Json) -> Option<Capability> {
    let details = claims.get("authorization_details").and_then(Json::as_array);
    let aat = details.into_iter().flatten().find(|one| one["type"] == "attenuating_agent_token");
    match aat {
        Some(detail) => attenuating(claims, detail),
        None => delegation(claims),
    }
}

/// draft-niyikiza-oauth-attenuating-agent-tokens: the holder is the one with the key.
fn attenuating(claims: &Json, detail: &Json) -> Option<Capability> {
    let text = |name: &str| claims.get(name).and_then(Json::as_str).map(str::to_owned);
    let number = |name: &str| claims.get(name).and_then(Json::as_i64);
    let tools = detail.get("tools")?.as_object()?;
    let tools: Map<_, _> =
        tools.iter().take(ACTIONS_MAX).map(|(name, bounds)| (name.clone(), bounds.clone())).collect();
    Some(Capability {
        format: "aat",
        id: text("jti"),
        depth: number("del_depth").and_then(|depth| u32::try_from(depth).ok()),
        issuer: text("iss"),
        subject: claims.pointer("/cnf/jwk").and_then(thumbprint).or_else(|| text("sub")),
        initiator: text("sub"),
        constraints: Some(constraints(&tools, draft_bound)),
        actions: tools.into_iter().map(|(name, _)| name).collect(),
        not_before: number("nbf"),
        expires_at: number("exp"),
        max_depth: number("del_max_depth"),
        parent_hash: text("par_hash"),
        ..Capability::default()
    })
}

/// The thumbprint URI of a key (RFC 9278), as whose issuer a derived token names itself.
fn thumbprint(key: &Json) -> Option<String> {
    let text = |name: &str| key.get(name).and_then(Json::as_str);
    let required: &[&str] = match text("kty")? {
        "OKP" => &["crv", "kty", "x"],
        "EC" => &["crv", "kty", "x", "y"],
        "RSA" => &["e", "kty", "n"],
        _ => return None,
    };
    let members: Option<Vec<String>> =
        required.iter().map(|name| Some(format!("\"{name}\":{}", Json::from(text(name)?)))).collect();
    let digest = Sha256::digest(format!("{{{}}}", members?.join(",")));
    Some(format!("urn:ietf:params:oauth:jwk-thumbprint:sha-256:{}", URL_SAFE_NO_PAD.encode(digest)))
}

/// A UCAN's delegation: `cmd` and `pol` of version 1, `cap` of 0.10, `att` of those before.
fn delegation(claims: &Json) -> Option<Capability> {
    let text = |name: &str| claims.get(name).and_then(Json::as_str).map(str::to_owned);
    let (issuer, audience) = (text("iss")?, text("aud")?);
    if !issuer.starts_with("did:") || !audience.starts_with("did:") {
        return None;
    }
    let number = |name: &str| claims.get(name).and_then(Json::as_i64);
    let mut actions = Vec::new();
    let constraints = if let Some(command) = text("cmd") {
        // A command is that of all below it.
        actions = if command == "/" { vec!["/*".into()] } else { vec![command.clone(), format!("{command}/*")] };
        claims.get("pol").map(|policy| json!([policy]).to_string())
    } else if let Some(resources) = claims.get("cap").and_then(Json::as_object) {
        let abilities = resources.values().filter_map(Json::as_object).flat_map(Map::keys);
        actions.extend(abilities.take(ACTIONS_MAX).cloned());
        Some(json!([resources]).to_string())
    } else {
        let each = claims.get("att")?.as_array()?;
        actions.extend(each.iter().take(ACTIONS_MAX).filter_map(|one| one.get("can")?.as_str().map(str::to_owned)));
        Some(Json::from(each.clone()).to_string())
    };
    // A star is every ability of a resource, and no pattern of ours.
    actions.retain(|action| action.starts_with('/') || !action.contains('*'));
    actions.dedup();
    // Proofs of early versions are whole tokens, and name no grant.
    let proofs = claims.get("prf").and_then(Json::as_array).map(Vec::as_slice);
    let parent = match proofs {
        Some([Json::String(proof)]) if !proof.starts_with("eyJ") => Some(proof.clone()),
        _ => None,
    };
    Some(Capability {
        format: "ucan",
        id: text("cid"),
        parent,
        issuer: Some(issuer),
        subject: Some(audience),
        initiator: text("sub"),
        actions,
        constraints,
        not_before: number("nbf"),
        expires_at: number("exp"),
        ..Capability::default()
    })
}

/// Fills the columns that the record itself leaves empty.
pub(super) fn fill(row: &mut EventRow, read: &Capability) {
    let or = |column: &mut Option<String>, said: &Option<String>| {
        *column = column.take().or_else(|| said.clone());
    };
    or(&mut row.grant_id, &read.id);
    or(&mut row.parent_grant_id, &read.parent);
    or(&mut row.root_grant_id, &read.root);
    or(&mut row.agent_id, &read.subject);
    or(&mut row.parent_hash, &read.parent_hash);
    row.delegation_depth = row.delegation_depth.or(read.depth);
    if row.initiator_id.is_none() && read.initiator.is_some() {
        row.initiator_id.clone_from(&read.initiator);
        row.initiator_type = Some("process".into());
    }
    if let ([one], None) = (read.actions.as_slice(), &row.action) {
        row.action = Some(one.clone());
    }
}

/// What it says under the names of docs/semantic-conventions.md, for attributes that lack them.
pub(super) fn attributes(read: &Capability) -> Vec<(&'static str, Json)> {
    let text = |said: &Option<String>| said.clone().map_or(Json::Null, Json::from);
    let list = |said: &Vec<String>| if said.is_empty() { Json::Null } else { Json::from(said.clone()) };
    let number = |said: Option<i64>| said.map_or(Json::Null, Json::from);
    vec![
        (FORMAT, Json::from(read.format)),
        ("authz.grant.issuer", text(&read.issuer)),
        ("authz.grant.actions", list(&read.actions)),
        ("authz.grant.constraints", text(&read.constraints)),
        ("authz.grant.not_before", number(read.not_before)),
        ("authz.grant.expires_at", number(read.expires_at)),
        ("authz.grant.max_depth", number(read.max_depth)),
        ("authz.grant.hash", text(&read.hash)),
        ("authz.grant.parent_hash", text(&read.parent_hash)),
        ("authz.grant.caveats", list(&read.caveats)),
        ("authz.grant.approvers", list(&read.approvers)),
        ("authz.grant.min_approvals", number(read.min_approvals)),
        ("authz.grant.clearance", number(read.clearance)),
    ]
}

#[cfg(test)]
mod tests;
