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
    WHERE e.kind = 'tool_call'
      AND (json_as_text(e.attributes, 'authz.tool.schema_digest') IS NOT NULL OR json_as_text(e.attributes, 'gen_ai.tool.schema.digest') IS NOT NULL)
)
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the schema of tool ', c.tool, ' changed from ', min(b.digest), ' to ', c.digest) AS detail,
       make_array(min(b.seq), c.seq) AS evidence
FROM called c
LEFT ANTI JOIN called f ON f.tool = c.tool AND f.service = c.service AND f.digest = c.digest AND f.seq < c.seq AND same_tenant(f.tenant, c.tenant)
JOIN called b ON b.tool = c.tool AND b.service = c.service AND b.digest <> c.digest AND b.seq < c.seq AND same_tenant(b.tenant, c.tenant)
GROUP BY c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id, c.tool, c.digest
