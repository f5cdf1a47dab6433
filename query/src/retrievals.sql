-- What agents took into their context, and from where.
-- data_source: Where it was looked for, as the source names it.
-- query: What was looked for.
-- documents: What was found, a JSON list where the source tells it.
-- redactions: What was taken out before the agent saw it.
-- trust: How far the source is trusted, where it is said.
SELECT seq, record_hash, event_time, end_time, trace_id, span_id, parent_span_id, tenant, service, agent_id, agent_name,
       initiator_id, grant_id, workspace, conversation_id,
       coalesce(json_get_str(attributes, 'gen_ai.data_source.id'), json_get_str(attributes, 'mcp.resource.uri'),
                json_get_str(attributes, 'retrieval.source')) AS data_source,
       coalesce(json_get_str(attributes, 'gen_ai.retrieval.query.text'), json_get_str(attributes, 'retrieval.query'),
                json_get_str(attributes, 'input.value')) AS query,
       coalesce(json_as_text(attributes, 'gen_ai.retrieval.documents'), json_as_text(attributes, 'retrieval.documents'),
                json_get_str(attributes, 'output.value')) AS documents,
       resource, classification, json_as_text(attributes, 'data.redactions') AS redactions,
       json_get_str(attributes, 'data.trust') AS trust,
       decision, reasons, policy_id, policy_version, status, attributes, source, submitter, ingest_time
FROM events
WHERE kind = 'context_retrieval'
