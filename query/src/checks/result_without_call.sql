-- A result or a change names a call that never came.
-- severity: medium
-- tags: OWASP ASI07
-- on: system_update, output
-- fires: after grace
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' had an effect and was never seen') AS detail,
       make_array(c.seq) AS evidence
FROM events c
LEFT ANTI JOIN tool_calls t ON t.tool_call_id = c.tool_call_id AND t.trace_id = c.trace_id AND same_tenant(t.tenant, c.tenant)
WHERE c.kind IN ('system_update', 'output') AND c.tool_call_id IS NOT NULL
