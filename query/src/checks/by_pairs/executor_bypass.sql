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
LEFT ANTI JOIN events d ON d.kind = 'executor_decision' AND d.decision = 'allow' AND d.trace_id = c.trace_id AND d.event_time <= c.event_time AND same_tenant(d.tenant, c.tenant)
                       AND coalesce(cardinality(d.invalid_reasons), 0) = 0
WHERE c.kind = 'system_update'
