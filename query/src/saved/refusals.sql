-- title: What was refused, to whom, and why?
-- shows: Refusals by issuers, policies and executors.
-- param agent text = null | Only of this agent.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column seq | The record that shows it.
-- column event_time | When, as the source says.
-- column agent_id | The agent.
-- column actions | Patterns of refused actions.
-- column resources | Patterns of refused resources, null if it names none.
-- column reason | By whom and why.
-- column trace_id | Trace.
SELECT seq, event_time, agent_id, actions, resources, reason, trace_id
FROM denials
WHERE ($agent IS NULL OR agent_id = $agent) AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
ORDER BY event_time, seq
