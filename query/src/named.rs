//! Parameters: `$name` and `?` become `$1`, and a value stands in the arguments of table functions too, which
//! are read before there is a plan to bind values in.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, TableFactor, Value as Literal,
    ValueWithSpan, Visit, VisitMut, Visitor, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};
use serde_json::{Map, Value};

use crate::error::Error;

/// A text with `$name`, as one with `$1` and the values in order. Columns of errors stay right: a
/// shorter number is followed by spaces.
///
/// # Errors
///
/// A name has no value, or a value no name.
pub fn positional(text: &str, values: &Map<String, Value>) -> Result<(String, Vec<Value>), Error> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location();
    // What cannot be read is told of by the planner, with its position.
    let Ok(tokens) = tokens else { return Ok((text.to_owned(), Vec::new())) };
    let (mut out, mut order, mut rest): (String, Vec<&str>, &str) = (String::new(), Vec::new(), text);
    for token in &tokens {
        let Token::Placeholder(written) = &token.token else { continue };
        let Some(name) = written.strip_prefix('$').filter(|n| n.parse::<u32>().is_err()) else { continue };
        let Some((known, _)) = values.get_key_value(name) else {
            let mut error = Error::invalid(format!("the parameter ${name} has no value"));
            error.position = Some((token.span.start.line, token.span.start.column));
            return Err(error);
        };
        let place = order.iter().position(|n| n == known).unwrap_or_else(|| {
            order.push(known);
            order.len() - 1
        });
        // Tokens come in order, and a comment before this one could hold the same text.
        let start = offset(text, token.span.start.line, token.span.start.column);
        let before = text.len() - rest.len();
        let Some(skipped) = start.checked_sub(before).and_then(|n| rest.get(..n)) else { continue };
        out += skipped;
        out += &format!("{:<width$}", format!("${}", place + 1), width = written.chars().count());
        rest = text.get(start + written.len()..).unwrap_or_default();
    }
    out += rest;
    if let Some(unused) = values.keys().find(|name| !order.contains(&name.as_str())) {
        return Err(Error::invalid(format!("the query has no parameter ${unused}")));
    }
    Ok((out, order.iter().map(|name| values[*name].clone()).collect()))
}

/// The byte at a line and a column, both from 1, columns in characters.
fn offset(text: &str, line: u64, column: u64) -> usize {
    let start: usize = text.split_inclusive('\n').take(line.saturating_sub(1) as usize).map(str::len).sum();
    let rest = text.get(start..).unwrap_or_default();
    start + rest.chars().take(column.saturating_sub(1) as usize).map(char::len_utf8).sum::<usize>()
}

/// The most parameters that a query may have.
const PLACES_MAX: usize = 1000;

/// Numbers the parameters that are written as `?`, as JDBC and ODBC write them, in the order of the text, and
/// gives how many parameters there are.
///
/// # Errors
///
/// Some are numbered and some are not, or there are too many.
pub(crate) fn number(statement: &mut Statement) -> Result<usize, Error> {
    let statement = match statement {
        Statement::Statement(statement) => statement,
        Statement::Explain(explain) => return number(&mut explain.statement),
        _ => return Ok(0),
    };
    let mut found = Places::default();
    let _ = Visit::visit(statement.as_ref(), &mut found);
    let Places { mut unnumbered, highest } = found;
    if highest > PLACES_MAX || unnumbered.len() > PLACES_MAX {
        return Err(Error::invalid(format!("a query has at most {PLACES_MAX} parameters")));
    }
    if unnumbered.is_empty() {
        return Ok(highest);
    }
    if highest > 0 {
        return Err(Error::invalid("write the parameters as ? or as $1, not both in one query"));
    }
    unnumbered.sort_unstable();
    let _ = VisitMut::visit(statement.as_mut(), &mut Numbered(&unnumbered));
    Ok(unnumbered.len())
}

/// Where a query has parameters.
#[derive(Default)]
struct Places {
    unnumbered: Vec<Location>,
    highest: usize,
}

