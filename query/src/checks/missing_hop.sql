-- A call reached a service that requires a proxy's decision, and there is none: a service that is named as such, or one whose calls by the same agent had one all but always before.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07, ATLAS AML.T0053
-- on: tool_call
-- fires: after grace
-- setting services: [] | the services that are called through a proxy only
-- setting calls_min: 20 | how many earlier calls by the agent must have had a decision to make it the rule
-- setting share_min: 0.95 | how many of those calls it must have been
-- setting window_seconds: 3600 | how far back it looks
WITH decisions AS (
    -- The first of each service, agent, trace and tenant: a later one decides nothing that it does not.
    SELECT p.trace_id, p.agent_id, p.service, p.tenant, min(p.event_time) AS event_time
    FROM events p
    WHERE p.kind IN ('policy_evaluation', 'executor_decision') AND p.decision IN ('allow', 'approved')
      AND coalesce(cardinality(p.invalid_reasons), 0) = 0
    GROUP BY p.trace_id, p.agent_id, p.service, p.tenant
), undecided AS (
    SELECT c.*
    FROM tool_calls c
    LEFT ANTI JOIN decisions p ON p.trace_id = c.trace_id AND same_tenant(p.tenant, c.tenant)
                              AND p.service <> c.service AND p.event_time <= c.event_time
), decided AS (
    -- By its own tenant or by none; for those that name no tenant, by any.
    SELECT b.seq, b.agent_id, b.service, b.tenant, CASE WHEN o.seq IS NULL THEN 0 ELSE 1 END AS by_own
    FROM (
        SELECT b.seq, b.agent_id, b.service, b.tenant
        FROM tool_calls b
        LEFT SEMI JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND same_tenant(p.tenant, b.tenant)
                                  AND p.service <> b.service AND p.event_time <= b.event_time
    ) b
    LEFT JOIN (
        SELECT DISTINCT b.seq
        FROM tool_calls b
        LEFT SEMI JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND (p.tenant IS NULL OR p.tenant = b.tenant)
                                  AND p.service <> b.service AND p.event_time <= b.event_time
    ) o ON o.seq = b.seq
), decided_for AS (
    -- A call that names no tenant had a decision for the tenants that decided of it.
    SELECT DISTINCT b.seq, p.tenant
    FROM tool_calls b
    JOIN decided d ON d.seq = b.seq AND d.by_own = 0
    JOIN decisions p ON p.trace_id = b.trace_id AND p.agent_id = b.agent_id AND p.service <> b.service AND p.event_time <= b.event_time
    WHERE b.tenant IS NULL AND p.tenant IS NOT NULL
), unusual AS (
    -- Where no call had a decision, which is most places, none is missed: the calls need not be compared.
    SELECT c.*
    FROM undecided c
    LEFT SEMI JOIN decided d ON d.agent_id = c.agent_id AND d.service = c.service
), calls AS (
    SELECT b.*
    FROM tool_calls b
    LEFT SEMI JOIN unusual c ON c.agent_id = b.agent_id AND c.service = b.service
), points AS (
    -- The calls in the order of time; among them, before those of its own time, where each unusual call was made and where
    -- its window begins. What lies between the two is counted by running sums: no call is compared with another.
    SELECT b.agent_id, b.service, b.trace_id, unnest(scopes_of(b.tenant)) AS scope, CAST(b.event_time AS BIGINT) AS at, 1 AS calls,
           coalesce(d.by_own, 0) AS had, 1 AS place, 0 AS sign,
           b.seq, b.span_id, b.grant_id, b.workspace
    FROM calls b
    LEFT JOIN decided d ON d.seq = b.seq
    WHERE b.trace_id IS NOT NULL
    UNION ALL
    SELECT b.agent_id, b.service, b.trace_id, concat('=', d.tenant) AS scope, CAST(b.event_time AS BIGINT) AS at, 0 AS calls, 1 AS had, 1 AS place, 0 AS sign,
           b.seq, b.span_id, b.grant_id, b.workspace
    FROM calls b
    JOIN decided_for d ON d.seq = b.seq
    WHERE b.trace_id IS NOT NULL
    UNION ALL
    -- Others that name no tenant know what any of them decided.
    SELECT b.agent_id, b.service, b.trace_id, '*' AS scope, CAST(b.event_time AS BIGINT) AS at, 0 AS calls, 1 AS had, 1 AS place, 0 AS sign,
           b.seq, b.span_id, b.grant_id, b.workspace
    FROM calls b
    JOIN decided d ON d.seq = b.seq
    WHERE b.trace_id IS NOT NULL AND b.tenant IS NULL AND d.by_own = 0
    UNION ALL
    SELECT c.agent_id, c.service, c.trace_id, unnest(scopes_met(c.tenant)) AS scope,
           CAST(c.event_time AS BIGINT) - CASE WHEN e.sign > 0 THEN 0 ELSE CAST(least(setting('window_seconds', c.workspace), 4e9) * 1e9 AS BIGINT) END,
           0 AS calls, 0 AS had, 0 AS place, e.sign,
           c.seq, c.span_id, c.grant_id, c.workspace
    FROM unusual c
    CROSS JOIN (VALUES (1), (-1)) AS e (sign)
    WHERE c.trace_id IS NOT NULL
), counted AS (
    -- Calls of the same trace are no habit. What is counted in the scopes of one call is added up in the end.
    SELECT n.*,
           n.sign * (sum(n.calls) OVER everywhere - sum(n.calls) OVER in_trace) AS calls_before,
           n.sign * (sum(n.had) OVER everywhere - sum(n.had) OVER in_trace) AS had_before
    FROM points n
    WINDOW everywhere AS (PARTITION BY n.agent_id, n.service, n.scope ORDER BY n.at, n.place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
           in_trace AS (PARTITION BY n.agent_id, n.service, n.scope, n.trace_id ORDER BY n.at, n.place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('service ', c.service, ' was called, and no decision about it is in the trace') AS detail,
       make_array(c.seq) AS evidence
FROM undecided c
WHERE array_has(setting_list('services', c.workspace), c.service)
UNION ALL
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('service ', c.service, ' was called, and no decision about it is in the trace; of ', CAST(sum(c.calls_before) AS VARCHAR),
              ' earlier calls ', CAST(sum(c.had_before) AS VARCHAR), ' had one') AS detail,
       make_array(c.seq) AS evidence
FROM counted c
WHERE c.sign <> 0
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.service, c.workspace
HAVING sum(c.calls_before) > 0
   AND sum(c.had_before) >= setting('calls_min', c.workspace)
   AND sum(c.had_before) >= setting('share_min', c.workspace) * sum(c.calls_before)
