-- The call began after its grant had expired.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
SELECT 'expired_grant' AS check_id, 'proven' AS verdict, 'high' AS severity,
       c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called at ', CAST(c.event_time AS VARCHAR), ', after its grant expired at ',
              CAST(g.expires_at AS VARCHAR)) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence, c.event_time AS detected_time
FROM tool_calls c
JOIN grants g ON g.grant_id = c.grant_id AND g.state <> 'denied'
WHERE g.expires_at IS NOT NULL AND c.event_time > g.expires_at
