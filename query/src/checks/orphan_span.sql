-- The parent of a step never came. Sampling does that, too: turn it on where nothing is sampled.
-- severity: low
-- tags: OWASP ASI07
-- on: any
-- fires: after grace
-- default: off
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('its parent span ', c.parent_span_id, ' was never received') AS detail,
       make_array(c.seq) AS evidence
FROM events c
LEFT ANTI JOIN span_ids s ON s.trace_id = c.trace_id AND s.span_id = c.parent_span_id AND same_tenant(s.tenant, c.tenant)
WHERE c.parent_span_id IS NOT NULL
