-- Data was touched that is classified higher than the grant allows.
-- severity: high
-- tags: OWASP ASI03, ATLAS AML.T0086
-- on: tool_call, context_retrieval
-- fires: at once
-- needs: data.classification, authz.grant.clearance
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('the data is ', c.classification, ', the grant allows ', json_as_text(i.attributes, 'authz.grant.clearance')) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM events c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
JOIN events i ON i.seq = g.issued_seq
WHERE c.kind IN ('tool_call', 'context_retrieval')
  AND CASE c.classification WHEN 'public' THEN 0 WHEN 'internal' THEN 1 WHEN 'confidential' THEN 2 WHEN 'restricted' THEN 3 WHEN 'secret' THEN 4 END
    > CASE json_as_text(i.attributes, 'authz.grant.clearance') WHEN 'public' THEN 0 WHEN 'internal' THEN 1 WHEN 'confidential' THEN 2 WHEN 'restricted' THEN 3 WHEN 'secret' THEN 4 END
