//! Whether an event is valid OCSF: required attributes, constraints, types and their patterns, enums
//! and the words beside them, profiles, and nothing that the schema does not know, in all depths.
//! `unmapped` may hold anything.

use std::fmt;

use serde_json::{Map, Value as Json};

use super::schema::{Attribute, Constraints, Entity, Schema, Type};

/// Something amiss, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `actor.user.type_id` or `evidences[0].uid`.
    pub path: String,
    /// What is amiss there.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why the event is not valid; none if it is.
    pub faults: Vec<Fault>,
    /// What is valid and better avoided: deprecated attributes, an unexplained 99.
    pub notes: Vec<Fault>,
}

impl Schema {
    /// Checks one event.
    pub fn validate(&self, event: &Json) -> Report {
        let mut check = Check { schema: self, profiles: Vec::new(), report: Report::default(), path: String::new() };
        check.event(event);
        check.report
    }
}

/// How deep objects may lie within each other: OCSF's own refer to themselves.
const DEPTH_MAX: usize = 64;

struct Check<'a> {
    schema: &'a Schema,
    profiles: Vec<&'a str>,
    report: Report,
    path: String,
}

impl<'a> Check<'a> {
    fn fault(&mut self, what: impl Into<String>) {
        self.report.faults.push(Fault { path: self.path.clone(), what: what.into() });
    }

    fn note(&mut self, what: impl Into<String>) {
        self.report.notes.push(Fault { path: self.path.clone(), what: what.into() });
    }

    /// Runs with a step added to the path.
    fn at(&mut self, step: fmt::Arguments<'_>, inside: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        let _ = fmt::Write::write_fmt(&mut self.path, step);
        inside(self);
        self.path.truncate(length);
    }

    fn within(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.at(format_args!("{dot}{name}"), inside);
    }

    fn event(&mut self, event: &'a Json) {
        let Some(object) = event.as_object() else { return self.fault("an event is an object") };
        let uid = object.get("class_uid").and_then(Json::as_u64);
        let Some(class) = uid.and_then(|uid| self.schema.class(uid)) else {
            return self.within("class_uid", |c| c.fault("there is no such class"));
        };
        let metadata = object.get("metadata");
        let version = metadata.and_then(|m| m.get("version")).and_then(Json::as_str);
        if version.is_some_and(|version| version != self.schema.version) {
            let what = format!("this is a validator of {}", self.schema.version);
            self.within("metadata.version", |c| c.fault(what));
        }
        let named = metadata.and_then(|m| m.get("profiles")).and_then(Json::as_array);
        self.profiles = named.into_iter().flatten().filter_map(Json::as_str).collect();
        for profile in self.profiles.clone() {
            if !class.profiles.iter().any(|p| p == profile) {
                self.within("metadata.profiles", |c| c.fault(format!("the class has no profile {profile}")));
            }
        }
        let activity = object.get("activity_id").and_then(Json::as_u64);
        let type_uid = object.get("type_uid").and_then(Json::as_u64);
        if let (Some(uid), Some(activity), Some(type_uid)) = (uid, activity, type_uid)
            && type_uid != uid * 100 + activity
        {
            self.within("type_uid", |c| c.fault("it is not class_uid * 100 + activity_id"));
        }
        self.entity(class, object, DEPTH_MAX);
    }

    fn entity(&mut self, entity: &'a Entity, object: &'a Map<String, Json>, depth: usize) {
        if depth == 0 {
            return self.fault("too deep");
        }
        for (name, value) in object {
            match entity.attributes.get(name) {
                None => self.within(name, |c| c.fault("the schema knows no such attribute")),
                Some(attribute) if !self.has(attribute) => {
                    let what = format!("it needs one of the profiles {}", attribute.profiles.join(", "));
                    self.within(name, |c| c.fault(what));
                }
                Some(attribute) => self.within(name, |c| c.attribute(attribute, value, object, depth)),
            }
        }
        for (name, attribute) in &entity.attributes {
            if attribute.is_required() && self.has(attribute) && !object.contains_key(name) {
                self.within(name, |c| c.fault("it is required"));
            }
        }
        self.constraints(&entity.constraints, object);
    }

