//! MCP's tasks: calls of tools that go on after they were answered, and whose result is fetched later.
//!
//! The call that began one is a `tool_call` as ever. The convention names no task (its list of methods has none of
//! them), so which it is stands where a library says so: `mcp.task.id`, FastMCP's `fastmcp.component.key` on the client's
//! side, and in the name of the job that FastMCP's worker runs. It is `correlation_id`, and never `tool_call_id`: the
//! call's own span does not know it.
//!
//! What they cannot tell: what became of a task that is only asked for (`tasks/get`), unless `mcp.task.status` is said;
//! what was answered to its questions (`tasks/update`); that a tool failed, on a worker's span: the failure is its result.

use custody_proto::wire::Span;

use super::{RecordContext, base_span};
use crate::attributes::Attributes;
use crate::event::EventRow;

/// The task that a span is about.
pub(super) fn id(attributes: Attributes<'_>) -> Option<String> {
    let of_client = || attributes.text("fastmcp.component.key").filter(|_| is_asked(attributes));
    attributes.text("mcp.task.id").or_else(of_client)
}

/// Whether a client asks for something that is about a task.
pub(super) fn is_asked(attributes: Attributes<'_>) -> bool {
    attributes.lent("mcp.method.name").is_some_and(|method| method.starts_with("tasks/"))
}

/// The kind of event of a span that is about a task, and of nothing else that is known.
pub(super) fn kind(method: Option<&str>, attributes: Attributes<'_>) -> Option<&'static str> {
    let has_ended =
        || matches!(attributes.lent("mcp.task.status").as_deref(), Some("completed" | "failed" | "cancelled"));
    match method {
        Some("tasks/result") => Some("tool_result"),
        Some("tasks/get" | "notifications/tasks/status") => has_ended().then_some("tool_result"),
        Some("tasks/cancel") => Some("authority_change"),
        Some("tasks/update") => Some("request"),
        Some(_) => None,
        // The work behind a call that was answered already.
        None => attributes.has_text("mcp.task.id").then_some("tool_result"),
    }
}

/// What a client says of a task is said by who uses it, else by the client.
pub(super) fn by_client(row: &mut EventRow, span: &Span<'_>, attributes: Attributes<'_>) {
    use custody_proto::otlp::trace::span::SpanKind;
    let is_client = matches!(span.kind(), SpanKind::Client | SpanKind::Producer);
    if row.initiator_id.is_none() && is_client {
        row.initiator_id.clone_from(&row.service);
        row.initiator_type = row.initiator_id.as_ref().map(|_| "process".into());
    }
    row.resource = row.resource.take().or_else(|| id(attributes));
    if row.kind == "authority_change" {
        row.action = row.action.take().or_else(|| Some("task".into()));
        row.decision = row.decision.take().or_else(|| Some("cancelled".into()));
    } else {
        row.action = row.action.take().or_else(|| attributes.text("mcp.method.name"));
    }
}

/// The end of a task is its call's, told again.
pub(super) fn result(row: &mut EventRow, attributes: Attributes<'_>) {
    row.action = row.action.take().or_else(|| row.tool.clone());
    if attributes.lent("mcp.task.status").as_deref() == Some("failed") {
        row.status = Some("error".into());
    }
}

/// The event of a job of FastMCP's worker (`fastmcp-tasks`, on Docket): the tool that runs behind its task, in a trace
/// of its own with a link to the call's.
pub(super) fn map_worker(context: &RecordContext<'_>, span: &Span<'_>) -> Option<EventRow> {
    if context.scope.name != "docket.worker" {
        return None;
    }
    let attributes = Attributes(&span.attributes);
    // `anon:TASK:KIND:NAME`, `auth:WHO:TASK:KIND:NAME`: the parts are percent-encoded.
    let key = attributes.lent("docket.key")?;
    let mut parts = key.split(':');
    let tag = parts.next()?;
    let skipped = match tag {
        "anon" => 0,
        "auth" => 1,
        _ => return None,
    };
    let task = parts.nth(skipped)?.to_owned();
    let name = attributes.text("docket.task")?;
    let tool = name.strip_prefix("tool:")?;
    let mut row = base_span(context, span, "mcp", "tool_result");
    row.tool = row.tool.or_else(|| Some(tool.rsplit_once('@').map_or(tool, |(tool, _)| tool).to_owned()));
    row.action = row.action.or_else(|| row.tool.clone());
    row.correlation_id = row.correlation_id.or(Some(task));
    row.status = row.status.filter(|status| status == "error");
    Some(row)
}
