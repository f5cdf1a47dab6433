-- A tool call names no grant. Turn it on for the workspaces that require one.
-- severity: high
-- tags: OWASP ASI03
-- on: tool_call
-- fires: at once
-- default: off
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called without a grant') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
WHERE c.grant_id IS NULL
