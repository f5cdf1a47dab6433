-- The grant id was never issued in the ledger.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
SELECT 'unknown_grant' AS check_id, 'proven' AS verdict, 'high' AS severity,
       c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called under grant ', c.grant_id, ', which was never issued') AS detail,
       make_array(c.seq) AS evidence, c.event_time AS detected_time
FROM tool_calls c
LEFT ANTI JOIN grants g ON g.grant_id = c.grant_id AND g.state <> 'denied'
WHERE c.grant_id IS NOT NULL
