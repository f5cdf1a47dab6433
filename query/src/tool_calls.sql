SELECT seq, record_hash, event_time, end_time,
       CASE WHEN CAST(event_time AS BIGINT) >= 0 AND CAST(end_time AS BIGINT) >= 0
            THEN CAST(end_time AS BIGINT) - CAST(event_time AS BIGINT) END AS duration_ns,
       trace_id, span_id, parent_span_id, service, agent_id, agent_name, initiator_id, grant_id, tenant, workspace,
       tool, tool_call_id, action, resource,
       CASE source
           WHEN 'openinference' THEN json_get_str(attributes, 'input.value')
           WHEN 'openllmetry' THEN coalesce(json_get_str(attributes, 'gen_ai.tool.call.arguments'),
                                            json_get_str(attributes, 'traceloop.entity.input'))
           WHEN 'claude_code' THEN coalesce(json_get_str(attributes, 'tool_input'), json_get_str(attributes, 'tool_parameters'))
           WHEN 'codex' THEN json_get_str(attributes, 'arguments')
           WHEN 'gemini' THEN json_get_str(attributes, 'function_args')
           ELSE json_get_str(attributes, 'gen_ai.tool.call.arguments')
       END AS arguments,
       CASE source
           WHEN 'openinference' THEN json_get_str(attributes, 'output.value')
           WHEN 'openllmetry' THEN coalesce(json_get_str(attributes, 'gen_ai.tool.call.result'),
                                            json_get_str(attributes, 'traceloop.entity.output'))
           WHEN 'claude_platform' THEN coalesce(json_get_str(attributes, 'gen_ai.tool.call.result'),
                                                json_get_str(attributes, 'anthropic.tool_result.content'))
           WHEN 'codex' THEN json_get_str(attributes, 'output')
           WHEN 'claude_code' THEN NULL
           WHEN 'gemini' THEN NULL
           ELSE json_get_str(attributes, 'gen_ai.tool.call.result')
       END AS result,
       status, json_get_str(attributes, 'error.type') AS error_type,
       conversation_id, source, submitter, ingest_time
FROM events
WHERE kind = 'tool_call'
