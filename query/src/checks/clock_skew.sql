-- A step began before the step that caused it, by more than the limit: a clock is off.
-- severity: low
-- tags: OWASP ASI07
-- on: any
-- fires: at once
-- setting limit_seconds: 5 | how far clocks may differ
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('it began ', CAST(seconds_between(c.event_time, p.event_time) AS VARCHAR), ' s before its parent of service ', p.service) AS detail,
       make_array(p.seq, c.seq) AS evidence
FROM events c
JOIN events p ON p.trace_id = c.trace_id AND p.span_id = c.parent_span_id AND (p.parent_span_id IS DISTINCT FROM p.span_id) AND same_tenant(p.tenant, c.tenant)
WHERE p.service <> c.service AND seconds_between(c.event_time, p.event_time) > setting('limit_seconds', c.workspace)
