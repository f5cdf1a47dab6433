//! The table `events`: one row per provenance step.

use crate::rows::{Time, table};

table! {
    /// One provenance step, mapped from one record.
    EventRow, EventBuilder {
        /// Place of the record in the log.
        seq: u64,
        /// Content commitment of the record, hex.
        record_hash: String,
        /// When it happened, as its source says.
        event_time: Time,
        /// When it ended, for steps that last.
        end_time: Option<Time>,
        /// When the source's collector observed it.
        observed_time: Option<Time>,
        /// When the ledger took it.
        ingest_time: Time,
        /// What kind of step it is.
        kind: String,
        /// Trace id, 32 hex digits.
        trace_id: Option<String>,
        /// Span id, 16 hex digits.
        span_id: Option<String>,
        /// Span id of the parent.
        parent_span_id: Option<String>,
        /// Linked spans, each as trace id:span id.
        links: Vec<String>,
        /// Whose it is, as the sender says.
        tenant: Option<String>,
        /// Who sent the record, as authenticated.
        submitter: String,
        /// The service's own claim of its name.
        service: Option<String>,
        /// user or process.
        initiator_type: Option<String>,
        /// Who asked for it in the first place.
        initiator_id: Option<String>,
        /// The agent that acts, or that authority was given to.
        agent_id: Option<String>,
        /// The agent's name.
        agent_name: Option<String>,
        /// The agent's version.
        agent_version: Option<String>,
        /// Who acted for whom, outermost first.
        actor_chain: Vec<String>,
        /// The grant that was used, issued, denied or revoked.
        grant_id: Option<String>,
        /// The grant that it was derived from.
        parent_grant_id: Option<String>,
        /// The first grant of the chain, where the source names it.
        root_grant_id: Option<String>,
        /// How many derivations from the root, where the source says.
        delegation_depth: Option<u32>,
        /// Workspace.
        workspace: Option<String>,
        /// Task.
        task_id: Option<String>,
        /// Process.
        process_id: Option<String>,
        /// What was done or decided about.
        action: Option<String>,
        /// What it was done to.
        resource: Option<String>,
        /// Tool name.
        tool: Option<String>,
        /// Id of the tool call.
        tool_call_id: Option<String>,
        /// allow, deny, approved, rejected and the like.
        decision: Option<String>,
        /// Why.
        reasons: Vec<String>,
        /// Policy that decided.
        policy_id: Option<String>,
        /// Its version.
        policy_version: Option<String>,
        /// Skill.
        skill_id: Option<String>,
        /// Its version.
        skill_version: Option<String>,
        /// Data classification.
        classification: Option<String>,
        /// Correlation id.
        correlation_id: Option<String>,
        /// The actor: human, agent, workload or automation, where the source says.
        actor_type: Option<String>,
        /// SPIFFE id of the workload, as the source says (`submitter` is what was authenticated).
        workload_id: Option<String>,
        /// What the call does: read, write or external_send.
        effect: Option<String>,
        /// How far what was retrieved is trusted, as the source says.
        trust: Option<String>,
        /// The evaluation that a grant was given by.
        evaluation_id: Option<String>,
        /// Digest of a call's arguments, as caller or executor computed it.
        arguments_digest: Option<String>,
        /// Digest of what an approver was shown.
        shown_digest: Option<String>,
        /// Digest of the tool's schema.
        schema_digest: Option<String>,
        /// Digest of the parent grant, as the derived one names it.
        parent_hash: Option<String>,
        /// Conversation or session.
        conversation_id: Option<String>,
        /// ok, error or unset.
        status: Option<String>,
        /// Rules of the model that the record breaks; such a record authorises nothing.
        invalid_reasons: Vec<String>,
        /// All attributes of the record, a JSON object.
        attributes: String,
        /// Which mapping made the row.
        source: String,
        /// Version of that mapping.
        mapping_version: u32,
    }
}
