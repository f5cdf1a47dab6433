-- A service that decided about an agent's calls regularly has fallen silent, while the agent acts on. Told once.
-- severity: high
-- tags: OWASP ASI07, OWASP ASI03
-- on: tool_call
-- fires: after grace
-- setting silence_seconds: 600 | how long it must have been silent
-- setting reports_min: 5 | how many decisions make it regular
WITH decided AS (
    -- A service that speaks for several tenants is a source for each, and another where it names none.
    SELECT r.seq, r.agent_id, coalesce(r.service, '') AS source, r.workspace, r.tenant, CAST(r.event_time AS BIGINT) AS at,
           CAST(least(setting('silence_seconds', r.workspace), 4e9) * 1e9 AS BIGINT) AS silence
    FROM events r
    WHERE r.kind IN ('executor_decision', 'policy_evaluation') AND r.agent_id IS NOT NULL
), reports AS (
    SELECT d.*, count(*) OVER so_far AS reports, d.seq AS last_seq,
           lead(d.at) OVER (PARTITION BY d.agent_id, d.source, d.tenant ORDER BY d.at, d.seq) AS next
    FROM decided d
    WINDOW so_far AS (PARTITION BY d.agent_id, d.source, d.tenant ORDER BY d.at, d.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), silences AS (
    SELECT r.agent_id, r.source, r.tenant, r.last_seq, r.at AS last, r.next,
           CASE WHEN r.at > 9223372036854775807 - r.silence THEN 9223372036854775807 ELSE r.at + r.silence END AS at
    FROM reports r
    WHERE r.reports >= setting('reports_min', r.workspace) AND (r.next IS NULL OR r.next - r.at > r.silence)
), calls AS (
    SELECT c.agent_id, c.tenant, CAST(c.event_time AS BIGINT) AS at
    FROM tool_calls c
    LEFT SEMI JOIN silences s ON s.agent_id = c.agent_id
), points AS (
    -- A silence beside the calls of each tenant that it meets.
    SELECT s.agent_id, c.tenant, s.source, s.last_seq, s.last, s.next, s.at, 0 AS call, CAST(NULL AS BIGINT) AS call_at
    FROM silences s
    JOIN (SELECT DISTINCT c.agent_id, c.tenant FROM calls c) c ON c.agent_id = s.agent_id AND same_tenant(c.tenant, s.tenant)
    UNION ALL
    SELECT c.agent_id, c.tenant, '' AS source, 0 AS last_seq, 0 AS last, 0 AS next, c.at, 1 AS call, c.at AS call_at FROM calls c
), followed AS (
    -- The first call after each silence became long, found by going back through time once.
    SELECT p.*, min(p.call_at) OVER (PARTITION BY p.agent_id, p.tenant ORDER BY p.at DESC, p.call ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS first_call
    FROM points p
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(min(f.source), ' decided about calls of ', c.agent_id, ' until ', CAST(to_timestamp_nanos(first_value(f.last ORDER BY f.source, f.last)) AS VARCHAR), ' and is silent since') AS detail,
       make_array(first_value(f.last_seq ORDER BY f.source, f.last), c.seq) AS evidence
FROM followed f
JOIN tool_calls c ON c.agent_id = f.agent_id AND coalesce('=' || c.tenant, '') = coalesce('=' || f.tenant, '') AND CAST(c.event_time AS BIGINT) = f.first_call
WHERE f.call = 0 AND (f.next IS NULL OR f.first_call < f.next)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id
