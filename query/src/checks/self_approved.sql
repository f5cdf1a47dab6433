-- Who approved is who asked, the agent itself, or its owner.
-- severity: high
-- tags: OWASP ASI09, OWASP ASI03
-- on: approval
-- fires: at once
-- needs: authz.approval.by
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat(json_as_text(c.attributes, 'authz.approval.by'), ' approved what is his own') AS detail,
       array_remove_all(make_array(coalesce(g.issued_seq, c.seq), c.seq), NULL) AS evidence
FROM events c
LEFT JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant)
WHERE c.kind = 'approval' AND c.decision = 'approved'
  AND (json_as_text(c.attributes, 'authz.approval.by') = g.initiator_id OR json_as_text(c.attributes, 'authz.approval.by') = g.subject OR json_as_text(c.attributes, 'authz.approval.by') = c.initiator_id OR json_as_text(c.attributes, 'authz.approval.by') = c.agent_id
       OR json_as_text(c.attributes, 'authz.approval.by') = json_as_text(c.attributes, 'authz.agent.owner'))
