//! What rules read of the attributes of events: looked for once, when an event comes, however many rules read it and
//! however often the event is looked at again.
//!
//! A rule says `json_as_text(attributes, 'authz.effect')`. In its plan that becomes a column of the table `events`,
//! of which nobody else knows; so the attributes themselves, which are long, need neither be kept nor joined.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan, TableScanBuilder};
use jiter::{Jiter, JiterResult, Peek};

use super::here::Here;
use crate::event::EventRow;

/// The column that holds all attributes of an event.
const ATTRIBUTES: &str = "attributes";

/// How a function makes a text of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Read {
    /// `json_as_text`: a text as it is, anything else as it is written; nothing of null.
    Any,
    /// `json_get_str`: texts alone.
    Text,
}

impl Read {
    fn of(function: &str) -> Option<Self> {
        match function {
            "json_as_text" => Some(Self::Any),
            "json_get_str" => Some(Self::Text),
            _ => None,
        }
    }

    fn function(self) -> &'static str {
        match self {
            Self::Any => "json_as_text",
            Self::Text => "json_get_str",
        }
    }
}

/// What was found in the attributes of one event: which of what is wanted, and the text.
pub(super) type Found = Box<[(u16, Box<str>)]>;

/// What all rules read of attributes.
#[derive(Debug, Default)]
pub(super) struct Fields {
    wanted: Vec<(Read, String)>,
    by_key: HashMap<String, Vec<u16>>,
}

/// What an expression reads of attributes.
fn asked(expr: &Expr) -> Option<(Read, &Column, &str)> {
    let Expr::ScalarFunction(called) = expr else { return None };
    let read = Read::of(called.name())?;
    let [Expr::Column(column), Expr::Literal(key, _)] = called.args.as_slice() else { return None };
    Some((read, column, key.try_as_str().flatten()?)).filter(|_| column.name == ATTRIBUTES)
}

/// The name of the column for it: no rule can say it, as its table has no such column for rules.
fn column_name(read: Read, key: &str) -> String {
    format!("{}({ATTRIBUTES}, {key})", read.function())
}

impl Fields {
    /// What these plans read: planned to the end, they read no more than they need.
    pub(super) fn of<'a>(plans: impl Iterator<Item = &'a LogicalPlan>) -> Result<Self> {
        let mut fields = Self::default();
        for plan in plans {
            plan.apply_with_subqueries(|node| {
                node.apply_expressions(|expr| {
                    expr.apply(|expr| {
                        if let Some((read, _, key)) = asked(expr) {
                            fields.want(read, key);
                        }
                        Ok(TreeNodeRecursion::Continue)
                    })
                })
            })?;
        }
        Ok(fields)
    }

    fn want(&mut self, read: Read, key: &str) {
        let places = self.by_key.entry(key.to_owned()).or_default();
        let is_known = places.iter().any(|at| self.wanted.get(usize::from(*at)).is_some_and(|known| known.0 == read));
        // More than there are numbers for are read as ever.
        if let (false, Ok(at)) = (is_known, u16::try_from(self.wanted.len())) {
            places.push(at);
            self.wanted.push((read, key.to_owned()));
        }
    }

    /// The table `events` with a column for each.
    pub(super) fn schema(&self) -> SchemaRef {
        let events = EventRow::schema();
        let own = self.wanted.iter().map(|(read, key)| {
            let field: FieldRef = Arc::new(Field::new(column_name(*read, key), DataType::Utf8, true));
            field
        });
        Arc::new(Schema::new(events.fields().iter().cloned().chain(own).collect::<Vec<_>>()))
    }

    /// Looks for what is wanted in the attributes of one event. As with the functions, the first of several
    /// values of one name counts, and what stands before a fault is found.
    pub(super) fn read(&self, attributes: &str) -> Found {
        let mut found = Vec::new();
        if !self.wanted.is_empty() {
            // What cannot be read to its end has given what could be.
            let _ = self.read_into(attributes, &mut found);
        }
        found.into()
    }

    fn read_into(&self, attributes: &str, found: &mut Vec<(u16, Box<str>)>) -> JiterResult<()> {
        let places = |key: &str| self.by_key.get(key).map(Vec::as_slice);
        let mut jiter = Jiter::new(attributes.as_bytes());
        let mut seen: Vec<&[u16]> = Vec::new();
        let mut next = jiter.next_object()?.map(places);
        while let Some(of) = next {
            match of.filter(|of| !seen.contains(of)) {
                None => jiter.next_skip()?,
                Some(of) => {
                    seen.push(of);
                    let peek = jiter.peek()?;
                    if peek == Peek::String {
                        let text = jiter.known_str()?;
                        found.extend(of.iter().map(|at| (*at, text.into())));
                    } else {
                        let start = jiter.current_index();
                        jiter.known_skip(peek)?;
                        let written = std::str::from_utf8(jiter.slice_to_current(start)).ok();
                        if let Some(written) = written.filter(|_| peek != Peek::Null) {
                            let any = of.iter().filter(|at| self.wanted[usize::from(**at)].0 == Read::Any);
                            found.extend(any.map(|at| (*at, written.into())));
                        }
                    }
                }
            }
            next = jiter.next_key()?.map(places);
        }
        Ok(())
    }

    /// Whether a text was found under this key.
    pub(super) fn has(&self, found: &Found, key: &str) -> bool {
        let places = self.by_key.get(key).into_iter().flatten();
        places.into_iter().any(|at| found.iter().any(|(of, _)| of == at))
    }

    /// The columns for what was found in some events, one for each that is wanted.
    pub(super) fn columns(&self, found: &[&Found]) -> Vec<ArrayRef> {
        let column = |at: u16| -> ArrayRef {
            let mut column = StringBuilder::with_capacity(found.len(), 0);
            for own in found {
                column.append_option(own.iter().find(|(of, _)| *of == at).map(|(_, text)| text));
            }
            Arc::new(column.finish())
        };
        (0..self.wanted.len()).filter_map(|at| u16::try_from(at).ok()).map(column).collect()
    }

    /// A plan that reads the columns where they are; where `attributes` is not the table's own any more, it
    /// stays what it is.
    pub(super) fn put_into(&self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let schema = self.schema();
        let plan = plan.transform_up_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = &node {
                let Some(table) = Here::of(scan).filter(|here| here.is_events()) else {
                    return Ok(Transformed::no(node));
                };
                let table = provider_as_source(Arc::new(table.with_schema(Arc::clone(&schema))));
                let scan = TableScanBuilder::new(scan.table_name.clone(), table)
                    .with_projection(scan.projection.clone())
                    .with_filters(scan.filters.clone())
                    .with_fetch(scan.fetch);
                return Ok(Transformed::yes(LogicalPlan::TableScan(scan.build()?)));
            }
            let has = merge_schema(&node.inputs());
            let names = NamePreserver::new(&node);
            let node = node.map_expressions(|expr| {
                let name = names.save(&expr);
                let expr = expr.transform_up(|expr| Ok(exchanged(expr, &has)))?;
                Ok(expr.update_data(|expr| name.restore(expr)))
            })?;
            node.data.recompute_schema().map(Transformed::yes)
        })?;
        Ok(plan.data)
    }
}

