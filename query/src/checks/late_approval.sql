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
    -- The first for each call, in each place where those that meet it look.
    SELECT b.trace_id, b.tool_call_id, b.scope, min(b.event_time) AS since
    FROM (
        SELECT b.trace_id, b.tool_call_id, b.event_time, unnest(scopes_of(b.tenant)) AS scope
        FROM events b
        WHERE b.kind = 'approval' AND b.decision = 'approved' AND coalesce(cardinality(b.invalid_reasons), 0) = 0
          AND b.trace_id IS NOT NULL AND b.tool_call_id IS NOT NULL
    ) b
    GROUP BY b.trace_id, b.tool_call_id, b.scope
), in_time AS (
    -- A call that names a tenant can be approved for that one, whoever asks.
    SELECT DISTINCT t.seq
    FROM (SELECT t.*, unnest(scopes_met(t.tenant)) AS scope FROM calls t WHERE t.tenant IS NOT NULL) t
    JOIN approvals b ON b.trace_id = t.trace_id AND b.tool_call_id = t.tool_call_id AND b.scope = t.scope AND b.since <= t.since
), begun AS (
    -- The first call without.
    SELECT t.trace_id, t.tool_call_id, t.scope, min(t.since) AS since, first_value(t.seq ORDER BY t.since, t.seq) AS seq
    FROM (
        SELECT t.trace_id, t.tool_call_id, t.since, t.seq, unnest(scopes_of(t.tenant)) AS scope
        FROM calls t
        LEFT ANTI JOIN in_time i ON i.seq = t.seq
    ) t
    GROUP BY t.trace_id, t.tool_call_id, t.scope
), late AS (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id, c.event_time, unnest(scopes_met(c.tenant)) AS scope
    FROM events c
    WHERE c.kind = 'approval' AND c.decision = 'approved' AND c.trace_id IS NOT NULL AND c.tool_call_id IS NOT NULL
), firsts AS (
    -- One that names no tenant is approved for whose approval is judged.
    SELECT c.seq, min(b.since) AS since
    FROM late c
    JOIN approvals b ON b.trace_id = c.trace_id AND b.tool_call_id = c.tool_call_id AND b.scope = c.scope
    GROUP BY c.seq
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('call ', c.tool_call_id, ' was approved after it had begun') AS detail,
       make_array(min(t.seq), c.seq) AS evidence
FROM late c
JOIN begun t ON t.tool_call_id = c.tool_call_id AND t.trace_id = c.trace_id AND t.scope = c.scope AND t.since < c.event_time
LEFT JOIN firsts f ON f.seq = c.seq
WHERE t.scope <> '' OR f.since IS NULL OR f.since > t.since
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool_call_id
