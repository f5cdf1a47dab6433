-- A call was approved only after it had begun.
-- severity: high
-- tags: OWASP ASI09, ATLAS AML.T0053
-- on: approval
-- fires: after grace
-- needs: gen_ai.tool.call.id on both
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' was approved after it had begun') AS detail,
       make_array(min(t.seq), c.seq) AS evidence
FROM events c
JOIN tool_calls t ON t.tool_call_id = c.tool_call_id AND t.trace_id = c.trace_id AND t.event_time < c.event_time AND same_tenant(t.tenant, c.tenant)
LEFT ANTI JOIN events b ON b.kind = 'approval' AND b.decision = 'approved' AND b.tool_call_id = c.tool_call_id
                       AND b.trace_id = c.trace_id AND b.event_time <= t.event_time AND same_tenant(b.tenant, coalesce(c.tenant, t.tenant))
                       AND coalesce(cardinality(b.invalid_reasons), 0) = 0
WHERE c.kind = 'approval' AND c.decision = 'approved'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id
