//! A query on its way to a plan: what is refused before it costs anything.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ParamValues;
use datafusion::common::format::ExplainFormat;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Visit as _, Visitor, visit_relations};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::adapt;
use crate::catalog;
use crate::columns;
use crate::engine::QueryLimits;
use crate::error::{Error, ErrorKind};
use crate::hints;
use crate::named;
use crate::projection::Snapshot;
use crate::statement;
use crate::text_views::{self, Viewed};
use crate::windows;

/// What is asked.
pub(crate) struct Asked {
    pub(crate) text: String,
    pub(crate) params: Option<Vec<ScalarValue>>,
    pub(crate) limits: QueryLimits,
}

impl Asked {
    /// The plan as it was asked for.
    pub(crate) async fn frame(&self, context: &SessionContext) -> Result<DataFrame, Error> {
        self.planned(context).await.map(|(frame, _)| frame)
    }

    /// The columns of a query, and its parameters: those of which the query does not tell the type are texts.
    pub(crate) async fn described(&self, context: &SessionContext) -> Result<(SchemaRef, SchemaRef), Error> {
        let (frame, places) = self.planned(context).await?;
        let known = frame.logical_plan().get_parameter_types().unwrap_or_default();
        let field = |place: usize| {
            let name = format!("${place}");
            let kind = known.get(&name).cloned().flatten().map_or(DataType::Utf8, plain);
            Field::new(name, kind, true)
        };
        let parameters = Schema::new((1..=places).map(field).collect::<Vec<_>>());
        Ok((Arc::clone(frame.schema().inner()), Arc::new(parameters)))
    }

    /// The plan, and how many parameters it has.
    async fn planned(&self, context: &SessionContext) -> Result<(DataFrame, usize), Error> {
        let params = self.params.iter().flatten().map(ScalarValue::size).fold(0, usize::saturating_add);
        if self.text.len().saturating_add(params) > self.limits.text_bytes_max {
            let message = format!("a query and its parameters have at most {} bytes", self.limits.text_bytes_max);
            return Err(Error::invalid(message));
        }
        is_shallow_enough(&self.text)?;
        let state = context.state();
        let dialect = state.config().options().sql_parser.dialect;
        let mut statement = state.sql_to_statement(&self.text, &dialect).map_err(|e| read_only(&self.text, &e))?;
        statement::is_a_question(&statement)?;
        if let Some(sql) = statement::described(&statement).and_then(|name| columns::description_of(&name)) {
            statement = state.sql_to_statement(&sql, &dialect).map_err(|e| Error::query(&e))?;
        }
        is_short_enough(&statement)?;
        let places = named::number(&mut statement)?;
        named::bind_arguments(&mut statement, self.params.as_deref());
        let plan = state.statement_to_plan(statement).await.map_err(|e| read_only(&self.text, &e))?;
        options().verify_plan(&plan).map_err(|e| read_only(&self.text, &e))?;
        let frame = context.execute_logical_plan(plan).await.map_err(|e| read_only(&self.text, &e))?;
        let frame = adapt::columns(context, frame).map_err(|e| Error::query(&e))?;
        match &self.params {
            Some(params) if params.len() < places => Err(Error::invalid(format!(
                "the query has {places} parameters, and {} values were given",
                params.len()
            ))),
            Some(params) if !params.is_empty() => {
                let bound = frame.with_param_values(ParamValues::from(params.clone()));
                Ok((bound.map_err(|e| Error::query(&e))?, places))
            }
            _ => Ok((frame, places)),
        }
    }

