-- After untrusted content was read, something was written, and no person approved it in between.
-- severity: medium
-- tags: OWASP ASI01, ATLAS AML.T0051.001
-- on: tool_call
-- fires: after grace
-- needs: authz.context.trust, authz.effect
WITH read AS (
    SELECT u.seq, u.trace_id, u.at, lag(u.seq) OVER (PARTITION BY u.trace_id ORDER BY u.at, u.seq) AS before_seq
    FROM (
        SELECT DISTINCT e.seq, e.trace_id, CAST(e.event_time AS BIGINT) AS at
        FROM events e
        WHERE json_as_text(e.attributes, 'authz.context.trust') = 'untrusted' AND e.trace_id IS NOT NULL
    ) u
), wrote AS (
    SELECT c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, CAST(c.event_time AS BIGINT) AS at
    FROM events c
    LEFT SEMI JOIN read u ON u.trace_id = c.trace_id
    WHERE c.kind = 'tool_call' AND json_as_text(c.attributes, 'authz.effect') = 'write'
), points AS (
    -- At one time: what was read, then approvals, then what was written.
    SELECT u.trace_id, u.at, 0 AS place, u.seq, u.seq AS read_seq, u.before_seq FROM read u
    UNION ALL
    SELECT a.trace_id, CAST(a.event_time AS BIGINT) AS at, 1 AS place, a.seq, CAST(NULL AS BIGINT UNSIGNED) AS read_seq, CAST(NULL AS BIGINT UNSIGNED) AS before_seq
    FROM events a
    WHERE a.kind = 'approval' AND a.decision = 'approved' AND coalesce(cardinality(a.invalid_reasons), 0) = 0
    UNION ALL
    SELECT c.trace_id, c.at, 2 AS place, c.seq, CAST(NULL AS BIGINT UNSIGNED) AS read_seq, CAST(NULL AS BIGINT UNSIGNED) AS before_seq FROM wrote c
), counted AS (
    SELECT p.*, count(p.read_seq) OVER so_far AS reads, last_value(p.read_seq) IGNORE NULLS OVER so_far AS last_seq,
           last_value(p.before_seq) IGNORE NULLS OVER so_far AS last_before_seq
    FROM points p
    WINDOW so_far AS (PARTITION BY p.trace_id ORDER BY p.at, p.place, p.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
), seen AS (
    SELECT k.*, max(CASE WHEN k.place = 1 THEN k.reads END) OVER so_far AS approved_reads,
           max(CASE WHEN k.place = 1 THEN k.at END) OVER so_far AS approved_at
    FROM counted k
    WINDOW so_far AS (PARTITION BY k.trace_id ORDER BY k.at, k.place, k.seq ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
SELECT 'probable' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('after untrusted content was read, tool ', c.tool, ' wrote') AS detail,
       make_array(min(CASE WHEN s.last_seq = c.seq THEN s.last_before_seq ELSE s.last_seq END), c.seq) AS evidence
FROM wrote c
JOIN seen s ON s.seq = c.seq AND s.place = 2
LEFT JOIN read o ON o.seq = c.seq
-- What was read since the last approval, beside what the step brought itself.
WHERE s.reads - coalesce(s.approved_reads, 0)
      - CASE WHEN o.seq IS NOT NULL AND (s.approved_at IS NULL OR s.approved_at < s.at) THEN 1 ELSE 0 END > 0
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool
