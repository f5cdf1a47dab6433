SELECT seq, record_hash, event_time, end_time,
       CAST(end_time AS BIGINT) - CAST(event_time AS BIGINT) AS duration_ns,
       trace_id, span_id, parent_span_id, service, agent_id, agent_name, initiator_id, grant_id, workspace,
       tool, tool_call_id, action, resource,
       json_get_str(attributes, 'gen_ai.tool.call.arguments') AS arguments,
       json_get_str(attributes, 'gen_ai.tool.call.result') AS result,
       status, json_get_str(attributes, 'error.type') AS error_type,
       conversation_id, source, submitter, ingest_time
FROM events
WHERE kind = 'tool_call'
