-- The call began before its grant was valid.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- setting clock_skew_seconds: 0 | how far the clocks of caller and issuer may differ
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called at ', CAST(c.event_time AS VARCHAR), ', before its grant is valid from ',
              CAST(g.not_before AS VARCHAR)) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE seconds_between(c.event_time, g.not_before) > setting('clock_skew_seconds', c.workspace)
