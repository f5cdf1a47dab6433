-- A skill was used that is not certified.
-- severity: medium
-- tags: OWASP ASI04, ATLAS AML.T0010.005
-- on: skill_invocation
-- fires: at once
-- needs: skill.certification.state
SELECT 'proven' AS verdict, c.seq, c.trace_id, c.span_id, c.grant_id, c.agent_id,
       concat('skill ', c.skill_id, ' is ', json_as_text(c.attributes, 'skill.certification.state')) AS detail,
       make_array(c.seq) AS evidence
FROM events c
WHERE c.kind = 'skill_invocation' AND json_as_text(c.attributes, 'skill.certification.state') <> 'certified'
