-- A tool call has neither an agent nor an initiator, in a service and workspace whose calls named one all but always before. Many frameworks name neither: there it is silent.
-- severity: low
-- tags: OWASP ASI03
-- on: tool_call
-- fires: at once
-- setting calls_min: 20 | how many calls must have named somebody, of the newest 200 within the window, to make it the rule; 0 requires it of every call
-- setting share_min: 0.95 | how many of those calls it must have been
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called by nobody who is named') AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
JOIN call_habits h ON h.seq = c.seq
WHERE c.agent_id IS NULL AND c.agent_name IS NULL AND c.initiator_id IS NULL
  AND (setting('calls_min', c.workspace) <= 0
       OR (h.with_actor >= setting('calls_min', c.workspace) AND h.with_actor >= setting('share_min', c.workspace) * h.calls))
