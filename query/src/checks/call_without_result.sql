-- An executor allowed a call, and the call never came.
-- severity: low
-- tags: OWASP ASI07
-- on: executor_decision
-- fires: after grace
-- default: off
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' was allowed and never seen') AS detail,
       make_array(c.seq) AS evidence
FROM events c
LEFT ANTI JOIN tool_calls t ON t.tool_call_id = c.tool_call_id AND t.trace_id = c.trace_id AND same_tenant(t.tenant, c.tenant)
WHERE c.kind = 'executor_decision' AND c.decision = 'allow' AND c.tool_call_id IS NOT NULL
