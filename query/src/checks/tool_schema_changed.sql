-- A tool's schema is another than before (a rug pull). Told once for each new schema.
-- severity: high
-- tags: OWASP ASI04, OWASP ASI02, ATLAS AML.T0109, ATLAS AML.T0110
-- on: tool_call
-- fires: at once
-- needs: authz.tool.schema_digest
WITH called AS (
    SELECT e.seq, e.trace_id, e.span_id, e.grant_id, e.agent_id, e.tenant, e.tool, coalesce(e.service, '') AS service,
           coalesce(json_as_text(e.attributes, 'authz.tool.schema_digest'), json_as_text(e.attributes, 'gen_ai.tool.schema.digest')) AS digest
    FROM events e
    WHERE e.kind = 'tool_call' AND e.tool IS NOT NULL
      AND (json_as_text(e.attributes, 'authz.tool.schema_digest') IS NOT NULL OR json_as_text(e.attributes, 'gen_ai.tool.schema.digest') IS NOT NULL)
), points AS (
    -- Each as one that others meet, and as one that meets those before it.
    SELECT c.*, unnest(scopes_of(c.tenant)) AS scope, 1 AS met FROM called c
    UNION ALL
    SELECT c.*, unnest(scopes_met(c.tenant)) AS scope, 0 AS met FROM called c
), seen AS (
    SELECT p.*, sum(p.met) OVER own AS known,
           last_value(CASE WHEN p.met = 1 THEN p.seq END) IGNORE NULLS OVER so_far AS before_seq,
           last_value(CASE WHEN p.met = 1 THEN p.digest END) IGNORE NULLS OVER so_far AS before_digest
    FROM points p
    WINDOW own AS (PARTITION BY p.tool, p.service, p.digest, p.scope ORDER BY p.seq, p.met ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW),
           so_far AS (PARTITION BY p.tool, p.service, p.scope ORDER BY p.seq, p.met ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the schema of tool ', c.tool, ' changed from ', last_value(c.before_digest ORDER BY c.before_seq NULLS FIRST), ' to ', c.digest) AS detail,
       make_array(max(c.before_seq), c.seq) AS evidence
FROM seen c
WHERE c.met = 0
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.digest
HAVING sum(c.known) = 0 AND max(c.before_seq) < c.seq
