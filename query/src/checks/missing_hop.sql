-- A call reached a service that requires a proxy's decision, and there is none: a service that is named as such, or one whose calls by the same agent had one all but always before.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: tool_call
-- fires: after grace
-- setting services: [] | the services that are called through a proxy only
-- setting calls_min: 20 | how many earlier calls by the agent must have had a decision to make it the rule
-- setting share_min: 0.95 | how many of those calls it must have been
-- setting window_seconds: 3600 | how far back it looks
WITH decisions AS (
    SELECT p.seq, p.trace_id, p.agent_id, p.service, p.event_time
    FROM events p
    WHERE p.kind IN ('policy_evaluation', 'executor_decision') AND p.decision IN ('allow', 'approved')
      AND coalesce(cardinality(p.invalid_reasons), 0) = 0
), undecided AS (
    SELECT c.*
    FROM tool_calls c
    LEFT ANTI JOIN decisions p ON p.trace_id = c.trace_id AND p.service <> c.service AND p.event_time <= c.event_time
), decided AS (
    SELECT b.agent_id, b.service
    FROM tool_calls b
    LEFT SEMI JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND p.service <> b.service AND p.event_time <= b.event_time
), unusual AS (
    -- Where no call had a decision, which is most places, none is missed: the calls need not be compared.
    SELECT c.*
    FROM undecided c
    LEFT SEMI JOIN decided d ON d.agent_id = c.agent_id AND d.service = c.service
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('service ', c.service, ' was called, and no decision about it is in the trace') AS detail,
       make_array(c.seq) AS evidence
FROM undecided c
WHERE array_has(setting_list('services', c.workspace), c.service)
UNION ALL
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('service ', c.service, ' was called, and no decision about it is in the trace; of ', CAST(count(DISTINCT b.seq) AS VARCHAR),
              ' earlier calls ', CAST(count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END) AS VARCHAR), ' had one') AS detail,
       make_array(c.seq) AS evidence
FROM unusual c
JOIN tool_calls b ON b.agent_id = c.agent_id AND b.service = c.service AND b.trace_id <> c.trace_id AND b.event_time < c.event_time
                 AND seconds_between(b.event_time, c.event_time) <= setting('window_seconds', c.workspace)
LEFT JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND p.service <> b.service AND p.event_time <= b.event_time
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.service, c.workspace
HAVING count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END) >= setting('calls_min', c.workspace)
   AND count(DISTINCT CASE WHEN p.seq IS NULL THEN NULL ELSE b.seq END) >= setting('share_min', c.workspace) * count(DISTINCT b.seq)
