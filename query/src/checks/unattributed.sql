-- A tool call has neither an agent nor an initiator. Many frameworks name neither: turn it on where they must.
-- severity: low
-- tags: OWASP ASI03
-- on: tool_call
-- fires: at once
-- default: off
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called by nobody who is named') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
WHERE c.agent_id IS NULL AND c.agent_name IS NULL AND c.initiator_id IS NULL
