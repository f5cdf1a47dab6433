-- A grant's chain does not lead to a root that was given: a parent was never received, was refused or breaks the model's rules, or it is a cycle.
-- severity: high
-- tags: OWASP ASI03, OWASP ASI07
-- on: grant_issued, grant_derived
-- fires: after grace
SELECT CASE g.lineage WHEN 'missing' THEN 'probable' ELSE 'proven' END AS verdict, g.issued_seq AS seq, e.trace_id, e.span_id, g.grant_id, g.subject AS agent_id,
       CASE g.lineage WHEN 'cycle' THEN concat('the chain of grant ', g.grant_id, ' is a cycle')
            WHEN 'refused' THEN concat('grant ', g.grant_id, ' comes from one that was refused (its parent is ', g.parent_grant_id, ')')
            WHEN 'invalid' THEN concat('grant ', g.grant_id, ' comes from one that breaks the model''s rules (its parent is ', g.parent_grant_id, ')')
            ELSE concat('grant ', g.grant_id, ' does not lead to a root: a grant above it (its parent is ',
                        g.parent_grant_id, ') was never received') END AS detail,
       make_array(g.issued_seq) AS evidence
FROM grants g
JOIN events e ON e.seq = g.issued_seq
WHERE g.state <> 'denied' AND g.lineage <> 'ok'
