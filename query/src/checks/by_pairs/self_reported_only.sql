-- Nobody but the caller's own service told of a call: no proxy, no executor.
-- severity: low
-- tags: OWASP ASI07, OWASP ASI10
-- on: tool_call
-- fires: after grace
-- default: off
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('only ', coalesce(c.service, 'the caller'), ' tells of it') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
LEFT ANTI JOIN events w ON w.trace_id = c.trace_id AND w.service <> c.service AND same_tenant(w.tenant, c.tenant)
                       AND w.kind IN ('policy_evaluation', 'executor_decision', 'system_update', 'tool_call')