/// What reads a value of attributes, as the column that has it, where there is one.
fn exchanged(expr: Expr, has: &DFSchema) -> Transformed<Expr> {
    let column = asked(&expr).map(|(read, from, key)| Column::new(from.relation.clone(), column_name(read, key)));
    match column.filter(|column| has.has_column(column)) {
        Some(column) => Transformed::yes(Expr::Column(column)),
        None => Transformed::no(expr),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch, StringArray};
    use datafusion::prelude::SessionContext;
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["a", "b.c", "\u{e9}\"", "d"];

    /// What the functions give for each name, and what is found once.
    fn both(attributes: &str) -> (Vec<Option<String>>, Vec<Option<String>>) {
        let mut fields = Fields::default();
        let mut context = SessionContext::new();
        datafusion_functions_json::register_all(&mut context).unwrap();
        let wanted: Vec<(Read, &str)> =
            NAMES.iter().flat_map(|name| [(Read::Any, *name), (Read::Text, *name)]).collect();
        wanted.iter().for_each(|(read, name)| fields.want(*read, name));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let list = wanted.iter().map(|(read, name)| format!("{}(t, '{name}')", read.function()));
        let sql = format!("SELECT {} FROM x", list.collect::<Vec<_>>().join(", "));
        let table = RecordBatch::try_from_iter([("t", Arc::new(StringArray::from(vec![attributes])) as ArrayRef)]);
        context.register_batch("x", table.unwrap()).unwrap();
        let batches = runtime.block_on(async { context.sql(&sql).await.unwrap().collect().await.unwrap() });
        let text = |column: &ArrayRef| column.is_valid(0).then(|| column.as_string::<i32>().value(0).to_owned());
        let given = batches[0].columns().iter().map(text).collect();
        (given, fields.columns(&[&fields.read(attributes)]).iter().map(text).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any values, names twice, blanks, and texts that break off.
        #[test]
        fn what_is_found_once_is_what_the_functions_give(
            values in proptest::collection::vec((0usize..6, prop_oneof![
                Just("null".to_owned()), Just("true".to_owned()), Just("-1.50e3".to_owned()), Just("12".to_owned()),
                Just(r#""text""#.to_owned()), Just(r#""esc\n\u00e9\"""#.to_owned()), Just(r#"{"a": [1, "b"]}"#.to_owned()),
                Just(r#"[ "a", null ]"#.to_owned()), Just("\"\"".to_owned()),
            ]), 0..6),
            blank: bool, cut in proptest::option::of(0usize..80),
        ) {
            let names: Vec<String> = NAMES.iter().map(|n| serde_json::to_string(n).unwrap()).chain(["\"x\"".into(), "\"y\"".into()]).collect();
            let gap = if blank { " " } else { "" };
            let members = values.iter().map(|(name, value)| format!("{gap}{}{gap}:{gap}{value}{gap}", names[*name]));
            let mut text = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
            if let Some(cut) = cut.filter(|cut| text.is_char_boundary(*cut) && *cut < text.len()) {
                text.truncate(cut);
            }
            let (given, found) = both(&text);
            prop_assert_eq!(found, given, "{}", text);
        }
    }

    #[test]
    fn what_no_rule_reads_is_not_looked_for() {
        let mut fields = Fields::default();
        assert!(fields.read(r#"{"a":"b"}"#).is_empty());
        fields.want(Read::Any, "a");
        fields.want(Read::Any, "a");
        assert_eq!(fields.schema().fields().len(), EventRow::schema().fields().len() + 1, "once");
        assert_eq!(fields.read(r#"{"b":"c","a":[1]}"#).as_ref(), &[(0, "[1]".into())]);
    }
}
