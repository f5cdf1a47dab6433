-- Who or what allowed or refused: policies, issuers of grants, approvers, executors, filters, people who contain.
-- decided_by: The person who decided, or the service whose rule did.
-- by_person: Whether a person decided.
-- input_digest: Digest of what the decision was made over, where the source tells it.
SELECT seq, record_hash, event_time, kind, trace_id, span_id, tenant, service, agent_id, agent_name, initiator_type, initiator_id,
       grant_id, parent_grant_id, workspace, task_id, process_id,
       CASE WHEN kind = 'grant_denied' THEN 'deny' ELSE decision END AS decision,
       CASE kind WHEN 'approval' THEN coalesce(json_get_str(attributes, 'authz.approval.by'), initiator_id, service)
                 WHEN 'containment_decision' THEN initiator_id
                 ELSE coalesce(service, submitter) END AS decided_by,
       CASE kind WHEN 'approval' THEN coalesce(json_get_str(attributes, 'authz.approval.by_type') = 'human', true)
                 ELSE kind = 'containment_decision' END AS by_person,
       reasons, policy_id, policy_version, action, resource, tool, tool_call_id, classification,
       coalesce(json_get_str(attributes, 'authz.inputs.digest'), json_get_str(attributes, 'authz.approval.shown_digest'),
                json_get_str(attributes, 'authz.arguments.digest')) AS input_digest,
       correlation_id, conversation_id, invalid_reasons, attributes, source, submitter, ingest_time
FROM events
WHERE kind IN ('policy_evaluation', 'grant_denied', 'approval', 'executor_decision', 'guardrail', 'containment_decision')
