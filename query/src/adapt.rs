//! What a person writes and what rows hold, brought together, for every interface in the same way: ids in other
//! spellings, and columns that some format of answers has no form for.

use std::collections::HashSet;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, cast, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::scalar::ScalarValue;

/// Columns of hexadecimal ids and hashes, and how many digits they have.
const HEX: [(&str, usize); 6] = [
    ("trace_id", 32),
    ("span_id", 16),
    ("parent_span_id", 16),
    ("record_hash", 64),
    ("chain_hash", 64),
    ("leaf_hash", 64),
];

/// An id as rows have it: lower case, without `0x`, without the hyphens of a UUID. `None` if it is so already, or no id
/// of so many digits.
pub(crate) fn hex_as_stored(text: &str, digits: usize) -> Option<String> {
    let written = text.trim();
    let bare = written.strip_prefix("0x").or_else(|| written.strip_prefix("0X")).unwrap_or(written);
    let bare: String = bare.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    (bare.len() == digits && bare != text && bare.bytes().all(|b| b.is_ascii_hexdigit())).then_some(bare)
}

/// A plan that finds ids in other spellings too.
pub(crate) fn ids_in_any_spelling(plan: LogicalPlan) -> Result<LogicalPlan> {
    let spelled = |node: LogicalPlan| {
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(|expr| Ok(in_any_spelling(expr)))?.update_data(|expr| name.restore(expr)))
        })
    };
    plan.transform_up_with_subqueries(spelled).data()
}

/// `trace_id = 'ABC'` also finds `abc`. What was asked for is still looked for: a column of this name may be
/// another one.
fn in_any_spelling(expr: Expr) -> Transformed<Expr> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::Eq | Operator::NotEq), right }) => {
            let (column, value) = if matches!(*left, Expr::Column(_)) { (&left, &right) } else { (&right, &left) };
            match stored(column, value) {
                Some(stored) => {
                    let list = vec![value.as_ref().clone(), stored];
                    Transformed::yes(Expr::InList(InList::new(column.clone(), list, op == Operator::NotEq)))
                }
                None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
            }
        }
        Expr::InList(mut of) => {
            let more: Vec<Expr> = of.list.iter().filter_map(|value| stored(&of.expr, value)).collect();
            let is_changed = !more.is_empty();
            of.list.extend(more);
            if is_changed { Transformed::yes(Expr::InList(of)) } else { Transformed::no(Expr::InList(of)) }
        }
        expr => Transformed::no(expr),
    }
}

/// The value that rows have for this one.
fn stored(column: &Expr, value: &Expr) -> Option<Expr> {
    let Expr::Column(column) = column else { return None };
    let (_, digits) = HEX.iter().find(|(name, _)| *name == column.name)?;
    let Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) = value else {
        return None;
    };
    hex_as_stored(text, *digits).map(lit)
}

/// The columns of an answer as all formats can have them: what `attributes -> 'name'` gives, which is of one of several
/// types in each row, is JSON text; and of columns with one name the later ones are numbered.
pub(crate) fn columns(context: &SessionContext, frame: DataFrame) -> Result<DataFrame> {
    let is_query = !matches!(frame.logical_plan(), LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
    let mut names = HashSet::new();
    let is_whole = frame
        .schema()
        .fields()
        .iter()
        .all(|field| !matches!(field.data_type(), DataType::Union(..)) && names.insert(field.name().clone()));
    if is_whole || !is_query {
        return Ok(frame);
    }
    let mut taken: HashSet<String> = frame.schema().fields().iter().map(|f| f.name().clone()).collect();
    let mut given = HashSet::new();
    let mut columns = Vec::new();
    for (qualifier, field) in frame.schema().iter() {
        let mut column = Expr::Column(Column::from((qualifier, field.as_ref())));
        if matches!(field.data_type(), DataType::Union(..)) {
            let text = context.state_ref().read().scalar_functions().get("json_union_to_text").cloned();
            if let Some(text) = text {
                column = cast(text.call(vec![column]), DataType::Utf8);
            }
        }
        let mut name = field.name().clone();
        if !given.insert(name.clone()) {
            name = (2..).map(|n| format!("{}_{n}", field.name())).find(|n| !taken.contains(n)).unwrap_or(name);
            taken.insert(name.clone());
        }
        columns.push(column.alias(name));
    }
    frame.select(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_in_other_spellings_and_nothing_else_is_an_id() {
        let known = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
        for text in [
            "0A1B2C3D4E5F60718293A4B5C6D7E8F9",
            "0x0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "0X0A1B2C3D4E5F60718293A4B5C6D7E8F9",
            " 0a1b2c3d4e5f60718293a4b5c6d7e8f9\n",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
        ] {
            assert_eq!(hex_as_stored(text, 32).as_deref(), Some(known), "{text:?}");
        }
        for text in [known, "0a1b", "conversation-7", "", "0x", "ZA1B2C3D4E5F60718293A4B5C6D7E8F9"] {
            assert_eq!(hex_as_stored(text, 32), None, "{text:?}");
        }
    }
}
