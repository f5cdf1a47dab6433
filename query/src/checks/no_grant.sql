-- A tool call names no grant, where they are required: in a service and workspace whose calls named one all but always before.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: tool_call
-- fires: at once
-- setting calls_min: 20 | how many calls must have named a grant, of the newest 200 within the window, to make it the rule; 0 requires one of every call
-- setting share_min: 0.95 | how many of those calls it must have been
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('tool ', c.tool, ' was called without a grant',
              CASE WHEN setting('calls_min', c.workspace) > 0 THEN concat('; of ', CAST(h.calls AS VARCHAR), ' calls before it in ',
              coalesce(c.service, 'its service'), ', ', CAST(h.with_grant AS VARCHAR), ' named one') ELSE '' END) AS detail,
       make_array(c.seq) AS evidence
FROM tool_calls c
JOIN call_habits h ON h.seq = c.seq
WHERE c.grant_id IS NULL
  AND (setting('calls_min', c.workspace) <= 0
       OR (h.with_grant >= setting('calls_min', c.workspace) AND h.with_grant >= setting('share_min', c.workspace) * h.calls))
