-- A system of record changed, and no executor allowed it.
-- severity: high
-- tags: OWASP ASI02, OWASP ASI03, ATLAS AML.T0053
-- on: system_update
-- fires: after grace
-- default: off
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(coalesce(c.resource, 'a system of record'), ' changed, and no executor decided about it') AS detail,
       make_array(c.seq) AS evidence
FROM events c
LEFT ANTI JOIN (
    SELECT d.trace_id, d.tenant, min(d.event_time) AS since FROM events d
    WHERE d.kind = 'executor_decision' AND d.decision = 'allow' AND coalesce(cardinality(d.invalid_reasons), 0) = 0
    GROUP BY d.trace_id, d.tenant
) d ON d.trace_id = c.trace_id AND same_tenant(d.tenant, c.tenant) AND d.since <= c.event_time
WHERE c.kind = 'system_update'
