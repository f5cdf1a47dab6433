//! Joins give way. A plan's leaves let other work of their thread go first now and then, but a join makes any number
//! of batches of one of its leaves', and whatever is above it (a sort, a count) asks for the next one without a pause:
//! such a task is never interrupted, not by its deadline, nor because whoever asked has gone, and a few of them
//! keep all query threads for themselves. So each join pauses after every batch that it is given, and every
//! one that it gives.
//!
//! At the same places, and wherever rows come from, a query that lasts rests: `leeway.rs`.
//!
//! Windows are counted on the way: `windows.rs`.
//!
//! What remains uninterrupted is one batch of one side with all rows of the other, which is bounded by the memory of
//! a query.

use std::fmt;
use std::sync::Arc;
use std::task::{Poll, ready};

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
    SendableRecordBatchStream,
};
use futures::StreamExt as _;

use crate::leeway::Own;
use crate::windows::Window;

/// What makes more batches than it is given.
const MULTIPLYING: [&str; 7] = [
    "CrossJoinExec",
    "HashJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "SortMergeJoinExec",
    "SymmetricHashJoinExec",
    "UnnestExec",
];

/// The rule that makes joins pause. It is the last one: nothing is planned over what it adds.
#[derive(Debug)]
pub(crate) struct GiveWay;

impl PhysicalOptimizerRule for GiveWay {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let window = Window::of(&node);
            if node.children().is_empty() {
                return Ok(Transformed::yes(Arc::new(PausingExec { input: node, window: None, is_source: true })));
            }
            if window.is_none() && !MULTIPLYING.contains(&node.name()) {
                return Ok(Transformed::no(node));
            }
            let side = |side| window.as_ref().map(|window| (side, Arc::clone(window)));
            let input = |input: &Arc<dyn ExecutionPlan>| PausingExec::over(Arc::clone(input), side(Side::Into));
            let inputs = node.children().into_iter().map(input).collect();
            let node = node.replace_children(inputs, ReplaceChildrenOptions::new(Recompute))?;
            Ok(Transformed::yes(PausingExec::over(node, side(Side::OutOf))))
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "give_way"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Passes batches on, and lets others run after each.
#[derive(Debug)]
struct PausingExec {
    input: Arc<dyn ExecutionPlan>,
    /// The window on one side of it, which is told what passes.
    window: Option<(Side, Arc<Window>)>,
    /// It is over where rows come from, which lets others run by itself.
    is_source: bool,
}

/// On which way what passes is.
#[derive(Clone, Copy, Debug)]
enum Side {
    Into,
    OutOf,
}

impl PausingExec {
    fn over(input: Arc<dyn ExecutionPlan>, window: Option<(Side, Arc<Window>)>) -> Arc<dyn ExecutionPlan> {
        match input.downcast_ref::<Self>() {
            Some(pausing) if window.is_none() && !pausing.is_source => input,
            _ => Arc::new(Self { input, window, is_source: false }),
        }
    }
}

impl DisplayAs for PausingExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PausingExec")
    }
}

impl ExecutionPlan for PausingExec {
    fn name(&self) -> &'static str {
        "PausingExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] =
            <[_; 1]>::try_from(children).map_err(|_| DataFusionError::Internal("one input is paused for".into()))?;
        Ok(Arc::new(Self { input, window: self.window.clone(), is_source: self.is_source }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let told = self.window.as_ref().and_then(|(side, window)| {
            let held = match side {
                Side::OutOf => Some(window.begin(partition, &context)),
                Side::Into => window.begun(partition),
            };
            Some((*side, Arc::clone(window), held?))
        });
        let own = context.session_config().get_extension::<Own>();
        let mut input = self.input.execute(partition, context)?;
        let (mut is_due, pauses, mut rest) = (false, !self.is_source, None);
        let batches = futures::stream::poll_fn(move |context| {
            if let Some(own) = &own {
                if rest.is_none() {
                    rest = own.rests().map(|until| Box::pin(tokio::time::sleep_until(until.into())));
                }
                if let Some(resting) = &mut rest {
                    ready!(resting.as_mut().poll(context));
                    rest = None;
                }
            }
            if std::mem::take(&mut is_due) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let next = input.poll_next_unpin(context);
            is_due = pauses && next.is_ready();
            let (Some((side, window, held)), Poll::Ready(Some(Ok(batch)))) = (&told, &next) else { return next };
            let counted = match side {
                Side::Into => window.take(held, batch),
                Side::OutOf => window.give(held, batch.num_rows()),
            };
            if let Err(error) = counted {
                return Poll::Ready(Some(Err(error)));
            }
            next
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}
