//! Joins give way. A plan's leaves let other work of their thread go first now and then, but a join makes any number
//! of batches of one of its leaves', and whatever is above it (a sort, a count) asks for the next one without a pause:
//! such a task is never interrupted, not by its deadline, nor because whoever asked has gone, and a few of them
//! keep all query threads for themselves. So each join pauses after every batch that it is given, and every
//! one that it gives.
//!
//! Windows over all rows keep all that they are given until the last of it has come, and count none of it: that is counted
//! here, against the memory of the query.
//!
//! What remains uninterrupted is one batch of one side with all rows of the other, which is bounded by the memory of
//! a query.

use std::fmt;
use std::sync::Arc;
use std::task::Poll;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
    SendableRecordBatchStream,
};
use futures::StreamExt as _;

use crate::streamed::sliced_bytes;

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

/// What keeps all of its input.
const KEEPING: &str = "WindowAggExec";

/// The rule that makes joins pause. It is the last one: nothing is planned over what it adds.
#[derive(Debug)]
pub(crate) struct GiveWay;

impl PhysicalOptimizerRule for GiveWay {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            let keeps = node.name() == KEEPING;
            if !keeps && !MULTIPLYING.contains(&node.name()) {
                return Ok(Transformed::no(node));
            }
            let inputs = node.children().into_iter().map(|input| PausingExec::over(Arc::clone(input), keeps)).collect();
            let node = node.replace_children(inputs, ReplaceChildrenOptions::new(Recompute))?;
            Ok(Transformed::yes(PausingExec::over(node, false)))
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
    /// Whether what has passed is kept above, and counts as long as this runs.
    counts: bool,
}

impl PausingExec {
    fn over(input: Arc<dyn ExecutionPlan>, counts: bool) -> Arc<dyn ExecutionPlan> {
        if input.name() == "PausingExec" && !counts { input } else { Arc::new(Self { input, counts }) }
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
        Ok(Self::over(input, self.counts))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let kept = self.counts.then(|| MemoryConsumer::new("window").register(context.memory_pool()));
        let mut input = self.input.execute(partition, context)?;
        let mut is_due = false;
        let batches = futures::stream::poll_fn(move |context| {
            if std::mem::take(&mut is_due) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let next = input.poll_next_unpin(context);
            is_due = next.is_ready();
            if let (Some(kept), Poll::Ready(Some(Ok(batch)))) = (&kept, &next)
                && let Err(error) = kept.try_grow(sliced_bytes(batch))
            {
                return Poll::Ready(Some(Err(error)));
            }
            next
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }
}
