-- An agent was refused on many distinct resources in a short time. Told when they are many, and again each time that they are twice as many.
-- severity: high
-- tags: OWASP ASI10, ATLAS AML.T0053
-- on: grant_denied, executor_decision
-- fires: at once
-- setting resources_min: 5 | how many resources are many
-- setting window_seconds: 300 | how far back it looks
WITH refusals AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, e.workspace, e.tenant, e.resource, CAST(e.event_time AS BIGINT) AS at,
           CAST(least(setting('window_seconds', e.workspace), 4e9) * 1e9 AS BIGINT) AS width
    FROM events e
    WHERE e.kind IN ('grant_denied', 'executor_decision') AND e.decision = 'deny' AND e.agent_id IS NOT NULL AND e.resource IS NOT NULL
), counting AS (
    -- Each refusal counts until the window has passed, or the same resource is refused again.
    SELECT r.*,
           least(CASE WHEN r.at > 9223372036854775806 - r.width THEN 9223372036854775807 ELSE r.at + r.width + 1 END,
                 coalesce(lead(r.at) OVER again, 9223372036854775807)) AS until,
           row_number() OVER (PARTITION BY r.agent_id, r.tenant, r.resource ORDER BY r.seq) AS nth,
           row_number() OVER (PARTITION BY r.agent_id, r.tenant ORDER BY r.at, r.seq) AS place
    FROM refusals r
    WINDOW again AS (PARTITION BY r.agent_id, r.tenant, r.resource ORDER BY r.at, r.seq)
), points AS (
    SELECT s.*, 1 AS sign FROM counting s
    UNION ALL
    SELECT s.seq, s.trace_id, s.span_id, s.grant_id, s.agent_id, s.workspace, s.tenant, s.resource, s.until AS at, s.width, s.until, s.nth, s.place, -1 AS sign FROM counting s
), counted AS (
    -- How many count at each, for each tenant: by running sums, for who floods us with refusals must not make us compare each with each.
    SELECT p.*,
           sum(p.sign) OVER (PARTITION BY p.agent_id, p.tenant ORDER BY p.at, p.sign, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS resources
    FROM points p
), firsts AS (
    SELECT c.*, floor(log2(c.resources / setting('resources_min', c.workspace))) AS level
    FROM counted c
    WHERE c.sign > 0 AND c.nth = 1
), levels AS (
    SELECT f.*, lag(f.level) OVER (PARTITION BY f.agent_id, f.tenant ORDER BY f.at, f.seq) AS level_before FROM firsts f
), told AS (
    SELECT l.* FROM levels l WHERE l.level >= 0 AND l.level > coalesce(l.level_before, -1)
), cited AS (
    SELECT t.seq, array_agg(b.seq) AS evidence
    FROM told t
    JOIN counting b ON b.agent_id = t.agent_id AND coalesce('=' || b.tenant, '') = coalesce('=' || t.tenant, '') AND b.place <= t.place AND b.at >= t.at - t.width
    GROUP BY t.seq
)
SELECT 'probable' AS verdict, t.seq, t.trace_id, t.span_id, t.grant_id, t.agent_id,
       concat('agent ', t.agent_id, ' was refused on ', CAST(t.resources AS VARCHAR), ' resources') AS detail,
       c.evidence
FROM told t
JOIN cited c ON c.seq = t.seq
