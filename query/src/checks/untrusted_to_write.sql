-- After untrusted content was read, something was written, and no person approved it in between.
-- severity: medium
-- tags: OWASP ASI01, ATLAS AML.T0051.001
-- on: tool_call
-- fires: after grace
-- needs: authz.context.trust, authz.effect
WITH read AS (
    SELECT u.*, lag(u.seq) OVER own AS before_seq, lag(u.at) OVER own AS before_at
    FROM (
        SELECT e.seq, e.trace_id, e.at, unnest(scopes_of(e.tenant)) AS scope
        FROM (
            SELECT DISTINCT e.seq, e.trace_id, e.tenant, CAST(e.event_time AS BIGINT) AS at
            FROM events e
            WHERE json_as_text(e.attributes, 'authz.context.trust') = 'untrusted' AND e.trace_id IS NOT NULL
        ) e
    ) u
    WINDOW own AS (PARTITION BY u.trace_id, u.scope ORDER BY u.at, u.seq)
), wrote AS (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.tenant, CAST(c.event_time AS BIGINT) AS at
    FROM events c
    LEFT SEMI JOIN read u ON u.trace_id = c.trace_id
    WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'write'
), points AS (
    -- At one time: what was read, then approvals, then what was written.
    SELECT u.trace_id, u.scope, u.at, 0 AS place, u.seq, u.seq AS read_seq, u.before_seq, u.before_at, CAST(NULL AS BIGINT) AS approved_at
    FROM read u
    UNION ALL
    SELECT a.trace_id, unnest(scopes_of(a.tenant)) AS scope, CAST(a.event_time AS BIGINT) AS at, 1 AS place, a.seq,
           CAST(NULL AS BIGINT UNSIGNED) AS read_seq, CAST(NULL AS BIGINT UNSIGNED) AS before_seq, CAST(NULL AS BIGINT) AS before_at,
           CAST(a.event_time AS BIGINT) AS approved_at
    FROM events a
    WHERE a.kind = 'approval' AND a.decision = 'approved' AND coalesce(cardinality(a.invalid_reasons), 0) = 0
    UNION ALL
    SELECT c.trace_id, unnest(scopes_met(c.tenant)) AS scope, c.at, 2 AS place, c.seq,
           CAST(NULL AS BIGINT UNSIGNED) AS read_seq, CAST(NULL AS BIGINT UNSIGNED) AS before_seq, CAST(NULL AS BIGINT) AS before_at,
           CAST(NULL AS BIGINT) AS approved_at
    FROM wrote c
), seen AS (
    SELECT p.seq, p.at, p.place, last_value(p.read_seq) IGNORE NULLS OVER so_far AS last_seq,
           last_value(CASE WHEN p.place = 0 THEN p.at END) IGNORE NULLS OVER so_far AS last_at,
           last_value(p.before_seq) IGNORE NULLS OVER so_far AS before_seq, last_value(p.before_at) IGNORE NULLS OVER so_far AS before_at,
           max(p.approved_at) OVER so_far AS approved_at
    FROM points p
    WINDOW so_far AS (PARTITION BY p.trace_id, p.scope ORDER BY p.at, p.place, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), latest AS (
    -- What was read last, but for what the step brought itself.
    SELECT s.seq, s.at, s.approved_at,
           CASE WHEN s.last_seq = s.seq THEN s.before_seq ELSE s.last_seq END AS read_seq,
           CASE WHEN s.last_seq = s.seq THEN s.before_at ELSE s.last_at END AS read_at
    FROM seen s
    WHERE s.place = 2
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after untrusted content was read, tool ', c.tool, ' wrote') AS detail,
       make_array(last_value(l.read_seq ORDER BY l.read_at NULLS FIRST, l.read_seq), c.seq) AS evidence
FROM wrote c
JOIN latest l ON l.seq = c.seq AND l.at = c.at
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.at
HAVING max(l.read_at) IS NOT NULL AND (max(l.approved_at) IS NULL OR max(l.read_at) > max(l.approved_at))
