-- An agent was refused on many distinct resources in a short time. Told once for each further resource.
-- severity: high
-- tags: OWASP ASI10, ATLAS AML.T0053
-- on: grant_denied, executor_decision
-- fires: at once
-- setting resources_min: 5 | how many resources are many
-- setting window_seconds: 300 | how far back it looks
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('agent ', c.agent_id, ' was refused on ', CAST(count(DISTINCT b.resource) AS VARCHAR), ' resources') AS detail,
       array_agg(b.seq) AS evidence
FROM events c
JOIN events b ON b.agent_id = c.agent_id AND b.kind IN ('grant_denied', 'executor_decision') AND b.decision = 'deny'
             AND b.seq <= c.seq AND abs(seconds_between(b.event_time, c.event_time)) <= setting('window_seconds', c.workspace)
LEFT ANTI JOIN events d ON d.agent_id = c.agent_id AND d.kind IN ('grant_denied', 'executor_decision') AND d.decision = 'deny'
                       AND d.resource = c.resource AND d.seq < c.seq
WHERE c.kind IN ('grant_denied', 'executor_decision') AND c.decision = 'deny' AND c.resource IS NOT NULL
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.workspace
HAVING count(DISTINCT b.resource) >= setting('resources_min', c.workspace)
