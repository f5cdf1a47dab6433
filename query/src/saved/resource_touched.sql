-- title: Who touched this resource?
-- shows: Every call that names a resource, by whom, under which grant, and how it ended.
-- param resource text | The resource; % stands for anything.
-- param from time = null | Only what happened at this time or later.
-- param to time = null | Only what happened before this time.
-- column seq | The record that shows it.
-- column record_hash | Its content commitment, hex.
-- column event_time | When, as the source says.
-- column agent_id | The agent.
-- column initiator_id | Who asked for it in the first place.
-- column tool | The tool.
-- column resource | What it was done to.
-- column grant_id | The grant.
-- column status | ok, error or unset.
-- column trace_id | Trace.
SELECT seq, record_hash, event_time, agent_id, initiator_id, tool, resource, grant_id, status, trace_id
FROM tool_calls
WHERE resource LIKE $resource AND ($from IS NULL OR event_time >= CAST($from AS TIMESTAMP)) AND ($to IS NULL OR event_time < CAST($to AS TIMESTAMP))
ORDER BY event_time, seq