impl Visitor for Places {
    type Break = ();

    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        match &value.value {
            Literal::Placeholder(name) if name == "?" => self.unnumbered.push(value.span.start),
            Literal::Placeholder(name) => {
                self.highest = self.highest.max(name.get(1..).and_then(|n| n.parse().ok()).unwrap_or(0));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Gives each `?` the number of its place.
struct Numbered<'a>(&'a [Location]);

impl VisitorMut for Numbered<'_> {
    type Break = ();

    fn pre_visit_value(&mut self, value: &mut ValueWithSpan) -> ControlFlow<()> {
        if value.value == Literal::Placeholder("?".into()) {
            let place = self.0.partition_point(|before| *before < value.span.start);
            value.value = Literal::Placeholder(format!("${}", place + 1));
        }
        ControlFlow::Continue(())
    }
}

/// Puts values where the planner wants to know them or their type: into the arguments of table functions, and behind
/// what looks into JSON. Without values, as when only the columns are asked for, something stands there that does:
/// the columns do not depend on it.
pub(crate) fn bind_arguments(statement: &mut Statement, values: Option<&[ScalarValue]>) {
    let statement = match statement {
        Statement::Statement(statement) => statement,
        Statement::Explain(explain) => return bind_arguments(&mut explain.statement, values),
        _ => return,
    };
    let known = values.map(|values| {
        let literal = |(i, value): (usize, &ScalarValue)| Some((format!("${}", i + 1), written(value)?));
        values.iter().enumerate().filter_map(literal).collect()
    });
    let _ = statement.visit(&mut Arguments(known));
}

struct Arguments(Option<HashMap<String, Literal>>);

impl VisitorMut for Arguments {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(called), .. } = factor {
            let is_as_of = name.to_string().to_lowercase().ends_with("_as_of");
            for (place, argument) in called.args.iter_mut().enumerate() {
                let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = argument else { continue };
                let Literal::Placeholder(name) = &value.value else { continue };
                match &self.0 {
                    Some(known) => {
                        if let Some(literal) = known.get(name) {
                            value.value = literal.clone();
                        }
                    }
                    None if place == 0 && is_as_of => value.value = Literal::Number("0".into(), false),
                    None if place == 0 => value.value = Literal::SingleQuotedString(String::new()),
                    None => value.value = Literal::Null,
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::BinaryOp { op: BinaryOperator::Arrow | BinaryOperator::LongArrow, right, .. } => self.key(right),
            Expr::Function(called) if called.name.to_string().to_lowercase().starts_with("json_") => {
                let FunctionArguments::List(list) = &mut called.args else { return ControlFlow::Continue(()) };
                for argument in list.args.iter_mut().skip(1) {
                    if let FunctionArg::Unnamed(FunctionArgExpr::Expr(key)) = argument {
                        self.key(key);
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Arguments {
    /// A key or a place in JSON.
    fn key(&self, key: &mut Expr) {
        let Expr::Value(ValueWithSpan { value: Literal::Placeholder(name), span }) = key else { return };
        let literal = match &self.0 {
            Some(known) => known.get(name).cloned(),
            None => Some(Literal::SingleQuotedString(String::new())),
        };
        if let Some(value) = literal {
            *key = Expr::Value(ValueWithSpan { value, span: *span });
        }
    }
}

/// A value as it would be written in a query.
fn written(value: &ScalarValue) -> Option<Literal> {
    Some(match value {
        value if value.is_null() => Literal::Null,
        ScalarValue::Boolean(Some(b)) => Literal::Boolean(*b),
        ScalarValue::Utf8(Some(s)) | ScalarValue::LargeUtf8(Some(s)) | ScalarValue::Utf8View(Some(s)) => {
            Literal::SingleQuotedString(s.clone())
        }
        ScalarValue::Int64(Some(n)) => Literal::Number(n.to_string(), false),
        ScalarValue::UInt64(Some(n)) => Literal::Number(n.to_string(), false),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bound(text: &str, values: Value) -> Result<(String, Vec<Value>), Error> {
        positional(text, values.as_object().unwrap())
    }

    #[test]
    fn names_become_places_and_columns_stay() {
        let (text, values) = bound("SELECT $who, '$who' -- $who\n, ü, $n, $who", json!({"n": 1, "who": "a"})).unwrap();
        assert_eq!(text, "SELECT $1  , '$who' -- $who\n, ü, $2, $1  ");
        assert_eq!(values, [json!("a"), json!(1)]);
        let missing = bound("SELECT\n  $b", json!({})).unwrap_err();
        assert_eq!((missing.position, missing.message.contains("$b")), (Some((2, 3)), true));
        assert!(bound("SELECT 1", json!({"a": 1})).unwrap_err().message.contains("$a"));
    }

    fn numbered(text: &str) -> Result<(String, usize), Error> {
        let mut statement = datafusion::sql::parser::DFParser::parse_sql(text).unwrap().pop_front().unwrap();
        let places = number(&mut statement)?;
        Ok((statement.to_string(), places))
    }

    #[test]
    fn question_marks_are_numbered_in_the_order_of_the_text() {
        let text = "WITH a AS (SELECT ? AS x) SELECT '?', x -- ?\n FROM a, replay(?) WHERE x = ? ORDER BY ? LIMIT ?";
        let (text, places) = numbered(text).unwrap();
        assert_eq!(
            text,
            "WITH a AS (SELECT $1 AS x) SELECT '?', x FROM a, replay($2) WHERE x = $3 ORDER BY $4 LIMIT $5"
        );
        assert_eq!(places, 5);
        assert_eq!(numbered("SELECT $2, $1").unwrap().1, 2);
        assert_eq!(numbered("EXPLAIN SELECT ?").unwrap().1, 1);
        assert_eq!(numbered("SELECT 1").unwrap().1, 0);
        assert!(numbered("SELECT $1, ?").unwrap_err().message.contains("not both"));
        assert!(numbered("SELECT $1001").unwrap_err().message.contains("at most 1000"));
    }
}