    /// Begins to make the rows.
    pub(crate) async fn rows(
        &self,
        context: &SessionContext,
        snapshot: &Snapshot,
    ) -> Result<SendableRecordBatchStream, Error> {
        let (state, plan) = self.frame(context).await?.into_parts();
        is_small_enough(&plan)?;
        compiles_few_patterns(&plan)?;
        tells_nothing_hidden(&plan, snapshot)?;
        let wrong = |e: datafusion::error::DataFusionError| hinted(&self.text, Error::query(&e));
        let plan = adapt::ids_in_any_spelling(plan).map_err(wrong)?;
        let (plan, promised) = match text_views::of_plan(&state, &plan) {
            Some(Viewed { plan, promised }) => (plan, Some(promised)),
            None => (state.optimize(&plan).map_err(wrong)?, None),
        };
        // Of what is written as a sum, too.
        windows::are_within_bounds(&plan)?;
        let rows_max = batch_rows(&plan);
        let plan = state.query_planner().create_physical_plan(&plan, &state).await.map_err(wrong)?;
        let task = TaskContext::from(&state);
        let config = task.session_config().clone();
        let rows_max = rows_max.min(config.batch_size());
        let task = task.with_session_config(config.with_batch_size(rows_max));
        let rows = execute_stream(plan, Arc::new(task)).map_err(|e| Error::query(&e))?;
        Ok(match promised {
            Some(promised) => text_views::as_promised(rows, &promised),
            None => rows,
        })
    }
}

/// A type as drivers know it: they bind texts, and not the ways in which texts can lie in memory.
fn plain(kind: DataType) -> DataType {
    match kind {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::Dictionary(_, kind) => plain(*kind),
        kind => kind,
    }
}

/// Words and signs that make a query deep are counted before it is parsed: a chain of operators
/// becomes as many levels, of which some thousands are more than a stack holds.
fn is_shallow_enough(text: &str) -> Result<(), Error> {
    const DEEPENING_MAX: usize = 4000;
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize() else { return Ok(()) };
    let deepens = |token: &&Token| match token {
        Token::Comma | Token::Whitespace(_) | Token::Number(..) | Token::SingleQuotedString(_) => false,
        Token::Word(word) => word.keyword != Keyword::NoKeyword,
        _ => true,
    };
    if tokens.iter().filter(deepens).count() > DEEPENING_MAX {
        let message = format!("the query has more than {DEEPENING_MAX} operators and keywords; use lists or joins");
        return Err(Error::invalid(message));
    }
    Ok(())
}

/// A query of parts that name each other over and over is short, and without end when it is written
/// out, which planning does: so it is counted before.
fn is_short_enough(statement: &Statement) -> Result<(), Error> {
    const NAMES_MAX: u64 = 2000;
    let statement = match statement {
        Statement::Statement(statement) => statement,
        Statement::Explain(explain) => return is_short_enough(&explain.statement),
        _ => return Ok(()),
    };
    let mut parts: HashMap<String, u64> = HashMap::new();
    let plain = |name: String| name.replace('"', "").to_lowercase();
    type Names<'a> = &'a dyn Fn(&mut dyn FnMut(&ObjectName));
    let written_out = |parts: &HashMap<String, u64>, node: Names<'_>| {
        let mut names = 0u64;
        node(&mut |named| names = names.saturating_add(parts.get(&plain(named.to_string())).copied().unwrap_or(1)));
        names
    };
    let mut each = |query: &Query| {
        for part in query.with.iter().flat_map(|with| &with.cte_tables) {
            let names = written_out(&parts, &|each| {
                let _ = visit_relations(&part.query, |named| {
                    each(named);
                    ControlFlow::<()>::Continue(())
                });
            });
            let known = parts.entry(plain(part.alias.name.to_string())).or_default();
            *known = (*known).max(names.saturating_add(1));
        }
    };
    let _ = statement.visit(&mut Queries(&mut each));
    let names = written_out(&parts, &|each| {
        let _ = visit_relations(statement, |named| {
            each(named);
            ControlFlow::<()>::Continue(())
        });
    });
    if names > NAMES_MAX {
        let message = format!("written out, the query names more than {NAMES_MAX} tables; name each part less often");
        return Err(Error::new(ErrorKind::Resources, message));
    }
    Ok(())
}

/// Looks at every query within a statement, the outer ones first.
struct Queries<'a>(&'a mut dyn FnMut(&Query));

impl Visitor for Queries<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        (self.0)(query);
        ControlFlow::Continue(())
    }
}

