-- title: Which agents are there, and what did they do?
-- shows: Every agent with its calls, its grants, its refusals and what the checks found about it, the most conspicuous first.
-- column agent_id | The agent.
-- column first_time | First seen.
-- column last_time | Last seen.
-- column calls | Tool calls.
-- column grants | Grants given to it.
-- column refusals | Times that it was refused.
-- column violations | What the checks found.
-- column seq | The first record that names it.
SELECT e.agent_id, min(e.event_time) AS first_time, max(e.event_time) AS last_time,
       sum(CASE WHEN e.kind = 'tool_call' THEN 1 ELSE 0 END) AS calls,
       sum(CASE WHEN e.kind IN ('grant_issued', 'grant_derived') THEN 1 ELSE 0 END) AS grants,
       sum(CASE WHEN e.kind = 'grant_denied' OR e.kind = 'executor_decision' AND e.decision = 'deny' THEN 1 ELSE 0 END) AS refusals,
       coalesce(max(v.violations), 0) AS violations, min(e.seq) AS seq
FROM events e
LEFT JOIN (
    SELECT e.agent_id, count(*) AS violations FROM violations v JOIN events e ON e.seq = v.seq GROUP BY e.agent_id
) v ON v.agent_id = e.agent_id
WHERE e.agent_id IS NOT NULL
GROUP BY e.agent_id
ORDER BY violations DESC, calls DESC, e.agent_id
