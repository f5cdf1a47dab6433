-- The newest approval of the grant was old when the call began.
-- severity: medium
-- tags: OWASP ASI09
-- on: tool_call
-- fires: after grace
-- setting age_seconds: 1800 | how long an approval holds
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the approval is of ', CAST(max(a.event_time) AS VARCHAR)) AS detail,
       make_array(last_value(a.seq ORDER BY a.event_time, a.seq), c.seq) AS evidence
FROM tool_calls c
JOIN events a ON a.kind = 'approval' AND a.decision = 'approved' AND a.grant_id = c.grant_id AND a.event_time <= c.event_time AND same_tenant(a.tenant, c.tenant)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.event_time, c.workspace
HAVING seconds_between(max(a.event_time), c.event_time) > setting('age_seconds', c.workspace)
