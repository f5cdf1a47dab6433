-- A grant was shown to an executor that it is not meant for.
-- severity: medium
-- tags: OWASP ASI03, ATLAS AML.T0053
-- on: executor_decision
-- fires: at once
-- needs: authz.grant.audience
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('grant ', g.grant_id, ' is for ', g.audience, ' and was used at ', c.service) AS detail,
       make_array(g.issued_seq, c.seq) AS evidence
FROM events c
JOIN grants g ON g.grant_id = c.grant_id AND same_tenant(g.tenant, c.tenant) AND g.state <> 'denied'
WHERE c.kind = 'executor_decision' AND c.service <> g.audience
