//! The compiled schema of OCSF 1.8.0 with our extension: what is checked in beside this file, made
//! by `tools/ocsf/compile.py` from the release archive of ocsf/ocsf-schema (Apache-2.0) and
//! `docs/ocsf/custody`.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;

static COMPILED: &[u8] = include_bytes!("schema-1.8.0.json.zst");

/// The types, objects and classes of a version of OCSF.
#[derive(Deserialize)]
pub struct Schema {
    pub(super) version: String,
    pub(super) types: HashMap<String, Type>,
    pub(super) objects: HashMap<String, Entity>,
    classes: HashMap<String, Entity>,
    #[serde(skip)]
    by_uid: HashMap<u64, String>,
}

/// A type: one of JSON's, or a narrower one.
#[derive(Deserialize)]
pub(super) struct Type {
    #[serde(rename = "type")]
    pub(super) base: Option<String>,
    pub(super) regex: Option<String>,
    pub(super) max_len: Option<usize>,
    pub(super) range: Option<[i64; 2]>,
    #[serde(skip)]
    pub(super) pattern: Option<regex::Regex>,
}

/// An object or a class.
#[derive(Deserialize)]
pub(super) struct Entity {
    #[serde(rename = "a")]
    pub(super) attributes: BTreeMap<String, Attribute>,
    #[serde(rename = "c", default)]
    pub(super) constraints: Constraints,
    #[serde(default)]
    uid: u64,
    /// Profiles that a class can have.
    #[serde(rename = "p", default)]
    pub(super) profiles: Vec<String>,
}

/// Which of several attributes there must be.
#[derive(Default, Deserialize)]
pub(super) struct Constraints {
    #[serde(default)]
    pub(super) at_least_one: Vec<String>,
    #[serde(default)]
    pub(super) just_one: Vec<String>,
}

/// An attribute of an object or a class.
#[derive(Deserialize)]
pub(super) struct Attribute {
    #[serde(rename = "t")]
    pub(super) type_name: String,
    #[serde(rename = "o")]
    pub(super) object: Option<String>,
    #[serde(rename = "l", default)]
    pub(super) is_list: bool,
    #[serde(rename = "r", default)]
    requirement: String,
    #[serde(rename = "e")]
    pub(super) values: Option<HashMap<String, String>>,
    /// The attribute that says an enum's value in words.
    #[serde(rename = "s")]
    pub(super) sibling: Option<String>,
    /// It is there only under one of these profiles; under any if there are none.
    #[serde(rename = "p", default)]
    pub(super) profiles: Vec<String>,
    #[serde(rename = "d", default)]
    pub(super) is_deprecated: bool,
}

impl Attribute {
    pub(super) fn is_required(&self) -> bool {
        self.requirement == "required"
    }
}

impl Schema {
    /// OCSF 1.8.0 with the extension `custody`.
    pub fn get() -> &'static Self {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
            let json = zstd::decode_all(COMPILED).expect("what is checked in was compressed by zstd");
            let mut schema: Schema = serde_json::from_slice(&json).expect("and compiled to this shape");
            for kind in schema.types.values_mut() {
                kind.pattern = kind.regex.as_deref().map(|r| regex::Regex::new(r).expect("OCSF's patterns are sound"));
            }
            schema.by_uid = schema.classes.iter().map(|(name, class)| (class.uid, name.clone())).collect();
            schema
        });
        &SCHEMA
    }

    /// The class of a `class_uid`.
    pub(super) fn class(&self, uid: u64) -> Option<&Entity> {
        self.classes.get(self.by_uid.get(&uid)?)
    }
}