/// What is shared while a query is read is copied when it is planned.
fn is_small_enough(plan: &LogicalPlan) -> Result<(), Error> {
    const NODES_MAX: usize = 20_000;
    let mut nodes = 0;
    let walked = plan.apply_with_subqueries(|node| {
        nodes += 1 + node.expressions().len() / 64;
        Ok(if nodes > NODES_MAX { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    if walked.is_err() || nodes > NODES_MAX {
        let message = format!("the plan of this query has more than {NODES_MAX} steps; ask for less at once");
        return Err(Error::new(ErrorKind::Resources, message));
    }
    Ok(())
}

/// A regular expression takes up to a tenth of a second to compile, and a batch has thousands of rows: one that is another in
/// each row keeps its thread for minutes, in which nobody can interrupt it.
fn compiles_few_patterns(plan: &LogicalPlan) -> Result<(), Error> {
    let of_a_row = |pattern: &Expr| !pattern.column_refs().is_empty();
    let mut found = false;
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found |= match expr {
                    Expr::ScalarFunction(call) if call.func.name().starts_with("regexp_") => {
                        call.args.get(1).is_some_and(of_a_row)
                    }
                    Expr::BinaryExpr(binary) if binary.op.to_string().contains('~') => of_a_row(&binary.right),
                    _ => false,
                };
                Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
            })
        })
    });
    if walked.is_err() || found {
        return Err(Error::invalid("a regular expression is the same for all rows: write it as a text or a parameter"));
    }
    Ok(())
}

/// What EXPLAIN counts, it counts before rows are hidden.
fn tells_nothing_hidden(plan: &LogicalPlan, snapshot: &Snapshot) -> Result<(), Error> {
    let counts = match plan {
        LogicalPlan::Analyze(_) => true,
        // A tree tells the sizes of what a scan reads.
        LogicalPlan::Explain(explain) => {
            explain.verbose || explain.explain_format == ExplainFormat::Tree || explain.show_statistics == Some(true)
        }
        _ => false,
    };
    if counts && !snapshot.visible().is_open() {
        let message = "EXPLAIN ANALYZE, EXPLAIN VERBOSE, EXPLAIN FORMAT TREE and statistics count rows of all tenants, and you \
                       may see only some; use EXPLAIN";
        return Err(Error::new(ErrorKind::Forbidden, message));
    }
    Ok(())
}

/// Rows of a batch, so few that no literal of the plan is repeated into more than some MiB: a text
/// is written out for every row, and no memory pool counts that.
fn batch_rows(plan: &LogicalPlan) -> usize {
    const LITERAL_BYTES_MAX: usize = 32 << 20;
    let mut bytes = 0;
    let _ = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Literal(value, _) = expr {
                    bytes += value.size();
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    (LITERAL_BYTES_MAX / bytes.max(1)).max(1)
}

/// Nothing but queries.
fn options() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

/// What is refused for wanting to change something is told apart from what is wrong.
fn read_only(text: &str, error: &datafusion::error::DataFusionError) -> Error {
    let message = error.strip_backtrace();
    let copies = message.contains("no registered file format");
    if copies || message.contains("not supported: ") && ["DDL", "DML", "Statement"].iter().any(|w| message.contains(w))
    {
        return statement::read_only(&text.split_whitespace().next().unwrap_or_default().to_uppercase());
    }
    if message.contains("only supports a single SQL statement") {
        return Error::invalid("these are several statements, and a question is one: ask them one after the other");
    }
    let mut error = Error::query(error);
    if let Some(name) = error.message.strip_prefix("table 'datafusion.public.").and_then(|m| m.split('\'').next()) {
        error.message = format!("there is no table {name}; there are {}", catalog::TABLES.join(", "));
    }
    if error.position.is_none() && error.message.contains("found: EOF") {
        let last = text.lines().last().unwrap_or_default();
        error.position = Some((text.lines().count().max(1) as u64, last.chars().count() as u64 + 1));
    }
    hinted(text, error)
}

/// With what helps to mend the query.
fn hinted(text: &str, mut error: Error) -> Error {
    if error.kind == ErrorKind::Invalid {
        error.message = hints::with_hint(text, error.message);
    }
    error
}
