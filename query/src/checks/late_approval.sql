-- A call was approved only after it had begun.
-- severity: high
-- tags: OWASP ASI09, ATLAS AML.T0053
-- on: approval
-- fires: after grace
-- needs: gen_ai.tool.call.id on both
WITH calls AS (
    SELECT t.trace_id, t.tool_call_id, t.tenant, min(t.event_time) AS since, first_value(t.seq ORDER BY t.event_time, t.seq) AS seq
    FROM tool_calls t
    WHERE t.tool_call_id IS NOT NULL AND t.trace_id IS NOT NULL
    GROUP BY t.trace_id, t.tool_call_id, t.tenant
), approvals AS (
    SELECT b.trace_id, b.tool_call_id, b.tenant, min(b.event_time) AS since
    FROM events b
    WHERE b.kind = 'approval' AND b.decision = 'approved' AND coalesce(cardinality(b.invalid_reasons), 0) = 0
    GROUP BY b.trace_id, b.tool_call_id, b.tenant
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' was approved after it had begun') AS detail,
       make_array(min(t.seq), c.seq) AS evidence
FROM events c
JOIN calls t ON t.tool_call_id = c.tool_call_id AND t.trace_id = c.trace_id AND same_tenant(t.tenant, c.tenant) AND t.since < c.event_time
LEFT ANTI JOIN approvals b ON b.tool_call_id = c.tool_call_id AND b.trace_id = c.trace_id
                           AND same_tenant(b.tenant, coalesce(c.tenant, t.tenant)) AND b.since <= t.since
WHERE c.kind = 'approval' AND c.decision = 'approved'
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id
