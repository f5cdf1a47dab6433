-- A service that decided about an agent's calls regularly has fallen silent, while the agent acts on. Told once.
-- severity: high
-- tags: OWASP ASI07, OWASP ASI03
-- on: tool_call
-- fires: after grace
-- setting silence_seconds: 600 | how long it must have been silent
-- setting reports_min: 5 | how many decisions make it regular
WITH reports AS (
    SELECT c.seq, r.service AS source, r.tenant, count(*) AS reports, max(r.event_time) AS last_time, max(r.seq) AS last_seq
    FROM tool_calls c
    JOIN events r ON r.agent_id = c.agent_id AND r.kind IN ('executor_decision', 'policy_evaluation')
                 AND r.event_time <= c.event_time AND same_tenant(r.tenant, c.tenant)
    GROUP BY c.seq, r.service, r.tenant
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(min(w.source), ' decided about calls of ', c.agent_id, ' until ', CAST(min(w.last_time) AS VARCHAR), ' and is silent since') AS detail,
       make_array(min(w.last_seq), c.seq) AS evidence
FROM tool_calls c
JOIN reports w ON w.seq = c.seq
LEFT ANTI JOIN tool_calls d ON d.agent_id = c.agent_id AND d.event_time < c.event_time AND (d.tenant IS NOT DISTINCT FROM c.tenant)
    AND seconds_between(w.last_time, d.event_time) > setting('silence_seconds', c.workspace)
WHERE w.reports >= setting('reports_min', c.workspace)
  AND seconds_between(w.last_time, c.event_time) > setting('silence_seconds', c.workspace)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id