    /// Whether the event's profiles give the attribute.
    fn has(&self, attribute: &Attribute) -> bool {
        attribute.profiles.is_empty() || attribute.profiles.iter().any(|p| self.profiles.contains(&p.as_str()))
    }

    fn constraints(&mut self, constraints: &Constraints, object: &Map<String, Json>) {
        let count = |paths: &[String]| {
            let is_there = |path: &&String| {
                let mut steps = path.split('.');
                let first = steps.next().and_then(|step| object.get(step));
                steps.try_fold(first, |at, step| at.map(|at| at.get(step))).flatten().is_some()
            };
            paths.iter().filter(is_there).count()
        };
        if !constraints.at_least_one.is_empty() && count(&constraints.at_least_one) == 0 {
            self.fault(format!("it needs at least one of {}", constraints.at_least_one.join(", ")));
        }
        if !constraints.just_one.is_empty() && count(&constraints.just_one) != 1 {
            self.fault(format!("it needs just one of {}", constraints.just_one.join(", ")));
        }
    }

    fn attribute(&mut self, attribute: &'a Attribute, value: &'a Json, within: &Map<String, Json>, depth: usize) {
        if attribute.is_deprecated {
            self.note("it is deprecated");
        }
        match (attribute.is_list, value) {
            (false, value) => self.value(attribute, value, within, depth),
            (true, Json::Array(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.at(format_args!("[{i}]"), |c| c.value(attribute, item, within, depth));
                }
            }
            (true, _) => self.fault("it is a list"),
        }
    }

    fn value(&mut self, attribute: &'a Attribute, value: &'a Json, within: &Map<String, Json>, depth: usize) {
        if let Some(name) = &attribute.object {
            let Some(entity) = self.schema.objects.get(name) else { return self.fault("its object is not known") };
            let Some(object) = value.as_object() else { return self.fault("it is an object") };
            // The object without attributes holds anything.
            if !entity.attributes.is_empty() {
                self.entity(entity, object, depth - 1);
            }
            return;
        }
        let schema = self.schema;
        let Some(kind) = schema.types.get(&attribute.type_name) else { return self.fault("its type is not known") };
        if let Err(what) = of_type(&attribute.type_name, kind, value) {
            return self.fault(what);
        }
        if let Some(values) = &attribute.values {
            let key = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match values.get(&key) {
                None => self.fault(format!("{key} is none of its values")),
                Some(caption) => self.sibling(attribute, &key, caption, within),
            }
        }
    }

    /// The words beside a code are those of the code, but for 99: those are the source's.
    fn sibling(&mut self, attribute: &Attribute, key: &str, caption: &str, within: &Map<String, Json>) {
        let Some(name) = &attribute.sibling else { return };
        match within.get(name).map(Json::as_str) {
            None if key == "99" => self.note(format!("99 without {name}")),
            Some(Some(words)) if key != "99" && words != caption => {
                self.fault(format!("{key} is {caption}, but {name} is {words:?}"));
            }
            _ => {}
        }
    }
}

/// Whether a value is of a type.
fn of_type(name: &str, kind: &Type, value: &Json) -> Result<(), String> {
    let base = kind.base.as_deref().unwrap_or(name);
    let fits = match base {
        "boolean_t" => value.is_boolean(),
        "integer_t" | "long_t" => value.is_i64() || value.is_u64(),
        "float_t" => value.is_number(),
        "string_t" => value.is_string(),
        "json_t" => true,
        _ => false,
    };
    if !fits {
        return Err(format!("it is no {name}"));
    }
    if let Some(text) = value.as_str() {
        if kind.max_len.is_some_and(|max| text.chars().count() > max) {
            return Err(format!("it is longer than a {name} may be"));
        }
        if kind.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
            return Err(format!("it has not the form of a {name}"));
        }
    }
    if let (Some([low, high]), Some(number)) = (kind.range, value.as_i64())
        && !(low..=high).contains(&number)
    {
        return Err(format!("it is outside {low} to {high}"));
    }
    Ok(())
}
