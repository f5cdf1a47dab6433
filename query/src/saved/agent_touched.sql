-- title: What did this agent touch?
-- shows: What an agent did to what, how often, and when first and last; with the first record of each.
-- param agent text | The agent id.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column tool | The tool.
-- column action | The action.
-- column resource | What it was done to.
-- column calls | How many.
-- column failed | How many of them failed.
-- column first_time | When first.
-- column last_time | When last.
-- column seq | The first record of it.
SELECT tool, action, resource, count(*) AS calls, sum(CASE WHEN status = 'error' THEN 1 ELSE 0 END) AS failed,
       min(event_time) AS first_time, max(event_time) AS last_time, min(seq) AS seq
FROM events
WHERE agent_id = $agent AND kind IN ('tool_call', 'context_retrieval')
  AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
GROUP BY tool, action, resource
ORDER BY calls DESC, tool, resource
